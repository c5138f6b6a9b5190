/* mo_run: the phases of a run. After each phase all ranks agree whether it succeeded everywhere. */
#include "moe_outliers/pipeline.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/devices.h"
#include "moe_outliers/machine.h"
#include "moe_outliers/phases.h"
#include "moe_outliers/threads.h"
#include "pipeline/ablation.h"
#include "pipeline/engine.h"
#include "pipeline/input_network.h"
#include "pipeline/model_files.h"
#include "pipeline/prepare.h"
#include "pipeline/resume.h"
#include "pipeline/run_plan.h"
#include "pipeline/signals.h"

typedef struct {
  const mo_config *config;
  mo_comm *comm;
  const mo_run_options *options;
  int cores; /* this rank's */
  double started;
  mo_input input;
  mo_tokens tokens;
  const char *dataset; /* that the tokens are of, NULL: not said; the preparation's */
  const mo_backend_table *table;
  int device;
  mo_backend *backend;
  mo_plan plan;
  mo_resume resume;
  mo_accumulator *accumulators[MO_MOST_THRESHOLDS]; /* by threshold */
  mo_engine *engine;
  mo_results *results;
  mo_analysis analyses[MO_MOST_THRESHOLDS];
  mo_ablation ablation;
  mo_timing_row *timing;
  int64_t n_timing;
  mo_engine_clock clock;
  mo_stage_clock *stages;
  char *model_name, *config_text;
} run_state;

static bool ablates(const run_state *run) { return run->config->analysis.ablate == MO_ABLATE_FEATURES; }

/* --- phase 1: the backend --- */

/* Threads that start later inherit what this one may use. */
static void use_cores(run_state *run) {
  int ranks = mo_comm_local_size(run->comm);
  if (mo_machine_widen(ranks) == MO_BINDING_REFUSED)
    fprintf(stderr,
            "moe-outliers: note: rank %d is bound to fewer cores than its share and may not change that: start it with "
            "mpirun --bind-to none\n",
            mo_comm_rank(run->comm));
  mo_machine machine;
  mo_machine_read(&machine, "");
  run->cores = mo_machine_share(&machine, ranks);
}

static mo_status open_backend(run_state *run) {
  mo_backend_options options = {.precision = run->config->engine.precision,
                                .threads = mo_run_threads(run->config, run->cores),
                                .device = run->device};
  return run->table->open(&run->backend, &options);
}

/* --- phase 2: the input and the plan, the same on every rank, nothing written --- */

static mo_status name_model(run_state *run) {
  const mo_config *config = run->config;
  const char *name = config->model.name;
  bool remote = run->input.files.network != NULL;
  char *path = remote ? mo_network_name(config->model.path) : mo_strdup(config->model.path);
  if (!path) return MO_FAILED;
  size_t length = strlen(path);
  while (length > 1 && path[length - 1] == '/') path[--length] = '\0';
  const char *slash = strrchr(path, '/');
  if (!name || !name[0]) name = slash && slash[1] && !remote ? slash + 1 : path;
  bool random = run->input.files.synthetic; /* nobody shall take its tables for the model's */
  size_t size = strlen(name) + strlen(path) + sizeof " (random weights, )";
  run->model_name = mo_alloc(size, 1);
  if (run->model_name && random) snprintf(run->model_name, size, "%s (random weights, %s)", name, path);
  if (run->model_name && !random) snprintf(run->model_name, size, "%s", name);
  free(path);
  run->config_text = mo_input_config_text(&run->input, config);
  return run->model_name && run->config_text ? MO_OK : MO_FAILED;
}

static mo_status open_input(run_state *run, mo_preparation *preparation) {
  const mo_config *config = run->config;
  MO_TRY(mo_preparation_input(preparation, run->comm, &run->input));
  run->dataset = mo_preparation_dataset(preparation);
  if (mo_comm_rank(run->comm) == 0) MO_TRY(mo_results_check_path(config->output.path, config->output.overwrite));
  MO_TRY(name_model(run));
  return mo_model_files_tokens(&run->tokens, config, run->input.spec.vocab);
}

static mo_run_plan_job plan_job(const run_state *run) {
  return (mo_run_plan_job){.comm = run->comm,
                           .config = run->config,
                           .spec = &run->input.spec,
                           .catalogue = &run->input.catalogue,
                           .tokens = &run->tokens,
                           .backend = run->backend,
                           .threads = mo_run_threads(run->config, run->cores),
                           .readers = mo_run_readers(run->config, run->cores)};
}

static mo_status make_plan(run_state *run) {
  mo_run_plan_job job = plan_job(run);
  return mo_run_plan(&run->plan, &job);
}

/* --- phase 3: what an interrupted run left, accumulator, the partial result file --- */

static mo_status open_resume(run_state *run) {
  mo_resume_job job = {.comm = run->comm,
                       .config = run->config,
                       .config_json = run->input.files.config_json,
                       .synthetic = run->input.files.synthetic,
                       .network = run->input.files.network,
                       .spec = &run->input.spec,
                       .checkpoint = run->input.checkpoint,
                       .tokens = &run->tokens,
                       .backend = run->backend,
                       .plan = &run->plan,
                       .fresh = run->options->fresh};
  return mo_resume_open(&run->resume, &job);
}

/* What is left to do, dealt anew over the ranks that there are now. */
static mo_status plan_the_rest(run_state *run) {
  mo_run_plan_job job = plan_job(run);
  mo_plan rest;
  bool all_done = mo_plan_first_start(&run->plan, run->resume.start) == run->plan.n_stages;
  if (run->resume.n_kept == 0 || all_done) return MO_OK;
  job.start = run->resume.start;
  MO_TRY(mo_run_plan(&rest, &job));
  mo_plan_free(&run->plan);
  run->plan = rest;
  return MO_OK;
}

static mo_status open_accumulators(run_state *run) {
  mo_analysis_shape shape = {
      .n_layers = run->input.spec.n_layers,
      .n_sequences = run->tokens.n_sequences,
      .length = run->tokens.length,
      .hidden = run->input.spec.hidden,
      .n_experts = run->input.spec.moe.experts,
      .criteria = {run->config->analysis.threshold, run->config->analysis.min_layer_fraction,
                   run->config->analysis.min_position_fraction, run->config->analysis.systematic_fraction},
      .bootstrap = {run->config->analysis.bootstrap, run->config->analysis.seed},
      .experts = run->config->analysis.experts && run->input.spec.moe.experts,
      .shared_expert = run->input.spec.moe.shared != MO_SHARED_NONE,
  };
  for (int64_t i = 0; i < run->config->analysis.n_thresholds; i++) {
    shape.criteria.threshold = run->config->analysis.thresholds[i];
    MO_TRY(mo_accumulator_new(&run->accumulators[i], &shape));
    shape.n_experts = 0; /* the first one counts for them */
    shape.experts = false;
  }
  run->timing = mo_alloc((size_t)run->plan.n_stages, sizeof *run->timing);
  run->stages = mo_alloc((size_t)run->plan.n_stages, sizeof *run->stages);
  return run->timing && run->stages ? MO_OK : MO_FAILED;
}

static mo_status create_results(run_state *run) {
  const mo_config *config = run->config;
  mo_results_header header = {
      .model_name = run->model_name,
      .architecture = run->input.spec.architecture,
      .precision = mo_precision_name(config->engine.precision),
      .device = run->table->name,
      .config = run->config_text,
      .n_layers = run->input.spec.n_layers,
      .hidden_size = run->input.spec.hidden,
      .n_experts = run->input.spec.moe.experts,
      .n_sequences = run->tokens.n_sequences,
      .sequence_length = run->tokens.length,
      .n_ranks = mo_comm_size(run->comm),
      .threshold = config->analysis.threshold,
      .min_layer_fraction = config->analysis.min_layer_fraction,
      .min_position_fraction = config->analysis.min_position_fraction,
      .systematic_fraction = config->analysis.systematic_fraction,
      .bootstrap = {config->analysis.bootstrap, config->analysis.seed},
      .experts_per_token = run->input.spec.moe.experts ? run->input.spec.moe.top_k : 0,
      .dataset = run->dataset,
  };
  mo_parameter_count parameters;
  int64_t n = config->output.all_activations ? run->input.spec.n_layers : config->output.n_activations;
  int64_t *layers = mo_alloc((size_t)n, sizeof *layers);
  mo_status status = layers ? mo_model_parameters(&run->input.spec, &parameters) : MO_FAILED;
  status = mo_comm_join(run->comm, status); /* creation is collective */
  if (status == MO_OK) {
    header.parameters = parameters.total;
    header.active_parameters = parameters.active;
    for (int64_t i = 0; i < n; i++) layers[i] = config->output.all_activations ? i : config->output.activations[i];
    status = mo_results_create(&run->results, config->output.path, run->comm, config->output.mpi_io, &header,
                               &run->tokens, layers, n);
  }
  free(layers);
  return status;
}

/* --- phase 4: compute --- */

static mo_status open_engine(run_state *run) {
  mo_engine_job job = {
      .comm = run->comm,
      .config = run->config,
      .spec = &run->input.spec,
      .plan = &run->plan,
      .tokens = &run->tokens,
      .checkpoint = run->input.checkpoint,
      .catalogue = &run->input.catalogue,
      .backend = run->backend,
      .accumulators = run->accumulators,
      .start = run->resume.start,
      .resume = &run->resume,
      .timing = run->timing,
      .clock = &run->clock,
      .stages = run->stages,
      .readers = mo_run_readers(run->config, run->cores),
  };
  return mo_engine_open(&run->engine, &job);
}

static mo_status compute(run_state *run) { return mo_engine_run(run->engine, run->results, &run->n_timing); }

static mo_status compare_time(const run_state *run) {
  mo_run_plan_job job = plan_job(run);
  return mo_run_compare_time(&job, &run->plan, &run->clock, run->stages);
}

/* --- phase 5: the tables --- */

static mo_status write_tables(run_state *run) {
  int *owner = mo_alloc((size_t)run->input.spec.n_layers, sizeof *owner);
  mo_status status = mo_comm_join(run->comm, owner ? MO_OK : MO_FAILED);
  if (status == MO_OK) {
    mo_results_part parts[MO_MOST_THRESHOLDS];
    int n = (int)run->config->analysis.n_thresholds;
    for (int64_t layer = 0; layer < run->input.spec.n_layers; layer++)
      owner[layer] = mo_plan_rank_of(&run->plan, layer + 1);
    if (ablates(run)) mo_results_set_ablation(run->results, &run->ablation);
    mo_results_set_activations(run->results, mo_resume_give_activations, &run->resume);
    for (int i = 0; i < n; i++)
      parts[i] = (mo_results_part){run->config->analysis.thresholds[i], run->accumulators[i], &run->analyses[i]};
    status = mo_results_write(run->results, owner, parts, n, run->timing, run->n_timing);
  }
  free(owner);
  return status;
}

static void announce(const run_state *run) {
  const mo_analysis *analysis = &run->analyses[0];
  const mo_summary *summary = &analysis->summary;
  char perplexity[40] = "";
  if (isfinite(analysis->perplexity))
    snprintf(perplexity, sizeof perplexity, ", perplexity %.4g", analysis->perplexity);
  fprintf(stderr, "moe-outliers: wrote %s: %lld outlier feature%s, %s%s, %.1f s\n", run->config->output.path,
          (long long)summary->outlier_features, mo_plural(summary->outlier_features),
          mo_classification_name((mo_classification)summary->classification), perplexity, mo_seconds() - run->started);
}

static void note_surplus(const run_state *run) {
  const mo_plan *plan = &run->plan;
  int idle = mo_plan_idle_ranks(plan);
  if (idle && plan->n_blocks > 0)
    fprintf(stderr, "moe-outliers: note: %d of %d ranks ha%s nothing to compute: %s %lld stages\n", idle, plan->n_ranks,
            idle == 1 ? "s" : "ve", plan->first_stage ? "left to do are" : "the model has",
            (long long)(plan->n_stages - plan->first_stage));
}

/* What the checkpoint holds beside the model: a wrong config.json would show here. */
static void note_unused(const run_state *run) {
  const mo_catalogue *catalogue = &run->input.catalogue;
  int64_t unnamed = mo_checkpoint_ignored(run->input.checkpoint);
  if (unnamed)
    fprintf(stderr, "moe-outliers: note: %lld tensor%s of the shards ignored: the index does not name %s\n",
            (long long)unnamed, mo_plural(unnamed), unnamed == 1 ? "it" : "them");
  if (!catalogue->unused_tensors) return;
  fprintf(stderr, "moe-outliers: note: %lld tensor%s of the checkpoint not used by the model%s\n",
          (long long)catalogue->unused_tensors, mo_plural(catalogue->unused_tensors),
          run->options->verbose ? ":" : " (--verbose names them)");
  for (int64_t i = 0; run->options->verbose && i < catalogue->unused_tensors; i++) {
    const mo_tensor *t = catalogue->unused[i];
    fprintf(stderr, "moe-outliers: not used: %s, %s, %lld bytes (%s)\n", t->name, t->dtype_name, (long long)t->bytes,
            mo_checkpoint_file(run->input.checkpoint, t->file));
  }
}

static void note_turns(const run_state *run) {
  const char *obstacle = mo_results_obstacle(run->results);
  if (obstacle)
    fprintf(stderr, "moe-outliers: note: the ranks write %s in turns, without MPI-IO: %s\n", run->config->output.path,
            obstacle);
}

/* Up to the first read. */
static mo_status prepare(run_state *run, mo_preparation *preparation) {
  mo_comm *comm = run->comm;
  /* A GPU wakes while the headers are still being read. */
  MO_TRY(mo_comm_join(comm, mo_devices_choose(comm, run->config->engine.device, &run->table, &run->device)));
  MO_TRY(mo_comm_join(comm, open_backend(run)));
  mo_phase_ends(MO_PHASE_DEVICE);
  mo_signals_patience(3); /* storage may not answer, and nothing is lost yet */
  mo_status status = mo_comm_join(comm, open_input(run, preparation));
  mo_signals_patience(0);
  MO_TRY(status);
  mo_phase_ends(MO_PHASE_INPUT);
  MO_TRY(mo_comm_join(comm, make_plan(run)));
  mo_phase_ends(MO_PHASE_PLAN);
  MO_TRY(mo_comm_join(comm, open_resume(run)));
  mo_phase_ends(MO_PHASE_RESUME);
  MO_TRY(mo_comm_join(comm, plan_the_rest(run)));
  MO_TRY(mo_comm_join(comm, open_accumulators(run)));
  mo_phase_ends(MO_PHASE_PLAN);
  return mo_comm_join(comm, open_engine(run));
}

/* While the first weights are read the output is made ready. */
static mo_status stream(run_state *run) {
  mo_comm *comm = run->comm;
  mo_comm_heed_stop(comm, false); /* parallel HDF5 has calls that all ranks must take part in */
  MO_TRY(mo_comm_join(comm, create_results(run)));
  if (mo_comm_rank(comm) == 0) {
    note_surplus(run);
    note_unused(run);
    note_turns(run);
    mo_input_note_commit(&run->input, run->config);
    mo_resume_note(&run->resume);
  }
  mo_comm_heed_stop(comm, true);
  MO_TRY(mo_comm_join(comm, compute(run)));
  /* What is left takes moments, and a rank that leaves it early would miss an agreement. */
  mo_comm_heed_stop(comm, false);
  mo_phase_ends(MO_PHASE_STREAM);
  return MO_OK;
}

static mo_status analyse(run_state *run) {
  for (int64_t i = 0; i < run->config->analysis.n_thresholds; i++) {
    MO_TRY(mo_comm_join(run->comm, mo_analysis_reduce(&run->analyses[i], run->accumulators[i], run->comm)));
    mo_analysis_name_tokens(&run->analyses[i], run->tokens.ids, run->tokens.length);
  }
  mo_phase_ends(MO_PHASE_ANALYSIS);
  return MO_OK;
}

/* Run the model again, without its outlier features. All that the run itself found is in the journals of the resume by now. */
static mo_status ablate(run_state *run) {
  mo_ablation_job job = {.plan = plan_job(run),
                         .checkpoint = run->input.checkpoint,
                         .analysis = &run->analyses[0],
                         .stuck = &run->clock.stuck};
  job.plan.memory_bytes = run->plan.memory_bytes;
  mo_engine_close(run->engine); /* its memory is needed */
  run->engine = NULL;
  MO_TRY(analyse(run));
  MO_TRY(mo_ablation_run(&run->ablation, &job));
  mo_phase_ends(MO_PHASE_STREAM);
  return MO_OK;
}

/* From the statistics to the file. */
static mo_status conclude(run_state *run) {
  mo_comm *comm = run->comm;
  if (!ablates(run)) MO_TRY(analyse(run));
  MO_TRY(mo_comm_join(comm, write_tables(run)));
  mo_results *finished = run->results;
  run->results = NULL; /* mo_results_finish owns it now */
  MO_TRY(mo_comm_join(comm, mo_results_finish(finished)));
  mo_phase_ends(MO_PHASE_RESULT);
  return MO_OK;
}

static void close_backend(run_state *run) {
  mo_engine_close(run->engine);
  if (run->backend && !run->clock.stuck) run->table->close(run->backend);
  run->engine = NULL;
  run->backend = NULL;
}

static void *close_beside(void *argument) {
  double begin = mo_seconds();
  close_backend(argument);
  mo_phase_took(MO_PHASE_FREEING, mo_seconds() - begin);
  return NULL;
}

static mo_status run_phases(run_state *run, mo_preparation *preparation) {
  pthread_t closing;
  mo_comm_heed_stop(run->comm, true);
  use_cores(run);
  MO_TRY(prepare(run, preparation));
  MO_TRY(stream(run));
  MO_TRY(mo_comm_join(run->comm, compare_time(run)));
  MO_TRY(mo_comm_join(run->comm, mo_input_note_cache(&run->input, run->comm)));
  if (ablates(run)) MO_TRY(ablate(run));
  bool beside = mo_thread_start(&closing, close_beside, run) == 0; /* a GPU takes its time to give memory back */
  mo_status status = conclude(run);
  if (beside) pthread_join(closing, NULL);
  MO_TRY(status);
  if (mo_comm_rank(run->comm) == 0) announce(run);
  return MO_OK;
}

/* The line of a run that ended because it was asked to. */
static void describe_stop(const run_state *run) {
  mo_error_clear();
  (void)MO_FAIL(MO_STOPPED, "stopped by %s%s", mo_signals_name(mo_comm_stop_signal(run->comm)),
                run->results ? "; saved; the same command continues"
                             : " before anything was computed; the same command starts again");
}

/* By a reader that waits for storage when the process ends; for leak checkers, whence the attribute: nobody reads it. */
static run_state in_use __attribute__((used));

mo_status mo_run(const mo_config *config, mo_comm *comm, const mo_run_options *options, mo_preparation *preparation) {
  run_state run = {.config = config, .comm = comm, .options = options, .started = mo_seconds()};
  mo_signals_note();
  mo_status status = run_phases(&run, preparation);
  if (status == MO_STOPPED) describe_stop(&run);
  close_backend(&run);
  mo_resume_close(&run.resume, status == MO_OK);
  mo_results_discard(run.results);
  for (int i = 0; i < MO_MOST_THRESHOLDS; i++) mo_analysis_free(&run.analyses[i]);
  mo_ablation_free(&run.ablation);
  free(run.timing);
  free(run.stages);
  for (int i = 0; i < MO_MOST_THRESHOLDS; i++) mo_accumulator_free(run.accumulators[i]);
  if (run.clock.stuck) {
    in_use = run;
    return status;
  }
  mo_plan_free(&run.plan);
  mo_tokens_free(&run.tokens);
  mo_input_free(&run.input);
  free(run.model_name);
  free(run.config_text);
  mo_phase_ends(MO_PHASE_CLOSE);
  if (status != MO_OK || !options->verbose) return status;
  return mo_comm_allreduce(comm, mo_phases(), MO_PHASE_COUNT, MO_MAX_I64);
}
