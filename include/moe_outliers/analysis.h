/* Outlier statistics: what a backend reduces at one site, how a rank accumulates it over its layers, and the tables
 * made from all ranks' sums. Definitions: Dettmers et al. 2022 (arXiv:2208.07339), section 4; see docs/methods.md.
 *
 * Letters: N sequences, S positions per sequence, H hidden size, L layers, 2L sites, E experts, B sequences of one
 * micro-batch. Arrays are row-major, last index fastest. "Outlier value": |x| >= threshold. */
#ifndef MOE_OUTLIERS_ANALYSIS_H
#define MOE_OUTLIERS_ANALYSIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe_outliers/comm.h"
#include "moe_outliers/status.h"

typedef enum { MO_SITE_LN_ATTN = 0, MO_SITE_LN_MLP = 1 } mo_site;
typedef enum { MO_NONE = 0, MO_PROBABILISTIC = 1, MO_SYSTEMATIC = 2 } mo_classification;

/* An outlier value of a feature, for the exact order statistics (quartiles). */
typedef struct {
  int32_t feature;
  float value; /* signed */
} mo_outlier;

/* What a backend reduces at one site for one micro-batch; host memory of the backend, valid until its next call. */
typedef struct {
  int64_t n_sequences;  /* B */
  int64_t rows;         /* B*S: token rows really seen (accounting) */
  int32_t *count;       /* [B, H] outlier values */
  int32_t *positive;    /* [B, H] of them > 0 */
  float *min, *max;     /* [B, H] smallest and largest outlier value (signed); undefined where count = 0 */
  double *sum_abs;      /* [B, H] sum of |x| over the outlier values, in position order */
  int32_t *position;    /* [B, H] of the outlier value of the largest magnitude; of equal ones a positive one, then the
                           first; undefined where count = 0 */
  uint8_t *first;       /* [B, H] 1: the value at position 0 is an outlier value */
  double *sum;          /* [B] sum of all S*H values: per token over h, then over tokens */
  double *sum_squares;  /* [B] likewise of x^2 */
  float *max_abs;       /* [B] largest |x| of all values */
  mo_outlier *outliers; /* [n_outliers] every outlier value, any order */
  int64_t n_outliers;
} mo_site_statistics;

/* What the tokens of one micro-batch brought to one expert of a layer, and what it gave them. */
typedef struct {
  int64_t outlier_values; /* sum over its tokens of each token's outlier values at ln_mlp */
  int64_t outlier_tokens; /* of its tokens: those with at least one */
  float max_output;       /* largest |value| of its down projection, not yet weighted; a NaN does not count */
  int32_t max_row;        /* the token row where that is, the first one; -1: the expert has no token */
} mo_expert_sums;

/* Host memory of the backend, valid until its next call. */
typedef struct {
  int64_t n;               /* E, or E + 1: the shared expert comes last */
  mo_expert_sums *experts; /* [n] */
} mo_expert_statistics;

/* /layers/NNN/SITE: a row per (sequence, feature) with >= 1 outlier value, sorted by (sequence, feature). */
typedef struct {
  int32_t sequence, feature, count, positive, negative;
  float min, max, max_abs, mean_abs;
  int32_t position, first; /* as in mo_site_statistics; -1: the file is older and does not say */
} mo_site_row;

/* /positions: a row per (sequence, feature) with >= 1 outlier value at any site, sorted by (sequence, feature). */
typedef struct {
  int32_t sequence, feature, positions_hit;
} mo_position_row;

/* /sequence_features: per-sequence analysis, qualified rows; by sequence, then max_magnitude falling, then feature. */
typedef struct {
  int32_t sequence, feature;
  double layer_percentage, seq_percentage; /* fractions 0..1: sites_hit / 2L, positions_hit / S */
  float max_magnitude;
  int64_t total_occurrences;
  int32_t sites_hit, positions_hit;
} mo_sequence_feature;

/* /features: pooled analysis, a row per feature with >= 1 outlier value; by max_magnitude falling, then feature. */
typedef struct {
  int32_t feature, sites_hit, layers_hit;
  int64_t positions_hit;                                     /* distinct (sequence, position) pairs */
  double layer_percentage, block_percentage, seq_percentage; /* sites_hit/2L, layers_hit/L, positions_hit/(N*S) */
  float max_magnitude;
  int64_t total_occurrences, positive, negative;
  float q1, median, q3; /* of the signed outlier values, numpy.quantile's linear interpolation; exact, but for a feature
                           with more than 32768 distinct values, which are rounded to bf16 first (docs/methods.md) */
  double share;         /* of all outlier values of the model */
  double first_token_share;    /* of its own outlier values: those at position 0; NaN: not known */
  int32_t sequences_qualified; /* sequences in whose own analysis the feature qualifies */
  int32_t classification;      /* mo_classification */
  /* 95 % intervals and shares of the bootstrap draws; NaN with one sequence or without draws (docs/methods.md) */
  double layer_percentage_low, layer_percentage_high;
  double block_percentage_low, block_percentage_high;
  double seq_percentage_low, seq_percentage_high;
  double qualifies_share, systematic_share;
} mo_feature;

/* /sites: a row per site, sorted by (layer, site). mean and std (population) over all N*S*H values. */
typedef struct {
  int32_t layer, site; /* site: mo_site */
  int64_t count;       /* outlier values */
  float max_abs;
  double mean, std;
  int32_t features_hit; /* features with >= 1 outlier value at this site, any sequence */
} mo_site_summary;

/* /top_values: of each feature that qualifies in the pooled analysis, at each site that it hits, the largest outlier
 * values of its sequences, one of each: as the value of mo_site_statistics.position; by feature, layer, site, rank. */
typedef struct {
  int32_t feature, layer, site; /* site: mo_site */
  int32_t rank;                 /* 0..MO_TOP_VALUES-1, by magnitude falling, then sequence */
  int32_t sequence, position;
  int32_t token; /* at that position; -1 before mo_analysis_name_tokens */
  float value;   /* signed */
} mo_top_value;

enum { MO_TOP_VALUES = 5 };

/* /experts: a row per expert of each layer that routes, by layer, then expert, the shared one last. */
typedef struct {
  int32_t layer, expert, shared; /* expert -1: the shared one */
  int64_t tokens, outlier_values, outlier_tokens;
  float max_output;
  int32_t max_sequence, max_position, max_token; /* -1: it had no token */
} mo_expert;

/* /summary */
typedef struct {
  int64_t outlier_features;    /* pooled features that qualify */
  int64_t systematic_features; /* of them SYSTEMATIC */
  int64_t features_hit;        /* features with >= 1 outlier value */
  int64_t sequence_rows;       /* qualified (sequence, feature) rows: the reference's "total_systematic_outliers" */
  double mean_layer_percentage, median_layer_percentage; /* over the pooled features that qualify; NaN if none */
  double mean_seq_percentage, median_seq_percentage;
  int32_t classification; /* of the model: mo_classification */
  /* 95 % intervals; NaN with one sequence, without draws, or where the number itself is NaN */
  double outlier_features_low, outlier_features_high;
  double systematic_features_low, systematic_features_high;
  double mean_layer_percentage_low, mean_layer_percentage_high;
  double median_layer_percentage_low, median_layer_percentage_high;
  double mean_seq_percentage_low, mean_seq_percentage_high;
  double median_seq_percentage_low, median_seq_percentage_high;
} mo_summary;

typedef struct {
  double threshold, min_layer_fraction, min_position_fraction, systematic_fraction;
} mo_criteria;

/* Resampling of sequences. */
typedef struct {
  int64_t draws; /* 0: no intervals */
  int64_t seed;
} mo_bootstrap;

#define MO_BOOTSTRAP_LEVEL 0.95

/* Shape of the accumulation of one run. */
typedef struct {
  int64_t n_layers, n_sequences, length, hidden; /* L, N, S, H */
  int64_t n_experts;                             /* E, 0 if no layer routes */
  mo_criteria criteria;
  mo_bootstrap bootstrap;
  bool experts, shared_expert; /* a table of experts is made; layers that route have a shared one */
} mo_analysis_shape;

/* One rank's sums over the layers it owns. */
typedef struct mo_accumulator mo_accumulator;

/* A shape that is not positive, or too large for the tables' types, is MO_INVALID. Memory: a bit per (sequence,
 * position, feature), the sites' rows, and 12 bytes per distinct outlier value of a feature. */
MO_CHECKED mo_status mo_accumulator_new(mo_accumulator **accumulator, const mo_analysis_shape *shape);
void mo_accumulator_free(mo_accumulator *accumulator);
/* Bytes that an accumulator of this shape takes, if at most an eighth of the (sequence, feature) pairs of each site have an
 * outlier value. Models have far fewer; more of them take more. */
int64_t mo_accumulator_bytes(const mo_analysis_shape *shape);

/* Add one micro-batch at one site. first_sequence: place of its first sequence in the batch. A site's micro-batches
 * may come in any order, each exactly once. Exact: integer counts, maxima, and sums kept per sequence. A sequence added
 * twice or out of range, a layer out of range, counts that disagree with the listed outliers: MO_FAILED, and the
 * accumulator is of no further use. */
MO_CHECKED mo_status mo_accumulator_add(mo_accumulator *accumulator, int64_t layer, mo_site site,
                                        int64_t first_sequence, const mo_site_statistics *statistics);

/* Positions of sequences first_sequence.. that were hit at any of some sites: bit s % 64 of word [b, h, s / 64] of
 * [B, H, ceil(S/64)], host. Or-ed in, in any order, as often as one likes. Sequences out of range make mo_analysis_reduce
 * fail. */
void mo_accumulator_add_positions(mo_accumulator *accumulator, int64_t first_sequence, int64_t n_sequences,
                                  const uint64_t *words);

/* Tokens sent to each expert of a layer by one micro-batch: counts [E]. A layer out of range makes mo_analysis_reduce
 * fail. */
void mo_accumulator_add_routing(mo_accumulator *accumulator, int64_t layer, const int64_t *counts);

/* Statistics of the experts of a layer that routes, of the sequences from first_sequence on. In any order; each
 * micro-batch once. A layer out of range, another number of experts, a row out of range: MO_FAILED. */
MO_CHECKED mo_status mo_accumulator_add_experts(mo_accumulator *accumulator, int64_t layer, int64_t first_sequence,
                                                const mo_expert_statistics *statistics);

/* Per-token negative log-likelihoods of sequences first_sequence.. : nll [B, S-1], natural log. Sequences out of range,
 * twice, or missing while others have some make mo_analysis_reduce fail. */
void mo_accumulator_add_nll(mo_accumulator *accumulator, int64_t first_sequence, int64_t n_sequences, const float *nll);

/* Check that every site of layer `layer` saw exactly N*S rows; a mismatch is MO_FAILED naming layer, site, rows. */
MO_CHECKED mo_status mo_accumulator_check_layer(const mo_accumulator *accumulator, int64_t layer);

/* Rows of one of this rank's own sites: *rows is owned by the accumulator, sorted by (sequence, feature). */
MO_CHECKED mo_status mo_accumulator_site_rows(mo_accumulator *accumulator, int64_t layer, mo_site site,
                                              const mo_site_row **rows, int64_t *n_rows);

/* The tables made from all ranks' sums; complete on rank 0, empty elsewhere. */
typedef struct {
  mo_position_row *positions;
  int64_t n_positions;
  mo_sequence_feature *sequence_features;
  int64_t n_sequence_features;
  mo_feature *features;
  int64_t n_features;
  mo_site_summary *sites; /* [2L] */
  int64_t n_sites;
  mo_top_value *top_values;
  int64_t n_top_values;
  mo_summary summary;
  float *nll;                             /* [N, S-1], NULL if no rank added any */
  double perplexity;                      /* exp(mean nll), NaN without nll or with S = 1 */
  double perplexity_low, perplexity_high; /* 95 % interval, NaN as those of the features */
  uint64_t *expert_tokens;                /* [L, E], NULL if E = 0 */
  mo_expert *experts;                     /* NULL unless the shape asks for them */
  int64_t n_experts;                      /* rows of experts */
} mo_analysis;

/* Reduce all ranks' sums and make the tables. Collective. The result does not depend on the number of ranks nor on
 * which rank owned which layer. A sequence not seen exactly once at every site, a site without exactly N*S token rows,
 * or positions that disagree with the counts are MO_FAILED. Afterwards the accumulator holds all ranks' positions; its
 * rows stay this rank's own. Free with mo_analysis_free on every rank. */
MO_CHECKED mo_status mo_analysis_reduce(mo_analysis *analysis, mo_accumulator *accumulator, mo_comm *comm);
void mo_analysis_free(mo_analysis *analysis);

/* Tell all ranks the features that qualify in the pooled analysis, which rank 0 has: ascending, [n]. Collective; the caller frees
 * *features, also after a failure. */
MO_CHECKED mo_status mo_outlier_features_share(const mo_analysis *analysis, mo_comm *comm, int32_t **features,
                                               int64_t *n);

/* Fill in the tokens of top_values and experts; ids [N, length]. */
void mo_analysis_name_tokens(mo_analysis *analysis, const int32_t *ids, int64_t length);

/* What the tables that depend on the criteria are made of, in a run and again from a result file: per (sequence,
 * feature) which sites are hit, how many positions, how many outlier values, the largest; per feature the quartiles. */
typedef struct mo_counts mo_counts;

/* Rows as /positions holds them. where: what error lines call them, kept until the counts are freed. Rows that are not
 * sorted, not distinct or out of range are MO_INVALID. */
MO_CHECKED mo_status mo_counts_new(mo_counts **counts, const mo_analysis_shape *shape, const char *where,
                                   const mo_position_row *rows, int64_t n_rows);
void mo_counts_free(mo_counts *counts);

/* Rows as /layers/NNN/SITE holds them, each site once. Rows without a row in /positions, or twice: MO_INVALID. */
MO_CHECKED mo_status mo_counts_add_site(mo_counts *counts, int64_t layer, mo_site site, const mo_site_row *rows,
                                        int64_t n_rows);

/* Quartiles of a feature: q1, median, q3. A feature without outlier values: MO_INVALID. */
MO_CHECKED mo_status mo_counts_set_quartiles(mo_counts *counts, int32_t feature, const float quartiles[3]);

/* Fill sequence_features, features, summary, and perplexity with its interval from nll ([N, S-1], NULL: none), by the
 * criteria and bootstrap of the shape. A row of /positions that no site has is MO_INVALID. Local. On failure *analysis
 * is empty. Free with mo_analysis_free. */
MO_CHECKED mo_status mo_counts_analyse(mo_analysis *analysis, const mo_counts *counts, const float *nll);

/* How the intervals are made, in words. */
const char *mo_bootstrap_method(void);

const char *mo_site_name(mo_site site);                               /* "ln_attn", "ln_mlp" */
const char *mo_classification_name(mo_classification classification); /* "NONE", "PROBABILISTIC", "SYSTEMATIC" */

#endif
