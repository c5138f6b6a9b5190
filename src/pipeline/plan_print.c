/* The `plan` command: what a run would do, from config.json alone. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "moe_outliers/plan.h"
#include "pipeline/model_files.h"

typedef struct {
  const mo_config *config;
  mo_model_files files;
  mo_model_spec spec;
  mo_parameter_count parameters;
  mo_extra_count extras[MO_EXTRA_COUNT];
  mo_plan plan;
  int64_t bytes_at_most; /* of a published checkpoint */
  double flops;
} overview;

static const char *const EXTRAS[] = {"next-token-prediction layers", "a copy of the tied embedding as lm_head"};

static mo_status make_plan(overview *o, int n_ranks, double vram_gb) {
  const mo_config *config = o->config;
  double memory_gb = vram_gb > 0 ? vram_gb : config->engine.device_memory_gb;
  mo_plan_request request = {
      .spec = &o->spec,
      .n_sequences = config->data.sequences,
      .length = config->data.length,
      .micro_batch = config->engine.micro_batch,
      .perplexity = config->analysis.perplexity,
      .n_ranks = n_ranks > 0 ? n_ranks : 1,
      .activation_bytes =
          config->engine.precision == MO_PRECISION_FP32 || config->engine.device == MO_DEVICE_CPU ? 4 : 2,
      .partition = config->engine.partition,
      .element_bytes = o->spec.stored_bytes,
      .memory_bytes = (int64_t)(memory_gb * 1e9),
      .bytes_per_second = 2e9,
      .flops_per_second = 1e11,
  };
  return mo_plan_make(&o->plan, &request);
}

static mo_status fill(overview *o, int n_ranks, double vram_gb) {
  MO_TRY(mo_model_files_for_plan(o->config, &o->files));
  MO_TRY(mo_model_read(&o->spec, o->files.config_json));
  MO_TRY(mo_model_parameters(&o->spec, &o->parameters));
  MO_TRY(mo_model_extras(&o->spec, o->extras));
  MO_TRY(make_plan(o, n_ranks, vram_gb));
  o->bytes_at_most = o->parameters.bytes;
  for (int i = 0; i < MO_EXTRA_COUNT; i++) o->bytes_at_most += o->extras[i].bytes;
  for (int64_t stage = 0; stage < o->plan.n_stages; stage++) o->flops += o->plan.costs[stage].flops;
  return MO_OK;
}

/* --- text --- */

static double gb(int64_t bytes) { return 1e-9 * (double)bytes; }

static void print_model(const overview *o, FILE *out) {
  const mo_model_spec *spec = &o->spec;
  const mo_config *config = o->config;
  fprintf(out, "model       %s (%s), %" PRId64 " layers, hidden %" PRId64 ", vocabulary %" PRId64 "\n",
          config->model.name[0] ? config->model.name : config->model.path, spec->architecture, spec->n_layers,
          spec->hidden, spec->vocab);
  if (o->files.synthetic)
    fprintf(out, "config      %s, random weights of seed %" PRIu64 "\n", o->files.config_json, o->files.seed);
  else if (o->files.config_json != config->model.path)
    fprintf(out, "config      %s, as %s holds none\n", o->files.config_json, config->model.path);
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
            EXTRAS[i], extra->tensors, extra->tensors == 1 ? "" : "s", o->parameters.bytes + extra->bytes,
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
  snprintf(text, size, "layer%s %s%s: %s, %s", count == 1 ? "" : "s", list, ranges > MOST_RANGES ? ", ..." : "", mixer,
           mlp);
  return count;
}

static void print_stage(const char *name, int64_t count, const mo_stage_cost *cost, FILE *out) {
  fprintf(out, "%-56s %6" PRId64 " %10.3f %10.3f %10.3f\n", name, count, gb(cost->bytes), gb(count * cost->bytes),
          1e-12 * (double)count * cost->flops);
}

static void print_stages(const overview *o, FILE *out) {
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

static void print_block(const overview *o, const mo_block *block, FILE *out) {
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

static void print_text(const overview *o, FILE *out) {
  const mo_plan *plan = &o->plan;
  print_model(o, out);
  fprintf(out,
          "run         %" PRId64 " x %" PRId64 " tokens in %" PRId64 " micro-batches of %" PRId64
          " sequences, %.3g FLOP\n",
          plan->n_sequences, plan->length, plan->n_micro, plan->micro_batch, o->flops);
  fprintf(out, "memory      of a rank: its weights, or as many as fit, %.3f GB activations, %.3f GB workspace\n",
          gb(plan->activation_bytes), gb(plan->workspace_bytes));
  fprintf(out, "partition   %s, %d rank%s, %" PRId64 " block%s\n", mo_partition_name(plan->partition), plan->n_ranks,
          plan->n_ranks == 1 ? "" : "s", plan->n_blocks, plan->n_blocks == 1 ? "" : "s");
  print_stages(o, out);
  fprintf(out, "\n%5s %-24s %12s %10s %14s\n", "rank", "block", "weights GB", "TFLOP", "memory GB");
  for (int64_t b = 0; b < plan->n_blocks; b++) print_block(o, plan->blocks + b, out);
  if (plan->n_ranks > plan->n_stages)
    fprintf(out,
            "\nranks %" PRId64 " to %d have nothing to compute: %" PRId64
            " ranks are the most that this model can use\n",
            plan->n_stages, plan->n_ranks - 1, plan->n_stages);
}

/* --- JSON --- */

static void set_int(json_t *object, const char *key, int64_t value) {
  json_object_set_new(object, key, json_integer((json_int_t)value));
}

static json_t *extras_json(const overview *o) {
  static const char *const names[] = {"prediction_layers", "lm_head"};
  json_t *extras = json_object();
  for (int i = 0; i < MO_EXTRA_COUNT; i++) {
    if (!o->extras[i].tensors) continue;
    json_t *extra = json_object();
    set_int(extra, "parameters", o->extras[i].parameters);
    set_int(extra, "tensors", o->extras[i].tensors);
    set_int(extra, "bytes", o->extras[i].bytes);
    json_object_set_new(extras, names[i], extra);
  }
  return extras;
}

static void add_model(const overview *o, json_t *json) {
  const mo_model_spec *spec = &o->spec;
  json_object_set_new(json, "architecture", json_string(spec->architecture));
  json_object_set_new(json, "config", json_string(o->files.config_json));
  set_int(json, "layers", spec->n_layers);
  set_int(json, "hidden_size", spec->hidden);
  set_int(json, "vocabulary", spec->vocab);
  set_int(json, "experts", spec->moe.experts);
  set_int(json, "experts_per_token", spec->moe.top_k);
  set_int(json, "parameters", o->parameters.total);
  set_int(json, "active_parameters", o->parameters.active);
  set_int(json, "active_parameters_without_embedding", o->parameters.active_no_embed);
  set_int(json, "tensors", o->parameters.tensors);
  set_int(json, "checkpoint_bytes", o->parameters.bytes);
  json_object_set_new(json, "not_used", extras_json(o));
  set_int(json, "checkpoint_bytes_at_most", o->bytes_at_most);
}

static void add_stages(const overview *o, json_t *json) {
  json_t *bytes = json_array(), *flops = json_array();
  for (int64_t stage = 0; stage < o->plan.n_stages; stage++) {
    json_array_append_new(bytes, json_integer((json_int_t)o->plan.costs[stage].bytes));
    json_array_append_new(flops, json_real(o->plan.costs[stage].flops));
  }
  json_object_set_new(json, "stage_bytes", bytes);
  json_object_set_new(json, "stage_flops", flops);
}

static void add_partition(const overview *o, json_t *json) {
  const mo_plan *plan = &o->plan;
  json_t *blocks = json_array(), *ranks = json_array();
  for (int64_t b = 0; b < plan->n_blocks; b++) {
    json_t *block = json_object();
    set_int(block, "rank", plan->blocks[b].rank);
    set_int(block, "first_stage", plan->blocks[b].first_stage);
    set_int(block, "stages", plan->blocks[b].n_stages);
    json_array_append_new(blocks, block);
  }
  for (int i = 0; i < plan->n_ranks; i++) {
    json_t *rank = json_object();
    set_int(rank, "weight_bytes", plan->resident_bytes[i]);
    set_int(rank, "arena_bytes", plan->arena_bytes[i]);
    set_int(rank, "memory_bytes", mo_plan_memory(plan, i));
    json_array_append_new(ranks, rank);
  }
  json_object_set_new(json, "partition", json_string(mo_partition_name(plan->partition)));
  json_object_set_new(json, "blocks", blocks);
  json_object_set_new(json, "ranks", ranks);
}

static mo_status print_json(const overview *o, FILE *out) {
  json_t *json = json_object();
  add_model(o, json);
  json_object_set_new(json, "flops", json_real(o->flops));
  set_int(json, "micro_batch", o->plan.micro_batch);
  set_int(json, "micro_batches", o->plan.n_micro);
  set_int(json, "activation_bytes", o->plan.activation_bytes);
  set_int(json, "workspace_bytes", o->plan.workspace_bytes);
  add_stages(o, json);
  add_partition(o, json);
  bool written = json && json_dumpf(json, out, JSON_INDENT(2) | JSON_REAL_PRECISION(15)) == 0;
  json_decref(json);
  fputc('\n', out);
  return written ? MO_OK : MO_FAIL(MO_FAILED, "cannot write the plan as JSON (stdout): check the disk");
}

mo_status mo_plan_command(const mo_config *config, int n_ranks, double vram_gb, bool json, FILE *out) {
  overview o = {.config = config};
  mo_status status = fill(&o, n_ranks, vram_gb);
  if (status == MO_OK && json)
    status = print_json(&o, out);
  else if (status == MO_OK)
    print_text(&o, out);
  mo_plan_free(&o.plan);
  mo_model_free(&o.spec);
  return status;
}
