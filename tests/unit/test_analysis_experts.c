/* Sums over experts, whatever the order of micro-batches and whichever rank owns a layer. ranks: 3 (layers are dealt to
 * them) */
#include "test_analysis_reference.h"

enum { L = 5, N = 6, S = 4, E = 3, K = 2 };

static mo_comm *comm;

/* Token t of the layer goes to expert (t + layer) % E and the next one; expert 2 of layer 1 is left out, layer 3 does not
 * route. Outputs have few different values. */
static bool goes_to(int64_t layer, int64_t t, int64_t e) {
  if (layer == 3 || (layer == 1 && e == 2)) return false;
  return e == E || (t + layer) % E == e || (t + layer + 1) % E == e;
}

static int64_t outliers_of(int64_t layer, int64_t t) { return (t * 7 + layer) % 5 < 2 ? 0 : (t + layer) % 4; }

static float output_of(int64_t layer, int64_t t, int64_t e) {
  return e == 0 && layer == 0 ? 0.0f : (float)((t * 5 + e) % 7);
}

static mo_expert_sums sums_of(int64_t layer, int64_t e, int64_t first, int64_t rows) {
  mo_expert_sums sums = {.max_row = -1};
  for (int64_t r = 0; r < rows; r++) {
    int64_t t = first + r, n = outliers_of(layer, t);
    if (!goes_to(layer, t, e)) continue;
    sums.outlier_values += n;
    sums.outlier_tokens += n > 0;
    if (sums.max_row >= 0 && output_of(layer, t, e) <= sums.max_output) continue;
    sums.max_output = output_of(layer, t, e);
    sums.max_row = (int32_t)r;
  }
  return sums;
}

static void add_layer(mo_accumulator *accumulator, int64_t layer, int64_t B, bool shared) {
  for (int64_t first = N - B; first >= 0; first -= B) { /* the last micro-batch first */
    mo_expert_sums experts[E + 1];
    int64_t counts[E] = {0};
    for (int64_t e = 0; e <= E; e++) experts[e] = sums_of(layer, e, first * S, B * S);
    for (int64_t i = 0; i < B * S * E; i++) counts[i % E] += goes_to(layer, first * S + i / E, i % E);
    mo_expert_statistics statistics = {E + shared, experts};
    mo_accumulator_add_routing(accumulator, layer, counts);
    assert_int_equal(mo_accumulator_add_experts(accumulator, layer, first, &statistics), MO_OK);
  }
}

static void check_row(const mo_expert *row, int64_t layer, int64_t e) {
  mo_expert_sums all = sums_of(layer, e, 0, N * S);
  int64_t tokens = 0;
  for (int64_t t = 0; t < N * S; t++) tokens += goes_to(layer, t, e);
  assert_int_equal(row->layer, layer);
  assert_int_equal(row->expert, e == E ? -1 : e);
  assert_int_equal(row->shared, e == E);
  assert_int_equal(row->tokens, tokens);
  assert_int_equal(row->outlier_values, all.outlier_values);
  assert_int_equal(row->outlier_tokens, all.outlier_tokens);
  assert_same(row->max_output, all.max_output);
  assert_int_equal(row->max_sequence, all.max_row < 0 ? -1 : all.max_row / S);
  assert_int_equal(row->max_position, all.max_row < 0 ? -1 : all.max_row % S);
  assert_int_equal(row->max_token, all.max_row < 0 ? -1 : 100 + all.max_row);
}

static void check(int64_t B, bool shared) {
  dense d = dense_new(L, N, S, 3);
  d.shape.n_experts = E;
  d.shape.experts = true;
  d.shape.shared_expert = shared;
  mo_accumulator *accumulator = accumulate(&d, comm, B, false);
  for (int64_t layer = 0; layer < L; layer++)
    if (layer != 3 && layer % mo_comm_size(comm) == mo_comm_rank(comm)) add_layer(accumulator, layer, B, shared);
  mo_analysis analysis;
  int32_t ids[N * S];
  for (int32_t t = 0; t < N * S; t++) ids[t] = 100 + t;
  assert_int_equal(mo_analysis_reduce(&analysis, accumulator, comm), MO_OK);
  mo_analysis_name_tokens(&analysis, ids, S);
  bool root = mo_comm_rank(comm) == 0;
  assert_int_equal(analysis.n_experts, root ? (L - 1) * (E + shared) : 0);
  const mo_expert *row = analysis.experts;
  for (int64_t layer = 0; layer < L && root; layer++)
    for (int64_t e = 0; e < E + shared && layer != 3; e++) check_row(row++, layer, e);
  mo_analysis_free(&analysis);
  mo_accumulator_free(accumulator);
  free(d.x);
}

static void every_micro_batch(void **state) {
  (void)state;
  for (int64_t B = 1; B <= N; B++)
    for (int shared = 0; shared < 2 && N % B == 0; shared++) check(B, shared);
}

static void wrong_statistics(void **state) {
  (void)state;
  dense d = dense_new(2, 2, S, 3);
  d.shape.n_experts = E;
  d.shape.experts = true;
  mo_expert_sums experts[E] = {{.max_row = S}};
  mo_expert_statistics statistics = {E, experts}, fewer = {E - 1, experts};
  mo_accumulator *accumulator;
  assert_int_equal(mo_accumulator_new(&accumulator, &d.shape), MO_OK);
  assert_int_equal(mo_accumulator_add_experts(accumulator, 2, 0, &statistics), MO_FAILED);
  assert_non_null(strstr(mo_error_message(), "3 experts of layer 2 of 2"));
  mo_error_clear();
  assert_int_equal(mo_accumulator_add_experts(accumulator, 0, 0, &fewer), MO_FAILED);
  mo_error_clear();
  assert_int_equal(mo_accumulator_add_experts(accumulator, 0, 1, &statistics), MO_FAILED);
  assert_non_null(strstr(mo_error_message(), "row 4 of the sequences 1..1"));
  mo_error_clear();
  mo_accumulator_free(accumulator);
  free(d.x);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_micro_batch),
      cmocka_unit_test(wrong_statistics),
  };
  if (mo_comm_open(&comm, &argc, &argv) != MO_OK) return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  mo_comm_close(comm);
  return failed;
}
