/* Private to the CPU backend: its state, bf16 rounding, and the tiling that its matrix products share.
 *
 * Every product is cut into tiles whose shape depends on the operation alone, and a tile is one single-threaded sgemm:
 * results do not depend on the number of threads. */
#ifndef MO_BACKEND_CPU_H
#define MO_BACKEND_CPU_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "moe_outliers/backend.h"

enum {
  MO_TILE_ROWS = 1024,   /* rows of x in a tile */
  MO_TILE_COLS = 256,    /* rows of w (columns of y) in a tile */
  MO_QUERY_BLOCK = 64,   /* queries of attention in a task */
  MO_DELTA_CHUNK = 64,   /* tokens of the delta rule in a step */
  MO_GROUP_ROWS = 16384, /* bounds the scratch of experts; one expert alone may exceed it */
  MO_VOCAB_TILE = 1024,  /* of the vocabulary in a task of nll */
  MO_NLL_ROWS = 1024,    /* rows of x that nll handles at a time */
  MO_NLL_PARTIAL = 16,   /* bytes that nll keeps of a row and a tile */
  MO_EXPERT_TILE = 40,   /* bytes that describe a tile of an expert's product */
};

typedef struct {
  mo_backend base;
  int threads;
  bool bf16;            /* round to bf16 where the contract says so */
  void *scratch;        /* one block for all threads, grown on demand */
  size_t scratch_bytes; /* of one thread's part */
  void *rows;           /* the current operation's rows, grown on demand */
  size_t rows_bytes;
  mo_site_statistics statistics; /* its arrays live in one block */
  void *statistics_block;
  size_t statistics_bytes;
  int64_t outlier_capacity;
  mo_expert_statistics experts; /* its array is in a block that grows on demand */
  int64_t expert_capacity;
} mo_cpu;

static inline mo_cpu *mo_cpu_of(mo_backend *backend) { return (mo_cpu *)backend; }

/* To the nearest bf16, ties to even; NaN stays NaN. */
static inline float mo_round_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u)
    u |= 0x00400000u;
  else
    u += 0x7fffu + ((u >> 16) & 1u);
  u &= 0xffff0000u;
  memcpy(&x, &u, 4);
  return x;
}

static inline float mo_round(const mo_cpu *cpu, float x) { return cpu->bf16 ? mo_round_bf16(x) : x; }

/* n numbers of a weight, from element `first`, as float32; in bf16 runs rounded to bf16 as loading the model would. */
void mo_cpu_convert(const mo_cpu *cpu, const mo_weight *w, int64_t first, int64_t n, float *out);
/* The same without rounding, for tensors that a bf16 model keeps in float32. */
void mo_cpu_convert_exact(const mo_weight *w, int64_t first, int64_t n, float *out);

/* Thread-private scratch of at least `bytes` for every thread; mo_cpu_scratch gives a thread its part. */
MO_CHECKED mo_status mo_cpu_reserve(mo_cpu *cpu, size_t bytes);
void *mo_cpu_scratch(const mo_cpu *cpu, int thread);
/* One block for the whole operation, contents undefined. */
MO_CHECKED mo_status mo_cpu_rows(mo_cpu *cpu, size_t bytes, void **block);

/* One tile: y[0..m, 0..n] = x w^T + bias for rows n0 .. n0+n-1 of w; w's rows are converted into `panel` [n, K].
 * y, bias at column n0 of the whole product; ldy its row length; rounds. */
void mo_cpu_tile(const mo_cpu *cpu, const mo_weight *w, const float *x, int64_t m, int64_t n0, int64_t n, float *panel,
                 float *y, int64_t ldy);
/* linear's product; round: whether y is rounded in bf16 runs. */
MO_CHECKED mo_status mo_cpu_product(mo_cpu *cpu, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M,
                                    bool round, void *y);

/* Largest |value| of n, NaN apart. */
static inline float mo_cpu_peak(const float *x, int64_t n) {
  float peak = 0;
  for (int64_t i = 0; i < n; i++) peak = fabsf(x[i]) > peak ? fabsf(x[i]) : peak;
  return peak;
}

/* silu(g) * u, sigmoid(x), with the roundings of bf16 runs. */
float mo_cpu_silu_times(const mo_cpu *cpu, float g, float u);
float mo_cpu_sigmoid(const mo_cpu *cpu, float x);

/* exp for x <= 0 and moderate x, relative error < 2e-7, vectorises; 0 below -87. */
static inline float mo_expf(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  float n = x * 1.44269504088896341f;
  n = (n + 12582912.0f) - 12582912.0f; /* nearest integer */
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = ((int32_t)n + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return p * scale;
}

/* Operations, one file per family; contracts in backend.h. */
mo_status cpu_embed(mo_backend *, const mo_weight *, const int32_t *, int64_t, void *);
mo_status cpu_norm(mo_backend *, const mo_norm_spec *, const mo_weight *, const void *, int64_t, int64_t, void *);
mo_status cpu_linear(mo_backend *, const mo_weight *, const mo_weight *, const void *, int64_t, void *);
mo_status cpu_linear_add(mo_backend *, const mo_weight *, const mo_weight *, const void *, int64_t, void *);
mo_status cpu_clamp(mo_backend *, void *, int64_t, float);
mo_status cpu_rope(mo_backend *, const mo_model_spec *, void *, int64_t, int64_t, int64_t);
mo_status cpu_norm_rope(mo_backend *, const mo_model_spec *, const mo_weight *, void *, int64_t, int64_t, int64_t);
mo_status cpu_attention(mo_backend *, const mo_model_spec *, int64_t, const mo_weight *, const void *, const void *,
                        const void *, int64_t, int64_t, void *, float *);
mo_status cpu_zero_features(mo_backend *, void *, int64_t, int64_t, const int32_t *, int64_t);
mo_status cpu_take_features(mo_backend *, const void *, int64_t, int64_t, const int32_t *, int64_t, float *);
mo_status cpu_expert_growth(mo_backend *, const mo_model_spec *, const void *, const mo_routing *, int64_t, int64_t,
                            const mo_followed *, double *);
mo_status cpu_row_sums(mo_backend *, const float *, int64_t, int64_t, double *);
mo_status cpu_add(mo_backend *, void *, const void *, int64_t);
mo_status cpu_glu(mo_backend *, const void *, const void *, int64_t, void *);
mo_status cpu_split(mo_backend *, const void *, int64_t, int64_t, int64_t, void *, void *);
mo_status cpu_sigmoid_gate(mo_backend *, void *, const void *, int64_t, int64_t, int64_t);
mo_status cpu_delta_conv(mo_backend *, const mo_model_spec *, const mo_stage_weights *, const void *, const void *,
                         int64_t, int64_t, void *, float *, float *);
mo_status cpu_delta_rule(mo_backend *, const mo_model_spec *, const void *, const float *, const float *, int64_t,
                         int64_t, void *);
mo_status cpu_delta_norm(mo_backend *, const mo_model_spec *, const mo_weight *, const void *, int64_t, void *);
mo_status cpu_route(mo_backend *, const mo_model_spec *, const mo_stage_weights *, const void *, int64_t, mo_routing *);
mo_status cpu_experts(mo_backend *, const mo_model_spec *, const mo_stage_weights *, const void *, const mo_routing *,
                      int64_t, int64_t, void *);
mo_status cpu_combine(mo_backend *, const mo_model_spec *, const void *, const mo_routing *, int64_t, float *, void *);
mo_status cpu_combine_add(mo_backend *, const mo_model_spec *, const void *, const mo_routing *, int64_t, float *,
                          void *);
mo_status cpu_row_peaks(mo_backend *, const void *, int64_t, int64_t, float *);
mo_status cpu_expert_statistics(mo_backend *, const mo_model_spec *, int64_t, const int32_t *, const mo_routing *,
                                const float *, const float *);
mo_status cpu_expert_results(mo_backend *, mo_expert_statistics *);
mo_status cpu_site_statistics(mo_backend *, const void *, int64_t, int64_t, int64_t, float, uint64_t *, int64_t,
                              int32_t *);
mo_status cpu_site_results(mo_backend *, mo_site_statistics *);
mo_status cpu_nll(mo_backend *, const mo_weight *, const void *, const int32_t *, int64_t, int64_t, float *, float *);

#endif
