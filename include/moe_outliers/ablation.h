/* What outlier features do: variants of the model with features zeroed at every site, what is measured of them, and the tables
 * made of that. After Dettmers et al. 2022 (arXiv:2208.07339), section 4; see docs/methods.md.
 *
 * Letters: V variants, L layers, N sequences, S positions, E experts, F outlier features. */
#ifndef MOE_OUTLIERS_ABLATION_H
#define MOE_OUTLIERS_ABLATION_H

#include <stdbool.h>
#include <stdint.h>

#include "moe_outliers/status.h"

typedef enum { MO_VARIANT_INTACT = 0, MO_VARIANT_FEATURES = 1, MO_VARIANT_RANDOM = 2 } mo_variant_kind;

/* Features that are zeroed; none: the model as it is. */
typedef struct {
  int32_t kind;      /* mo_variant_kind */
  int32_t draw;      /* of random features, from 0; else -1 */
  int32_t *features; /* [n_features], ascending */
  int64_t n_features;
} mo_ablation_variant;

/* The model as it is, without the outlier features ([n], in any order), and `draws` times without as many others, drawn from the
 * hidden size's without replacement: the same for the same seed. Where fewer others are left, all of them; where none are, no
 * draws. Caller frees with mo_ablation_variants_free. */
MO_CHECKED mo_status mo_ablation_choose(mo_ablation_variant **variants, int64_t *n_variants, const int32_t *outliers,
                                        int64_t n, int64_t hidden, int64_t draws, int64_t seed);
void mo_ablation_variants_free(mo_ablation_variant *variants, int64_t n_variants);

enum { MO_ABLATION_MOST_DRAWS = 64, MO_ABLATION_MOST_VARIANTS = MO_ABLATION_MOST_DRAWS + 2 };
/* Outlier features that are planned for before a run has found them. */
enum { MO_ABLATION_EXPECTED_FEATURES = 32 };

/* What is measured of all variants. */
typedef struct {
  double *attention; /* [V, L, N] largest probabilities of each softmax of a sequence's attention, added up */
  float *nll, *top;  /* [V, N, S-1] losses of the next tokens; probability of the likeliest token */
  double
      *growth; /* [L, E+1, F] what each expert, the shared one last, adds to the squares of the outlier features of the
                        model as it is, over all tokens (docs/methods.md); NULL: the model has no experts */
} mo_ablation_measures;

/* Cells of its growth. */
int64_t mo_ablation_growth_cells(int64_t n_layers, int64_t n_experts, int64_t n_features);

typedef struct {
  int64_t n_layers, n_sequences, length;
  int64_t softmaxes; /* of a token: heads, of all layers whose attention is a softmax */
  bool perplexity;   /* nll and top are measured */
  int64_t n_experts; /* routed ones of a layer; 0: no growth is measured */
} mo_ablation_shape;

/* /ablation: a row per variant. */
typedef struct {
  int32_t variant, draw; /* mo_variant_kind; -1: not a draw */
  int64_t n_features;
  double perplexity, nll_mean;       /* NaN: not measured */
  double top1_attention, top1_token; /* likewise */
} mo_ablation_row;

/* /ablation_features: a row per variant and zeroed feature. */
typedef struct {
  int32_t variant, draw, feature;
} mo_ablation_feature;

/* /growth: a row per layer, expert and outlier feature, for every expert that a token came to. */
typedef struct {
  int32_t layer, expert; /* -1: the shared expert */
  int32_t feature;
  double growth, growth_of_layer; /* of the sum of its squares over all tokens: by the expert, by all of the layer */
  double share;                   /* the one by the other; NaN: the layer's is 0 */
} mo_growth_row;

typedef struct {
  mo_ablation_row *rows;
  int64_t n_rows;
  mo_ablation_feature *features;
  int64_t n_features;
  mo_growth_row *growth;
  int64_t n_growth;
} mo_ablation;

/* Sums are taken in the order of the arrays. Free with mo_ablation_free. */
MO_CHECKED mo_status mo_ablation_tables(mo_ablation *tables, const mo_ablation_variant *variants, int64_t n_variants,
                                        const mo_ablation_measures *measures, const mo_ablation_shape *shape);
void mo_ablation_free(mo_ablation *tables);

const char *mo_variant_name(mo_variant_kind kind); /* "INTACT", "FEATURES", "RANDOM" */

#endif
