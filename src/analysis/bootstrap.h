/* Between bootstrap.c (features) and bootstrap_summary.c (the model); no other file includes it. */
#ifndef MOE_OUTLIERS_ANALYSIS_BOOTSTRAP_H
#define MOE_OUTLIERS_ANALYSIS_BOOTSTRAP_H

#include "analysis/internal.h"

/* Which sites each subset of a chunk of 8 sequences hits, for one feature. */
typedef struct {
  int64_t words, max_chunks;
  int64_t *chunks; /* [n_chunks] chunks in which the feature has cells */
  int64_t n_chunks;
  uint64_t *table; /* [n_chunks, 256, words] */
  uint64_t *all;   /* [words] sites hit by any sequence */
  uint64_t *hit;   /* [words] scratch */
} mo_unions;

MO_CHECKED mo_status mo_unions_new(mo_unions *unions, const mo_counts *counts);
void mo_unions_free(mo_unions *unions);
void mo_unions_make(mo_unions *unions, const mo_counts *counts, int64_t feature);

/* Sites and layers that the sequences of each draw hit: sites, layers [draws->n]. */
void mo_unions_count(mo_unions *unions, const mo_draws *draws, int32_t *sites, int32_t *layers);

/* Mean and deviation, over all possible draws, of the sites and of the layers that a feature hits. */
typedef struct {
  double sites, sites_deviation, layers, layers_deviation;
} mo_union_moments;

/* For one feature; scratch of a thread. */
typedef struct {
  int64_t words;  /* of a set of sequences */
  int64_t n;      /* sets in use */
  uint64_t *sets; /* [2L, words] sequences that hit the site, or the layer */
  int64_t *sizes; /* [2L] */
} mo_hit_sets;

MO_CHECKED mo_status mo_hit_sets_new(mo_hit_sets *sets, const mo_analysis_shape *shape);
void mo_hit_sets_free(mo_hit_sets *sets);
/* missed [N + 1]: probability that a draw holds none of so many sequences, from mo_miss_table. */
mo_union_moments mo_union_moments_of(mo_hit_sets *sets, const mo_counts *counts, int64_t feature, const double *missed);
MO_CHECKED mo_status mo_miss_table(double **missed, int64_t n_sequences);

/* What a thread needs to look at one feature in one block of draws. */
typedef struct {
  mo_unions unions;
  mo_hit_sets sets;
  int32_t *sequences, *sites, *layers; /* [N], [capacity], [capacity] */
  double *values, *sum, *squares;      /* [N], [capacity], [capacity] */
} mo_bench;

MO_CHECKED mo_status mo_bench_new(mo_bench *bench, const mo_counts *counts, int64_t capacity);
void mo_bench_free(mo_bench *bench);
/* Positions hit by each sequence that has a cell; returns how many. */
int64_t mo_bench_positions(mo_bench *bench, const mo_counts *counts, int64_t feature);

/* Benches of all threads. */
MO_CHECKED mo_status mo_benches_new(mo_bench **benches, int *n, const mo_counts *counts, int64_t capacity);
void mo_benches_free(mo_bench *benches, int n);
int mo_thread_number(void);

/* Shares of the features and intervals of the summary; moments [n_features], as the rows of analysis->features. */
MO_CHECKED mo_status mo_bootstrap_summary(mo_analysis *analysis, const mo_counts *counts,
                                          const mo_union_moments *moments);

#endif
