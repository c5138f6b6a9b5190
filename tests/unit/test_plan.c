/* The plan: who computes which stages, in which blocks, in how much memory. */
#include "moe_outliers/plan.h"
#include "test_model_fixture.h"

enum { LENGTH = 2048 };

static uint64_t random_state;

static int64_t random_below(int64_t n) { /* xorshift64*: Vigna 2016 */
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (int64_t)(random_state * UINT64_C(2685821657736338717) % (uint64_t)n);
}

/* A llama of n layers, each with a window of its own, so that all layers cost differently. */
static mo_model_spec layers_of_random_cost(int64_t n) {
  char number[24];
  snprintf(number, sizeof number, "%" PRId64, n);
  char *json = with(llama, "num_hidden_layers", number);
  mo_model_spec spec = parsed(json);
  for (int64_t i = 0; i < n; i++) spec.layers[i].window = 1 + random_below(random_below(2) ? LENGTH : LENGTH / 8);
  free(json);
  return spec;
}

static mo_plan_request request_for(const mo_model_spec *spec, int n_ranks) {
  return (mo_plan_request){.spec = spec,
                           .n_sequences = 10,
                           .length = LENGTH,
                           .perplexity = true,
                           .n_ranks = n_ranks,
                           .activation_bytes = 4,
                           .partition = MO_PARTITION_AUTO,
                           .element_bytes = 2,
                           .bytes_per_second = 1e9,
                           .flops_per_second = 1e9};
}

static mo_plan made(const mo_plan_request *request) {
  mo_plan plan;
  mo_status status = mo_plan_make(&plan, request);
  if (status != MO_OK) fail_msg("%s", mo_error_message());
  return plan;
}

static int64_t sum_of(const int64_t *values, int64_t first, int64_t n) {
  int64_t sum = 0;
  for (int64_t i = first; i < first + n; i++) sum += values[i];
  return sum;
}

static int64_t largest_of(const int64_t *values, int64_t n) {
  int64_t largest = 0;
  for (int64_t i = 0; i < n; i++) largest = values[i] > largest ? values[i] : largest;
  return largest;
}

/* Blocks follow one another over all stages; each fits; ranks' sums are right; memory is within the bound. */
static void expect_valid(const mo_plan *plan, const mo_plan_request *request) {
  int64_t next = 0, others = plan->activation_bytes + plan->workspace_bytes, resident = 0;
  int64_t budget = request->memory_bytes ? request->memory_bytes - others : INT64_MAX;
  for (int64_t b = 0; b < plan->n_blocks; b++) {
    const mo_block *block = plan->blocks + b;
    assert_int_equal(block->first_stage, next);
    assert_true(block->n_stages >= 1);
    assert_in_range(block->rank, 0, request->n_ranks - 1);
    assert_true(sum_of(plan->arena, block->first_stage, block->n_stages) <= budget);
    for (int64_t s = 0; s < block->n_stages; s++) assert_int_equal(mo_plan_rank_of(plan, next + s), block->rank);
    next += block->n_stages;
  }
  assert_int_equal(next, plan->n_stages);
  for (int rank = 0; rank < request->n_ranks; rank++) {
    int64_t own = 0;
    for (int64_t b = 0; b < plan->n_blocks; b++)
      if (plan->blocks[b].rank == rank)
        own += sum_of(plan->arena, plan->blocks[b].first_stage, plan->blocks[b].n_stages);
    assert_int_equal(plan->resident_bytes[rank], own);
    assert_int_equal(plan->arena_bytes[rank], own < budget ? own : budget);
    assert_int_equal(mo_plan_memory(plan, rank), own ? plan->arena_bytes[rank] + others : 0);
    if (request->memory_bytes) assert_true(mo_plan_memory(plan, rank) <= request->memory_bytes);
    resident += own;
  }
  assert_int_equal(resident, sum_of(plan->arena, 0, plan->n_stages));
}

/* Each rank's stages lie together, in the order of the ranks. */
static void expect_contiguous(const mo_plan *plan) {
  for (int64_t b = 1; b < plan->n_blocks; b++) {
    int step = plan->blocks[b].rank - plan->blocks[b - 1].rank;
    assert_true(step == 0 || step == 1);
  }
}

/* Blocks go round the ranks. */
static void expect_interleaved(const mo_plan *plan, int64_t ranks) {
  for (int64_t b = 0; b < plan->n_blocks; b++) assert_int_equal(plan->blocks[b].rank, b % ranks);
}

static void every_stage_once(void **state) {
  (void)state;
  static const mo_partition_kind kinds[] = {MO_PARTITION_AUTO, MO_PARTITION_CONTIGUOUS, MO_PARTITION_INTERLEAVED};
  random_state = 1;
  for (int64_t n = 1; n <= 13; n += 4) {
    mo_model_spec spec = layers_of_random_cost(n);
    for (int ranks = 1; ranks <= 18; ranks++)
      for (int kind = 0; kind < 3; kind++)
        for (int tight = 0; tight < 4; tight++) {
          mo_plan_request request = request_for(&spec, ranks);
          request.partition = kinds[kind];
          request.perplexity = ranks % 2;
          mo_plan plan = made(&request);
          if (tight) { /* the largest stage alone, twice that, four times */
            request.memory_bytes =
                plan.activation_bytes + plan.workspace_bytes + (largest_of(plan.arena, plan.n_stages) << (tight - 1));
            mo_plan_free(&plan);
            plan = made(&request);
          }
          assert_int_equal(plan.n_stages, n + 1 + request.perplexity);
          expect_valid(&plan, &request);
          if (plan.partition == MO_PARTITION_CONTIGUOUS)
            expect_contiguous(&plan);
          else
            expect_interleaved(&plan, ranks < plan.n_stages ? ranks : plan.n_stages);
          if (kind) assert_int_equal(plan.partition, kinds[kind]);
          mo_plan_free(&plan);
        }
    mo_model_free(&spec);
  }
}

/* --- balance --- */

/* The cheapest that the costliest of `ranks` runs of consecutive costs can be. */
static double brute_force(const double *costs, int64_t n, int64_t ranks) {
  double best = INFINITY, sum = 0;
  if (ranks == 1) {
    for (int64_t i = 0; i < n; i++) sum += costs[i];
    return sum;
  }
  for (int64_t first = 1; first <= n - ranks + 1; first++) {
    sum += costs[first - 1];
    best = fmin(best, fmax(sum, brute_force(costs + first, n - first, ranks - 1)));
  }
  return best;
}

static void contiguous_balance_is_the_best(void **state) {
  (void)state;
  random_state = 20261122;
  for (int trial = 0; trial < 300; trial++) {
    mo_model_spec spec = layers_of_random_cost(1 + random_below(8));
    mo_plan_request request = request_for(&spec, 1 + (int)random_below(5));
    request.bytes_per_second = trial % 3 ? 1e30 : 1e6; /* operations alone, or loading, too */
    mo_plan plan = made(&request);
    double costs[16], own[16] = {0}, most = 0;
    for (int64_t i = 0; i < plan.n_stages; i++) {
      costs[i] =
          (double)plan.costs[i].bytes / request.bytes_per_second + plan.costs[i].flops / request.flops_per_second;
      most = fmax(most, own[mo_plan_rank_of(&plan, i)] += costs[i]);
    }
    int64_t ranks = request.n_ranks < plan.n_stages ? request.n_ranks : plan.n_stages;
    double best = brute_force(costs, plan.n_stages, ranks);
    if (!(most <= best * (1 + 1e-9)))
      fail_msg("trial %d: the costliest rank takes %g, could take %g", trial, most, best);
    for (int64_t rank = 0; rank < ranks; rank++) assert_true(plan.resident_bytes[rank] > 0);
    mo_plan_free(&plan);
    mo_model_free(&spec);
  }
}

/* Equal layers: no rank has two more than another. */
static void equal_layers_are_shared_evenly(void **state) {
  (void)state;
  char *json = with(olmoe, "num_hidden_layers", "23");
  mo_model_spec spec = parsed(json);
  for (int ranks = 1; ranks <= 23; ranks++) {
    mo_plan_request request = request_for(&spec, ranks);
    request.bytes_per_second = 1e30;
    mo_plan plan = made(&request);
    int64_t n[32] = {0}, most = 0;
    for (int64_t stage = 1; stage <= 23; stage++) {
      int64_t count = ++n[mo_plan_rank_of(&plan, stage)];
      most = count > most ? count : most;
    }
    assert_true(most <= (23 + ranks - 1) / ranks + 1);
    mo_plan_free(&plan);
  }
  mo_model_free(&spec);
  free(json);
}

static void more_ranks_than_stages(void **state) {
  (void)state;
  mo_model_spec spec = parsed(olmoe); /* 4 stages */
  for (int ranks = 4; ranks <= 9; ranks++) {
    mo_plan_request request = request_for(&spec, ranks);
    mo_plan plan = made(&request);
    assert_int_equal(plan.n_blocks, 4);
    for (int rank = 0; rank < ranks; rank++) {
      assert_int_equal(plan.resident_bytes[rank], rank < 4 ? plan.arena[rank] : 0);
      if (rank >= 4) assert_int_equal(mo_plan_memory(&plan, rank), 0);
    }
    assert_int_equal(mo_plan_rank_of(&plan, 4), -1);
    assert_int_equal(mo_plan_rank_of(&plan, -1), -1);
    mo_plan_free(&plan);
  }
  mo_model_free(&spec);
}

/* --- memory --- */

static void auto_interleaves_what_does_not_fit(void **state) {
  (void)state;
  char *json = with(olmoe, "num_hidden_layers", "12");
  mo_model_spec spec = parsed(json);
  mo_plan_request request = request_for(&spec, 3);
  mo_plan plan = made(&request);
  int64_t others = plan.activation_bytes + plan.workspace_bytes, most = largest_of(plan.resident_bytes, 3);
  assert_int_equal(plan.partition, MO_PARTITION_CONTIGUOUS);
  assert_int_equal(plan.n_blocks, 3);
  mo_plan_free(&plan);

  request.memory_bytes = others + most;
  plan = made(&request);
  assert_int_equal(plan.partition, MO_PARTITION_CONTIGUOUS);
  assert_int_equal(plan.n_blocks, 3);
  mo_plan_free(&plan);

  request.memory_bytes = others + most - 1;
  plan = made(&request);
  assert_int_equal(plan.partition, MO_PARTITION_INTERLEAVED);
  assert_true(plan.n_blocks >= 6); /* at least two rounds */
  mo_plan_free(&plan);

  request.n_ranks = 1; /* nobody to take turns with */
  plan = made(&request);
  assert_int_equal(plan.partition, MO_PARTITION_CONTIGUOUS);
  mo_plan_free(&plan);
  mo_model_free(&spec);
  free(json);
}

/* The smallest budget that the error line names works, and one noticeably below it does not. */
static void named_budget_works(void **state) {
  (void)state;
  random_state = 7;
  for (int trial = 0; trial < 200; trial++) {
    mo_model_spec spec = layers_of_random_cost(1 + random_below(6));
    int64_t stage_bytes[16];
    for (int i = 0; i < 16; i++) stage_bytes[i] = 1 + random_below((int64_t)1 << (4 + random_below(36)));
    mo_plan_request request = request_for(&spec, 1 + (int)random_below(4));
    request.stage_bytes = stage_bytes;
    request.memory_bytes = 1;
    mo_plan plan;
    double gigabytes = 0;
    assert_int_equal(mo_plan_make(&plan, &request), MO_INVALID);
    const char *at = strstr(mo_error_message(), "smallest that works is ");
    assert_non_null(at);
    assert_non_null(strstr(mo_error_message(), "engine.device_memory_gb"));
    assert_int_equal(sscanf(at, "smallest that works is %lf GB", &gigabytes), 1);
    assert_null(plan.blocks);
    mo_error_clear();

    request.memory_bytes = (int64_t)(gigabytes * 1e9);
    plan = made(&request);
    expect_valid(&plan, &request);
    mo_plan_free(&plan);
    request.memory_bytes = (int64_t)((gigabytes - 0.001) * 1e9) - 1;
    assert_int_equal(mo_plan_make(&plan, &request), MO_INVALID);
    mo_error_clear();
    mo_model_free(&spec);
  }
}

static void sizes_in_the_arena_are_the_checkpoints(void **state) {
  (void)state;
  mo_model_spec spec = parsed(olmoe);
  int64_t stage_bytes[] = {1000, 70000, 80000, 500};
  mo_plan_request request = request_for(&spec, 2);
  request.stage_bytes = stage_bytes;
  mo_plan plan = made(&request);
  assert_memory_equal(plan.arena, stage_bytes, sizeof stage_bytes);
  mo_plan_free(&plan);
  request.stage_bytes = NULL;
  plan = made(&request);
  for (int64_t i = 0; i < 4; i++) assert_int_equal(plan.arena[i], plan.costs[i].bytes);
  mo_plan_free(&plan);
  mo_model_free(&spec);
}

/* Without the losses the head is not needed, nor read. */
static void no_head_without_perplexity(void **state) {
  (void)state;
  mo_model_spec spec = parsed(olmoe);
  mo_plan_request request = request_for(&spec, 1);
  mo_plan with_head = made(&request);
  request.perplexity = false;
  mo_plan without = made(&request);
  assert_int_equal(with_head.n_stages, 4);
  assert_int_equal(without.n_stages, 3);
  assert_int_equal(without.resident_bytes[0], with_head.resident_bytes[0] - with_head.arena[3]);
  mo_plan_free(&with_head);
  mo_plan_free(&without);
  mo_model_free(&spec);
}

/* --- micro-batches --- */

static void micro_batch_by_default(void **state) {
  (void)state;
  static const int64_t expected[][3] = {{1, 1, 1}, {2, 1, 2}, {3, 1, 3},  {4, 1, 4},
                                        {5, 2, 3}, {8, 2, 4}, {16, 4, 4}, {17, 5, 4}};
  mo_model_spec spec = parsed(olmoe);
  for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
    for (int ranks = 1; ranks <= 7; ranks += 2)
      for (int tight = 0; tight < 2; tight++) {
        mo_plan_request request = request_for(&spec, ranks);
        request.n_sequences = expected[i][0];
        mo_plan plan = made(&request);
        if (tight) {
          request.memory_bytes = plan.activation_bytes + plan.workspace_bytes + largest_of(plan.arena, plan.n_stages);
          mo_plan_free(&plan);
          plan = made(&request);
        }
        assert_int_equal(plan.micro_batch, expected[i][1]);
        assert_int_equal(plan.n_micro, expected[i][2]);
        mo_plan_free(&plan);
      }
  mo_model_free(&spec);
}

static void micro_batch_as_asked_for(void **state) {
  (void)state;
  static const int64_t expected[][3] = {{1, 1, 10}, {3, 3, 4}, {10, 10, 1}, {11, 10, 1}, {1000000, 10, 1}};
  mo_model_spec spec = parsed(olmoe);
  for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
    mo_plan_request request = request_for(&spec, 2);
    request.micro_batch = expected[i][0];
    mo_plan plan = made(&request);
    assert_int_equal(plan.micro_batch, expected[i][1]);
    assert_int_equal(plan.n_micro, expected[i][2]);
    assert_int_equal(plan.activation_bytes, 10 * LENGTH * 48 * 4);
    mo_plan_free(&plan);
  }
  mo_model_free(&spec);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_stage_once),
      cmocka_unit_test(contiguous_balance_is_the_best),
      cmocka_unit_test(equal_layers_are_shared_evenly),
      cmocka_unit_test(more_ranks_than_stages),
      cmocka_unit_test(auto_interleaves_what_does_not_fit),
      cmocka_unit_test(named_budget_works),
      cmocka_unit_test(sizes_in_the_arena_are_the_checkpoints),
      cmocka_unit_test(no_head_without_perplexity),
      cmocka_unit_test(micro_batch_by_default),
      cmocka_unit_test(micro_batch_as_asked_for),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
