/* What tokens bring to experts and what these give them, of the CPU backend. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "backend/cpu/cpu.h"

mo_status cpu_row_peaks(mo_backend *backend, const void *x, int64_t rows, int64_t width, float *peaks) {
  mo_cpu *cpu = mo_cpu_of(backend);
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t i = 0; i < rows; i++) peaks[i] = mo_cpu_peak((const float *)x + i * width, width);
  return MO_OK;
}

static mo_status reserve_experts(mo_cpu *cpu, int64_t n) {
  cpu->experts.n = n;
  if (n <= cpu->expert_capacity) return MO_OK;
  free(cpu->experts.experts);
  cpu->expert_capacity = 0;
  cpu->experts.experts = mo_alloc((size_t)n, sizeof *cpu->experts.experts);
  if (!cpu->experts.experts) return MO_FAILED;
  cpu->expert_capacity = n;
  return MO_OK;
}

/* Add a token row, in ascending order. */
static void add_token(mo_expert_sums *expert, int32_t row, int32_t outliers, float peak) {
  expert->outlier_values += outliers;
  expert->outlier_tokens += outliers > 0;
  if (expert->max_row >= 0 && !(peak > expert->max_output)) return;
  expert->max_output = peak;
  expert->max_row = row;
}

mo_status cpu_expert_statistics(mo_backend *backend, const mo_model_spec *spec, int64_t T, const int32_t *row_counts,
                                const mo_routing *routing, const float *peaks, const float *shared) {
  mo_cpu *cpu = mo_cpu_of(backend);
  int64_t E = spec->moe.experts, n = E + (shared != NULL);
  MO_TRY(reserve_experts(cpu, n));
  for (int64_t e = 0; e < n; e++) {
    mo_expert_sums *expert = &cpu->experts.experts[e];
    *expert = (mo_expert_sums){.max_row = -1};
    for (int64_t r = e < E ? routing->start[e] : 0; r < (e < E ? routing->start[e + 1] : T); r++) {
      int32_t row = e < E ? routing->row[r] : (int32_t)r;
      add_token(expert, row, row_counts[row], e < E ? peaks[r] : shared[r]);
    }
  }
  return MO_OK;
}

mo_status cpu_expert_results(mo_backend *backend, mo_expert_statistics *statistics) {
  *statistics = mo_cpu_of(backend)->experts;
  return MO_OK;
}
