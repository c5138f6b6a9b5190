/* The predicted time of plans made by hand, against closed forms. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "moe_outliers/plan.h"

enum { MOST = 64, BYTES = 1000, SECOND = 1000 }; /* a stage takes a second to load at SECOND bytes per second */

/* A plan of equal stages in blocks of `per_block`, dealt round the ranks or in runs. */
typedef struct {
  mo_plan plan;
  mo_stage_cost costs[MOST];
  int64_t arena[MOST], arena_bytes[MOST], resident[MOST];
  mo_block blocks[MOST];
} scene;

static void make(scene *s, int ranks, int64_t stages, int64_t per_block, bool interleaved, int64_t arena_stages,
                 int64_t n_micro) {
  memset(s, 0, sizeof *s);
  mo_plan *p = &s->plan;
  *p = (mo_plan){.n_ranks = ranks,
                 .n_stages = stages,
                 .n_micro = n_micro,
                 .costs = s->costs,
                 .arena = s->arena,
                 .blocks = s->blocks,
                 .n_blocks = stages / per_block,
                 .arena_bytes = s->arena_bytes,
                 .resident_bytes = s->resident,
                 .activation_bytes = 6000};
  for (int64_t i = 0; i < stages; i++) {
    s->costs[i] = (mo_stage_cost){.bytes = BYTES, .aligned_bytes = BYTES, .flops = 1e6};
    s->arena[i] = BYTES;
  }
  for (int64_t b = 0; b < p->n_blocks; b++)
    s->blocks[b] = (mo_block){(int)(interleaved ? b % ranks : b * ranks / p->n_blocks), b * per_block, per_block};
  for (int rank = 0; rank < ranks; rank++) s->arena_bytes[rank] = arena_stages * BYTES;
}

static mo_plan_time predicted(const scene *s, const mo_plan_rates *rates) {
  mo_plan_time time;
  assert_int_equal(mo_plan_predict(&s->plan, rates, &time), MO_OK);
  assert_true(fabs(time.compute + time.load + time.bubble - time.seconds) <= 1e-9 * time.seconds);
  assert_true(time.storage_alone <= time.seconds * (1 + 1e-9) && time.compute_alone <= time.seconds * (1 + 1e-9));
  return time;
}

static void expect(double found, double expected) {
  if (!(fabs(found - expected) <= 1e-9 * fabs(expected) + 1e-12)) fail_msg("%.12g instead of %.12g", found, expected);
}

/* Products hide behind the loads, all but those of the last stage. */
static void one_rank_bound_by_storage(void **state) {
  (void)state;
  static scene s;
  for (int64_t room = 2; room <= 12; room += 5)
    for (int64_t micro = 1; micro <= 4; micro++) {
      make(&s, 1, 12, 1, false, room, micro);
      mo_plan_rates rates = {.bytes_per_second = SECOND, .flops_per_second = 4e6};
      mo_plan_time time = predicted(&s, &rates);
      expect(time.seconds, 12 + 0.25);
      expect(time.storage_alone, 12);
      expect(time.compute_alone, 12 * 0.25);
      expect(time.compute, 3);
    }
}

/* Room for one stage: a load waits for the products of the one before. */
static void no_room_to_read_ahead(void **state) {
  (void)state;
  static scene s;
  make(&s, 1, 12, 1, false, 1, 3);
  mo_plan_rates rates = {.bytes_per_second = SECOND, .flops_per_second = 4e6};
  expect(predicted(&s, &rates).seconds, 12 * 1.25);
}

static void one_rank_bound_by_compute(void **state) {
  (void)state;
  static scene s;
  make(&s, 1, 12, 1, false, 2, 4);
  mo_plan_rates rates = {.bytes_per_second = SECOND, .flops_per_second = 0.25e6};
  mo_plan_time time = predicted(&s, &rates);
  expect(time.seconds, 1 + 12 * 4);
  expect(time.load, 1);
  expect(time.bubble, 0);
}

/* P ranks with all weights there, M micro-batches: (P - 1) / (M + P - 1) of the time is spent filling and draining. */
static void bubble_of_a_pipeline(void **state) {
  (void)state;
  static scene s;
  for (int P = 1; P <= 6; P++)
    for (int64_t M = 1; M <= 9; M += 2) {
      make(&s, P, 4 * P, 4, false, 4, M);
      mo_plan_rates rates = {.flops_per_second = 1e6};
      mo_plan_time time = predicted(&s, &rates);
      expect(time.seconds, 4.0 / (double)M * (double)(M + P - 1));
      expect(time.bubble / time.seconds, (double)(P - 1) / (double)(M + P - 1));
      expect(time.load, 0);
    }
}

/* Blocks in v rounds shorten it to the length of one block: (P - 1) / (v M + P - 1), as long as M >= P. */
static void rounds_shorten_the_bubble(void **state) {
  (void)state;
  static scene s;
  for (int P = 2; P <= 4; P++)
    for (int v = 1; v <= 4; v++) {
      int64_t M = P + 1;
      make(&s, P, P * v, 1, true, v, M);
      mo_plan_rates rates = {.flops_per_second = 1e6};
      mo_plan_time time = predicted(&s, &rates);
      expect(time.bubble / time.seconds, (double)(P - 1) / (double)(v * M + P - 1));
    }
}

/* Products that take no time, room for two of the six stages of a rank, a storage of its own for each: in runs, the second rank
 * can only read two before the first is done; in turns both read all the time. */
static void interleaved_reads_all_the_time(void **state) {
  (void)state;
  static scene s;
  mo_plan_rates rates = {.bytes_per_second = SECOND, .ranks_per_node = 1};
  make(&s, 2, 12, 1, false, 2, 4);
  expect(predicted(&s, &rates).seconds, 6 + 4);
  make(&s, 2, 12, 1, true, 2, 4);
  expect(predicted(&s, &rates).seconds, 6);
  rates.flops_per_second = 5e6; /* 0.2 s a stage */
  double interleaved = predicted(&s, &rates).seconds;
  make(&s, 2, 12, 1, false, 2, 4);
  assert_true(interleaved < 0.75 * predicted(&s, &rates).seconds);
}

/* One storage for both: in turns or not, it is busy all the time. */
static void shared_storage(void **state) {
  (void)state;
  static scene s;
  mo_plan_rates rates = {.bytes_per_second = SECOND};
  make(&s, 2, 12, 1, true, 2, 4);
  expect(predicted(&s, &rates).seconds, 12);
  make(&s, 2, 12, 1, false, 2, 4);
  expect(predicted(&s, &rates).seconds, 12);
  rates.rank_bytes_per_second = 0.5 * SECOND; /* a rank alone cannot take it all */
  expect(predicted(&s, &rates).seconds, 12 + 8);
}

static void messages_take_time(void **state) {
  (void)state;
  static scene s;
  make(&s, 2, 2, 1, false, 1, 3);
  mo_plan_rates rates = {.flops_per_second = 1e6,
                         .message_bytes_per_second = 6000}; /* 1/3 s for each, as for a product */
  expect(predicted(&s, &rates).seconds, 1 + 1.0 / 3 + 1.0 / 3);
  rates.message_bytes_per_second =
      600; /* the link is what takes the time: 3 messages of 10/3 s, after and before a product */
  expect(predicted(&s, &rates).seconds, 1.0 / 3 + 10 + 1.0 / 3);
}

static void given_seconds_and_a_late_start(void **state) {
  (void)state;
  static scene s;
  const double seconds[] = {1, 2, 4, 8};
  make(&s, 1, 4, 4, false, 4, 5);
  mo_plan_rates rates = {.stage_seconds = seconds, .flops_per_second = 1, .start_seconds = 3};
  expect(predicted(&s, &rates).seconds, 3 + 15);
}

/* Two ranks of six stages with room for two each; storage gives 1 stage a second to both together, 3/4 to one alone; products
 * take no time. Both read two stages in 4 s, at 1/2. Then the second rank's memory is full until rows come, which is when the
 * first rank has read its other four: 4 / (3/4) s. The second rank's other four take as long. */
static void in_runs_each_reads_alone_in_turn(void **state) {
  (void)state;
  static scene s;
  make(&s, 2, 12, 1, false, 2, 4);
  mo_plan_rates rates = {.bytes_per_second = SECOND, .rank_bytes_per_second = 0.75 * SECOND};
  expect(predicted(&s, &rates).seconds, 4 + 16.0 / 3 + 16.0 / 3);
  rates.rank_bytes_per_second = 0.5 * SECOND; /* alone no more than its share: 4 + 8 + 8 */
  expect(predicted(&s, &rates).seconds, 20);
}

/* The first two of six stages fill a memory that was not used before: 3 s each; the other four take its place: 1 s each. A product
 * takes 1/4 s, while the next stage is read. */
static void memory_that_is_used_for_the_first_time(void **state) {
  (void)state;
  static scene s;
  make(&s, 1, 6, 1, false, 2, 1);
  mo_plan_rates rates = {.bytes_per_second = SECOND, .flops_per_second = 4e6, .fresh = 3};
  expect(predicted(&s, &rates).seconds, 2 * 3 + 4 * 1 + 0.25);
}

/* Storage that is asked for nothing in the first 2 s, and each byte twice: 2 + 2 * 4, and the last product. */
static void late_and_twice(void **state) {
  (void)state;
  static scene s;
  make(&s, 1, 4, 1, false, 4, 1);
  mo_plan_rates rates = {
      .bytes_per_second = SECOND, .flops_per_second = 4e6, .read_seconds = 2, .start_seconds = 1, .times_read = 2};
  expect(predicted(&s, &rates).seconds, 2 + 2 * 4 + 0.25);
}

/* Four of six stages are left to the second of two micro-batches, two to the first; a task takes 1/2 s. One rank: 6 tasks. Two
 * ranks of two stages: the second computes the first micro-batch meanwhile, then the second one, which comes after 1 s; with
 * messages of 1 s a second later. */
static void what_is_left_to_do(void **state) {
  (void)state;
  static scene s;
  int64_t start[] = {4, 2};
  mo_plan_rates rates = {.flops_per_second = 1e6};
  for (int ranks = 1; ranks <= 2; ranks++) {
    make(&s, ranks, 6, 2, false, 4, 2);
    s.plan.first_stage = 2;
    s.plan.start = start;
    s.plan.n_blocks = 2;
    s.blocks[0] = (mo_block){0, 2, 2};
    s.blocks[1] = (mo_block){ranks - 1, 4, 2};
    expect(predicted(&s, &rates).seconds, ranks == 1 ? 3 : 2);
  }
  rates.message_bytes_per_second = 3000;
  expect(predicted(&s, &rates).seconds, 3);
}

/* Many micro-batches are simulated as fewer: one rank takes as long, and several nearly. */
static void many_micro_batches(void **state) {
  (void)state;
  static scene s;
  mo_plan_rates rates = {.flops_per_second = 1e6};
  make(&s, 1, 4, 4, false, 4, 1000000);
  expect(predicted(&s, &rates).seconds, 4);
  make(&s, 2, 4, 2, false, 2, 1000000);
  assert_true(predicted(&s, &rates).seconds <= 2 * 1.02);
}

static void nothing_to_do(void **state) {
  (void)state;
  static scene s;
  mo_plan_rates rates = {.flops_per_second = 1e6, .bytes_per_second = 1};
  make(&s, 3, 4, 4, false, 4, 2);
  s.plan.n_blocks = 0;
  expect(predicted(&s, &rates).seconds, 0);
}

static void rates_by_the_name_of_a_gpu(void **state) {
  (void)state;
  const char *name;
  double h100 = mo_plan_default_rates(true, "NVIDIA H100 80GB HBM3", MO_PRECISION_BF16, 1, &name).flops_per_second;
  assert_string_equal(name, "H100");
  double a100 = mo_plan_default_rates(true, "A100", MO_PRECISION_BF16, 1, &name).flops_per_second;
  assert_string_equal(name, "A100");
  assert_true(a100 < h100);
  assert_true(mo_plan_default_rates(true, "A100", MO_PRECISION_FP32, 1, &name).flops_per_second < a100);
  mo_plan_rates unknown = mo_plan_default_rates(true, "", MO_PRECISION_BF16, 1, &name);
  assert_non_null(strstr(name, "H100"));
  assert_true(unknown.flops_per_second == h100);
  double one = mo_plan_default_rates(false, "", MO_PRECISION_BF16, 1, &name).flops_per_second;
  expect(mo_plan_default_rates(false, "", MO_PRECISION_BF16, 8, &name).flops_per_second, 8 * one);
  expect(mo_plan_gpu_memory("NVIDIA H100 80GB HBM3"), 80);
  expect(mo_plan_gpu_memory("RTX 4090"), 24);
  expect(mo_plan_gpu_memory(""), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_rank_bound_by_storage),
      cmocka_unit_test(no_room_to_read_ahead),
      cmocka_unit_test(one_rank_bound_by_compute),
      cmocka_unit_test(bubble_of_a_pipeline),
      cmocka_unit_test(rounds_shorten_the_bubble),
      cmocka_unit_test(interleaved_reads_all_the_time),
      cmocka_unit_test(shared_storage),
      cmocka_unit_test(messages_take_time),
      cmocka_unit_test(given_seconds_and_a_late_start),
      cmocka_unit_test(in_runs_each_reads_alone_in_turn),
      cmocka_unit_test(memory_that_is_used_for_the_first_time),
      cmocka_unit_test(late_and_twice),
      cmocka_unit_test(what_is_left_to_do),
      cmocka_unit_test(many_micro_batches),
      cmocka_unit_test(nothing_to_do),
      cmocka_unit_test(rates_by_the_name_of_a_gpu),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
