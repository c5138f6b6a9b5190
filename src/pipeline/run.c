/* mo_run: the phases of a run. After each phase all ranks agree whether it succeeded everywhere. */
#include "moe_outliers/pipeline.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pipeline/engine.h"
#include "pipeline/model_files.h"

typedef struct {
  const mo_config *config;
  mo_comm *comm;
  bool verbose;
  double started;
  mo_model_spec spec;
  mo_model_files files;
  mo_checkpoint *checkpoint;
  mo_catalogue catalogue;
  mo_tokens tokens;
  const mo_backend_table *table;
  mo_backend *backend;
  mo_plan plan;
  mo_accumulator *accumulator;
  mo_results *results;
  mo_analysis analysis;
  mo_timing_row *timing;
  int64_t n_timing;
  char *model_name;
} run_state;

/* --- phase 1: the input, on every rank, nothing written --- */

static mo_status check_layers(const run_state *run) {
  for (int64_t i = 0; i < run->config->output.n_activations; i++)
    if (run->config->output.activations[i] >= run->spec.n_layers)
      return MO_FAIL(MO_INVALID, "layer %lld does not exist (output.activations): the model has layers 0 to %lld",
                     (long long)run->config->output.activations[i], (long long)run->spec.n_layers - 1);
  return MO_OK;
}

static mo_status name_model(run_state *run) {
  const mo_config *config = run->config;
  const char *name = config->model.name;
  char *path = mo_strdup(config->model.path);
  if (!path) return MO_FAILED;
  size_t length = strlen(path);
  while (length > 1 && path[length - 1] == '/') path[--length] = '\0';
  const char *slash = strrchr(path, '/');
  run->model_name = mo_strdup(name && name[0] ? name : slash && slash[1] ? slash + 1 : path);
  free(path);
  return run->model_name ? MO_OK : MO_FAILED;
}

static mo_status open_input(run_state *run) {
  const mo_config *config = run->config;
  MO_TRY(mo_model_files_for_run(config, &run->files));
  MO_TRY(mo_backend_choose(config->engine.device, &run->table));
  if (mo_comm_rank(run->comm) == 0) MO_TRY(mo_results_check_path(config->output.path, config->output.overwrite));
  MO_TRY(mo_model_read(&run->spec, run->files.config_json));
  MO_TRY(check_layers(run));
  MO_TRY(name_model(run));
  MO_TRY(mo_model_files_open(&run->checkpoint, config, &run->files, &run->spec));
  MO_TRY(mo_catalogue_build(&run->catalogue, &run->spec, run->checkpoint));
  return mo_model_files_tokens(&run->tokens, config, run->spec.vocab);
}

/* --- phase 2: the backend, and the plan, the same on every rank --- */

static int count_cores(void) {
  cpu_set_t set;
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return online > 0 ? (int)online : 1;
  return CPU_COUNT(&set);
}

/* Compute threads: an even share of the node's cores, within the cores this rank is bound to. */
static int choose_threads(const run_state *run) {
  if (run->config->engine.threads > 0) return (int)run->config->engine.threads;
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  int share = (int)(online / mo_comm_local_size(run->comm)), bound = count_cores();
  if (share < 1) share = 1;
  return share < bound ? share : bound;
}

static mo_status open_backend(run_state *run) {
  mo_backend_options options = {.precision = run->config->engine.precision,
                                .threads = choose_threads(run),
                                .device = mo_comm_local_rank(run->comm)};
  return run->table->open(&run->backend, &options);
}

/* Memory of a rank for everything: what the config says, else three quarters of what is free, the same on all ranks. */
static mo_status choose_memory(run_state *run, int64_t *bytes) {
  if (run->config->engine.device_memory_gb > 0) {
    *bytes = (int64_t)(run->config->engine.device_memory_gb * 1e9);
    return MO_OK;
  }
  *bytes = run->table->available_memory(run->backend, mo_comm_local_size(run->comm)) / 4 * 3;
  return mo_comm_allreduce(run->comm, bytes, 1, MO_MIN_I64);
}

static mo_status make_plan(run_state *run) {
  const mo_config *config = run->config;
  int64_t memory;
  MO_TRY(choose_memory(run, &memory));
  int64_t *stage_bytes = mo_alloc((size_t)run->catalogue.n_stages, sizeof *stage_bytes);
  if (!stage_bytes) return MO_FAILED;
  for (int64_t stage = 0; stage < run->catalogue.n_stages; stage++)
    stage_bytes[stage] = run->catalogue.stages[stage].arena_bytes;
  mo_plan_request request = {
      .spec = &run->spec,
      .n_sequences = run->tokens.n_sequences,
      .length = run->tokens.length,
      .micro_batch = config->engine.micro_batch,
      .perplexity = config->analysis.perplexity,
      .n_ranks = mo_comm_size(run->comm),
      .activation_bytes = run->backend->activation_bytes,
      .partition = config->engine.partition,
      .stage_bytes = stage_bytes,
      .element_bytes = run->spec.stored_bytes,
      .memory_bytes = memory,
      .bytes_per_second = 2e9,
      .flops_per_second = 1e11,
  };
  mo_status status = mo_plan_make(&run->plan, &request);
  free(stage_bytes);
  return status;
}

/* --- phase 3: accumulator, the partial result file --- */

static mo_status open_accumulator(run_state *run) {
  mo_analysis_shape shape = {
      .n_layers = run->spec.n_layers,
      .n_sequences = run->tokens.n_sequences,
      .length = run->tokens.length,
      .hidden = run->spec.hidden,
      .n_experts = run->spec.moe.experts,
      .criteria = {run->config->analysis.threshold, run->config->analysis.min_layer_fraction,
                   run->config->analysis.min_position_fraction, run->config->analysis.systematic_fraction},
  };
  MO_TRY(mo_accumulator_new(&run->accumulator, &shape));
  run->timing = mo_alloc((size_t)run->plan.n_stages, sizeof *run->timing);
  return run->timing ? MO_OK : MO_FAILED;
}

static mo_status create_results(run_state *run) {
  const mo_config *config = run->config;
  mo_results_header header = {
      .model_name = run->model_name,
      .architecture = run->spec.architecture,
      .precision = mo_precision_name(config->engine.precision),
      .device = run->table->name,
      .config = config->text,
      .n_layers = run->spec.n_layers,
      .hidden_size = run->spec.hidden,
      .n_experts = run->spec.moe.experts,
      .n_sequences = run->tokens.n_sequences,
      .sequence_length = run->tokens.length,
      .n_ranks = mo_comm_size(run->comm),
      .threshold = config->analysis.threshold,
  };
  int64_t n = config->output.all_activations ? run->spec.n_layers : config->output.n_activations;
  int64_t *layers = mo_alloc((size_t)n, sizeof *layers);
  mo_status status = mo_comm_join(run->comm, layers ? MO_OK : MO_FAILED); /* creation is collective */
  if (status == MO_OK) {
    for (int64_t i = 0; i < n; i++) layers[i] = config->output.all_activations ? i : config->output.activations[i];
    status = mo_results_create(&run->results, config->output.path, run->comm, &header, &run->tokens, layers, n);
  }
  free(layers);
  return status;
}

/* --- phase 4: compute --- */

static mo_status compute(run_state *run) {
  int cores = count_cores();
  mo_engine_job job = {
      .comm = run->comm,
      .config = run->config,
      .spec = &run->spec,
      .plan = &run->plan,
      .tokens = &run->tokens,
      .checkpoint = run->checkpoint,
      .catalogue = &run->catalogue,
      .backend = run->backend,
      .accumulator = run->accumulator,
      .results = run->results,
      .timing = run->timing,
      .readers = run->config->engine.readers > 0 ? (int)run->config->engine.readers
                 : cores < 4                     ? cores
                                                 : 4,
  };
  return mo_engine_run(&job, &run->n_timing);
}

/* --- phase 5: the tables --- */

static mo_status write_tables(run_state *run) {
  int *owner = mo_alloc((size_t)run->spec.n_layers, sizeof *owner);
  mo_status status = mo_comm_join(run->comm, owner ? MO_OK : MO_FAILED);
  if (status == MO_OK) {
    for (int64_t layer = 0; layer < run->spec.n_layers; layer++) owner[layer] = mo_plan_rank_of(&run->plan, layer + 1);
    status = mo_results_write(run->results, owner, run->accumulator, &run->analysis, run->timing, run->n_timing);
  }
  free(owner);
  return status;
}

static void announce(const run_state *run) {
  const mo_summary *summary = &run->analysis.summary;
  char perplexity[40] = "";
  if (isfinite(run->analysis.perplexity))
    snprintf(perplexity, sizeof perplexity, ", perplexity %.4g", run->analysis.perplexity);
  fprintf(stderr, "moe-outliers: wrote %s: %lld outlier feature%s, %s%s, %.1f s\n", run->config->output.path,
          (long long)summary->outlier_features, summary->outlier_features == 1 ? "" : "s",
          mo_classification_name((mo_classification)summary->classification), perplexity, mo_seconds() - run->started);
}

static void note_surplus(const run_state *run) {
  if (run->plan.n_ranks > run->plan.n_stages)
    fprintf(stderr, "moe-outliers: note: %lld of %d ranks have nothing to compute: the model has %lld stages\n",
            (long long)run->plan.n_ranks - (long long)run->plan.n_stages, run->plan.n_ranks,
            (long long)run->plan.n_stages);
}

/* What the checkpoint holds beside the model: a wrong config.json would show here. */
static void note_unused(const run_state *run) {
  const mo_catalogue *catalogue = &run->catalogue;
  int64_t unnamed = mo_checkpoint_ignored(run->checkpoint);
  if (unnamed)
    fprintf(stderr, "moe-outliers: note: %lld tensor%s of the shards ignored: the index does not name %s\n",
            (long long)unnamed, unnamed == 1 ? "" : "s", unnamed == 1 ? "it" : "them");
  if (!catalogue->unused_tensors) return;
  fprintf(stderr, "moe-outliers: note: %lld tensor%s of the checkpoint not used by the model%s\n",
          (long long)catalogue->unused_tensors, catalogue->unused_tensors == 1 ? "" : "s",
          run->verbose ? ":" : " (--verbose names them)");
  for (int64_t i = 0; run->verbose && i < catalogue->unused_tensors; i++) {
    const mo_tensor *t = catalogue->unused[i];
    fprintf(stderr, "moe-outliers: not used: %s, %s, %lld bytes (%s)\n", t->name, t->dtype_name, (long long)t->bytes,
            mo_checkpoint_file(run->checkpoint, t->file));
  }
}

static mo_status run_phases(run_state *run) {
  mo_comm *comm = run->comm;
  MO_TRY(mo_comm_join(comm, open_input(run)));
  MO_TRY(mo_comm_join(comm, open_backend(run)));
  MO_TRY(mo_comm_join(comm, make_plan(run)));
  MO_TRY(mo_comm_join(comm, open_accumulator(run)));
  MO_TRY(mo_comm_join(comm, create_results(run)));
  if (mo_comm_rank(comm) == 0) {
    note_surplus(run);
    note_unused(run);
  }
  MO_TRY(mo_comm_join(comm, compute(run)));
  MO_TRY(mo_comm_join(comm, mo_analysis_reduce(&run->analysis, run->accumulator, comm)));
  MO_TRY(mo_comm_join(comm, write_tables(run)));
  mo_results *finished = run->results;
  run->results = NULL; /* mo_results_finish owns it now */
  MO_TRY(mo_comm_join(comm, mo_results_finish(finished)));
  if (mo_comm_rank(comm) == 0) announce(run);
  return MO_OK;
}

mo_status mo_run(const mo_config *config, mo_comm *comm, bool verbose) {
  run_state run = {.config = config, .comm = comm, .verbose = verbose, .started = mo_seconds()};
  mo_status status = run_phases(&run);
  mo_results_discard(run.results);
  mo_analysis_free(&run.analysis);
  free(run.timing);
  mo_accumulator_free(run.accumulator);
  if (run.backend) run.table->close(run.backend);
  mo_plan_free(&run.plan);
  mo_tokens_free(&run.tokens);
  mo_catalogue_free(&run.catalogue);
  mo_checkpoint_close(run.checkpoint);
  mo_model_free(&run.spec);
  free(run.model_name);
  return status;
}
