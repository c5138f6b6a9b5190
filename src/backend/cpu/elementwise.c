/* Row-wise and element-wise operations of the CPU backend. Rounding points: huggingface/transformers 5.17,
 * models/{llama,olmoe,qwen3,qwen3_moe,mixtral}/modeling_*.py (RMSNorm, apply_rotary_pos_emb, MLP). */
#include <math.h>
#include <omp.h>

#include "backend/cpu/cpu.h"

mo_status cpu_embed(mo_backend *backend, const mo_weight *table, const int32_t *ids, int64_t T, void *out) {
  const mo_cpu *cpu = mo_cpu_of(backend);
  for (int64_t t = 0; t < T; t++)
    mo_cpu_convert(cpu, table, ids[t] * table->cols, table->cols, (float *)out + t * table->cols);
  return MO_OK;
}

static void norm_row(const mo_cpu *cpu, const mo_norm_spec *spec, const float *w, const float *x, int64_t width,
                     float *out) {
  double sum = 0;
  for (int64_t i = 0; i < width; i++) sum += (double)x[i] * x[i];
  float scale = 1.0f / sqrtf((float)(sum / (double)width) + spec->eps);
  for (int64_t i = 0; i < width; i++) {
    float value = x[i] * scale;
    if (!spec->weight_in_float) value = mo_round(cpu, value);
    out[i] = mo_round(cpu, value * (spec->zero_centred ? 1.0f + w[i] : w[i]));
  }
}

mo_status cpu_norm(mo_backend *backend, const mo_norm_spec *spec, const mo_weight *weight, const void *x, int64_t rows,
                   int64_t width, void *out) {
  mo_cpu *cpu = mo_cpu_of(backend);
  MO_TRY(mo_cpu_reserve(cpu, (size_t)width * sizeof(float)));
  float *w = mo_cpu_scratch(cpu, 0);
  mo_cpu_convert(cpu, weight, 0, width, w);
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t r = 0; r < rows; r++)
    norm_row(cpu, spec, w, (const float *)x + r * width, width, (float *)out + r * width);
  return MO_OK;
}

mo_status cpu_clamp(mo_backend *backend, void *x, int64_t count, float limit) {
  const mo_cpu *cpu = mo_cpu_of(backend);
  float *values = x;
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t i = 0; i < count; i++) values[i] = values[i] > limit ? limit : values[i] < -limit ? -limit : values[i];
  return MO_OK;
}

/* cos and sin of every position: tables [S, dim/2], angles and functions in float32, then rounded. */
static void rope_tables(const mo_cpu *cpu, const mo_model_spec *spec, int64_t S, float *cosines, float *sines) {
  int64_t half = spec->rope.dim / 2;
  for (int64_t s = 0; s < S; s++)
    for (int64_t j = 0; j < half; j++) {
      float angle = spec->rope.inv_freq[j] * (float)s;
      cosines[s * half + j] = mo_round(cpu, cosf(angle) * spec->rope.factor);
      sines[s * half + j] = mo_round(cpu, sinf(angle) * spec->rope.factor);
    }
}

mo_status cpu_rope(mo_backend *backend, const mo_model_spec *spec, void *x, int64_t T, int64_t S, int64_t heads) {
  mo_cpu *cpu = mo_cpu_of(backend);
  int64_t D = spec->attention.head_dim, half = spec->rope.dim / 2;
  void *block;
  MO_TRY(mo_cpu_rows(cpu, (size_t)(2 * S * half) * sizeof(float), &block));
  float *cosines = block, *sines = cosines + S * half;
  rope_tables(cpu, spec, S, cosines, sines);
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t t = 0; t < T; t++) {
    const float *c = cosines + t % S * half, *s = sines + t % S * half;
    for (int64_t h = 0; h < heads; h++) {
      float *v = (float *)x + (t * heads + h) * D;
      for (int64_t j = 0; j < half; j++) {
        float a = v[j], b = v[j + half];
        v[j] = mo_round(cpu, mo_round(cpu, a * c[j]) - mo_round(cpu, b * s[j]));
        v[j + half] = mo_round(cpu, mo_round(cpu, b * c[j]) + mo_round(cpu, a * s[j]));
      }
    }
  }
  return MO_OK;
}

mo_status cpu_norm_rope(mo_backend *backend, const mo_model_spec *spec, const mo_weight *weight, void *x, int64_t T,
                        int64_t S, int64_t heads) {
  int64_t D = spec->attention.head_dim;
  bool whole = spec->attention.qk_norm == MO_QK_NORM_WHOLE;
  MO_TRY(cpu_norm(backend, &spec->norm, weight, x, whole ? T : T * heads, whole ? heads * D : D, x));
  return cpu_rope(backend, spec, x, T, S, heads);
}

mo_status cpu_zero_features(mo_backend *backend, void *x, int64_t T, int64_t H, const int32_t *features, int64_t n) {
  const mo_cpu *cpu = mo_cpu_of(backend);
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < n; i++) ((float *)x)[t * H + features[i]] = 0;
  return MO_OK;
}

mo_status cpu_row_sums(mo_backend *backend, const float *x, int64_t rows, int64_t width, double *sums) {
  const mo_cpu *cpu = mo_cpu_of(backend);
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t r = 0; r < rows; r++) {
    double sum = 0;
    for (int64_t i = 0; i < width; i++) sum += (double)x[r * width + i];
    sums[r] = sum;
  }
  return MO_OK;
}

mo_status cpu_add(mo_backend *backend, void *x, const void *y, int64_t count) {
  const mo_cpu *cpu = mo_cpu_of(backend);
  float *sum = x;
  const float *term = y;
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t i = 0; i < count; i++) sum[i] = mo_round(cpu, sum[i] + term[i]);
  return MO_OK;
}

float mo_cpu_silu_times(const mo_cpu *cpu, float g, float u) {
  return mo_round(cpu, mo_round(cpu, g / (1.0f + expf(-g))) * u);
}

float mo_cpu_sigmoid(const mo_cpu *cpu, float x) { return mo_round(cpu, 1.0f / (1.0f + expf(-x))); }

mo_status cpu_split(mo_backend *backend, const void *x, int64_t rows, int64_t a, int64_t b, void *left, void *right) {
  const mo_cpu *cpu = mo_cpu_of(backend);
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t r = 0; r < rows; r++) {
    const float *row = (const float *)x + r * (a + b);
    memcpy((float *)left + r * a, row, (size_t)a * sizeof *row);
    memcpy((float *)right + r * b, row + a, (size_t)b * sizeof *row);
  }
  return MO_OK;
}

mo_status cpu_sigmoid_gate(mo_backend *backend, void *x, const void *gate, int64_t rows, int64_t width,
                           int64_t gate_width) {
  const mo_cpu *cpu = mo_cpu_of(backend);
  float *values = x;
  const float *gates = gate;
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < width; i++) {
      float g = gates[gate_width == 1 ? r : r * width + i];
      values[r * width + i] = mo_round(cpu, values[r * width + i] * mo_cpu_sigmoid(cpu, g));
    }
  return MO_OK;
}

mo_status cpu_glu(mo_backend *backend, const void *gate, const void *up, int64_t count, void *out) {
  const mo_cpu *cpu = mo_cpu_of(backend);
  const float *g = gate, *u = up;
  float *a = out;
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t i = 0; i < count; i++) a[i] = mo_cpu_silu_times(cpu, g[i], u[i]);
  return MO_OK;
}
