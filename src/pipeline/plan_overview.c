#include "pipeline/plan_overview.h"

#include <stdio.h>

#include "moe_outliers/ablation.h"
#include "moe_outliers/machine.h"
#include "pipeline/run_plan.h"

/* Compute threads of a rank if all ran on a machine like this one. */
static int threads_of(const mo_config *config, int n_ranks) {
  mo_machine machine;
  mo_machine_read(&machine, "");
  return mo_run_threads(config, mo_machine_share(&machine, n_ranks));
}

/* Where the device's memory is the host's, this machine's cores say how many readers there are, as in a run. */
static int64_t staging_bytes(const mo_config *config, int threads, bool cuda) {
  bool host_memory = config->engine.device == MO_DEVICE_CPU;
  return mo_run_staging(config, mo_run_readers(config, cuda ? MO_STREAM_READERS : threads), host_memory);
}

/* The memory of a rank in GB, and who says so: *from. */
static double memory_of(const mo_plan_overview *o, const char **from) {
  const mo_config *config = o->config;
  const struct {
    const char *from;
    double gb;
  } sources[] = {
      {"--vram", o->options->vram_gb},
      {"engine.device_memory_gb", config->engine.device_memory_gb},
      {"deployment.min_vram_gb", o->cuda ? config->deployment.min_vram_gb : 0},
      {"of the GPU in deployment.gpu_filter", o->cuda ? mo_plan_gpu_memory(config->deployment.gpu_filter) : 0}};
  *from = NULL;
  for (size_t i = 0; i < sizeof sources / sizeof sources[0]; i++)
    if (sources[i].gb > 0) {
      *from = sources[i].from;
      return sources[i].gb;
    }
  return 0;
}

static int ranks_of(const mo_plan_overview *o) {
  if (o->options->n_ranks > 0) return o->options->n_ranks;
  return o->cuda && o->config->deployment.gpus > 0 ? (int)o->config->deployment.gpus : 1;
}

/* The partition is chosen at the rates that a run chooses it at; the time is then that of the rates that are asked for,
 * and on CPUs of this machine's. */
static mo_status set_rates(mo_plan_overview *o, int threads, mo_cpu_rate_finder *cpu_rate) {
  const mo_plan_options *options = o->options;
  if (options->bandwidth_gb_s > 0) o->rates.bytes_per_second = 1e9 * options->bandwidth_gb_s;
  if (options->tflops > 0) o->rates.flops_per_second = 1e12 * options->tflops;
  if (o->cuda || options->tflops > 0 || !cpu_rate) return MO_OK;
  o->device = "measured on this machine's CPU";
  return cpu_rate(o->config->engine.precision, threads, &o->rates.flops_per_second);
}

/* With as many variants at the same time as the memory holds. */
static mo_status plan_ablation(mo_plan_overview *o, mo_plan_request request) {
  mo_status status = MO_INVALID;
  o->n_variants = 2 + o->config->analysis.ablate_draws;
  request.ablates = request.stores_activations = false;
  request.followed = MO_ABLATION_EXPECTED_FEATURES;
  for (request.variants = o->n_variants; request.variants > 0 && status == MO_INVALID; request.variants--) {
    mo_error_clear();
    status = mo_plan_make(&o->pass, &request);
  }
  MO_TRY(status);
  o->n_passes = (o->n_variants + o->pass.variants - 1) / o->pass.variants;
  return MO_OK;
}

/* A device that is left open is taken to be a GPU: that is what is planned for. */
static mo_status make_plan(mo_plan_overview *o, mo_cpu_rate_finder *cpu_rate) {
  const mo_config *config = o->config;
  const mo_plan_options *options = o->options;
  o->cuda = config->engine.device == MO_DEVICE_AUTO || config->engine.device == MO_DEVICE_CUDA;
  int n_ranks = ranks_of(o), threads = threads_of(config, n_ranks);
  mo_precision precision = config->engine.precision;
  const char *gpu = options->gpu ? options->gpu : config->deployment.gpu_filter;
  o->rates = mo_plan_default_rates(o->cuda, gpu, precision, threads, &o->device);
  o->rates.times_read = config->engine.verify ? 2 : 1;
  o->rates.ranks_per_node = options->ranks_per_node > 0 ? options->ranks_per_node : MO_PLAN_RANKS_PER_NODE;
  mo_plan_request request = {
      .spec = &o->spec,
      .n_sequences = config->data.sequences,
      .length = config->data.length,
      .micro_batch = config->engine.micro_batch,
      .perplexity = config->analysis.perplexity,
      .ablates = config->analysis.ablate == MO_ABLATE_FEATURES,
      .n_thresholds = config->analysis.n_thresholds,
      .stores_activations = config->output.all_activations || config->output.n_activations,
      .n_ranks = n_ranks,
      .activation_bytes = precision == MO_PRECISION_FP32 || !o->cuda ? 4 : 2,
      .partition = config->engine.partition,
      .element_bytes = o->spec.stored_bytes,
      .memory_bytes = (int64_t)(memory_of(o, &o->memory_from) * 1e9),
      .rates = o->rates,
      .memory_of = o->cuda ? mo_backend_memory_cuda : mo_backend_memory_cpu,
      .precision = precision,
      .threads = threads,
      .stored = o->spec.stored_bytes == 2 ? MO_BF16 : MO_F32,
      .host_memory = !o->cuda,
      .staging_bytes = staging_bytes(config, threads, o->cuda),
  };
  request.memory_from = o->memory_from;
  MO_TRY(mo_plan_make(&o->plan, &request));
  if (request.ablates) MO_TRY(plan_ablation(o, request));
  MO_TRY(set_rates(o, threads, cpu_rate));
  MO_TRY(mo_plan_predict(&o->plan, &o->rates, &o->time));
  return o->n_passes ? mo_plan_predict(&o->pass, &o->rates, &o->pass_time) : MO_OK;
}

mo_status mo_plan_overview_make(mo_plan_overview *o, mo_cpu_rate_finder *cpu_rate) {
  MO_TRY(mo_model_files_for_plan(o->config, &o->files));
  MO_TRY(mo_model_files_read(&o->spec, &o->files));
  MO_TRY(mo_model_parameters(&o->spec, &o->parameters));
  MO_TRY(mo_model_extras(&o->spec, o->extras));
  MO_TRY(make_plan(o, cpu_rate));
  o->bytes_at_most = o->parameters.bytes;
  for (int i = 0; i < MO_EXTRA_COUNT; i++) o->bytes_at_most += o->extras[i].bytes;
  for (int64_t stage = 0; stage < o->plan.n_stages; stage++) o->flops += o->plan.costs[stage].flops;
  return MO_OK;
}

double mo_plan_gpu_hours(const mo_plan_overview *o) { return o->plan.n_ranks * o->time.seconds / 3600; }

/* The last pass may have fewer variants. */
double mo_plan_ablation_seconds(const mo_plan_overview *o) { return (double)o->n_passes * o->pass_time.seconds; }

double mo_plan_most_dollars(const mo_plan_overview *o) {
  return o->config->deployment.max_price * o->time.seconds / 3600;
}

int mo_plan_fullest(const mo_plan *plan) {
  int most = 0;
  for (int rank = 1; rank < plan->n_ranks; rank++)
    if (plan->arena_bytes[rank] > plan->arena_bytes[most]) most = rank;
  return most;
}

static double gb(int64_t bytes) { return 1e-9 * (double)bytes; }

void mo_plan_reason(const mo_plan *plan, char *text, size_t size) {
  int64_t room = plan->memory_bytes - mo_plan_memory_beside(plan), largest = 0;
  for (int rank = 0; rank < plan->n_ranks; rank++)
    if (plan->resident_bytes[rank] > largest) largest = plan->resident_bytes[rank];
  if (plan->asked != MO_PARTITION_AUTO)
    snprintf(text, size, "as asked for (engine.partition)%s", plan->fits ? "" : ", though not all weights fit");
  else if (plan->fits && plan->memory_bytes == 0)
    snprintf(text, size, "the memory is not limited, so each rank holds all its weights");
  else if (plan->fits)
    snprintf(text, size, "each rank holds all its weights: %.3f GB at most, of %.3f GB", gb(largest), gb(room));
  else if (plan->partition == MO_PARTITION_CONTIGUOUS)
    snprintf(text, size, "one rank; its %.3f GB of weights stream through %.3f GB", gb(plan->contiguous_bytes),
             gb(plan->arena_bytes[0]));
  else
    snprintf(text, size,
             "a rank's %.3f GB of weights do not fit in %.3f GB: blocks go round, so that all ranks load all the time",
             gb(plan->contiguous_bytes), gb(room));
}

void mo_plan_overview_free(mo_plan_overview *o) {
  mo_plan_free(&o->plan);
  mo_plan_free(&o->pass);
  mo_model_free(&o->spec);
  mo_model_files_free(&o->files);
}
