/* Tables against a recomputation from all values. ranks: 3 (layers dealt round robin, rank 0 compares) */
#include "test_analysis_reference.h"

static mo_comm *comm;

static bool is_root(void) { return mo_comm_rank(comm) == 0; }

/* --- comparison with the recomputation --- */

static bool expect_qualified(const dense *d, const feature_hits *hits, int64_t n_positions) {
  return hits->count > 0 && (double)hits->sites / (double)(2 * d->L) >= d->shape.criteria.min_layer_fraction &&
         (double)hits->positions / (double)n_positions >= d->shape.criteria.min_position_fraction;
}

static void compare_sequence_feature(const dense *d, const mo_sequence_feature *row) {
  feature_hits hits = hits_of(d, row->sequence, row->sequence + 1, row->feature);
  assert_true(expect_qualified(d, &hits, d->S));
  assert_int_equal(row->sites_hit, hits.sites);
  assert_int_equal(row->positions_hit, hits.positions);
  assert_int_equal(row->total_occurrences, hits.count);
  assert_same(row->max_magnitude, hits.max_abs);
  assert_same(row->layer_percentage, (double)hits.sites / (double)(2 * d->L));
  assert_same(row->seq_percentage, (double)hits.positions / (double)d->S);
  free(hits.values);
}

/* Every row right, rows strictly in order (so distinct), and as many as there should be. */
static void compare_sequence_features(const dense *d, const mo_analysis *analysis) {
  int64_t expected = 0;
  for (int64_t n = 0; n < d->N; n++)
    for (int64_t h = 0; h < d->H; h++) {
      feature_hits hits = hits_of(d, n, n + 1, h);
      expected += expect_qualified(d, &hits, d->S);
      free(hits.values);
    }
  assert_int_equal(analysis->n_sequence_features, expected);
  assert_int_equal(analysis->summary.sequence_rows, expected);
  for (int64_t i = 0; i < expected; i++) {
    const mo_sequence_feature *row = &analysis->sequence_features[i], *last = row - 1;
    compare_sequence_feature(d, row);
    if (i == 0) continue;
    assert_true(last->sequence < row->sequence ||
                (last->sequence == row->sequence &&
                 (last->max_magnitude > row->max_magnitude ||
                  (last->max_magnitude == row->max_magnitude && last->feature < row->feature))));
  }
}

static int32_t sequences_qualified(const dense *d, int64_t h) {
  int32_t count = 0;
  for (int64_t n = 0; n < d->N; n++) {
    feature_hits hits = hits_of(d, n, n + 1, h);
    count += expect_qualified(d, &hits, d->S);
    free(hits.values);
  }
  return count;
}

static void compare_feature(const dense *d, const mo_feature *row, int64_t all) {
  feature_hits hits = hits_of(d, 0, d->N, row->feature);
  assert_int_equal(row->sites_hit, hits.sites);
  assert_int_equal(row->layers_hit, hits.layers);
  assert_int_equal(row->positions_hit, hits.positions);
  assert_same(row->layer_percentage, (double)hits.sites / (double)(2 * d->L));
  assert_same(row->block_percentage, (double)hits.layers / (double)d->L);
  assert_same(row->seq_percentage, (double)hits.positions / (double)(d->N * d->S));
  assert_same(row->max_magnitude, hits.max_abs);
  assert_int_equal(row->total_occurrences, hits.count);
  assert_int_equal(row->positive, hits.positive);
  assert_int_equal(row->negative, hits.count - hits.positive);
  assert_same(row->q1, quantile_of(hits.values, hits.count, 0.25));
  assert_same(row->median, quantile_of(hits.values, hits.count, 0.5));
  assert_same(row->q3, quantile_of(hits.values, hits.count, 0.75));
  assert_same(row->share, (double)hits.count / (double)all);
  assert_int_equal(row->sequences_qualified, sequences_qualified(d, row->feature));
  bool systematic = (double)hits.layers / (double)d->L >= d->shape.criteria.systematic_fraction;
  assert_int_equal(row->classification, !expect_qualified(d, &hits, d->N * d->S) ? MO_NONE
                                        : systematic                             ? MO_SYSTEMATIC
                                                                                 : MO_PROBABILISTIC);
  free(hits.values);
}

static void compare_features(const dense *d, const mo_analysis *analysis) {
  int64_t expected = 0, all = 0;
  for (int64_t h = 0; h < d->H; h++) {
    feature_hits hits = hits_of(d, 0, d->N, h);
    expected += hits.count > 0;
    all += hits.count;
    free(hits.values);
  }
  assert_int_equal(analysis->n_features, expected);
  assert_int_equal(analysis->summary.features_hit, expected);
  for (int64_t i = 0; i < expected; i++) {
    const mo_feature *row = &analysis->features[i], *last = row - 1;
    compare_feature(d, row, all);
    if (i > 0)
      assert_true(last->max_magnitude > row->max_magnitude ||
                  (last->max_magnitude == row->max_magnitude && last->feature < row->feature));
  }
}

/* Moments exactly as documented (per token over h, tokens, sequences), and the deviation near a two-pass one. */
static void compare_moments(const dense *d, int64_t place, const mo_site_summary *site) {
  double values = (double)(d->N * d->S * d->H), sum = 0, squares = 0, two_pass = 0;
  float max_abs = 0;
  for (int64_t n = 0; n < d->N; n++) {
    double sequence_sum = 0, sequence_squares = 0;
    for (int64_t s = 0; s < d->S; s++)
      for (int64_t h = 0; h < d->H; h++) {
        double x = (double)*at(d, place, n, s, h);
        sequence_sum += x;
        sequence_squares += x * x;
        max_abs = fmaxf(max_abs, (float)fabs(x));
      }
    sum += sequence_sum;
    squares += sequence_squares;
  }
  assert_same(site->max_abs, max_abs);
  assert_same(site->mean, sum / values);
  if (isinf(max_abs)) return; /* the deviation is NaN */
  for (int64_t i = 0; i < d->N * d->S * d->H; i++) {
    double off = (double)*(at(d, place, 0, 0, 0) + i) - site->mean;
    two_pass += off * off;
  }
  assert_close(site->std, sqrt(two_pass / values), 1e-12 * (1 + sqrt(squares / values)));
}

static void compare_sites(const dense *d, const mo_analysis *analysis) {
  assert_int_equal(analysis->n_sites, 2 * d->L);
  for (int64_t place = 0; place < 2 * d->L; place++) {
    const mo_site_summary *site = &analysis->sites[place];
    int64_t count = 0, features = 0;
    for (int64_t h = 0; h < d->H; h++) {
      for (int64_t i = 0; i < d->N * d->S; i++) count += is_outlier(d, *(at(d, place, 0, 0, h) + i * d->H));
      features += place_hit(d, place, 0, d->N, h);
    }
    assert_int_equal(site->layer, place / 2);
    assert_int_equal(site->site, place % 2);
    assert_int_equal(site->count, count);
    assert_int_equal(site->features_hit, features);
    compare_moments(d, place, site);
  }
}

/* Rank of a value among n: the median is the value that as many lie below as above (pairs averaged). */
static double slow_median(const double *values, int64_t n) {
  double low = NAN, high = NAN;
  for (int64_t i = 0; i < n; i++) {
    int64_t below = 0, equal = 0;
    for (int64_t j = 0; j < n; j++) {
      below += values[j] < values[i];
      equal += values[j] == values[i];
    }
    if (below <= (n - 1) / 2 && (n - 1) / 2 < below + equal) low = values[i];
    if (below <= n / 2 && n / 2 < below + equal) high = values[i];
  }
  return (low + high) / 2;
}

static void compare_summary(const mo_analysis *analysis) {
  const mo_summary *summary = &analysis->summary;
  double layers[256], positions[256], layer_sum = 0, position_sum = 0;
  int64_t n = 0, systematic = 0;
  for (int64_t i = 0; i < analysis->n_features; i++) {
    if (analysis->features[i].classification == MO_NONE) continue;
    systematic += analysis->features[i].classification == MO_SYSTEMATIC;
    layer_sum += layers[n] = analysis->features[i].layer_percentage;
    position_sum += positions[n] = analysis->features[i].seq_percentage;
    n++;
  }
  assert_int_equal(summary->outlier_features, n);
  assert_int_equal(summary->systematic_features, systematic);
  assert_same(summary->mean_layer_percentage, layer_sum / (double)n);
  assert_same(summary->mean_seq_percentage, position_sum / (double)n);
  assert_same(summary->median_layer_percentage, slow_median(layers, n));
  assert_same(summary->median_seq_percentage, slow_median(positions, n));
  assert_int_equal(summary->classification, systematic ? MO_SYSTEMATIC : n ? MO_PROBABILISTIC : MO_NONE);
}

/* Analyse in micro-batches of B and compare everything on rank 0; frees d. */
static void check(dense *d, int64_t B, bool backwards) {
  mo_analysis analysis = analyse(d, comm, B, backwards);
  if (is_root()) {
    compare_sequence_features(d, &analysis);
    compare_features(d, &analysis);
    compare_sites(d, &analysis);
    compare_summary(&analysis);
  } else {
    assert_int_equal(analysis.n_features + analysis.n_sequence_features + analysis.n_sites, 0);
  }
  mo_analysis_free(&analysis);
  free(d->x);
}

/* --- tests --- */

static void random_values_of_odd_sizes(void **state) {
  (void)state;
  const int64_t sizes[][4] = {{3, 5, 7, 11}, {1, 2, 3, 1}, {4, 3, 17, 67}, {7, 2, 65, 5}, {2, 4, 130, 9}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    dense d = dense_new(sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3]);
    fill_random(&d, 100 + i);
    check(&d, 2, false);
  }
}

static void every_micro_batch_and_order(void **state) {
  (void)state;
  for (int64_t B = 1; B <= 5; B++)
    for (int backwards = 0; backwards < 2; backwards++) {
      dense d = dense_new(3, 5, 7, 13);
      fill_random(&d, 7);
      check(&d, B, backwards);
    }
}

static void single_tokens_and_sequences(void **state) {
  (void)state;
  const int64_t sizes[][4] = {{3, 5, 1, 11}, {3, 1, 9, 11}, {2, 1, 1, 5}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    dense d = dense_new(sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3]);
    fill_random(&d, 200 + i);
    check(&d, 1, false);
  }
}

static void threshold_itself_is_an_outlier(void **state) {
  (void)state;
  dense d = dense_new(2, 2, 5, 3);
  for (int64_t i = 0; i < 4 * 2 * 5; i++) {
    d.x[3 * i] = i % 2 ? 6.0f : -6.0f;
    d.x[3 * i + 1] = nextafterf(6.0f, 0.0f);
    d.x[3 * i + 2] = -nextafterf(6.0f, 0.0f);
  }
  mo_analysis analysis = analyse(&d, comm, 2, false);
  if (is_root()) {
    assert_int_equal(analysis.n_features, 1);
    assert_int_equal(analysis.features[0].feature, 0);
    assert_int_equal(analysis.features[0].total_occurrences, 40);
    assert_int_equal(analysis.features[0].positive, 20);
    assert_same(analysis.features[0].max_magnitude, 6.0);
  }
  mo_analysis_free(&analysis);
  check(&d, 1, false);
}

static void no_outliers(void **state) {
  (void)state;
  dense d = dense_new(3, 2, 4, 5);
  mo_analysis analysis = analyse(&d, comm, 2, false);
  if (is_root()) {
    assert_int_equal(analysis.n_features, 0);
    assert_int_equal(analysis.n_sequence_features, 0);
    assert_int_equal(analysis.summary.classification, MO_NONE);
    assert_true(isnan(analysis.summary.mean_layer_percentage));
    assert_true(isnan(analysis.summary.median_seq_percentage));
    assert_same(analysis.sites[5].std, 0);
  }
  mo_analysis_free(&analysis);
  check(&d, 1, true);
}

static void only_outliers(void **state) {
  (void)state;
  dense d = dense_new(3, 2, 67, 5);
  for (int64_t i = 0; i < 6 * 2 * 67 * 5; i++) d.x[i] = (float)(7 + i % 13);
  mo_analysis analysis = analyse(&d, comm, 1, false);
  if (is_root()) {
    assert_int_equal(analysis.summary.systematic_features, 5);
    assert_int_equal(analysis.n_sequence_features, 10);
    assert_same(analysis.summary.mean_layer_percentage, 1);
    assert_same(analysis.summary.median_seq_percentage, 1);
    assert_same(analysis.features[0].share, 0.2);
    assert_int_equal(analysis.sites[0].count, 2 * 67 * 5);
  }
  mo_analysis_free(&analysis);
  check(&d, 2, false);
}

static void infinite_and_negative_values(void **state) {
  (void)state;
  dense d = dense_new(3, 3, 8, 7);
  fill_random(&d, 31);
  *at(&d, 0, 1, 3, 2) = INFINITY;
  *at(&d, 3, 0, 7, 4) = -INFINITY;
  for (int64_t place = 0; place < 6; place++)
    for (int64_t i = 0; i < 3 * 8; i++) *(at(&d, place, 0, 0, 5) + i * 7) = -7.5f - (float)i;
  mo_analysis analysis = analyse(&d, comm, 3, false);
  if (is_root()) {
    assert_same(analysis.features[0].max_magnitude, INFINITY);
    assert_int_equal(analysis.features[0].feature, 2);
    assert_int_equal(analysis.features[1].feature, 4);
    assert_int_equal(analysis.features[2].feature, 5);
    assert_int_equal(analysis.features[2].positive, 0);
    assert_int_equal(analysis.features[2].negative, 6 * 3 * 8);
    assert_same(analysis.features[2].q1, -7.5 - 17.25);
  }
  mo_analysis_free(&analysis);
  check(&d, 2, false);
}

/* L = 2 layers, S = 50: 25 % is one site of four, 6 % is three positions of 50. */
static void plant(dense *d, int64_t h, int64_t place, int64_t n, int64_t n_positions) {
  for (int64_t s = 0; s < n_positions; s++) *at(d, place, n, s, h) = 10.0f;
}

static const mo_feature *feature_row(const mo_analysis *analysis, int32_t feature) {
  for (int64_t i = 0; i < analysis->n_features; i++)
    if (analysis->features[i].feature == feature) return &analysis->features[i];
  return NULL;
}

static void classes_at_the_boundaries(void **state) {
  (void)state;
  dense d = dense_new(2, 1, 50, 6);
  plant(&d, 0, 0, 0, 2); /* too few positions */
  plant(&d, 1, 0, 0, 3); /* both fractions reached exactly, one layer of two */
  plant(&d, 2, 1, 0, 3); /* a site of each layer */
  plant(&d, 2, 2, 0, 3);
  plant(&d, 3, 2, 0, 50);
  plant(&d, 3, 3, 0, 50); /* both sites of one layer */
  const int32_t expected[] = {MO_NONE, MO_PROBABILISTIC, MO_SYSTEMATIC, MO_PROBABILISTIC};
  mo_analysis analysis = analyse(&d, comm, 1, false);
  if (is_root()) {
    for (int32_t h = 0; h < 4; h++) assert_int_equal(feature_row(&analysis, h)->classification, expected[h]);
    assert_null(feature_row(&analysis, 4));
    assert_int_equal(analysis.summary.classification, MO_SYSTEMATIC);
    assert_int_equal(analysis.summary.outlier_features, 3);
    assert_same(analysis.summary.median_seq_percentage, 0.06);
  }
  mo_analysis_free(&analysis);
  check(&d, 1, false);
}

static void one_site_of_many_is_too_few(void **state) {
  (void)state;
  dense d = dense_new(3, 1, 4, 2);
  plant(&d, 0, 5, 0, 4); /* one site of six */
  plant(&d, 1, 4, 0, 4); /* two of six */
  plant(&d, 1, 5, 0, 4);
  mo_analysis analysis = analyse(&d, comm, 1, false);
  if (is_root()) {
    assert_int_equal(feature_row(&analysis, 0)->classification, MO_NONE);
    assert_int_equal(feature_row(&analysis, 1)->classification, MO_PROBABILISTIC);
    assert_int_equal(analysis.summary.classification, MO_PROBABILISTIC);
  }
  mo_analysis_free(&analysis);
  check(&d, 1, false);
}

static void systematic_fraction_is_a_minimum(void **state) {
  (void)state;
  dense d = dense_new(4, 1, 4, 2);
  d.shape.criteria.systematic_fraction = 0.5;
  for (int64_t place = 0; place < 3; place++) plant(&d, 0, place, 0, 4); /* layers 0 and 1 of 4 */
  plant(&d, 1, 6, 0, 4);
  plant(&d, 1, 7, 0, 4); /* layer 3 of 4 */
  mo_analysis analysis = analyse(&d, comm, 1, false);
  if (is_root()) {
    assert_int_equal(feature_row(&analysis, 0)->classification, MO_SYSTEMATIC);
    assert_int_equal(feature_row(&analysis, 1)->classification, MO_PROBABILISTIC);
  }
  mo_analysis_free(&analysis);
  check(&d, 1, false);
}

/* Sites hit by different sequences add up in the pooled analysis only; positions dilute in it only. */
static void pooling_differs_from_sequences(void **state) {
  (void)state;
  dense d = dense_new(4, 4, 10, 2);
  for (int64_t n = 0; n < 4; n++) plant(&d, 0, 2 * n, n, 1); /* each sequence: 1 site of 8; together 4 of 8 */
  for (int64_t place = 0; place < 8; place++) plant(&d, 1, place, 0, 2); /* one sequence: 20 %; together 5 % */
  mo_analysis analysis = analyse(&d, comm, 2, false);
  if (is_root()) {
    assert_int_equal(feature_row(&analysis, 0)->classification, MO_SYSTEMATIC);
    assert_int_equal(feature_row(&analysis, 0)->sequences_qualified, 0);
    assert_int_equal(feature_row(&analysis, 1)->classification, MO_NONE);
    assert_int_equal(feature_row(&analysis, 1)->sequences_qualified, 1);
    assert_int_equal(analysis.n_sequence_features, 1);
  }
  mo_analysis_free(&analysis);
  check(&d, 3, false);
}

static void compare_site_row(const dense *d, int64_t place, const mo_site_row *row) {
  int32_t count = 0, positive = 0;
  float low = INFINITY, high = -INFINITY;
  double sum_abs = 0;
  for (int64_t s = 0; s < d->S; s++) {
    float x = *at(d, place, row->sequence, s, row->feature);
    if (!is_outlier(d, x)) continue;
    count++;
    positive += x > 0;
    low = fminf(low, x);
    high = fmaxf(high, x);
    sum_abs += fabs((double)x);
  }
  assert_true(count > 0);
  assert_int_equal(row->count, count);
  assert_int_equal(row->positive, positive);
  assert_int_equal(row->negative, count - positive);
  assert_same(row->min, low);
  assert_same(row->max, high);
  assert_same(row->max_abs, fmaxf(fabsf(low), fabsf(high)));
  assert_same(row->mean_abs, (float)(sum_abs / count));
  assert_int_equal(row->position, top_position(d, place, row->sequence, row->feature));
  assert_int_equal(row->first, is_outlier(d, *at(d, place, row->sequence, 0, row->feature)));
}

static void rows_of_a_site(void **state) {
  (void)state;
  dense d = dense_new(3, 5, 7, 13);
  fill_random(&d, 17);
  mo_accumulator *accumulator = accumulate(&d, comm, 2, true);
  for (int64_t place = 0; place < 6; place++) {
    const mo_site_row *rows;
    int64_t n_rows, expected = 0;
    assert_int_equal(mo_accumulator_site_rows(accumulator, place / 2, (mo_site)(place % 2), &rows, &n_rows), MO_OK);
    bool own = place / 2 % mo_comm_size(comm) == mo_comm_rank(comm);
    for (int64_t n = 0; n < d.N && own; n++)
      for (int64_t h = 0; h < d.H; h++) expected += place_hit(&d, place, n, n + 1, h);
    assert_int_equal(n_rows, expected);
    for (int64_t i = 0; i < n_rows; i++) {
      compare_site_row(&d, place, &rows[i]);
      if (i > 0)
        assert_true(rows[i - 1].sequence * d.H + rows[i - 1].feature < rows[i].sequence * d.H + rows[i].feature);
    }
  }
  mo_accumulator_free(accumulator);
  free(d.x);
}

/* The last rank computes the losses, as the owner of the head does. */
static void perplexity_of_known_losses(void **state) {
  (void)state;
  dense d = dense_new(2, 3, 5, 2);
  mo_accumulator *accumulator = accumulate(&d, comm, 3, false);
  const float nll[12] = {0.5f, 1.5f, 0, 2, -0.0f, 1, 3, 0.25f, 1.75f, 1, 1, 0};
  if (mo_comm_rank(comm) == mo_comm_size(comm) - 1) {
    mo_accumulator_add_nll(accumulator, 1, 2, nll + 4);
    mo_accumulator_add_nll(accumulator, 0, 1, nll);
  }
  mo_analysis analysis;
  assert_int_equal(mo_analysis_reduce(&analysis, accumulator, comm), MO_OK);
  if (is_root()) {
    assert_memory_equal(analysis.nll, nll, sizeof nll);
    assert_close(analysis.perplexity, M_E, 1e-15);
  } else {
    assert_null(analysis.nll);
  }
  mo_analysis_free(&analysis);
  mo_accumulator_free(accumulator);
  free(d.x);
}

static void no_perplexity_without_losses(void **state) {
  (void)state;
  for (int64_t S = 1; S <= 2; S++) {
    dense d = dense_new(2, 3, S, 2);
    mo_accumulator *accumulator = accumulate(&d, comm, 3, false);
    const float none = 0;
    if (S == 1 && is_root()) mo_accumulator_add_nll(accumulator, 0, 3, &none);
    mo_analysis analysis;
    assert_int_equal(mo_analysis_reduce(&analysis, accumulator, comm), MO_OK);
    assert_true(isnan(analysis.perplexity));
    if (S == 2) assert_null(analysis.nll);
    mo_analysis_free(&analysis);
    mo_accumulator_free(accumulator);
    free(d.x);
  }
}

static void routing_is_summed(void **state) {
  (void)state;
  dense d = dense_new(3, 2, 2, 2);
  d.shape.n_experts = 4;
  mo_accumulator *accumulator = accumulate(&d, comm, 1, false);
  const int64_t counts[4] = {1, 0, INT64_C(1) << 33, 5};
  for (int64_t layer = mo_comm_rank(comm); layer < 2; layer += mo_comm_size(comm))
    for (int batch = 0; batch < 2 + layer; batch++) mo_accumulator_add_routing(accumulator, layer, counts);
  mo_analysis analysis;
  assert_int_equal(mo_analysis_reduce(&analysis, accumulator, comm), MO_OK);
  for (int64_t i = 0; i < 12 && is_root(); i++) {
    int64_t batches = i / 4 == 0 ? 2 : i / 4 == 1 ? 3 : 0;
    assert_int_equal(analysis.expert_tokens[i], batches * counts[i % 4]);
  }
  if (!is_root()) assert_null(analysis.expert_tokens);
  mo_analysis_free(&analysis);
  mo_accumulator_free(accumulator);
  free(d.x);
}

static void names(void **state) {
  (void)state;
  assert_string_equal(mo_site_name(MO_SITE_LN_ATTN), "ln_attn");
  assert_string_equal(mo_site_name(MO_SITE_LN_MLP), "ln_mlp");
  assert_string_equal(mo_classification_name(MO_NONE), "NONE");
  assert_string_equal(mo_classification_name(MO_PROBABILISTIC), "PROBABILISTIC");
  assert_string_equal(mo_classification_name(MO_SYSTEMATIC), "SYSTEMATIC");
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(random_values_of_odd_sizes),
      cmocka_unit_test(every_micro_batch_and_order),
      cmocka_unit_test(single_tokens_and_sequences),
      cmocka_unit_test(threshold_itself_is_an_outlier),
      cmocka_unit_test(no_outliers),
      cmocka_unit_test(only_outliers),
      cmocka_unit_test(infinite_and_negative_values),
      cmocka_unit_test(classes_at_the_boundaries),
      cmocka_unit_test(one_site_of_many_is_too_few),
      cmocka_unit_test(systematic_fraction_is_a_minimum),
      cmocka_unit_test(pooling_differs_from_sequences),
      cmocka_unit_test(rows_of_a_site),
      cmocka_unit_test(perplexity_of_known_losses),
      cmocka_unit_test(no_perplexity_without_losses),
      cmocka_unit_test(routing_is_summed),
      cmocka_unit_test(names),
  };
  if (mo_comm_open(&comm, &argc, &argv) != MO_OK) return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  mo_comm_close(comm);
  return failed;
}
