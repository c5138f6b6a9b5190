/* The `plan` command's numbers as JSON. */
#include <jansson.h>

#include "pipeline/plan_overview.h"

static void set_int(json_t *object, const char *key, int64_t value) {
  json_object_set_new(object, key, json_integer((json_int_t)value));
}

static json_t *extras_json(const mo_plan_overview *o) {
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

static void add_model(const mo_plan_overview *o, json_t *json) {
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

static void add_stages(const mo_plan_overview *o, json_t *json) {
  json_t *bytes = json_array(), *flops = json_array();
  for (int64_t stage = 0; stage < o->plan.n_stages; stage++) {
    json_array_append_new(bytes, json_integer((json_int_t)o->plan.costs[stage].bytes));
    json_array_append_new(flops, json_real(o->plan.costs[stage].flops));
  }
  json_object_set_new(json, "stage_bytes", bytes);
  json_object_set_new(json, "stage_flops", flops);
}

static void add_partition(const mo_plan_overview *o, json_t *json) {
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
  char why[160];
  mo_plan_reason(plan, why, sizeof why);
  json_object_set_new(json, "partition", json_string(mo_partition_name(plan->partition)));
  json_object_set_new(json, "reason", json_string(why));
  set_int(json, "idle_ranks", mo_plan_idle_ranks(plan));
  json_object_set_new(json, "blocks", blocks);
  json_object_set_new(json, "ranks", ranks);
}

static void add_memory(const mo_plan_overview *o, json_t *json) {
  const mo_plan *plan = &o->plan;
  set_int(json, "memory_limit_bytes", plan->memory_bytes);
  if (o->memory_from) json_object_set_new(json, "memory_limit_from", json_string(o->memory_from));
  set_int(json, "activation_bytes", plan->activation_bytes);
  set_int(json, "position_bytes", plan->position_bytes);
  set_int(json, "workspace_bytes", plan->workspace_bytes);
  set_int(json, "scratch_bytes", plan->scratch_bytes);
  set_int(json, "overhead_bytes", plan->overhead_bytes);
  set_int(json, "host_staging_bytes", plan->staging_bytes);
  set_int(json, "host_statistics_bytes", plan->statistics_bytes);
}

static void set_real(json_t *object, const char *key, double value) {
  json_object_set_new(object, key, json_real(value));
}

static void add_time(const mo_plan_overview *o, json_t *json) {
  json_t *time = json_object();
  set_real(time, "seconds", o->time.seconds);
  set_real(time, "compute", o->time.compute);
  set_real(time, "load", o->time.load);
  set_real(time, "bubble", o->time.bubble);
  set_real(time, "storage_alone", o->time.storage_alone);
  set_real(time, "compute_alone", o->time.compute_alone);
  set_real(time, "assumed_bytes_per_second", o->rates.bytes_per_second);
  set_real(time, "assumed_flops_per_second", o->rates.flops_per_second);
  json_object_set_new(json, "time", time);
  if (!o->cuda) return;
  set_real(json, "gpu_hours", mo_plan_gpu_hours(o));
  if (o->config->deployment.max_price > 0) set_real(json, "dollars_at_most", mo_plan_most_dollars(o));
}

static void add_ablation(const mo_plan_overview *o, json_t *json) {
  if (!o->n_passes) return;
  json_t *ablation = json_object();
  set_int(ablation, "variants", o->n_variants);
  set_int(ablation, "variants_at_a_time", o->pass.variants);
  set_int(ablation, "passes", o->n_passes);
  set_int(ablation, "memory_bytes", mo_plan_memory(&o->pass, mo_plan_fullest(&o->pass)));
  set_real(ablation, "seconds", mo_plan_ablation_seconds(o));
  json_object_set_new(json, "ablation", ablation);
}

mo_status mo_plan_print_json(const mo_plan_overview *o, FILE *out) {
  json_t *json = json_object();
  add_model(o, json);
  json_object_set_new(json, "flops", json_real(o->flops));
  set_int(json, "micro_batch", o->plan.micro_batch);
  set_int(json, "micro_batches", o->plan.n_micro);
  add_memory(o, json);
  add_stages(o, json);
  add_partition(o, json);
  add_time(o, json);
  add_ablation(o, json);
  bool written = json && json_dumpf(json, out, JSON_INDENT(2) | JSON_REAL_PRECISION(15)) == 0;
  json_decref(json);
  fputc('\n', out);
  return written ? MO_OK : MO_FAIL(MO_FAILED, "cannot write the plan as JSON (stdout): check the disk");
}
