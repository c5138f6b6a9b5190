/* The `plan` command: what a run would do, from config.json alone. */
#include <inttypes.h>
#include <string.h>

#include "pipeline/cpu_rate.h"
#include "pipeline/plan_overview.h"

static const char *const EXTRAS[] = {"next-token-prediction layers", "a copy of the tied embedding as lm_head"};

static double gb(int64_t bytes) { return 1e-9 * (double)bytes; }

static void print_model(const mo_plan_overview *o, FILE *out) {
  const mo_model_spec *spec = &o->spec;
  const mo_config *config = o->config;
  fprintf(out, "model       %s (%s), %" PRId64 " layer%s, hidden %" PRId64 ", vocabulary %" PRId64 "\n",
          config->model.name[0] ? config->model.name : config->model.path, spec->architecture, spec->n_layers,
          mo_plural(spec->n_layers), spec->hidden, spec->vocab);
  if (o->files.synthetic)
    fprintf(out, "config      %s, random weights of seed %" PRIu64 "\n", o->files.config_json, o->files.seed);
  else if (o->files.config_json != config->model.path)
    fprintf(out, "config      %s, %s %s\n", o->files.config_json,
            mo_network_is_address(config->model.path) ? "without asking" : "as there is none in", config->model.path);
  if (spec->moe.experts)
    fprintf(out, "experts     %" PRId64 ", %" PRId64 " per token\n", spec->moe.experts, spec->moe.top_k);
  fprintf(out, "parameters  %" PRId64 " total, %" PRId64 " active, %" PRId64 " active without the input embedding\n",
          o->parameters.total, o->parameters.active, o->parameters.active_no_embed);
  fprintf(out, "checkpoint  %" PRId64 " bytes (%.2f GB) in %" PRId64 " tensors that the model uses\n",
          o->parameters.bytes, gb(o->parameters.bytes), o->parameters.tensors);
  for (int i = 0; i < MO_EXTRA_COUNT; i++) {
    const mo_extra_count *extra = o->extras + i;
    if (!extra->tensors) continue;
    fprintf(out,
            "            may also hold %s, not used: %" PRId64 " tensor%s, then %" PRId64 " bytes (%.2f GB) in all\n",
            EXTRAS[i], extra->tensors, mo_plural(extra->tensors), o->parameters.bytes + extra->bytes,
            gb(o->parameters.bytes + extra->bytes));
  }
}

static bool same_kind(const mo_layer_spec *a, const mo_layer_spec *b) {
  return a->mixer == b->mixer && a->mlp == b->mlp && a->window == b->window;
}

static bool mixes_windows(const mo_model_spec *spec) {
  for (int64_t i = 1; i < spec->n_layers; i++)
    if (spec->layers[i].window != spec->layers[0].window) return true;
  return false;
}

/* What the layers like layer `first` are, and the first few of them: "layers 0-2, 4-6, ...: DeltaNet, 512 experts".
 * Returns how many there are. */
static int64_t describe_kind(const mo_model_spec *spec, int64_t first, char *text, size_t size) {
  enum { MOST_RANGES = 3 };
  const mo_layer_spec *kind = spec->layers + first;
  char list[120] = "", mixer[60], mlp[40] = "dense MLP";
  int64_t count = 0;
  int ranges = 0;
  for (int64_t i = first; i < spec->n_layers; i++) {
    int64_t begin = i;
    while (i < spec->n_layers && same_kind(kind, spec->layers + i)) i++;
    if (i == begin) continue;
    count += i - begin;
    size_t used = strlen(list);
    if (ranges++ >= MOST_RANGES) continue;
    used += (size_t)snprintf(list + used, sizeof list - used, "%s%" PRId64, used ? ", " : "", begin);
    if (i - begin > 1) snprintf(list + used, sizeof list - used, "-%" PRId64, i - 1);
  }
  if (kind->mixer == MO_MIXER_DELTANET)
    snprintf(mixer, sizeof mixer, "DeltaNet");
  else if (kind->window)
    snprintf(mixer, sizeof mixer, "attention to %" PRId64 " tokens", kind->window);
  else
    snprintf(mixer, sizeof mixer, mixes_windows(spec) ? "attention to all tokens" : "attention");
  if (kind->mlp == MO_MLP_MOE) snprintf(mlp, sizeof mlp, "%" PRId64 " experts", spec->moe.experts);
  snprintf(text, size, "layer%s %s%s: %s, %s", mo_plural(count), list, ranges > MOST_RANGES ? ", ..." : "", mixer, mlp);
  return count;
}

static void print_stage(const char *name, int64_t count, const mo_stage_cost *cost, FILE *out) {
  fprintf(out, "%-56s %6" PRId64 " %10.3f %10.3f %10.3f\n", name, count, gb(cost->bytes), gb(count * cost->bytes),
          1e-12 * (double)count * cost->flops);
}

static void print_stages(const mo_plan_overview *o, FILE *out) {
  const mo_plan *plan = &o->plan;
  fprintf(out, "\n%-56s %6s %10s %10s %10s\n", "stages", "number", "GB each", "GB", "TFLOP");
  print_stage("embedding", 1, plan->costs, out);
  for (int64_t i = 0; i < o->spec.n_layers; i++) {
    int64_t j = 0;
    while (j < i && !same_kind(o->spec.layers + j, o->spec.layers + i)) j++;
    if (j < i) continue;
    char text[240];
    int64_t count = describe_kind(&o->spec, i, text, sizeof text);
    print_stage(text, count, plan->costs + i + 1, out);
  }
  if (plan->n_stages > o->spec.n_layers + 1)
    print_stage(o->spec.tied ? "head: final norm, the embedding again" : "head: final norm, lm_head", 1,
                plan->costs + o->spec.n_layers + 1, out);
}

static void stage_name(const mo_model_spec *spec, int64_t stage, char *name, size_t size) {
  if (stage == 0)
    snprintf(name, size, "embedding");
  else if (stage > spec->n_layers)
    snprintf(name, size, "head");
  else
    snprintf(name, size, "layer %" PRId64, stage - 1);
}

static void print_block(const mo_plan_overview *o, const mo_block *block, FILE *out) {
  int64_t last = block->first_stage + block->n_stages - 1, bytes = 0;
  double flops = 0;
  char begin[32], end[32], stages[80];
  for (int64_t stage = block->first_stage; stage <= last; stage++) {
    bytes += o->plan.costs[stage].bytes;
    flops += o->plan.costs[stage].flops;
  }
  stage_name(&o->spec, block->first_stage, begin, sizeof begin);
  stage_name(&o->spec, last, end, sizeof end);
  snprintf(stages, sizeof stages, "%s%s%s", begin, block->n_stages > 1 ? " .. " : "", block->n_stages > 1 ? end : "");
  fprintf(out, "%5d %-24s %12.3f %10.3f %14.3f\n", block->rank, stages, gb(bytes), 1e-12 * flops,
          gb(mo_plan_memory(&o->plan, block->rank)));
}

/* A line per rank where blocks are many. */
static void print_rank(const mo_plan_overview *o, int rank, FILE *out) {
  const mo_plan *plan = &o->plan;
  int64_t blocks = 0, stages = 0, bytes = 0;
  double flops = 0;
  char text[80];
  for (int64_t b = 0; b < plan->n_blocks; b++) {
    if (plan->blocks[b].rank != rank) continue;
    blocks++;
    stages += plan->blocks[b].n_stages;
    for (int64_t i = 0; i < plan->blocks[b].n_stages; i++) {
      bytes += plan->costs[plan->blocks[b].first_stage + i].bytes;
      flops += plan->costs[plan->blocks[b].first_stage + i].flops;
    }
  }
  if (!blocks) return;
  snprintf(text, sizeof text, "%" PRId64 " block%s, %" PRId64 " stage%s", blocks, mo_plural(blocks), stages,
           mo_plural(stages));
  fprintf(out, "%5d %-24s %12.3f %10.3f %14.3f\n", rank, text, gb(bytes), 1e-12 * flops,
          gb(mo_plan_memory(plan, rank)));
}

static void print_table(const mo_plan_overview *o, FILE *out) {
  enum { MOST_BLOCKS = 16 };
  const mo_plan *plan = &o->plan;
  fprintf(out, "\n%5s %-24s %12s %10s %14s\n", "rank", "block", "weights GB", "TFLOP", "memory GB");
  for (int64_t b = 0; b < plan->n_blocks && plan->n_blocks <= MOST_BLOCKS; b++) print_block(o, plan->blocks + b, out);
  for (int rank = 0; rank < plan->n_ranks && plan->n_blocks > MOST_BLOCKS; rank++) print_rank(o, rank, out);
}

static void print_memory(const mo_plan_overview *o, FILE *out) {
  const mo_plan *plan = &o->plan;
  int rank = mo_plan_fullest(plan);
  int64_t overlap = mo_plan_overlap_bytes(plan, rank), missing = overlap - plan->arena_bytes[rank];
  fprintf(out,
          "memory      of a rank: %.3f GB = %.3f weights%s + %.3f activations + %.3f position bits + %.3f workspace\n",
          gb(mo_plan_memory(plan, rank)), gb(plan->arena_bytes[rank]), plan->fits ? "" : " at a time",
          gb(plan->activation_bytes), gb(plan->position_bytes), gb(plan->workspace_bytes));
  fprintf(out, "            + %.3f scratch of operations + %.3f %s", gb(plan->scratch_bytes), gb(plan->overhead_bytes),
          plan->host_memory ? "program and libraries" : "GPU context and libraries");
  if (plan->host_memory)
    fprintf(out, " + %.3f staging + %.3f statistics\n", gb(plan->staging_bytes), gb(plan->statistics_bytes));
  else
    fprintf(out, "; on the host %.3f staging, %.3f statistics\n", gb(plan->staging_bytes), gb(plan->statistics_bytes));
  if (o->memory_from)
    fprintf(out, "            limit: %.6g GB (%s)\n", gb(plan->memory_bytes), o->memory_from);
  else
    fprintf(out, "            not limited (no --vram, no %s)\n",
            o->cuda ? "deployment.min_vram_gb" : "engine.device_memory_gb");
  if (!plan->fits && missing > 0)
    fprintf(out, "            with %.3f GB more the next block could be read while one computes\n", gb(missing));
}

static void print_partition(const mo_plan_overview *o, FILE *out) {
  const mo_plan *plan = &o->plan;
  char why[160];
  mo_plan_reason(plan, why, sizeof why);
  fprintf(out, "partition   %s, %d rank%s, %" PRId64 " block%s: %s\n", mo_partition_name(plan->partition),
          plan->n_ranks, mo_plural(plan->n_ranks), plan->n_blocks, mo_plural(plan->n_blocks), why);
  int idle = mo_plan_idle_ranks(plan);
  if (idle)
    fprintf(out, "            note: %d of %d ranks ha%s nothing to compute: the model has %" PRId64 " stages\n", idle,
            plan->n_ranks, idle == 1 ? "s" : "ve", plan->n_stages);
}

static void print_time(const mo_plan_overview *o, FILE *out) {
  const mo_plan_time *time = &o->time;
  bool storage = time->storage_alone >= time->compute_alone;
  fprintf(
      out,
      "time        %.3g s, bound by %s: a rank computes %.3g s, waits %.3g s for weights and %.3g s for other ranks\n",
      time->seconds, storage ? "storage" : "compute", time->compute, time->load, time->bubble);
  fprintf(out, "            assumed: %.4g GB/s from a node's storage%s, %.4g TFLOP/s a rank%s%s\n",
          1e-9 * o->rates.bytes_per_second, o->options->bandwidth_gb_s > 0 ? "" : " (--bandwidth)",
          1e-12 * o->rates.flops_per_second,
          o->options->tflops > 0 ? "" : " (--tflops): ", o->options->tflops > 0 ? "" : o->device);
  if (!o->cuda) return;
  fprintf(out, "cost        %.3g GPU-hours", mo_plan_gpu_hours(o));
  if (o->config->deployment.max_price > 0)
    fprintf(out, ", at most $%.2g at $%g per hour (deployment.max_price)", mo_plan_most_dollars(o),
            o->config->deployment.max_price);
  fputs("; without the machine's start and download\n", out);
}

static void print_ablation(const mo_plan_overview *o, FILE *out) {
  if (!o->n_passes) return;
  fprintf(out,
          "ablation    %" PRId64 " variants in %" PRId64 " more pass%s, if there are outlier features: ", o->n_variants,
          o->n_passes, o->n_passes == 1 ? "" : "es");
  fprintf(out, "%.3f GB of a rank, %.3g s\n", gb(mo_plan_memory(&o->pass, mo_plan_fullest(&o->pass))),
          mo_plan_ablation_seconds(o));
}

static void print_text(const mo_plan_overview *o, FILE *out) {
  const mo_plan *plan = &o->plan;
  print_model(o, out);
  fprintf(out,
          "run         %" PRId64 " x %" PRId64 " tokens in %" PRId64 " micro-batch%s of %" PRId64
          " sequence%s, %.3g FLOP\n",
          plan->n_sequences, plan->length, plan->n_micro, plan->n_micro == 1 ? "" : "es", plan->micro_batch,
          mo_plural(plan->micro_batch), o->flops);
  print_partition(o, out);
  print_memory(o, out);
  print_time(o, out);
  print_ablation(o, out);
  print_stages(o, out);
  print_table(o, out);
}

mo_status mo_plan_command(const mo_config *config, const mo_plan_options *options, FILE *out) {
  mo_plan_overview o = {.config = config, .options = options};
  mo_status status = mo_plan_overview_make(&o, mo_cpu_rate);
  if (status == MO_OK && options->json)
    status = mo_plan_print_json(&o, out);
  else if (status == MO_OK)
    print_text(&o, out);
  mo_plan_overview_free(&o);
  return status;
}
