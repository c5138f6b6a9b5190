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

struct mo_accumulator {
  mo_analysis_shape shape;
  mo_site_sums *sites; /* [2L] */
  int64_t *seen;       /* [2L, N] times that the sequence was added at the site: 0 or 1 */
  double *moments;     /* [3, 2L, N] per sequence: sum, sum of squares, largest |x|; 0 where not seen */
  uint64_t *positions; /* [N, H, W] bitmap of positions hit, W = ceil(S/64) */
  int64_t *routing;    /* [L, E] */
  float *nll;          /* [N, S-1] */
  int64_t *nll_seen;   /* [N] */
  mo_order *order;
  mo_status fault; /* of a function that returns nothing; reported by mo_analysis_reduce */
};

static inline int64_t mo_position_words(const mo_analysis_shape *shape) { return (shape->length + 63) / 64; }

/* --- reduce.c: all ranks' sums --- */

typedef struct {
  int32_t *sequence_sites;      /* [N, H] sites hit */
  int64_t *sequence_count;      /* [N, H] outlier values */
  float *sequence_max;          /* [N, H] largest |outlier value| */
  int32_t *sequence_positions;  /* [N, H] positions hit; rank 0 only */
  int64_t *positive, *negative; /* [H] */
  uint64_t *site_hit;           /* [2L, ceil(H/64)] bitmap of features hit at the site */
  int64_t *site_count;          /* [2L] */
  double *moments;              /* [3, 2L, N] */
  float *quartiles;             /* [H, 3]; rank 0 only */
} mo_totals;

/* --- criteria.c: the definition --- */

/* Does a feature with these hits qualify: fractions compared as double quotients, >=. */
bool mo_qualifies(const mo_criteria *criteria, int64_t sites_hit, int64_t n_sites, int64_t positions_hit,
                  int64_t n_positions);

mo_classification mo_classify(const mo_criteria *criteria, bool qualifies, int64_t layers_hit, int64_t n_layers);

/* --- tables.c --- */

/* Fill sequence_features, features, sites and summary. Local, on rank 0. On failure the caller frees the analysis. */
MO_CHECKED mo_status mo_tables_build(mo_analysis *analysis, const mo_analysis_shape *shape, const mo_totals *totals);

#endif
