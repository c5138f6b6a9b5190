#include "moe_outliers/ablation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/internal.h"
#include "moe_outliers/random.h"

const char *mo_variant_name(mo_variant_kind kind) {
  switch (kind) {
    case MO_VARIANT_INTACT:
      return "INTACT";
    case MO_VARIANT_FEATURES:
      return "FEATURES";
    case MO_VARIANT_RANDOM:
      return "RANDOM";
  }
  return "UNKNOWN"; /* in a damaged file */
}

/* --- variants --- */

static mo_status set_variant(mo_ablation_variant *variant, mo_variant_kind kind, int32_t draw, const int32_t *features,
                             int64_t n) {
  *variant = (mo_ablation_variant){.kind = kind, .draw = draw, .n_features = n};
  variant->features = mo_alloc((size_t)n + 1, sizeof *variant->features);
  if (!variant->features) return MO_FAILED;
  for (int64_t i = 0; i < n; i++) variant->features[i] = features[i];
  qsort(variant->features, (size_t)n, sizeof *variant->features, mo_compare_features);
  return MO_OK;
}

/* Features that are not outlier features, ascending; others: [hidden]. Their number. */
static int64_t list_others(int32_t *others, const int32_t *outliers, int64_t n, int64_t hidden) {
  int64_t count = 0;
  memset(others, 0, (size_t)hidden * sizeof *others);
  for (int64_t i = 0; i < n; i++) others[outliers[i]] = 1;
  for (int32_t h = 0; h < hidden; h++)
    if (!others[h]) others[count++] = h; /* count <= h: what it replaces is read already */
  return count;
}

/* n of `count` others change places with those at the front (Fisher, Yates, Durstenfeld). */
static void shuffle(int32_t *others, int64_t count, int64_t n, uint64_t key) {
  for (int64_t i = 0; i < n; i++) {
    uint64_t random = mo_mix64(key + (uint64_t)i) >> 32;
    int64_t j = i + (int64_t)(random * (uint64_t)(count - i) >> 32);
    int32_t swapped = others[i];
    others[i] = others[j];
    others[j] = swapped;
  }
}

static mo_status fill_variants(mo_ablation_variant *variants, int64_t *n_variants, const int32_t *outliers, int64_t n,
                               int64_t hidden, int64_t draws, uint64_t seed, int32_t *others) {
  MO_TRY(set_variant(&variants[(*n_variants)++], MO_VARIANT_INTACT, -1, NULL, 0));
  MO_TRY(set_variant(&variants[(*n_variants)++], MO_VARIANT_FEATURES, -1, outliers, n));
  for (int64_t d = 0; d < draws; d++) {
    int64_t count = list_others(others, outliers, n, hidden), drawn = n < count ? n : count;
    if (drawn == 0) break;
    shuffle(others, count, drawn, mo_mix64(mo_mix64(seed ^ UINT64_C(0x61626c617465)) + (uint64_t)d));
    MO_TRY(set_variant(&variants[(*n_variants)++], MO_VARIANT_RANDOM, (int32_t)d, others, drawn));
  }
  return MO_OK;
}

mo_status mo_ablation_choose(mo_ablation_variant **variants, int64_t *n_variants, const int32_t *outliers, int64_t n,
                             int64_t hidden, int64_t draws, int64_t seed) {
  int32_t *others = mo_alloc((size_t)hidden, sizeof *others);
  *n_variants = 0;
  *variants = mo_alloc((size_t)draws + 2, sizeof **variants);
  mo_status status = others && *variants
                         ? fill_variants(*variants, n_variants, outliers, n, hidden, draws, (uint64_t)seed, others)
                         : MO_FAILED;
  free(others);
  if (status == MO_OK) return MO_OK;
  mo_ablation_variants_free(*variants, *n_variants);
  *variants = NULL;
  *n_variants = 0;
  return status;
}

void mo_ablation_variants_free(mo_ablation_variant *variants, int64_t n_variants) {
  for (int64_t v = 0; v < n_variants; v++) free(variants[v].features);
  free(variants);
}

/* --- tables --- */

static double mean_of(const float *values, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)values[i];
  return n > 0 ? sum / (double)n : NAN;
}

static mo_ablation_row row_of(const mo_ablation_variant *variant, int64_t v, const mo_ablation_measures *measures,
                              const mo_ablation_shape *shape) {
  int64_t cells = shape->n_layers * shape->n_sequences;
  int64_t predictions = shape->perplexity ? shape->n_sequences * (shape->length - 1) : 0;
  double attention = 0;
  for (int64_t i = 0; i < cells; i++) attention += measures->attention[v * cells + i];
  mo_ablation_row row = {.variant = variant->kind, .draw = variant->draw, .n_features = variant->n_features};
  row.nll_mean = mean_of(measures->nll + v * predictions, predictions);
  row.perplexity = exp(row.nll_mean);
  row.top1_token = mean_of(measures->top + v * predictions, predictions);
  row.top1_attention = NAN;
  if (shape->softmaxes > 0)
    row.top1_attention = attention / (double)(shape->softmaxes * shape->n_sequences * shape->length);
  return row;
}

/* The experts of a layer; growth: its [E+1, F]. An expert to which no token came added nothing to any feature. */
static void add_growth_of_layer(mo_ablation *tables, const mo_ablation_variant *outliers, int64_t layer,
                                const double *growth, int64_t n_experts) {
  int64_t n = outliers->n_features;
  for (int64_t e = 0; e <= n_experts; e++) {
    bool any = false;
    for (int64_t i = 0; i < n && !any; i++) any = growth[e * n + i] != 0;
    for (int64_t i = 0; i < n && any; i++) {
      double of_layer = 0;
      for (int64_t other = 0; other <= n_experts; other++) of_layer += growth[other * n + i];
      tables->growth[tables->n_growth++] = (mo_growth_row){.layer = (int32_t)layer,
                                                           .expert = e < n_experts ? (int32_t)e : -1,
                                                           .feature = outliers->features[i],
                                                           .growth = growth[e * n + i],
                                                           .growth_of_layer = of_layer,
                                                           .share = of_layer == 0 ? NAN : growth[e * n + i] / of_layer};
    }
  }
}

static mo_status add_growth(mo_ablation *tables, const mo_ablation_variant *outliers,
                            const mo_ablation_measures *measures, const mo_ablation_shape *shape) {
  int64_t cells = mo_ablation_growth_cells(shape->n_layers, shape->n_experts, outliers->n_features);
  tables->growth = mo_alloc((size_t)cells + 1, sizeof *tables->growth);
  if (!tables->growth) return MO_FAILED;
  for (int64_t layer = 0; layer < shape->n_layers && cells; layer++)
    add_growth_of_layer(tables, outliers, layer, measures->growth + layer * (cells / shape->n_layers),
                        shape->n_experts);
  return MO_OK;
}

mo_status mo_ablation_tables(mo_ablation *tables, const mo_ablation_variant *variants, int64_t n_variants,
                             const mo_ablation_measures *measures, const mo_ablation_shape *shape) {
  int64_t n_features = 0;
  for (int64_t v = 0; v < n_variants; v++) n_features += variants[v].n_features;
  *tables = (mo_ablation){0};
  tables->rows = mo_alloc((size_t)n_variants, sizeof *tables->rows);
  tables->features = mo_alloc((size_t)n_features + 1, sizeof *tables->features);
  if (!tables->rows || !tables->features) {
    mo_ablation_free(tables);
    return MO_FAILED;
  }
  for (int64_t v = 0; v < n_variants; v++) {
    tables->rows[tables->n_rows++] = row_of(&variants[v], v, measures, shape);
    for (int64_t i = 0; i < variants[v].n_features; i++)
      tables->features[tables->n_features++] =
          (mo_ablation_feature){variants[v].kind, variants[v].draw, variants[v].features[i]};
  }
  for (int64_t v = 0; v < n_variants; v++)
    if (variants[v].kind == MO_VARIANT_FEATURES && add_growth(tables, &variants[v], measures, shape) != MO_OK) {
      mo_ablation_free(tables);
      return MO_FAILED;
    }
  return MO_OK;
}

void mo_ablation_free(mo_ablation *tables) {
  free(tables->rows);
  free(tables->features);
  free(tables->growth);
  *tables = (mo_ablation){0};
}
