/* What the files of src/analysis share; no other room includes it. Letters as in moe_outliers/analysis.h. */
#ifndef MOE_OUTLIERS_ANALYSIS_INTERNAL_H
#define MOE_OUTLIERS_ANALYSIS_INTERNAL_H

#include "moe_outliers/analysis.h"

/* --- order.c: the multiset of each feature's outlier values --- */

typedef struct mo_order mo_order;

MO_CHECKED mo_status mo_order_new(mo_order **order, int64_t hidden);
void mo_order_free(mo_order *order);

/* Add values (any order). A NaN or a feature outside 0..H-1 is MO_FAILED. */
MO_CHECKED mo_status mo_order_add(mo_order *order, const mo_outlier *outliers, int64_t n_outliers);

/* First quartile, median and third quartile of every feature over all ranks: quartiles [H, 3], filled on rank 0 only
 * (others may pass NULL), NaN for a feature without values. Collective. */
MO_CHECKED mo_status mo_order_quartiles(mo_order *order, mo_comm *comm, float *quartiles);

/* --- accumulate.c: one rank's sums --- */

enum { MO_SUM_VALUES = 0, MO_SUM_SQUARES = 1, MO_MAX_ABS = 2, MO_N_MOMENTS = 3 };

typedef struct {
  mo_site_row *rows; /* a row per (sequence, feature) with >= 1 outlier value */
  int64_t n_rows, capacity;
  bool unsorted;     /* a row came before a smaller (sequence, feature) */
  int64_t rows_seen; /* token rows */
} mo_site_sums;

/* One expert of a layer, over all of its micro-batches; zeros: nothing was added. */
typedef struct {
  int64_t outlier_values, outlier_tokens;
  float max_output;
  int32_t sequence; /* of max_output, plus 1; 0: the expert has had no token */
  int32_t position;
} mo_expert_total;

struct mo_accumulator {
  mo_analysis_shape shape;
  mo_site_sums *sites;      /* [2L] */
  int64_t *seen;            /* [2L, N] times that the sequence was added at the site: 0 or 1 */
  double *moments;          /* [3, 2L, N] per sequence: sum, sum of squares, largest |x|; 0 where not seen */
  uint64_t *positions;      /* [N, H, W] bitmap of positions hit, W = ceil(S/64) */
  int64_t *routing;         /* [L, E] */
  mo_expert_total *experts; /* [L, E + 1], the shared one last; none unless the shape asks for them */
  float *nll;               /* [N, S-1] */
  int64_t *nll_seen;        /* [N] */
  mo_order *order;
  mo_status fault; /* of a function that returns nothing; reported by mo_analysis_reduce */
};

static inline int64_t mo_position_words(const mo_analysis_shape *shape) { return (shape->length + 63) / 64; }

/* --- reduce.c: all ranks' sums --- */

typedef struct {
  uint64_t *sequence_sites;    /* [N, H, W] bitmap of sites hit, bit 2 * layer + site, W = ceil(2L/64) */
  int64_t *sequence_count;     /* [N, H] outlier values */
  int64_t *sequence_positive;  /* [N, H] of them > 0 */
  int64_t *sequence_first;     /* [N, H] of them at position 0 */
  float *sequence_max;         /* [N, H] largest |outlier value| */
  int32_t *sequence_positions; /* [N, H] positions hit; rank 0 only */
  int64_t *site_count;         /* [2L] */
  double *moments;             /* [3, 2L, N] */
  float *quartiles;            /* [H, 3]; rank 0 only */
} mo_totals;

static inline int64_t mo_site_words(const mo_analysis_shape *shape) { return (2 * shape->n_layers + 63) / 64; }

/* --- counts.c --- */

/* One (sequence, feature) with at least one outlier value. */
typedef struct {
  int32_t sequence, positions_hit;
  float max_magnitude;
  int64_t occurrences, positive, first; /* first: at position 0; -1: not known */
} mo_cell;

struct mo_counts {
  mo_analysis_shape shape;
  const char *where;
  int64_t words; /* of a bitmap of sites */
  int64_t n_cells;
  int64_t *first;   /* [H + 1] first cell of each feature */
  mo_cell *cells;   /* [n_cells] by feature, then sequence */
  uint64_t *sites;  /* [n_cells, words] sites hit, bit 2 * layer + site */
  float *quartiles; /* [H, 3] */
};

/* Not every processor that this is compiled for counts bits, and a call for each word would take most of the time. */
static inline int64_t mo_count_bits(uint64_t x) {
  x -= x >> 1 & UINT64_C(0x5555555555555555);
  x = (x & UINT64_C(0x3333333333333333)) + (x >> 2 & UINT64_C(0x3333333333333333));
  x = (x + (x >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
  return (int64_t)(x * UINT64_C(0x0101010101010101) >> 56);
}

static inline int64_t mo_count_sites(const uint64_t *sites, int64_t words) {
  int64_t n = 0;
  for (int64_t w = 0; w < words; w++) n += mo_count_bits(sites[w]);
  return n;
}

/* Layers with either site: their two bits are neighbours. */
static inline int64_t mo_count_layers(const uint64_t *sites, int64_t words) {
  int64_t n = 0;
  for (int64_t w = 0; w < words; w++) n += mo_count_bits((sites[w] | sites[w] >> 1) & UINT64_C(0x5555555555555555));
  return n;
}

/* Rank 0's counts of a run, and the rows of /positions. */
MO_CHECKED mo_status mo_counts_of_totals(mo_counts **counts, mo_analysis *analysis, const mo_analysis_shape *shape,
                                         const mo_totals *totals);

/* Give every rank the bytes of the one rank whose copy is not zero. */
MO_CHECKED mo_status mo_share_bits(mo_comm *comm, void *data, size_t bytes);

/* --- experts.c --- */

/* Experts of a layer with their shared one, 0 unless the shape asks for them. */
static inline int64_t mo_experts_of_layer(const mo_analysis_shape *shape) {
  return shape->experts ? shape->n_experts + 1 : 0;
}

/* Fill experts on rank 0, which has expert_tokens. Collective. On failure the caller frees the analysis. */
MO_CHECKED mo_status mo_experts_reduce(mo_analysis *analysis, const mo_accumulator *accumulator, mo_comm *comm);

/* --- criteria.c: the definition --- */

/* Does a feature with these hits qualify: fractions compared as double quotients, >=. */
bool mo_qualifies(const mo_criteria *criteria, int64_t sites_hit, int64_t n_sites, int64_t positions_hit,
                  int64_t n_positions);

mo_classification mo_classify(const mo_criteria *criteria, bool qualifies, int64_t layers_hit, int64_t n_layers);

/* --- tables.c --- */

/* Fill sequence_features, features and summary, without intervals. On failure the caller frees the analysis. */
MO_CHECKED mo_status mo_tables_build(mo_analysis *analysis, const mo_counts *counts);

/* Sorts the values; NaN of none. */
double mo_median(double *values, int64_t n);

/* --- site_table.c --- */

/* Fill sites. Local, on rank 0. On failure the caller frees the analysis. */
MO_CHECKED mo_status mo_sites_build(mo_analysis *analysis, const mo_analysis_shape *shape, const mo_totals *totals);

/* --- outlier_features.c --- */

int mo_compare_features(const void *left, const void *right); /* of int32_t, for qsort */

/* --- top_values.c --- */

/* Fill top_values on rank 0, which has the features in *analysis. Collective; good: rank 0 got that far, or else nothing
 * is done. */
MO_CHECKED mo_status mo_top_values_gather(mo_analysis *analysis, const mo_accumulator *accumulator, mo_comm *comm,
                                          bool good);

/* --- bootstrap.c, bootstrap_summary.c --- */

/* Fill all intervals and shares of the tables that mo_tables_build made; nll as in mo_counts_analyse. */
MO_CHECKED mo_status mo_bootstrap_run(mo_analysis *analysis, const mo_counts *counts, const float *nll);

/* --- resample.c: draws, and what is made of them --- */

enum { MO_TILE = 8 }; /* draws are made in multiples of it */

/* Some consecutive draws of N sequences with replacement. */
typedef struct {
  int64_t n_sequences, n_chunks; /* N, ceil(N/8) */
  int64_t capacity;              /* draws, a multiple of MO_TILE */
  int64_t n;                     /* draws in use, a multiple of MO_TILE but for the last ones */
  double *weight;                /* [N, capacity] how often a sequence was drawn */
  uint8_t *drawn;                /* [n_chunks, capacity] bit s % 8 of chunk s / 8: it was, at least once */
} mo_draws;

MO_CHECKED mo_status mo_draws_new(mo_draws *draws, int64_t n_sequences);
void mo_draws_free(mo_draws *draws);

/* Draws number first .. first + n - 1, n <= capacity: the same whatever else is drawn. */
void mo_draws_make(mo_draws *draws, const mo_bootstrap *bootstrap, int64_t first, int64_t n);

/* sum[d] and squares[d], [capacity]: of values[i] and its square over the sequences[i] that draw d holds, i < n. squares may be NULL. */
void mo_draws_sum(const mo_draws *draws, const int32_t *sequences, const double *values, int64_t n, double *sum,
                  double *squares);

typedef struct {
  double low, high;
} mo_interval;

/* q-quantile, linear interpolation, of n > 0 values, which are reordered. */
double mo_quantile(double *values, int64_t n, double q);

/* Two-sided quantile of Student's t: P(|t| <= it) = MO_BOOTSTRAP_LEVEL. */
double mo_student(int64_t degrees);

/* Mean of n values of which `values` are those that need not be 0. */
typedef struct {
  double mean, error; /* error: standard error of the mean */
} mo_mean;

mo_mean mo_mean_of(const double *values, int64_t n_values, int64_t n);

/* (mean of the draw - mean) / standard error of the draw, for each of the block's draws. */
void mo_studentise(const mo_mean *mean, int64_t n_sequences, const double *sum, const double *squares, int64_t n,
                   double *t);

/* Bootstrap-t interval from the t of all draws, which are reordered. */
mo_interval mo_studentised_interval(const mo_mean *mean, double *t, int64_t n);

/* Outwards to whole numbers, unless one is nearer than 0.05; within 0..most. */
mo_interval mo_whole_interval(double low, double high, double most);

/* Error of a union of sites over its error among draws; see docs/methods.md. */
double mo_union_scale(void);

#endif
