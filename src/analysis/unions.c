/* Sites hit by the sequences of a draw: a union of bitmaps, looked up by 8 sequences at a time. */
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "analysis/bootstrap.h"

mo_status mo_unions_new(mo_unions *unions, const mo_counts *counts) {
  int64_t most = 0; /* chunks of one feature */
  for (int64_t h = 0; h < counts->shape.hidden; h++) {
    int64_t n = 0, last = -1;
    for (int64_t i = counts->first[h]; i < counts->first[h + 1]; i++) {
      int64_t chunk = counts->cells[i].sequence / 8;
      n += chunk != last;
      last = chunk;
    }
    most = n > most ? n : most;
  }
  size_t words = (size_t)counts->words;
  *unions = (mo_unions){.words = counts->words,
                        .max_chunks = most,
                        .chunks = mo_alloc((size_t)most, sizeof *unions->chunks),
                        .table = mo_alloc((size_t)most * 256 * words, sizeof *unions->table),
                        .all = mo_alloc(words, sizeof *unions->all),
                        .hit = mo_alloc(words, sizeof *unions->hit)};
  if (unions->chunks && unions->table && unions->all && unions->hit) return MO_OK;
  mo_unions_free(unions);
  return MO_FAILED;
}

void mo_unions_free(mo_unions *unions) {
  free(unions->chunks);
  free(unions->table);
  free(unions->all);
  free(unions->hit);
  *unions = (mo_unions){0};
}

/* Entries of single sequences are there; each other one is a smaller one with one sequence more. */
static void fill_table(uint64_t *table, int64_t words) {
  for (int64_t subset = 1; subset < 256; subset++) {
    int64_t rest = subset & (subset - 1);
    if (rest == 0) continue;
    const uint64_t *a = table + rest * words, *b = table + (subset ^ rest) * words;
    for (int64_t w = 0; w < words; w++) table[subset * words + w] = a[w] | b[w];
  }
}

void mo_unions_make(mo_unions *unions, const mo_counts *counts, int64_t feature) {
  int64_t words = unions->words;
  unions->n_chunks = 0;
  memset(unions->all, 0, (size_t)words * sizeof *unions->all);
  for (int64_t i = counts->first[feature]; i < counts->first[feature + 1]; i++) {
    int64_t sequence = counts->cells[i].sequence, last = unions->n_chunks - 1;
    if (last < 0 || unions->chunks[last] != sequence / 8) {
      last = unions->n_chunks++;
      unions->chunks[last] = sequence / 8;
      memset(unions->table + last * 256 * words, 0, (size_t)(256 * words) * sizeof *unions->table);
    }
    const uint64_t *sites = counts->sites + i * words;
    uint64_t *entry = unions->table + (last * 256 + (INT64_C(1) << sequence % 8)) * words;
    for (int64_t w = 0; w < words; w++) {
      entry[w] = sites[w];
      unions->all[w] |= sites[w];
    }
  }
  for (int64_t c = 0; c < unions->n_chunks; c++) fill_table(unions->table + c * 256 * words, words);
}

/* words as a constant lets the compiler keep the union in registers. */
static inline void count_words(const mo_unions *unions, const mo_draws *draws, int64_t words, uint64_t *hit,
                               int32_t *sites, int32_t *layers) {
  const int32_t all_sites = (int32_t)mo_count_sites(unions->all, words);
  const int32_t all_layers = (int32_t)mo_count_layers(unions->all, words);
  for (int64_t d = 0; d < draws->n; d++) {
    uint64_t missing = 1;
    for (int64_t w = 0; w < words; w++) hit[w] = 0;
    for (int64_t c = 0; c < unions->n_chunks && missing; c++) {
      int64_t subset = draws->drawn[unions->chunks[c] * draws->capacity + d];
      const uint64_t *entry = unions->table + (c * 256 + subset) * words;
      missing = 0;
      for (int64_t w = 0; w < words; w++) {
        hit[w] |= entry[w];
        missing |= hit[w] ^ unions->all[w];
      }
    }
    sites[d] = missing ? (int32_t)mo_count_sites(hit, words) : all_sites;
    layers[d] = missing ? (int32_t)mo_count_layers(hit, words) : all_layers;
  }
}

void mo_unions_count(mo_unions *unions, const mo_draws *draws, int32_t *sites, int32_t *layers) {
  uint64_t hit[2];
  if (unions->words == 1)
    count_words(unions, draws, 1, hit, sites, layers);
  else if (unions->words == 2)
    count_words(unions, draws, 2, hit, sites, layers);
  else
    count_words(unions, draws, unions->words, unions->hit, sites, layers);
}

mo_status mo_bench_new(mo_bench *bench, const mo_counts *counts, int64_t capacity) {
  size_t N = (size_t)counts->shape.n_sequences, n = (size_t)capacity;
  *bench = (mo_bench){.sequences = mo_alloc(N, sizeof *bench->sequences),
                      .sites = mo_alloc(n, sizeof *bench->sites),
                      .layers = mo_alloc(n, sizeof *bench->layers),
                      .values = mo_alloc(N, sizeof *bench->values),
                      .sum = mo_alloc(n, sizeof *bench->sum),
                      .squares = mo_alloc(n, sizeof *bench->squares)};
  mo_status status = MO_FAILED;
  if (bench->sequences && bench->sites && bench->layers && bench->values && bench->sum && bench->squares)
    status = mo_unions_new(&bench->unions, counts);
  if (status == MO_OK) status = mo_hit_sets_new(&bench->sets, &counts->shape);
  if (status != MO_OK) mo_bench_free(bench);
  return status;
}

void mo_bench_free(mo_bench *bench) {
  mo_unions_free(&bench->unions);
  mo_hit_sets_free(&bench->sets);
  free(bench->sequences);
  free(bench->sites);
  free(bench->layers);
  free(bench->values);
  free(bench->sum);
  free(bench->squares);
  *bench = (mo_bench){0};
}

int64_t mo_bench_positions(mo_bench *bench, const mo_counts *counts, int64_t feature) {
  int64_t n = 0;
  for (int64_t i = counts->first[feature]; i < counts->first[feature + 1]; i++) {
    bench->sequences[n] = counts->cells[i].sequence;
    bench->values[n++] = (double)counts->cells[i].positions_hit;
  }
  return n;
}

mo_status mo_benches_new(mo_bench **benches, int *n, const mo_counts *counts, int64_t capacity) {
  *n = 1;
#ifdef _OPENMP
  *n = omp_get_max_threads();
#endif
  mo_bench *made = *benches = mo_alloc((size_t)*n, sizeof *made);
  if (!made) return MO_FAILED;
  for (int i = 0; i < *n; i++) {
    mo_status status = mo_bench_new(&made[i], counts, capacity);
    if (status == MO_OK) continue;
    mo_benches_free(made, i);
    *benches = NULL;
    return status;
  }
  return MO_OK;
}

void mo_benches_free(mo_bench *benches, int n) {
  for (int i = 0; benches && i < n; i++) mo_bench_free(&benches[i]);
  free(benches);
}

int mo_thread_number(void) {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}
