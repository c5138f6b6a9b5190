#include "moe_outliers/plan.h"

#include <stdlib.h>
#include <string.h>

#include "moe_outliers/layer.h"

static double seconds(const mo_plan_request *request, const mo_stage_cost *cost) {
  return (double)cost->bytes / request->bytes_per_second + cost->flops / request->flops_per_second;
}

/* Where the rank that starts at `first` ends if it may cost at most `cap`, leaving one stage for each rank after it. */
static int64_t take(const double *costs, int64_t n, int64_t first, int64_t ranks_after, double cap) {
  int64_t end = first + 1;
  double sum = costs[first];
  while (end < n - ranks_after && sum + costs[end] <= cap) sum += costs[end++];
  return end;
}

static bool reachable(const double *costs, int64_t n, int64_t ranks, double cap) {
  int64_t first = 0;
  for (int64_t rank = 0; rank < ranks && first < n; rank++) {
    if (costs[first] > cap) return false;
    first = take(costs, n, first, ranks - 1 - rank, cap);
  }
  return first >= n;
}

/* ends[r]: end of rank r's consecutive stages; the costliest rank is as cheap as can be. */
static void balance(const double *costs, int64_t n, int64_t ranks, int64_t *ends) {
  double low = 0, high = 0;
  for (int64_t i = 0; i < n; i++) high += costs[i];
  high *= 1 + 1e-12; /* sums in another order may round up */
  for (int step = 0; step < 100; step++) {
    double middle = (low + high) / 2;
    if (reachable(costs, n, ranks, middle))
      high = middle;
    else
      low = middle;
  }
  for (int64_t rank = 0, first = 0; rank < ranks; rank++)
    ends[rank] = first = take(costs, n, first, ranks - 1 - rank, high);
  ends[ranks - 1] = n;
}

static int64_t sum_arena(const mo_plan *plan, int64_t first, int64_t end) {
  int64_t sum = 0;
  for (int64_t stage = first; stage < end; stage++) sum += plan->arena[stage];
  return sum;
}

/* Cut stages first..end-1 of a rank into blocks of at most `most` bytes, at least one stage each. */
static void cut_blocks(mo_plan *plan, int rank, int64_t first, int64_t end, int64_t most) {
  while (first < end) {
    int64_t stop = first + 1, bytes = plan->arena[first];
    while (stop < end && bytes + plan->arena[stop] <= most) bytes += plan->arena[stop++];
    plan->blocks[plan->n_blocks++] = (mo_block){rank, first, stop - first};
    first = stop;
  }
}

static mo_status fill_costs(mo_plan *plan, const mo_plan_request *request) {
  for (int64_t stage = 0; stage < plan->n_stages; stage++) {
    MO_TRY(mo_model_stage_cost(request->spec, stage, request->element_bytes, plan->n_sequences, plan->length,
                               plan->costs + stage));
    plan->arena[stage] = request->stage_bytes ? request->stage_bytes[stage] : plan->costs[stage].bytes;
  }
  return MO_OK;
}

/* Bytes left for weights; refuses a bound that cannot hold the largest stage. */
static mo_status weight_budget(const mo_plan *plan, const mo_plan_request *request, int64_t *budget) {
  int64_t largest = 0, others = plan->activation_bytes + plan->workspace_bytes;
  for (int64_t stage = 0; stage < plan->n_stages; stage++)
    if (plan->arena[stage] > largest) largest = plan->arena[stage];
  *budget = request->memory_bytes ? request->memory_bytes - others : INT64_MAX;
  if (*budget >= largest) return MO_OK;
  /* Rounded up, so that the number works when it is given. */
  return MO_FAIL(
      MO_INVALID,
      "a memory budget of %.6g GB per rank is too small (engine.device_memory_gb): the smallest that works is "
      "%.6f GB",
      1e-9 * (double)request->memory_bytes, 1e-9 * (double)(largest + others + 999));
}

static bool all_fit(const mo_plan *plan, const int64_t *ends, int64_t ranks, int64_t budget) {
  for (int64_t rank = 0, first = 0; rank < ranks; first = ends[rank++])
    if (sum_arena(plan, first, ends[rank]) > budget) return false;
  return true;
}

static void deal_blocks(mo_plan *plan, const mo_plan_request *request, const int64_t *ends, int64_t ranks,
                        int64_t budget) {
  bool fit = all_fit(plan, ends, ranks, budget);
  plan->partition = request->partition;
  if (plan->partition == MO_PARTITION_AUTO)
    plan->partition = fit || ranks == 1 ? MO_PARTITION_CONTIGUOUS : MO_PARTITION_INTERLEAVED;
  if (plan->partition == MO_PARTITION_CONTIGUOUS) {
    for (int64_t rank = 0, first = 0; rank < ranks; first = ends[rank++])
      cut_blocks(plan, (int)rank, first, ends[rank],
                 sum_arena(plan, first, ends[rank]) <= budget ? budget : budget / 2);
    return;
  }
  int64_t share = sum_arena(plan, 0, plan->n_stages) / (2 * ranks); /* at least two rounds */
  cut_blocks(plan, 0, 0, plan->n_stages, share < budget / 2 ? share : budget / 2);
  for (int64_t b = 0; b < plan->n_blocks; b++) plan->blocks[b].rank = (int)(b % ranks);
}

/* The arena of a rank: all its weights where they fit, else the budget, but no more than it can use. */
static void size_arenas(mo_plan *plan, int64_t budget) {
  for (int64_t b = 0; b < plan->n_blocks; b++) {
    const mo_block *block = plan->blocks + b;
    plan->resident_bytes[block->rank] += sum_arena(plan, block->first_stage, block->first_stage + block->n_stages);
  }
  for (int rank = 0; rank < plan->n_ranks; rank++)
    plan->arena_bytes[rank] = plan->resident_bytes[rank] < budget ? plan->resident_bytes[rank] : budget;
}

static mo_status allocate(mo_plan *plan) {
  size_t stages = (size_t)plan->n_stages, ranks = (size_t)plan->n_ranks;
  plan->costs = mo_alloc(stages, sizeof *plan->costs);
  plan->arena = mo_alloc(stages, sizeof *plan->arena);
  plan->blocks = mo_alloc(stages, sizeof *plan->blocks);
  plan->arena_bytes = mo_alloc(ranks, sizeof *plan->arena_bytes);
  plan->resident_bytes = mo_alloc(ranks, sizeof *plan->resident_bytes);
  return plan->costs && plan->arena && plan->blocks && plan->arena_bytes && plan->resident_bytes ? MO_OK : MO_FAILED;
}

static mo_status make(mo_plan *plan, const mo_plan_request *request) {
  int64_t ranks = plan->n_ranks < plan->n_stages ? plan->n_ranks : plan->n_stages, budget;
  MO_TRY(allocate(plan));
  MO_TRY(fill_costs(plan, request));
  MO_TRY(weight_budget(plan, request, &budget));
  double *costs = mo_alloc((size_t)plan->n_stages, sizeof *costs);
  int64_t *ends = mo_alloc((size_t)ranks, sizeof *ends);
  if (costs && ends) {
    for (int64_t stage = 0; stage < plan->n_stages; stage++) costs[stage] = seconds(request, plan->costs + stage);
    balance(costs, plan->n_stages, ranks, ends);
    deal_blocks(plan, request, ends, ranks, budget);
    size_arenas(plan, budget);
  }
  bool done = costs && ends;
  free(costs);
  free(ends);
  return done ? MO_OK : MO_FAILED;
}

mo_status mo_plan_make(mo_plan *plan, const mo_plan_request *request) {
  memset(plan, 0, sizeof *plan);
  plan->n_ranks = request->n_ranks;
  plan->n_stages = mo_model_stages(request->spec) - !request->perplexity;
  plan->n_sequences = request->n_sequences;
  plan->length = request->length;
  plan->micro_batch = request->micro_batch ? request->micro_batch : (request->n_sequences + 3) / 4;
  if (plan->micro_batch > plan->n_sequences) plan->micro_batch = plan->n_sequences;
  plan->n_micro = (plan->n_sequences + plan->micro_batch - 1) / plan->micro_batch;
  plan->activation_bytes = plan->n_sequences * plan->length * request->spec->hidden * request->activation_bytes;
  plan->workspace_bytes = mo_workspace_bytes(request->spec, plan->micro_batch, plan->length, request->activation_bytes);
  mo_status status = make(plan, request);
  if (status != MO_OK) mo_plan_free(plan);
  return status;
}

void mo_plan_free(mo_plan *plan) {
  free(plan->costs);
  free(plan->arena);
  free(plan->blocks);
  free(plan->arena_bytes);
  free(plan->resident_bytes);
  memset(plan, 0, sizeof *plan);
}

int mo_plan_rank_of(const mo_plan *plan, int64_t stage) {
  for (int64_t b = 0; b < plan->n_blocks; b++)
    if (stage >= plan->blocks[b].first_stage && stage < plan->blocks[b].first_stage + plan->blocks[b].n_stages)
      return plan->blocks[b].rank;
  return -1;
}

int64_t mo_plan_memory(const mo_plan *plan, int rank) {
  return plan->arena_bytes[rank] ? plan->arena_bytes[rank] + plan->activation_bytes + plan->workspace_bytes : 0;
}
