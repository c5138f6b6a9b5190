/* Variants of an ablation and its tables. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/ablation.h"

static void ok(mo_status status) {
  if (status != MO_OK) fail_msg("status %d: %s", (int)status, mo_error_message());
}

static int64_t place_of(const int32_t *features, int64_t n, int32_t feature) {
  for (int64_t i = 0; i < n; i++)
    if (features[i] == feature) return i;
  return -1;
}

static void expect_ascending(const mo_ablation_variant *variant, int64_t hidden) {
  for (int64_t i = 0; i < variant->n_features; i++) {
    assert_true(variant->features[i] >= 0 && variant->features[i] < hidden);
    if (i > 0) assert_true(variant->features[i] > variant->features[i - 1]);
  }
}

/* Each draw has as many features as the outliers, none of them an outlier, none twice. */
static void draws_are_of_others(void **state) {
  (void)state;
  enum { HIDDEN = 40, DRAWS = 64 };
  static const int32_t outliers[] = {39, 3, 17, 0, 18};
  mo_ablation_variant *variants;
  int64_t n;
  ok(mo_ablation_choose(&variants, &n, outliers, 5, HIDDEN, DRAWS, 7));
  assert_int_equal(n, DRAWS + 2);
  assert_int_equal(variants[0].kind, MO_VARIANT_INTACT);
  assert_int_equal(variants[0].n_features, 0);
  assert_int_equal(variants[1].kind, MO_VARIANT_FEATURES);
  for (int64_t v = 0; v < n; v++) expect_ascending(&variants[v], HIDDEN);
  for (int i = 0; i < 5; i++) assert_true(place_of(variants[1].features, variants[1].n_features, outliers[i]) >= 0);
  for (int64_t v = 0; v < n; v++) {
    assert_int_equal(variants[v].draw, v < 2 ? -1 : v - 2);
    if (v == 0) continue;
    assert_int_equal(variants[v].n_features, 5);
    for (int i = 0; i < 5 && v > 1; i++) assert_int_equal(place_of(variants[v].features, 5, outliers[i]), -1);
  }
  mo_ablation_variants_free(variants, n);
}

/* 35 others, 5 of them in each of 64 draws: each is drawn 9.1 times on average, deviation 2.8. */
static void draws_are_even(void **state) {
  (void)state;
  static const int32_t outliers[] = {39, 3, 17, 0, 18};
  for (int64_t seed = 0; seed < 20; seed++) {
    mo_ablation_variant *variants;
    int64_t n, times[40] = {0};
    ok(mo_ablation_choose(&variants, &n, outliers, 5, 40, 64, seed));
    for (int64_t v = 2; v < n; v++)
      for (int64_t i = 0; i < 5; i++) times[variants[v].features[i]]++;
    for (int32_t h = 0; h < 40; h++) assert_true(place_of(outliers, 5, h) >= 0 ? times[h] == 0 : times[h] <= 24);
    mo_ablation_variants_free(variants, n);
  }
}

static void draws_follow_the_seed(void **state) {
  (void)state;
  static const int32_t outliers[] = {5, 6, 7};
  mo_ablation_variant *a, *b, *c;
  int64_t n;
  ok(mo_ablation_choose(&a, &n, outliers, 3, 1000, 2, 1));
  ok(mo_ablation_choose(&b, &n, outliers, 3, 1000, 2, 1));
  ok(mo_ablation_choose(&c, &n, outliers, 3, 1000, 2, 2));
  for (int v = 2; v < 4; v++) assert_memory_equal(a[v].features, b[v].features, 3 * sizeof(int32_t));
  assert_memory_not_equal(a[2].features, a[3].features, 3 * sizeof(int32_t));
  assert_memory_not_equal(a[2].features, c[2].features, 3 * sizeof(int32_t));
  mo_ablation_variants_free(a, n);
  mo_ablation_variants_free(b, n);
  mo_ablation_variants_free(c, n);
}

static void fewer_others_than_outliers(void **state) {
  (void)state;
  static const int32_t outliers[] = {0, 1, 2, 4};
  mo_ablation_variant *variants;
  int64_t n;
  ok(mo_ablation_choose(&variants, &n, outliers, 4, 5, 2, 0));
  assert_int_equal(n, 4);
  assert_int_equal(variants[3].n_features, 1);
  assert_int_equal(variants[3].features[0], 3);
  mo_ablation_variants_free(variants, n);
  ok(mo_ablation_choose(&variants, &n, outliers, 3, 3, 2, 0));
  assert_int_equal(n, 2); /* all are outliers */
  mo_ablation_variants_free(variants, n);
}

static void tables_are_means(void **state) {
  (void)state;
  static const int32_t outliers[] = {2};
  double attention[3 * 2 * 2]; /* [V, L, N] */
  float nll[3 * 2 * 3], top[3 * 2 * 3];
  for (int i = 0; i < 12; i++) attention[i] = 0.5 + i;
  for (int i = 0; i < 18; i++) {
    nll[i] = (float)i;
    top[i] = (float)i / 32;
  }
  const mo_ablation_measures measures = {attention, nll, top, NULL};
  mo_ablation_shape shape = {.n_layers = 2, .n_sequences = 2, .length = 4, .softmaxes = 10, .perplexity = true};
  mo_ablation_variant *variants;
  mo_ablation tables;
  int64_t n;
  ok(mo_ablation_choose(&variants, &n, outliers, 1, 8, 1, 0));
  ok(mo_ablation_tables(&tables, variants, n, &measures, &shape));
  assert_int_equal(tables.n_rows, 3);
  for (int v = 0; v < 3; v++) {
    const mo_ablation_row *row = &tables.rows[v];
    assert_int_equal(row->variant, v);
    assert_int_equal(row->draw, v == 2 ? 0 : -1);
    assert_int_equal(row->n_features, v > 0);
    assert_true(row->nll_mean == 6 * v + 2.5 && row->perplexity == exp(6 * v + 2.5));
    assert_true(row->top1_token == (6 * v + 2.5) / 32);
    assert_true(row->top1_attention == (16 * v + 8.0) / 80);
  }
  assert_int_equal(tables.n_features, 2);
  assert_int_equal(tables.features[0].feature, 2);
  assert_int_equal(tables.features[1].variant, MO_VARIANT_RANDOM);
  assert_int_equal(tables.features[1].feature, variants[2].features[0]);
  mo_ablation_free(&tables);
  shape.perplexity = false;
  shape.softmaxes = 0;
  ok(mo_ablation_tables(&tables, variants, n, &measures, &shape));
  assert_true(isnan(tables.rows[0].nll_mean) && isnan(tables.rows[0].perplexity));
  assert_true(isnan(tables.rows[0].top1_token) && isnan(tables.rows[0].top1_attention));
  mo_ablation_free(&tables);
  mo_ablation_variants_free(variants, n);
}

/* Two layers of three experts and a shared one: the dead have no row, and what a layer as a whole does not add has no share. */
static void growth_has_shares(void **state) {
  (void)state;
  static const int32_t outliers[] = {9, 2};
  static const int32_t want[][3] = {{0, 0, 2}, {0, 0, 9}, {0, 2, 2},  {0, 2, 9},
                                    {1, 1, 2}, {1, 1, 9}, {1, -1, 2}, {1, -1, 9}};
  static const double shares[] = {0.25, NAN, 0.75, NAN, 1.5, 0, -0.5, 1};
  double attention[3 * 2] = {0};                                                 /* [V, L, N] */
  double growth[2 * 4 * 2] = {1, 5, 0, 0, 3, -5, 0, 0, 0, 0, 6, 0, 0, 0, -2, 8}; /* [L, E+1, F] */
  const mo_ablation_measures measures = {attention, NULL, NULL, growth};
  const mo_ablation_shape shape = {.n_layers = 2, .n_sequences = 1, .length = 1, .n_experts = 3};
  mo_ablation_variant *variants;
  mo_ablation tables;
  int64_t n;
  ok(mo_ablation_choose(&variants, &n, outliers, 2, 16, 1, 0));
  ok(mo_ablation_tables(&tables, variants, n, &measures, &shape));
  assert_int_equal(tables.n_growth, 8);
  for (int i = 0; i < 8; i++) {
    const mo_growth_row *row = &tables.growth[i];
    assert_int_equal(row->layer, want[i][0]);
    assert_int_equal(row->expert, want[i][1]);
    assert_int_equal(row->feature, want[i][2]);
    assert_true(isnan(shares[i]) ? isnan(row->share) : row->share == shares[i]);
  }
  assert_true(tables.growth[0].growth == 1 && tables.growth[0].growth_of_layer == 4);
  assert_true(tables.growth[7].growth == 8 && tables.growth[7].growth_of_layer == 8);
  mo_ablation_free(&tables);
  mo_ablation_variants_free(variants, n);
}

static void names(void **state) {
  (void)state;
  assert_string_equal(mo_variant_name(MO_VARIANT_INTACT), "INTACT");
  assert_string_equal(mo_variant_name(MO_VARIANT_FEATURES), "FEATURES");
  assert_string_equal(mo_variant_name(MO_VARIANT_RANDOM), "RANDOM");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(draws_are_of_others),   cmocka_unit_test(draws_are_even),
      cmocka_unit_test(draws_follow_the_seed), cmocka_unit_test(fewer_others_than_outliers),
      cmocka_unit_test(tables_are_means),      cmocka_unit_test(names),
      cmocka_unit_test(growth_has_shares),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
