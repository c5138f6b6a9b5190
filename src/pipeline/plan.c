#include "moe_outliers/plan.h"
#include "moe_outliers/ablation.h"

#include <stdlib.h>
#include <string.h>

#include "moe_outliers/analysis.h"
#include "moe_outliers/layer.h"
#include "pipeline/partition.h"

/* Bytes of weights in memory at a time that always suffice; on the host memory that is used for the first time costs most. */
static const int64_t look_ahead = 8000000000, look_ahead_on_host = 1000000000;

static mo_status fill_costs(mo_plan *plan, const mo_plan_request *request) {
  for (int64_t stage = 0; stage < plan->n_stages; stage++) {
    MO_TRY(mo_model_stage_cost(request->spec, stage, request->element_bytes, plan->variants * plan->n_sequences,
                               plan->length, plan->costs + stage));
    plan->arena[stage] = request->stage_bytes ? request->stage_bytes[stage] : plan->costs[stage].aligned_bytes;
  }
  return MO_OK;
}

/* --- memory --- */

/* What a pass of an ablation keeps for what it measures, in place of the positions hit: largest probabilities of a micro-batch, their
 * sums, zeroed features, followed features and their growth; on the host losses and probabilities of the next tokens. */
static void fill_memory_of_variants(mo_plan *plan, const mo_plan_request *request) {
  const mo_model_spec *spec = request->spec;
  int64_t cells = spec->n_layers * plan->n_sequences, blocks = request->variants + 2;
  plan->activation_bytes *= request->variants;
  plan->position_bytes = 0;
  plan->workspace_bytes += plan->micro_batch * plan->length * spec->attention.heads * (int64_t)sizeof(float);
  plan->workspace_bytes += request->variants * (cells * 8 + spec->hidden * 4) + blocks * 256;
  int64_t growth = mo_ablation_growth_cells(spec->n_layers, spec->moe.experts, request->followed);
  if (growth)
    plan->workspace_bytes += growth * 8 + plan->micro_batch * plan->length * request->followed * 3 * 4 + 3 * 256;
  plan->statistics_bytes += (request->variants * (cells + plan->n_sequences * plan->length) + growth) * 8;
}

static void fill_memory(mo_plan *plan, const mo_plan_request *request) {
  const mo_model_spec *spec = request->spec;
  int64_t tokens = plan->n_sequences * plan->length, rows = plan->micro_batch * plan->length;
  int64_t thresholds = request->n_thresholds ? request->n_thresholds : 1;
  mo_analysis_shape shape = {.n_layers = spec->n_layers,
                             .n_sequences = plan->n_sequences,
                             .length = plan->length,
                             .hidden = spec->hidden,
                             .n_experts = spec->moe.experts,
                             .experts = spec->moe.experts > 0};
  plan->activation_bytes = tokens * spec->hidden * request->activation_bytes;
  plan->position_bytes = thresholds * plan->micro_batch * spec->hidden * ((plan->length + 63) / 64) * 8;
  plan->position_bytes += rows * (int64_t)sizeof(int32_t); /* outlier values of each row */
  plan->workspace_bytes = mo_workspace_bytes(spec, plan->micro_batch, plan->length, request->activation_bytes);
  if (request->memory_of) {
    mo_backend_load load = {spec,        request->precision, request->threads, request->stored, plan->micro_batch,
                            plan->length};
    mo_backend_memory memory = request->memory_of(&load);
    plan->scratch_bytes = memory.scratch;
    plan->overhead_bytes = memory.overhead + (plan->n_ranks > 1 ? memory.peers : 0);
  }
  plan->host_memory = request->host_memory;
  plan->staging_bytes = request->staging_bytes;
  /* Tokens; position bits and statistics of a micro-batch on their way to the accumulator and to the file that a stopped run
   * goes on from; rows that go there or to the result. */
  int64_t of_site = plan->micro_batch * spec->hidden * (int64_t)(sizeof(mo_site_row) + sizeof(double));
  of_site += rows * spec->hidden / 8 * (int64_t)sizeof(mo_outlier);
  plan->statistics_bytes = thresholds * (mo_accumulator_bytes(&shape) + 2 * of_site);
  if (spec->moe.experts) plan->statistics_bytes += thresholds * of_site; /* a record that waits for its experts */
  plan->statistics_bytes += 2 * plan->position_bytes + 8 * tokens;
  if (!request->host_memory) plan->statistics_bytes += rows * spec->hidden * (int64_t)sizeof(float);
  if (request->stores_activations) plan->statistics_bytes += 2 * rows * spec->hidden * (int64_t)sizeof(float);
  if (request->variants) fill_memory_of_variants(plan, request);
}

int64_t mo_plan_memory_beside(const mo_plan *plan) {
  int64_t device = plan->activation_bytes + plan->position_bytes + plan->workspace_bytes + plan->scratch_bytes +
                   plan->overhead_bytes;
  return plan->host_memory ? device + plan->staging_bytes + plan->statistics_bytes : device;
}

int64_t mo_plan_memory(const mo_plan *plan, int rank) {
  return plan->arena_bytes[rank] ? plan->arena_bytes[rank] + mo_plan_memory_beside(plan) : 0;
}

int64_t mo_plan_overlap_bytes(const mo_plan *plan, int rank) {
  int64_t before = 0, most = 0;
  for (int64_t b = 0; b < plan->n_blocks; b++) {
    const mo_block *block = plan->blocks + b;
    int64_t bytes = 0;
    if (block->rank != rank) continue;
    for (int64_t i = 0; i < block->n_stages; i++) bytes += plan->arena[block->first_stage + i];
    most = before + bytes > most ? before + bytes : most;
    before = bytes;
  }
  return most;
}

/* The smallest pass of an ablation has one variant. */
static int64_t ablation_bytes(const mo_plan *plan, const mo_plan_request *request) {
  mo_plan pass = *plan;
  mo_plan_request one = *request;
  if (!request->ablates) return 0;
  one.variants = 1;
  one.followed = MO_ABLATION_EXPECTED_FEATURES;
  one.stores_activations = false;
  fill_memory(&pass, &one);
  int64_t more = mo_plan_memory_beside(&pass) - mo_plan_memory_beside(plan);
  return more > 0 ? more : 0;
}

/* Bytes left for weights; refuses a bound that cannot hold the largest stage. */
static mo_status weight_budget(const mo_plan *plan, const char *from, int64_t *budget) {
  int64_t largest = 0, others = mo_plan_memory_beside(plan);
  for (int64_t stage = plan->first_stage; stage < plan->n_stages; stage++)
    if (plan->arena[stage] > largest) largest = plan->arena[stage];
  *budget = plan->memory_bytes ? plan->memory_bytes - others : INT64_MAX;
  if (*budget >= largest + plan->ablation_bytes) {
    /* One rank uses each weight once, as it comes: more memory than looks ahead does not make it faster. */
    int64_t ahead = plan->host_memory ? look_ahead_on_host : look_ahead;
    if (ahead < 4 * largest) ahead = 4 * largest;
    if (plan->n_ranks == 1 && *budget > ahead) *budget = ahead;
    return MO_OK;
  }
  /* Rounded up, so that the number works when it is given. */
  return MO_FAIL(MO_INVALID,
                 "a memory budget of %.6g GB per rank is too small (%s): the smallest that works is %.6f GB",
                 1e-9 * (double)plan->memory_bytes, from ? from : "engine.device_memory_gb",
                 1e-9 * (double)(largest + others + plan->ablation_bytes + 999));
}

/* --- the plan --- */

static mo_status allocate(mo_plan *plan) {
  size_t stages = (size_t)plan->n_stages, ranks = (size_t)plan->n_ranks;
  plan->costs = mo_alloc(stages, sizeof *plan->costs);
  plan->arena = mo_alloc(stages, sizeof *plan->arena);
  plan->start = mo_alloc((size_t)plan->n_micro, sizeof *plan->start);
  plan->blocks = mo_alloc(stages, sizeof *plan->blocks);
  plan->arena_bytes = mo_alloc(ranks, sizeof *plan->arena_bytes);
  plan->resident_bytes = mo_alloc(ranks, sizeof *plan->resident_bytes);
  return plan->costs && plan->arena && plan->start && plan->blocks && plan->arena_bytes && plan->resident_bytes
             ? MO_OK
             : MO_FAILED;
}

int64_t mo_plan_first_start(const mo_plan *plan, const int64_t *start) {
  int64_t first = plan->n_stages;
  for (int64_t micro = 0; micro < plan->n_micro; micro++)
    if (start[micro] < first) first = start[micro];
  return first;
}

static void fill_start(mo_plan *plan, const int64_t *start) {
  if (!start) return; /* all at stage 0 */
  plan->first_stage = mo_plan_first_start(plan, start);
  memcpy(plan->start, start, (size_t)plan->n_micro * sizeof *start);
}

static mo_status make(mo_plan *plan, const mo_plan_request *request) {
  int64_t budget;
  MO_TRY(allocate(plan));
  fill_start(plan, request->start);
  MO_TRY(fill_costs(plan, request));
  fill_memory(plan, request);
  plan->ablation_bytes = ablation_bytes(plan, request);
  MO_TRY(weight_budget(plan, request->memory_from, &budget));
  return mo_partition_choose(plan, &request->rates, budget);
}

mo_status mo_plan_make(mo_plan *plan, const mo_plan_request *request) {
  memset(plan, 0, sizeof *plan);
  plan->n_ranks = request->n_ranks;
  plan->n_stages = mo_model_stages(request->spec) - !request->perplexity;
  plan->n_sequences = request->n_sequences;
  plan->length = request->length;
  plan->micro_batch = request->micro_batch ? request->micro_batch : (request->n_sequences + 3) / 4;
  if (plan->micro_batch > plan->n_sequences) plan->micro_batch = plan->n_sequences;
  plan->variants = request->variants ? request->variants : 1;
  plan->n_micro = plan->variants * ((plan->n_sequences + plan->micro_batch - 1) / plan->micro_batch);
  plan->asked = request->partition;
  plan->memory_bytes = request->memory_bytes;
  mo_status status = make(plan, request);
  if (status != MO_OK) mo_plan_free(plan);
  return status;
}

void mo_plan_free(mo_plan *plan) {
  free(plan->costs);
  free(plan->arena);
  free(plan->start);
  free(plan->blocks);
  free(plan->arena_bytes);
  free(plan->resident_bytes);
  memset(plan, 0, sizeof *plan);
}

int64_t mo_plan_variant(const mo_plan *plan, int64_t micro) { return micro / (plan->n_micro / plan->variants); }

int64_t mo_plan_first_sequence(const mo_plan *plan, int64_t micro) {
  return micro % (plan->n_micro / plan->variants) * plan->micro_batch;
}

int64_t mo_plan_batch(const mo_plan *plan, int64_t micro) {
  int64_t left = plan->n_sequences - mo_plan_first_sequence(plan, micro);
  return left < plan->micro_batch ? left : plan->micro_batch;
}

int mo_plan_rank_of(const mo_plan *plan, int64_t stage) {
  if (stage >= 0 && stage < plan->first_stage && plan->n_blocks > 0) return plan->blocks[stage % plan->n_blocks].rank;
  for (int64_t b = 0; b < plan->n_blocks; b++)
    if (stage >= plan->blocks[b].first_stage && stage < plan->blocks[b].first_stage + plan->blocks[b].n_stages)
      return plan->blocks[b].rank;
  return -1;
}

int mo_plan_idle_ranks(const mo_plan *plan) {
  int idle = 0;
  for (int rank = 0; rank < plan->n_ranks; rank++) idle += plan->resident_bytes[rank] == 0;
  return idle;
}
