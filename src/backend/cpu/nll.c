/* Next-token negative log-likelihood of the CPU backend: logits in tiles, never whole. */
#include <math.h>
#include <omp.h>

#include "backend/cpu/cpu.h"

enum { VOCAB_TILE = MO_VOCAB_TILE };

/* What a tile of the vocabulary says of one row: its largest logit and the sum of exp(logit - largest). */
typedef struct {
  float top;
  double sum;
} partial;
_Static_assert(sizeof(partial) == MO_NLL_PARTIAL, "cpu.h knows its size");

typedef struct {
  const mo_cpu *cpu;
  const mo_weight *w;
  const float *x;      /* [m, H] rows that have a next token */
  const int32_t *next; /* [m] the next token */
  int64_t m, tiles;
  partial *partials; /* [m, tiles] */
  float *target;     /* [m] logit of the next token */
} nll_job;

static void vocabulary_tile(const nll_job *job, int64_t tile, float *scratch) {
  int64_t V = job->w->rows, n0 = tile * VOCAB_TILE, n = V - n0 < VOCAB_TILE ? V - n0 : VOCAB_TILE;
  float *panel = scratch, *logits = scratch + VOCAB_TILE * job->w->cols;
  mo_cpu_tile(job->cpu, job->w, job->x, job->m, n0, n, panel, logits, n);
  for (int64_t i = 0; i < job->m; i++) {
    float *row = logits + i * n, top = -INFINITY;
    double sum = 0;
    for (int64_t j = 0; j < n; j++) {
      row[j] = mo_round(job->cpu, row[j]);
      top = row[j] > top ? row[j] : top;
    }
    for (int64_t j = 0; j < n; j++) sum += mo_expf(row[j] - top);
    job->partials[i * job->tiles + tile] = (partial){top, sum};
    if (job->next[i] >= n0 && job->next[i] < n0 + n) job->target[i] = row[job->next[i] - n0];
  }
}

/* log-sum-exp of a row from its tiles, in tile order, minus the target's logit. *likeliest: the largest probability. */
static float finish_row(const nll_job *job, int64_t i, float *likeliest) {
  const partial *p = job->partials + i * job->tiles;
  float top = -INFINITY;
  double sum = 0;
  for (int64_t j = 0; j < job->tiles; j++) top = p[j].top > top ? p[j].top : top;
  for (int64_t j = 0; j < job->tiles; j++) sum += p[j].sum * exp((double)p[j].top - top);
  *likeliest = (float)(1 / sum);
  return (float)((double)top + log(sum) - job->target[i]);
}

mo_status cpu_nll(mo_backend *backend, const mo_weight *lm_head, const void *x, const int32_t *ids, int64_t B,
                  int64_t S, float *nll, float *top) {
  enum { ROWS = MO_NLL_ROWS };
  mo_cpu *cpu = mo_cpu_of(backend);
  int64_t H = lm_head->cols, tiles = (lm_head->rows + VOCAB_TILE - 1) / VOCAB_TILE;
  int64_t widest = S - 1 < ROWS ? S - 1 : ROWS;
  if (widest < 1) return MO_OK;
  MO_TRY(mo_cpu_reserve(cpu, (size_t)(VOCAB_TILE * (H + widest)) * sizeof(float)));
  void *block;
  MO_TRY(mo_cpu_rows(cpu, (size_t)widest * ((size_t)tiles * sizeof(partial) + sizeof(float)), &block));
  for (int64_t b = 0; b < B; b++)
    for (int64_t s0 = 0; s0 < S - 1; s0 += ROWS) {
      int64_t m = S - 1 - s0 < ROWS ? S - 1 - s0 : ROWS;
      nll_job job = {cpu,   lm_head, (const float *)x + (b * S + s0) * H,    ids + b * S + s0 + 1, m,
                     tiles, block,   (float *)((partial *)block + m * tiles)};
#pragma omp parallel for schedule(dynamic) num_threads(cpu->threads)
      for (int64_t tile = 0; tile < tiles; tile++)
        vocabulary_tile(&job, tile, mo_cpu_scratch(cpu, omp_get_thread_num()));
      for (int64_t i = 0; i < m; i++) {
        float likeliest;
        nll[b * (S - 1) + s0 + i] = finish_row(&job, i, &likeliest);
        if (top) top[b * (S - 1) + s0 + i] = likeliest;
      }
    }
  return MO_OK;
}
