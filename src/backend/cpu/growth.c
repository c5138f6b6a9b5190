/* What a layer's experts add to features of the residual stream, of the CPU backend. */
#include <omp.h>

#include "backend/cpu/cpu.h"

mo_status cpu_take_features(mo_backend *backend, const void *x, int64_t T, int64_t H, const int32_t *features,
                            int64_t n, float *out) {
  const mo_cpu *cpu = mo_cpu_of(backend);
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < n; i++) out[t * n + i] = ((const float *)x)[t * H + features[i]];
  return MO_OK;
}

typedef struct {
  const float *out;
  const mo_routing *routing;
  const mo_followed *followed;
  int64_t H, K, S;
} growth_job;

/* Weight of routed row r, of token t. */
static double weight_of(const growth_job *job, int64_t r, int64_t t) {
  const int32_t *place = job->routing->place + t * job->K;
  int64_t slot = 0;
  while (place[slot] != r) slot++;
  return (double)job->routing->weight[t * job->K + slot];
}

/* (x + d)^2 - x^2 = d * (x + (x + d)) */
static double grown(const mo_followed *f, int64_t t, int64_t i, double part) {
  return part * ((double)f->before[t * f->n + i] + (double)f->after[t * f->n + i]);
}

/* `total` and the growth of feature i by the routed rows first .. last-1 of an expert, one sequence after the other. */
static double growth_of_rows(const growth_job *job, int64_t first, int64_t last, int64_t i, double total) {
  const mo_followed *f = job->followed;
  double sum = 0;
  int64_t sequence = -1;
  for (int64_t r = first; r < last; r++) {
    int64_t t = job->routing->row[r];
    if (t / job->S != sequence) {
      total += sum;
      sum = 0;
      sequence = t / job->S;
    }
    sum += grown(f, t, i, weight_of(job, r, t) * (double)job->out[r * job->H + f->features[i]]);
  }
  return total + sum;
}

static double growth_of_shared(const growth_job *job, int64_t B, int64_t i, double total) {
  for (int64_t b = 0; b < B; b++) {
    double sum = 0;
    for (int64_t t = b * job->S; t < (b + 1) * job->S; t++)
      sum += grown(job->followed, t, i, (double)job->followed->shared[t * job->followed->n + i]);
    total += sum;
  }
  return total;
}

mo_status cpu_expert_growth(mo_backend *backend, const mo_model_spec *spec, const void *expert_out,
                            const mo_routing *routing, int64_t B, int64_t S, const mo_followed *followed,
                            double *growth) {
  const mo_cpu *cpu = mo_cpu_of(backend);
  int64_t E = spec->moe.experts, n = followed->n;
  growth_job job = {expert_out, routing, followed, spec->hidden, spec->moe.top_k, S};
#pragma omp parallel for schedule(dynamic) num_threads(cpu->threads)
  for (int64_t cell = 0; cell < E * n; cell++) {
    int64_t e = cell / n;
    growth[cell] = growth_of_rows(&job, routing->start[e], routing->start[e + 1], cell % n, growth[cell]);
  }
  if (spec->moe.shared == MO_SHARED_NONE) return MO_OK;
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t i = 0; i < n; i++) growth[E * n + i] = growth_of_shared(&job, B, i, growth[E * n + i]);
  return MO_OK;
}
