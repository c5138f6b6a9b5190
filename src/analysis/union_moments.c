/* Mean and deviation of the number of sites that a draw hits, over all N^N draws: no draw need be made for them.
 *
 * A draw misses a site if it holds none of the c sequences that hit it: (1 - c/N)^N. It misses two sites if it holds
 * none of the sequences that hit either. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/bootstrap.h"

#define NEVER 1e-18 /* sites missed less often count as hit */

mo_status mo_hit_sets_new(mo_hit_sets *sets, const mo_analysis_shape *shape) {
  size_t words = (size_t)((shape->n_sequences + 63) / 64), n = (size_t)(2 * shape->n_layers);
  *sets = (mo_hit_sets){.words = (int64_t)words,
                        .sets = mo_alloc(n * words, sizeof *sets->sets),
                        .sizes = mo_alloc(n, sizeof *sets->sizes)};
  if (sets->sets && sets->sizes) return MO_OK;
  mo_hit_sets_free(sets);
  return MO_FAILED;
}

void mo_hit_sets_free(mo_hit_sets *sets) {
  free(sets->sets);
  free(sets->sizes);
  *sets = (mo_hit_sets){0};
}

mo_status mo_miss_table(double **missed, int64_t n_sequences) {
  double N = (double)n_sequences;
  *missed = mo_alloc((size_t)(n_sequences + 1), sizeof **missed);
  if (!*missed) return MO_FAILED;
  for (int64_t c = 0; c <= n_sequences; c++) (*missed)[c] = pow((double)(n_sequences - c) / N, N);
  return MO_OK;
}

/* Which sequences hit each site (per_layer 1) or layer (2). */
static void gather(mo_hit_sets *sets, const mo_counts *counts, int64_t feature, int64_t per_layer) {
  sets->n = 2 * counts->shape.n_layers / per_layer;
  memset(sets->sets, 0, (size_t)(sets->n * sets->words) * sizeof *sets->sets);
  for (int64_t i = counts->first[feature]; i < counts->first[feature + 1]; i++) {
    int64_t sequence = counts->cells[i].sequence;
    for (int64_t w = 0; w < counts->words; w++)
      for (uint64_t left = counts->sites[i * counts->words + w]; left; left &= left - 1) {
        int64_t site = 64 * w + __builtin_ctzll(left);
        sets->sets[site / per_layer * sets->words + sequence / 64] |= UINT64_C(1) << sequence % 64;
      }
  }
}

/* Keep the sets that a draw may miss; returns how many of the others are not empty. */
static int64_t keep_uncertain(mo_hit_sets *sets, const double *missed) {
  int64_t n = 0, certain = 0;
  for (int64_t s = 0; s < sets->n; s++) {
    const uint64_t *set = sets->sets + s * sets->words;
    int64_t size = mo_count_sites(set, sets->words);
    if (size > 0 && missed[size] < NEVER) certain++;
    if (size == 0 || missed[size] < NEVER) continue;
    memmove(sets->sets + n * sets->words, set, (size_t)sets->words * sizeof *set);
    sets->sizes[n++] = size;
  }
  sets->n = n;
  return certain;
}

static void moments_of(mo_hit_sets *sets, const double *missed, double *mean, double *deviation) {
  double variance = 0;
  *mean = (double)keep_uncertain(sets, missed);
  for (int64_t s = 0; s < sets->n; s++) {
    const uint64_t *a = sets->sets + s * sets->words;
    double miss = missed[sets->sizes[s]];
    *mean += 1 - miss;
    variance += miss * (1 - miss);
    for (int64_t t = 0; t < s; t++) {
      const uint64_t *b = sets->sets + t * sets->words;
      int64_t either = 0;
      for (int64_t w = 0; w < sets->words; w++) either += mo_count_bits(a[w] | b[w]);
      variance += 2 * (missed[either] - miss * missed[sets->sizes[t]]);
    }
  }
  *deviation = sqrt(variance > 0 ? variance : 0);
}

mo_union_moments mo_union_moments_of(mo_hit_sets *sets, const mo_counts *counts, int64_t feature,
                                     const double *missed) {
  mo_union_moments moments;
  gather(sets, counts, feature, 1);
  moments_of(sets, missed, &moments.sites, &moments.sites_deviation);
  gather(sets, counts, feature, 2);
  moments_of(sets, missed, &moments.layers, &moments.layers_deviation);
  return moments;
}
