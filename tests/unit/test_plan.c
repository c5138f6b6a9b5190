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
                           .rates = {.bytes_per_second = 1e9, .flops_per_second = 1e9}};
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
  int64_t next = plan->first_stage, others = mo_plan_memory_beside(plan), resident = 0;
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
  assert_int_equal(resident, sum_of(plan->arena, plan->first_stage, plan->n_stages - plan->first_stage));
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
                mo_plan_memory_beside(&plan) + (largest_of(plan.arena, plan.n_stages) << (tight - 1));
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

/* The least predicted time of all cuts of stages first .. n-1 into a block for each of the ranks from `rank` on. */
static double brute_force(mo_plan *plan, const mo_plan_rates *rates, int64_t first, int rank, int ranks) {
  mo_block *block = plan->blocks + rank;
  double best = INFINITY;
  if (rank == ranks - 1) {
    mo_plan_time time;
    *block = (mo_block){rank, first, plan->n_stages - first};
    for (int i = 0; i < ranks; i++)
      plan->arena_bytes[i] = plan->resident_bytes[i] =
          sum_of(plan->arena, plan->blocks[i].first_stage, plan->blocks[i].n_stages);
    assert_int_equal(mo_plan_predict(plan, rates, &time), MO_OK);
    return time.seconds;
  }
  for (int64_t end = first + 1; end <= plan->n_stages - (ranks - 1 - rank); end++) {
    *block = (mo_block){rank, first, end - first};
    best = fmin(best, brute_force(plan, rates, end, rank + 1, ranks));
  }
  return best;
}

static void contiguous_cut_is_about_the_fastest(void **state) {
  (void)state;
  random_state = 20261122;
  for (int trial = 0; trial < 300; trial++) {
    mo_model_spec spec = layers_of_random_cost(1 + random_below(8));
    mo_plan_request request = request_for(&spec, 1 + (int)random_below(5));
    static const double bandwidths[] = {1e30, 1e6, 3e4}; /* operations alone, loading too, loading most of all */
    request.rates.bytes_per_second = bandwidths[trial % 3];
    request.rates.ranks_per_node = trial % 2; /* all on one node, or each on its own */
    mo_plan plan = made(&request);
    mo_plan_time time;
    int ranks = request.n_ranks < plan.n_stages ? request.n_ranks : (int)plan.n_stages;
    assert_int_equal(plan.n_blocks, ranks);
    for (int rank = 0; rank < ranks; rank++) assert_true(plan.resident_bytes[rank] > 0);
    assert_int_equal(mo_plan_predict(&plan, &request.rates, &time), MO_OK);
    double best = brute_force(&plan, &request.rates, 0, 0, ranks);
    /* An even share of the memory is worth a little. */
    if (!(time.seconds <= best * (1 + 0.02 * ranks)))
      fail_msg("trial %d: %g s, could be %g", trial, time.seconds, best);
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
    request.rates.bytes_per_second = 1e30;
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
  int64_t others = mo_plan_memory_beside(&plan), most = plan.contiguous_bytes;
  assert_true(most <= largest_of(plan.resident_bytes, 3));
  assert_int_equal(plan.partition, MO_PARTITION_CONTIGUOUS);
  assert_true(plan.fits);
  assert_int_equal(plan.n_blocks, 3);
  mo_plan_free(&plan);

  request.memory_bytes = others + most;
  plan = made(&request);
  assert_int_equal(plan.partition, MO_PARTITION_CONTIGUOUS);
  assert_true(plan.fits);
  assert_int_equal(plan.n_blocks, 3);
  assert_int_equal(largest_of(plan.resident_bytes, 3), most);
  mo_plan_free(&plan);

  request.memory_bytes = others + most - 1;
  plan = made(&request);
  assert_int_equal(plan.partition, MO_PARTITION_INTERLEAVED);
  assert_true(plan.n_blocks >= 6); /* at least two rounds */
  mo_plan_free(&plan);

  request.n_ranks = 1; /* nobody to take turns with */
  plan = made(&request);
  assert_int_equal(plan.partition, MO_PARTITION_CONTIGUOUS);
  assert_false(plan.fits);
  mo_plan_free(&plan);
  mo_model_free(&spec);
  free(json);
}

/* Two blocks have room side by side wherever two stages have. */
static void blocks_are_half_an_arena(void **state) {
  (void)state;
  char *json = with(olmoe, "num_hidden_layers", "30");
  mo_model_spec spec = parsed(json);
  for (int ranks = 1; ranks <= 4; ranks++)
    for (int partition = MO_PARTITION_AUTO; partition <= MO_PARTITION_INTERLEAVED; partition++) {
      mo_plan_request request = request_for(&spec, ranks);
      request.partition = (mo_partition_kind)partition;
      mo_plan plan = made(&request);
      int64_t largest = largest_of(plan.arena, plan.n_stages);
      request.memory_bytes = mo_plan_memory_beside(&plan) + 2 * largest;
      mo_plan_free(&plan);
      plan = made(&request);
      assert_false(plan.fits);
      for (int rank = 0; rank < ranks; rank++) assert_true(mo_plan_overlap_bytes(&plan, rank) <= 2 * largest);
      mo_plan_free(&plan);
    }
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

static mo_backend_memory thousands(const mo_backend_load *load) {
  assert_int_equal(load->B, 3);
  assert_int_equal(load->S, LENGTH);
  assert_int_equal(load->threads, 5);
  return (mo_backend_memory){.scratch = 1000, .overhead = 20000, .peers = 300000};
}

/* Each part of the account is in the total, and what lies on the host only where that is the backend's memory. */
static void memory_of_a_backend_counts(void **state) {
  (void)state;
  mo_model_spec spec = parsed(olmoe);
  mo_plan_request request = request_for(&spec, 1);
  request.threads = 5;
  request.staging_bytes = 4000000;
  mo_plan plain = made(&request);
  request.memory_of = thousands;
  mo_plan one = made(&request);
  request.n_ranks = 2;
  mo_plan two = made(&request);
  request.host_memory = true;
  mo_plan host = made(&request);
  int64_t own = plain.activation_bytes + plain.position_bytes + plain.workspace_bytes;
  assert_int_equal(plain.position_bytes, 3 * 48 * LENGTH / 8 + 3 * LENGTH * 4);
  assert_int_equal(mo_plan_memory_beside(&plain), own);
  assert_int_equal(mo_plan_memory_beside(&one), own + 21000);
  assert_int_equal(mo_plan_memory_beside(&two), own + 321000);
  assert_int_equal(mo_plan_memory_beside(&host), own + 321000 + 4000000 + host.statistics_bytes);
  assert_true(host.statistics_bytes >= 2 * host.position_bytes);
  request.stores_activations = true;
  mo_plan stores = made(&request);
  assert_int_equal(stores.statistics_bytes, host.statistics_bytes + 2 * 3 * LENGTH * 48 * 4);
  mo_plan_free(&plain);
  mo_plan_free(&one);
  mo_plan_free(&two);
  mo_plan_free(&host);
  mo_plan_free(&stores);
  mo_model_free(&spec);
}

/* A run that goes on: the rest is dealt as if it were all, and those who do some of it put back what is done. */
static void done_stages_are_left_out(void **state) {
  (void)state;
  random_state = 5;
  mo_model_spec spec = layers_of_random_cost(9);
  for (int64_t first = 0; first <= 11; first++)
    for (int ranks = 1; ranks <= 12; ranks += 3)
      for (int kind = MO_PARTITION_AUTO; kind <= MO_PARTITION_INTERLEAVED; kind++) {
        mo_plan_request request = request_for(&spec, ranks);
        const int64_t start[] = {first + (first < 11), first, 11, first}; /* of the four micro-batches */
        request.start = start;
        request.partition = (mo_partition_kind)kind;
        mo_plan plan = made(&request);
        expect_valid(&plan, &request);
        assert_int_equal(plan.n_stages, 11);
        assert_int_equal(plan.first_stage, first);
        assert_memory_equal(plan.start, start, sizeof start);
        for (int64_t stage = 0; stage < first && first < 11; stage++)
          assert_true(plan.resident_bytes[mo_plan_rank_of(&plan, stage)] > 0);
        if (first == 11) {
          assert_int_equal(plan.n_blocks, 0);
          assert_int_equal(mo_plan_rank_of(&plan, 0), -1);
        }
        assert_int_equal(mo_plan_idle_ranks(&plan), ranks < 11 - first ? 0 : ranks - (11 - first));
        if (kind == MO_PARTITION_CONTIGUOUS) assert_int_equal(plan.n_blocks, ranks < 11 - first ? ranks : 11 - first);
        mo_plan_free(&plan);
      }
  mo_model_free(&spec);
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
  for (int64_t i = 0; i < 4; i++) {
    assert_int_equal(plan.arena[i], plan.costs[i].aligned_bytes);
    assert_true(plan.arena[i] >= plan.costs[i].bytes && plan.arena[i] % 256 == 0);
  }
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
          request.memory_bytes = mo_plan_memory_beside(&plan) + largest_of(plan.arena, plan.n_stages);
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

/* Micro-batches never mix variants, and are those of the run itself in each. */
static void variants_go_side_by_side(void **state) {
  (void)state;
  mo_model_spec spec = layers_of_random_cost(3);
  mo_plan_request request = request_for(&spec, 2);
  request.micro_batch = 4;
  mo_plan run = made(&request);
  request.variants = 3;
  mo_plan pass = made(&request);
  assert_int_equal(run.variants, 1);
  assert_int_equal(run.n_micro, 3);
  assert_int_equal(pass.n_micro, 9);
  for (int64_t micro = 0; micro < 9; micro++) {
    assert_int_equal(mo_plan_variant(&pass, micro), micro / 3);
    assert_int_equal(mo_plan_variant(&run, micro % 3), 0);
    assert_int_equal(mo_plan_first_sequence(&pass, micro), micro % 3 * 4);
    assert_int_equal(mo_plan_first_sequence(&run, micro % 3), micro % 3 * 4);
    assert_int_equal(mo_plan_batch(&pass, micro), micro % 3 == 2 ? 2 : 4);
    assert_int_equal(mo_plan_batch(&run, micro % 3), micro % 3 == 2 ? 2 : 4);
  }
  assert_int_equal(pass.activation_bytes, 3 * run.activation_bytes);
  assert_int_equal(pass.position_bytes, 0);
  for (int64_t stage = 0; stage < run.n_stages; stage++) {
    assert_true(fabs(pass.costs[stage].flops - 3 * run.costs[stage].flops) <= 1e-12 * pass.costs[stage].flops);
    assert_int_equal(pass.costs[stage].bytes, run.costs[stage].bytes);
  }
  mo_plan_free(&run);
  mo_plan_free(&pass);
  mo_model_free(&spec);
}

/* The budget that a run with an ablation asks for holds its smallest pass, too. */
static void a_budget_holds_the_ablation(void **state) {
  (void)state;
  mo_model_spec spec = layers_of_random_cost(3);
  mo_plan_request request = request_for(&spec, 1), pass;
  mo_plan plan;
  double gigabytes;
  request.ablates = true;
  request.memory_bytes = 1;
  assert_int_equal(mo_plan_make(&plan, &request), MO_INVALID);
  assert_int_equal(
      sscanf(strstr(mo_error_message(), "smallest that works is "), "smallest that works is %lf", &gigabytes), 1);
  mo_error_clear();
  request.memory_bytes = (int64_t)(gigabytes * 1e9);
  plan = made(&request);
  mo_plan_free(&plan);
  pass = request;
  pass.ablates = false;
  pass.variants = 1;
  plan = made(&pass);
  assert_true(mo_plan_memory(&plan, 0) <= request.memory_bytes);
  mo_plan_free(&plan);
  pass.variants = 2;
  assert_int_equal(mo_plan_make(&plan, &pass), MO_INVALID);
  mo_error_clear();
  mo_model_free(&spec);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_stage_once),
      cmocka_unit_test(contiguous_cut_is_about_the_fastest),
      cmocka_unit_test(equal_layers_are_shared_evenly),
      cmocka_unit_test(more_ranks_than_stages),
      cmocka_unit_test(auto_interleaves_what_does_not_fit),
      cmocka_unit_test(blocks_are_half_an_arena),
      cmocka_unit_test(named_budget_works),
      cmocka_unit_test(memory_of_a_backend_counts),
      cmocka_unit_test(done_stages_are_left_out),
      cmocka_unit_test(sizes_in_the_arena_are_the_checkpoints),
      cmocka_unit_test(no_head_without_perplexity),
      cmocka_unit_test(micro_batch_by_default),
      cmocka_unit_test(micro_batch_as_asked_for),
      cmocka_unit_test(variants_go_side_by_side),
      cmocka_unit_test(a_budget_holds_the_ablation),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
