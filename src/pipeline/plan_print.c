/* The `plan` command: what a run would do, from config.json alone. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "moe_outliers/plan.h"

typedef struct {
  mo_model_spec spec;
  mo_parameter_count parameters;
  mo_plan plan;
  int element_bytes;
  int64_t checkpoint_bytes;
  double flops;
} overview;

static mo_status fill(overview *o, const mo_config *config, int n_ranks, double vram_gb) {
  double memory_gb = vram_gb > 0 ? vram_gb : config->engine.device_memory_gb;
  MO_TRY(mo_model_read(&o->spec, config->model.path));
  MO_TRY(mo_model_parameters(&o->spec, &o->parameters));
  o->element_bytes = o->spec.stored_bytes;
  mo_plan_request request = {
      .spec = &o->spec,
      .n_sequences = config->data.sequences,
      .length = config->data.length,
      .micro_batch = config->engine.micro_batch,
      .perplexity = config->analysis.perplexity,
      .n_ranks = n_ranks > 0 ? n_ranks : 1,
      .activation_bytes = config->engine.precision == MO_PRECISION_FP32 || config->engine.device == MO_DEVICE_CPU ? 4 : 2,
      .partition = config->engine.partition,
      .element_bytes = o->element_bytes,
      .memory_bytes = (int64_t)(memory_gb * 1e9),
      .bytes_per_second = 2e9,
      .flops_per_second = 1e11,
  };
  MO_TRY(mo_plan_make(&o->plan, &request));
  for (int64_t stage = 0; stage < mo_model_stages(&o->spec); stage++) {
    mo_stage_cost cost;
    MO_TRY(mo_model_stage_cost(&o->spec, stage, o->element_bytes, o->plan.n_sequences, o->plan.length, &cost));
    if (!(o->spec.tied && stage == mo_model_stages(&o->spec) - 1)) o->checkpoint_bytes += cost.bytes;
    if (stage < o->plan.n_stages) o->flops += cost.flops;
  }
  if (o->spec.tied) o->checkpoint_bytes += o->spec.hidden * o->element_bytes; /* the final norm, the head's own tensor */
  return MO_OK;
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
  fprintf(out, "%5d %-24s %12.3f %10.3f %14.3f\n", block->rank, stages, 1e-9 * (double)bytes, 1e-12 * flops,
          1e-9 * (double)mo_plan_memory(&o->plan, block->rank));
}

static void print_text(const overview *o, const mo_config *config, FILE *out) {
  const mo_plan *plan = &o->plan;
  fprintf(out, "model       %s (%s), %" PRId64 " layers, hidden %" PRId64 ", vocabulary %" PRId64 "\n",
          config->model.name[0] ? config->model.name : config->model.path, o->spec.architecture, o->spec.n_layers, o->spec.hidden,
          o->spec.vocab);
  if (o->spec.moe.experts)
    fprintf(out, "experts     %" PRId64 ", %" PRId64 " per token\n", o->spec.moe.experts, o->spec.moe.top_k);
  fprintf(out, "parameters  %" PRId64 " total, %" PRId64 " active, %" PRId64 " active without the input embedding\n",
          o->parameters.total, o->parameters.active, o->parameters.active_no_embed);
  fprintf(out, "checkpoint  %" PRId64 " bytes (%.2f GB)\n", o->checkpoint_bytes, 1e-9 * (double)o->checkpoint_bytes);
  fprintf(out, "run         %" PRId64 " x %" PRId64 " tokens in %" PRId64 " micro-batches of %" PRId64 " sequences, %.3g FLOP\n",
          plan->n_sequences, plan->length, plan->n_micro, plan->micro_batch, o->flops);
  fprintf(out, "partition   %s, %d rank%s, %" PRId64 " block%s\n\n", mo_partition_name(plan->partition), plan->n_ranks,
          plan->n_ranks == 1 ? "" : "s", plan->n_blocks, plan->n_blocks == 1 ? "" : "s");
  fprintf(out, "%5s %-24s %12s %10s %14s\n", "rank", "stages", "weights GB", "TFLOP", "memory GB");
  for (int64_t b = 0; b < plan->n_blocks; b++) print_block(o, plan->blocks + b, out);
  if (plan->n_ranks > plan->n_stages)
    fprintf(out, "\nranks %" PRId64 " to %d have nothing to compute: %" PRId64 " ranks are the most that this model can use\n",
            plan->n_stages, plan->n_ranks - 1, plan->n_stages);
}

static json_t *plan_json(const overview *o) {
  const mo_plan *plan = &o->plan;
  json_t *blocks = json_array(), *ranks = json_array();
  for (int64_t b = 0; b < plan->n_blocks; b++)
    json_array_append_new(blocks, json_pack("{s:i, s:I, s:I}", "rank", plan->blocks[b].rank, "first_stage",
                                            (json_int_t)plan->blocks[b].first_stage, "stages",
                                            (json_int_t)plan->blocks[b].n_stages));
  for (int rank = 0; rank < plan->n_ranks; rank++)
    json_array_append_new(ranks, json_pack("{s:I, s:I, s:I}", "weight_bytes", (json_int_t)plan->resident_bytes[rank], "arena_bytes",
                                           (json_int_t)plan->arena_bytes[rank], "memory_bytes",
                                           (json_int_t)mo_plan_memory(plan, rank)));
  return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:I, s:s, s:o, s:o}", "architecture", o->spec.architecture,
                   "layers", (json_int_t)o->spec.n_layers, "hidden_size", (json_int_t)o->spec.hidden, "parameters",
                   (json_int_t)o->parameters.total, "active_parameters", (json_int_t)o->parameters.active,
                   "active_parameters_without_embedding", (json_int_t)o->parameters.active_no_embed, "experts",
                   (json_int_t)o->spec.moe.experts, "checkpoint_bytes", (json_int_t)o->checkpoint_bytes, "flops", o->flops,
                   "micro_batch", (json_int_t)plan->micro_batch, "micro_batches", (json_int_t)plan->n_micro, "partition",
                   mo_partition_name(plan->partition), "blocks", blocks, "ranks", ranks);
}

static mo_status print_json(const overview *o, FILE *out) {
  json_t *json = plan_json(o);
  bool written = json && json_dumpf(json, out, JSON_INDENT(2) | JSON_REAL_PRECISION(15)) == 0;
  json_decref(json);
  fputc('\n', out);
  return written ? MO_OK : MO_FAIL(MO_FAILED, "cannot write the plan as JSON (stdout): check the disk");
}

mo_status mo_plan_command(const mo_config *config, int n_ranks, double vram_gb, bool json, FILE *out) {
  overview o = {0};
  mo_status status = fill(&o, config, n_ranks, vram_gb);
  if (status == MO_OK && json)
    status = print_json(&o, out);
  else if (status == MO_OK)
    print_text(&o, config, out);
  mo_plan_free(&o.plan);
  mo_model_free(&o.spec);
  return status;
}
