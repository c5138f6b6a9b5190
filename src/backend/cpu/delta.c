/* Gated DeltaNet of the CPU backend. Formulas and rounding points: huggingface/transformers 5.17, models/qwen3_next/
 * modeling_qwen3_next.py (Qwen3NextGatedDeltaNet, torch_chunk_gated_delta_rule). */
#include <cblas.h>
#include <math.h>
#include <omp.h>

#include "backend/cpu/cpu.h"

enum { CHUNK = MO_DELTA_CHUNK };

/* Widths that follow from the spec. */
typedef struct {
  int64_t kh, vh, kd, vd, per_key;       /* heads, head sizes, value heads per key head */
  int64_t keys, values, channels, group; /* kh*kd, vh*vd, 2*keys + values; group: qkvz columns of one key head */
} delta_sizes;

static delta_sizes sizes_of(const mo_model_spec *spec) {
  delta_sizes d = {
      .kh = spec->delta.k_heads, .vh = spec->delta.v_heads, .kd = spec->delta.k_dim, .vd = spec->delta.v_dim};
  d.per_key = d.vh / d.kh;
  d.keys = d.kh * d.kd;
  d.values = d.vh * d.vd;
  d.channels = 2 * d.keys + d.values;
  d.group = 2 * d.kd + 2 * d.per_key * d.vd;
  return d;
}

/* Where channel c of (q | k | v) stands in a row of qkvz. */
static int64_t channel_place(const delta_sizes *d, int64_t c) {
  if (c < d->keys) return c / d->kd * d->group + c % d->kd;
  c -= d->keys;
  if (c < d->keys) return c / d->kd * d->group + d->kd + c % d->kd;
  c -= d->keys;
  int64_t width = d->per_key * d->vd;
  return c / width * d->group + 2 * d->kd + c % width;
}

/* Where z of value head h begins in a row of qkvz. */
static int64_t z_place(const delta_sizes *d, int64_t h) {
  return h / d->per_key * d->group + 2 * d->kd + d->per_key * d->vd + h % d->per_key * d->vd;
}

static void convolve(const mo_cpu *cpu, const mo_model_spec *spec, const delta_sizes *d, const float *w,
                     const float *qkvz, int64_t s, float *mixed) {
  int64_t kernel = spec->delta.kernel, width = d->kh * d->group;
  for (int64_t c = 0; c < d->channels; c++) {
    int64_t place = channel_place(d, c);
    float sum = 0;
    for (int64_t j = s + 1 < kernel ? kernel - 1 - s : 0; j < kernel; j++)
      sum += w[c * kernel + j] * qkvz[(j - kernel + 1) * width + place];
    sum = mo_round(cpu, sum);
    mixed[c] = mo_round(cpu, sum / (1.0f + expf(-sum)));
  }
}

mo_status cpu_delta_conv(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights,
                         const void *qkvz, const void *ba, int64_t B, int64_t S, void *mixed, float *beta,
                         float *decay) {
  mo_cpu *cpu = mo_cpu_of(backend);
  delta_sizes d = sizes_of(spec);
  int64_t taps = d.channels * spec->delta.kernel;
  void *block;
  MO_TRY(mo_cpu_rows(cpu, (size_t)(taps + 2 * d.vh) * sizeof(float), &block));
  float *w = block, *a_log = w + taps, *dt_bias = a_log + d.vh;
  mo_cpu_convert(cpu, &weights->one[MO_DELTA_CONV], 0, taps, w);
  mo_cpu_convert(cpu, &weights->one[MO_DELTA_A_LOG], 0, d.vh, a_log);
  mo_cpu_convert(cpu, &weights->one[MO_DELTA_DT_BIAS], 0, d.vh, dt_bias);
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t t = 0; t < B * S; t++) {
    convolve(cpu, spec, &d, w, (const float *)qkvz + t * d.kh * d.group, t % S, (float *)mixed + t * d.channels);
    for (int64_t h = 0; h < d.vh; h++) {
      const float *group = (const float *)ba + t * 2 * d.vh + h / d.per_key * 2 * d.per_key;
      float x = group[d.per_key + h % d.per_key] + dt_bias[h];
      float softplus = x > 20 ? x : log1pf(expf(x));
      beta[t * d.vh + h] = mo_cpu_sigmoid(cpu, group[h % d.per_key]);
      decay[t * d.vh + h] = -expf(a_log[h]) * softplus;
    }
  }
  return MO_OK;
}

/* One head of one sequence: its rows of a chunk, and the state. All float32, in a thread's scratch. */
typedef struct {
  float *q, *k,
      *right; /* [CHUNK, kd], [CHUNK, kd], [CHUNK, vd + kd]: right sides of the triangular system, then U | W */
  float *system, *attention, *sums, *out; /* [CHUNK, CHUNK] twice, [CHUNK] running sum of decay, [CHUNK, vd] */
  float *state;                           /* [kd, vd] */
} delta_head;

static size_t head_floats(const delta_sizes *d) {
  return (size_t)(CHUNK * (3 * d->kd + 2 * d->vd) + 2 * CHUNK * CHUNK + CHUNK + d->kd * d->vd);
}

static delta_head head_in(const delta_sizes *d, float *scratch) {
  delta_head x;
  x.q = scratch;
  x.k = x.q + CHUNK * d->kd;
  x.right = x.k + CHUNK * d->kd;
  x.system = x.right + CHUNK * (d->vd + d->kd);
  x.attention = x.system + CHUNK * CHUNK;
  x.sums = x.attention + CHUNK * CHUNK;
  x.out = x.sums + CHUNK;
  x.state = x.out + CHUNK * d->vd;
  return x;
}

static void normalise(const float *x, int64_t n, float scale, float *out) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
  float inverse = 1.0f / sqrtf((float)sum + 1e-6f);
  for (int64_t i = 0; i < n; i++) out[i] = x[i] * inverse * scale;
}

/* The rows of a chunk: q and k normalised, the right sides beta v | beta k exp(G), G the running sum of the decay. */
static void load_chunk(const delta_sizes *d, const delta_head *x, const float *mixed, const float *beta,
                       const float *decay, int64_t h, int64_t n) {
  int64_t kv = h / d->per_key;
  float sum = 0;
  for (int64_t i = 0; i < n; i++) {
    const float *row = mixed + i * d->channels, *v = row + 2 * d->keys + h * d->vd;
    float b = beta[i * d->vh + h], *right = x->right + i * (d->vd + d->kd), *k = x->k + i * d->kd;
    normalise(row + kv * d->kd, d->kd, 1 / sqrtf((float)d->kd), x->q + i * d->kd);
    normalise(row + d->keys + kv * d->kd, d->kd, 1, k);
    x->sums[i] = sum += decay[i * d->vh + h];
    for (int64_t j = 0; j < d->vd; j++) right[j] = v[j] * b;
    for (int64_t j = 0; j < d->kd; j++) right[d->vd + j] = k[j] * b * expf(sum);
  }
}

/* system = strictly lower (beta K K^T) * D, attention = lower (Q K^T) * D, D_ij = exp(G_i - G_j). */
static void relate(const delta_sizes *d, const delta_head *x, const float *beta, int64_t h, int64_t n) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)n, (int)d->kd, 1, x->k, (int)d->kd, x->k,
              (int)d->kd, 0, x->system, CHUNK);
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)n, (int)d->kd, 1, x->q, (int)d->kd, x->k,
              (int)d->kd, 0, x->attention, CHUNK);
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++) {
      float between = j <= i ? expf(x->sums[i] - x->sums[j]) : 0;
      x->system[i * CHUNK + j] *= j < i ? beta[i * d->vh + h] * between : 0;
      x->attention[i * CHUNK + j] *= between;
    }
}

/* V' = U - W S; out = (Q exp G) S + attention V'; S <- exp(G_last) S + (K exp(G_last - G))^T V'. */
static void step(const delta_sizes *d, const delta_head *x, int64_t n) {
  int kd = (int)d->kd, vd = (int)d->vd, wide = vd + kd;
  float last = x->sums[n - 1], kept = expf(last);
  cblas_strsm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasUnit, (int)n, wide, 1, x->system, CHUNK,
              x->right, wide);
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, vd, kd, -1, x->right + vd, wide, x->state, vd, 1,
              x->right, wide);
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < d->kd; j++) {
      x->q[i * d->kd + j] *= expf(x->sums[i]);
      x->k[i * d->kd + j] *= expf(last - x->sums[i]);
    }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, vd, kd, 1, x->q, kd, x->state, vd, 0, x->out, vd);
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, vd, (int)n, 1, x->attention, CHUNK, x->right, wide, 1,
              x->out, vd);
  cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, kd, vd, (int)n, 1, x->k, kd, x->right, wide, kept, x->state, vd);
}

mo_status cpu_delta_rule(mo_backend *backend, const mo_model_spec *spec, const void *mixed, const float *beta,
                         const float *decay, int64_t B, int64_t S, void *out) {
  mo_cpu *cpu = mo_cpu_of(backend);
  delta_sizes d = sizes_of(spec);
  MO_TRY(mo_cpu_reserve(cpu, head_floats(&d) * sizeof(float)));
#pragma omp parallel for schedule(dynamic) num_threads(cpu->threads)
  for (int64_t task = 0; task < B * d.vh; task++) {
    int64_t b = task / d.vh, h = task % d.vh;
    delta_head x = head_in(&d, mo_cpu_scratch(cpu, omp_get_thread_num()));
    memset(x.state, 0, (size_t)(d.kd * d.vd) * sizeof *x.state);
    for (int64_t s0 = 0; s0 < S; s0 += CHUNK) {
      int64_t n = S - s0 < CHUNK ? S - s0 : CHUNK, row = b * S + s0;
      load_chunk(&d, &x, (const float *)mixed + row * d.channels, beta + row * d.vh, decay + row * d.vh, h, n);
      relate(&d, &x, beta + row * d.vh, h, n);
      step(&d, &x, n);
      for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < d.vd; j++)
          ((float *)out)[(row + i) * d.values + h * d.vd + j] = mo_round(cpu, x.out[i * d.vd + j]);
    }
  }
  return MO_OK;
}

mo_status cpu_delta_norm(mo_backend *backend, const mo_model_spec *spec, const mo_weight *weight, const void *qkvz,
                         int64_t T, void *x) {
  mo_cpu *cpu = mo_cpu_of(backend);
  delta_sizes d = sizes_of(spec);
  MO_TRY(mo_cpu_reserve(cpu, (size_t)d.vd * sizeof(float)));
  float *w = mo_cpu_scratch(cpu, 0);
  mo_cpu_convert(cpu, weight, 0, d.vd, w);
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t i = 0; i < T * d.vh; i++) {
    const float *z = (const float *)qkvz + i / d.vh * d.kh * d.group + z_place(&d, i % d.vh);
    float *o = (float *)x + i * d.vd;
    double sum = 0;
    for (int64_t j = 0; j < d.vd; j++) sum += (double)o[j] * o[j];
    float scale = 1.0f / sqrtf((float)(sum / (double)d.vd) + spec->norm.eps);
    for (int64_t j = 0; j < d.vd; j++) {
      float normed = mo_round(cpu, mo_round(cpu, o[j] * scale) * w[j]);
      o[j] = mo_round(cpu, normed * (z[j] / (1.0f + expf(-z[j]))));
    }
  }
  return MO_OK;
}
