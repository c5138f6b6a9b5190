/* Bootstrap intervals: cases worked out by hand, a plain recomputation of the draws, and the time that a large model's
 * tables take. */
#include "test_analysis_made.h"

#include <time.h>

#define CLOSE(a, b, tolerance) assert_true(fabs((a) - (b)) <= (tolerance))

/* Student's t of 15 degrees of freedom, from tables; sqrt(ln 2 / ln(1 + 1/e)). */
#define T15 2.13144954556
#define SCALE 1.48742

/* Feature 0 hits sites 0 to 5 in all of 16 sequences, and site 8 in one: a draw misses that with (15/16)^16 = 0.3561. */
static made one_rare_site(int64_t draws) {
  made m = made_new(10, 16, 100, 2, draws);
  for (int64_t n = 0; n < 16; n++) {
    m.positions[2 * n] = 10;
    for (int64_t site = 0; site < 6; site++) *hit_at(&m, n, 0, site) = true;
  }
  *hit_at(&m, 7, 0, 8) = true;
  return m;
}

static void sites_of_one_sequence_are_uncertain(void **state) {
  (void)state;
  made m = one_rare_site(10000);
  mo_analysis a = analyse_made(&m, NULL);
  const mo_feature *row = row_of(&a, 0);
  double one = SCALE * sqrt(0.35607 * 0.64393), half = T15 * one; /* 1.518 sites, and as many layers */
  assert_int_equal(row->sites_hit, 7);
  CLOSE(row->layer_percentage_low, (7 - half) / 20, 1e-4);
  CLOSE(row->layer_percentage_high, (7 + half + one) / 20, 1e-4);
  assert_int_equal(row->layers_hit, 4);
  CLOSE(row->block_percentage_low, (4 - half) / 10, 1e-4);
  CLOSE(row->block_percentage_high, (4 + half + one) / 10, 1e-4);
  assert_true(row->seq_percentage_low == 0.1 && row->seq_percentage_high == 0.1); /* the same in all sequences */
  assert_true(row->qualifies_share == 1 && row->systematic_share == 0);
  assert_true(a.summary.outlier_features_low == 1 && a.summary.outlier_features_high == 1);
  assert_true(a.summary.systematic_features_low == 0 && a.summary.systematic_features_high == 0);
  assert_true(a.summary.mean_seq_percentage_low == 0.1 && a.summary.mean_seq_percentage_high == 0.1);
  /* Draws that miss the site lie 0.6439 below their mean, the others 0.3561 above. */
  double scale = SCALE * T15 / 1.95996398454 / 20;
  CLOSE(a.summary.mean_layer_percentage_low, 0.35 - 0.6439 * scale, 0.02 * scale);
  CLOSE(a.summary.mean_layer_percentage_high, 0.35 + 0.3561 * scale, 0.02 * scale);
  mo_analysis_free(&a);
  made_free(&m);
}

static void a_share_is_a_probability(void **state) {
  (void)state;
  made m = one_rare_site(20000);
  m.shape.criteria.min_layer_fraction = 0.35; /* all seven sites: when the rare one is drawn */
  mo_analysis a = analyse_made(&m, NULL);
  CLOSE(row_of(&a, 0)->qualifies_share, 0.6439, 0.015);
  assert_true(a.summary.outlier_features_low == 0 && a.summary.outlier_features_high == 2);
  mo_analysis_free(&a);
  made_free(&m);
}

static void all_layers_in_all_sequences_are_certain(void **state) {
  (void)state;
  made m = made_new(3, 16, 100, 1, 1000);
  for (int64_t n = 0; n < 16; n++) {
    m.positions[n] = 20 + (int)n;
    for (int64_t site = 0; site < 6; site++) *hit_at(&m, n, 0, site) = true;
  }
  mo_analysis a = analyse_made(&m, NULL);
  const mo_feature *row = row_of(&a, 0);
  assert_true(row->layer_percentage_low == 1 && row->block_percentage_low == 1 && row->block_percentage_high == 1);
  assert_true(row->qualifies_share == 1 && row->systematic_share == 1);
  assert_true(row->seq_percentage_low < row->seq_percentage && row->seq_percentage < row->seq_percentage_high);
  /* Positions are equidistant, so nearly symmetric; Student's t: 0.275 +- 2.131 * sqrt(22.67/16)/100. */
  CLOSE(row->seq_percentage_low, 0.275 - T15 * sqrt(340.0 / 15 / 16) / 100, 0.003);
  CLOSE(row->seq_percentage_high, 0.275 + T15 * sqrt(340.0 / 15 / 16) / 100, 0.003);
  assert_true(a.summary.systematic_features_low == 1 && a.summary.systematic_features_high == 1);
  mo_analysis_free(&a);
  made_free(&m);
}

static void assert_no_intervals(const mo_analysis *a) {
  const mo_feature *row = &a->features[0];
  assert_true(isnan(row->layer_percentage_low) && isnan(row->layer_percentage_high));
  assert_true(isnan(row->block_percentage_low) && isnan(row->block_percentage_high));
  assert_true(isnan(row->seq_percentage_low) && isnan(row->seq_percentage_high));
  assert_true(isnan(row->qualifies_share) && isnan(row->systematic_share));
  assert_true(isnan(a->summary.outlier_features_low) && isnan(a->summary.median_seq_percentage_high));
  assert_true(isnan(a->perplexity_low) && isnan(a->perplexity_high) && !isnan(a->perplexity));
}

static void one_sequence_or_no_draws_give_no_intervals(void **state) {
  (void)state;
  const float nll[1600] = {1.0f, 2.0f};
  for (int k = 0; k < 2; k++) {
    made m = made_new(2, k ? 1 : 16, 100, 1, k ? 1000 : 0);
    for (int64_t n = 0; n < m.shape.n_sequences; n++) {
      *hit_at(&m, n, 0, 0) = true;
      m.positions[n] = 9;
    }
    mo_analysis a = analyse_made(&m, nll);
    assert_no_intervals(&a);
    mo_analysis_free(&a);
    made_free(&m);
  }
}

static void perplexity_on_the_log_scale(void **state) {
  (void)state;
  enum { N = 400 };
  made m = made_new(1, N, 2, 1, 2000);
  float nll[N];
  uint64_t random = 5;
  double sum = 0, squares = 0;
  for (int i = 0; i < N; i++) sum += nll[i] = (float)(3 + 0.5 * normal(&random));
  for (int i = 0; i < N; i++) squares += (nll[i] - sum / N) * (nll[i] - sum / N);
  mo_analysis a = analyse_made(&m, nll);
  double error = sqrt(squares / (N - 1) / N);
  CLOSE(a.perplexity, exp(sum / N), 1e-12 * a.perplexity);
  CLOSE(log(a.perplexity_low), sum / N - 1.966 * error, 0.2 * error);
  CLOSE(log(a.perplexity_high), sum / N + 1.966 * error, 0.2 * error);
  mo_analysis_free(&a);
  made_free(&m);
}

/* --- a plain recomputation --- */

static void fill_random(made *m, uint64_t seed, double density) {
  int64_t N = m->shape.n_sequences, H = m->shape.hidden, sites = 2 * m->shape.n_layers;
  for (int64_t h = 0; h < H; h++) {
    double chance = unit(&seed) * density;
    for (int64_t n = 0; n < N; n++)
      for (int64_t site = 0; site < sites; site++)
        if (unit(&seed) < chance * (double)(site % 5) / 4) {
          *hit_at(m, n, h, site) = true;
          m->positions[n * H + h] = 1 + (int)(unit(&seed) * 0.2 * (double)m->shape.length);
        }
  }
}

/* Sites and layers that the drawn sequences hit, and the sum of their positions. */
static void union_of(const made *m, int64_t h, const int *times, double *sites, double *layers, double *positions) {
  *sites = *layers = *positions = 0;
  for (int64_t layer = 0; layer < m->shape.n_layers; layer++) {
    bool attn = false, mlp = false;
    for (int64_t n = 0; n < m->shape.n_sequences; n++) {
      attn |= times[n] && *hit_at(m, n, h, 2 * layer);
      mlp |= times[n] && *hit_at(m, n, h, 2 * layer + 1);
    }
    *sites += attn + mlp;
    *layers += attn || mlp;
  }
  for (int64_t n = 0; n < m->shape.n_sequences; n++) *positions += times[n] * m->positions[n * m->shape.hidden + h];
}

/* Shares of the draws in which feature h qualifies and is SYSTEMATIC, by the definition in docs/methods.md. */
static void plain_shares(const made *m, const int *draws, int64_t h, double *qualifies, double *systematic) {
  int64_t D = m->shape.bootstrap.draws, N = m->shape.n_sequences;
  double *values = malloc((size_t)(3 * D) * sizeof *values), mean_sites = 0, mean_layers = 0, own[3];
  int *all = malloc((size_t)N * sizeof *all);
  assert_true(values && all);
  for (int64_t n = 0; n < N; n++) all[n] = 1;
  union_of(m, h, all, &own[0], &own[1], &own[2]);
  for (int64_t d = 0; d < D; d++) union_of(m, h, draws + d * N, &values[3 * d], &values[3 * d + 1], &values[3 * d + 2]);
  for (int64_t layer = 0; layer < m->shape.n_layers; layer++) {
    int64_t attn = 0, mlp = 0, either = 0; /* sequences */
    for (int64_t n = 0; n < N; n++) {
      const bool *hit = hit_at(m, n, h, 2 * layer);
      attn += hit[0];
      mlp += hit[1];
      either += hit[0] || hit[1];
    }
    mean_sites += 2 - pow((double)(N - attn) / (double)N, (double)N) - pow((double)(N - mlp) / (double)N, (double)N);
    mean_layers += 1 - pow((double)(N - either) / (double)N, (double)N);
  }
  double scale = sqrt(log(2.0) / log1p(exp(-1.0))), wider = sqrt((double)N / ((double)N - 1));
  const mo_criteria *c = &m->shape.criteria;
  *qualifies = *systematic = 0;
  for (int64_t d = 0; d < D; d++) {
    double sites = own[0] + scale * (values[3 * d] - mean_sites);
    double layers = own[1] + scale * (values[3 * d + 1] - mean_layers);
    double positions = own[2] + wider * (values[3 * d + 2] - own[2]);
    bool q = sites / (double)(2 * m->shape.n_layers) >= c->min_layer_fraction &&
             positions / (double)(N * m->shape.length) >= c->min_position_fraction;
    *qualifies += q;
    *systematic += q && layers / (double)m->shape.n_layers >= c->systematic_fraction;
  }
  *qualifies /= (double)D;
  *systematic /= (double)D;
  free(values);
  free(all);
}

static int *plain_draws(const mo_analysis_shape *shape) {
  int64_t D = shape->bootstrap.draws, N = shape->n_sequences;
  int *times = calloc((size_t)(D * N), sizeof *times);
  assert_non_null(times);
  for (int64_t i = 0; i < D * N; i++) {
    uint64_t key = mo_mix64((uint64_t)shape->bootstrap.seed);
    uint64_t random = mo_mix64(key + (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15));
    times[i / N * N + (int64_t)((random >> 32) * (uint64_t)N >> 32)]++;
  }
  return times;
}

static void shares_of_a_plain_recomputation(void **state) {
  (void)state;
  const struct {
    int64_t L, N, S, H, draws;
    double density;
  } sizes[] = {{3, 2, 9, 20, 700, 1.0},
               {5, 7, 40, 20, 513, 0.5},
               {40, 16, 50, 12, 300, 0.3},
               {3, 37, 64, 15, 100, 0.1},
               {6, 300, 30, 6, 65, 0.02}};
  int between = 0;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    made m = made_new(sizes[i].L, sizes[i].N, sizes[i].S, sizes[i].H, sizes[i].draws);
    fill_random(&m, 1000 * i, sizes[i].density);
    m.shape.criteria.systematic_fraction = 0.75;
    int *draws = plain_draws(&m.shape);
    mo_analysis a = analyse_made(&m, NULL);
    for (int64_t f = 0; f < a.n_features; f++) {
      double qualifies, systematic;
      plain_shares(&m, draws, a.features[f].feature, &qualifies, &systematic);
      assert_true(a.features[f].qualifies_share == qualifies);
      assert_true(a.features[f].systematic_share == systematic);
      between += qualifies > 0 && qualifies < 1;
    }
    mo_analysis_free(&a);
    free(draws);
    made_free(&m);
  }
  assert_true(between > 10); /* or else this shows nothing */
}

static void the_seed_decides(void **state) {
  (void)state;
  made m = made_new(5, 7, 40, 20, 500);
  fill_random(&m, 9, 0.5);
  mo_analysis a = analyse_made(&m, NULL), b = analyse_made(&m, NULL);
  assert_memory_equal(a.features, b.features, (size_t)a.n_features * sizeof *a.features);
  m.shape.bootstrap.seed = 4;
  mo_analysis c = analyse_made(&m, NULL);
  assert_memory_not_equal(a.features, c.features, (size_t)a.n_features * sizeof *a.features);
  mo_analysis_free(&a);
  mo_analysis_free(&b);
  mo_analysis_free(&c);
  made_free(&m);
}

/* --- counts from damaged files --- */

static void rows_that_cannot_be(void **state) {
  (void)state;
  mo_analysis_shape shape = {.n_layers = 2, .n_sequences = 3, .length = 4, .hidden = 5, .criteria = {6, 0.25, 0.06, 1}};
  mo_counts *counts;
  const mo_position_row bad[][2] = {{{0, 1, 1}, {0, 1, 1}}, {{1, 0, 1}, {0, 4, 1}},  {{0, 1, 0}, {0, 2, 1}},
                                    {{0, 1, 5}, {0, 2, 1}}, {{0, -1, 1}, {0, 2, 1}}, {{0, 1, 1}, {3, 2, 1}}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_error(mo_counts_new(&counts, &shape, "bad.h5", bad[i], 2), i < 2 ? "out of order" : "out of range");
    assert_null(counts);
  }
  const mo_position_row good[] = {{0, 1, 2}, {2, 1, 1}};
  const mo_site_row rows[] = {{.sequence = 0, .feature = 1, .count = 2}, {.sequence = 1, .feature = 1, .count = 1}};
  const float quartiles[3] = {0};
  assert_ok(mo_counts_new(&counts, &shape, "bad.h5", good, 2));
  assert_error(mo_counts_add_site(counts, 1, MO_SITE_LN_MLP, rows, 2),
               "row 1 of layer 1 ln_mlp is not in /positions: sequence 1, feature 1, 1 values (bad.h5)");
  assert_error(mo_counts_add_site(counts, 1, MO_SITE_LN_MLP, rows, 1), "damaged"); /* the site has it already */
  assert_error(mo_counts_set_quartiles(counts, 2, quartiles), "feature 2, which has no row in /positions (bad.h5)");
  mo_analysis analysis;
  assert_error(mo_counts_analyse(&analysis, counts, NULL),
               "feature 1 of sequence 2 has 0 outlier values at 1 positions");
  assert_null(analysis.features);
  mo_counts_free(counts);
}

/* --- time --- */

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The tables of GLM-4.5-Air: 46 layers, hidden size 4096, 16 sequences of 2048. */
static void tables_of_a_large_model_are_quick(void **state) {
  (void)state;
  const struct {
    double density;
    int every; /* feature that has outlier values at all */
  } cases[] = {{0.02, 8}, {0.3, 8}, {0.3, 1}};
  const char *sanitized = getenv("MO_SANITIZE");
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    made m = made_new(46, 16, 2048, 4096, 10000);
    fill_random(&m, i, cases[i].density);
    for (int64_t k = 0; k < 16 * 4096; k++)
      if (k % 4096 % cases[i].every) {
        m.positions[k] = 0;
        memset(m.hit + k * 92, 0, 92 * sizeof *m.hit);
      }
    mo_counts *counts = counts_of(&m);
    mo_analysis a;
    double begin = seconds(); /* of all threads: others may use the cores, too */
    assert_ok(mo_counts_analyse(&a, counts, NULL));
    double took = seconds() - begin;
    print_message("%lld features with outlier values, %lld qualify: %.2f s\n", (long long)a.n_features,
                  (long long)a.summary.outlier_features, took);
    if (!sanitized) assert_true(took < (i < 2 ? 2 : 8));
    mo_analysis_free(&a);
    mo_counts_free(counts);
    made_free(&m);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sites_of_one_sequence_are_uncertain),
      cmocka_unit_test(a_share_is_a_probability),
      cmocka_unit_test(all_layers_in_all_sequences_are_certain),
      cmocka_unit_test(one_sequence_or_no_draws_give_no_intervals),
      cmocka_unit_test(perplexity_on_the_log_scale),
      cmocka_unit_test(shares_of_a_plain_recomputation),
      cmocka_unit_test(the_seed_decides),
      cmocka_unit_test(rows_that_cannot_be),
      cmocka_unit_test(tables_of_a_large_model_are_quick),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
