/* Matrix products of the CPU backend: weights converted tile by tile, each tile one sgemm of OpenBLAS. */
#include <cblas.h>
#include <math.h>
#include <omp.h>

#include "backend/cpu/cpu.h"

static float from_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu, u;
  if (exponent == 31)
    u = sign | 0x7f800000u | mantissa << 13;
  else if (exponent)
    u = sign | (exponent + 112) << 23 | mantissa << 13;
  else { /* zero or subnormal: mantissa * 2^-24, exact in float32 */
    float value = (float)mantissa * 5.9604644775390625e-8f;
    memcpy(&u, &value, 4);
    u |= sign;
  }
  float x;
  memcpy(&x, &u, 4);
  return x;
}

/* MXFP4 (OCP Microscaling Formats 1.0): 4-bit codes, low nibble first, times 2^(scale - 127) per 32 columns. first and n are
 * multiples of 32. */
static void convert_mxfp4(const mo_weight *w, int64_t first, int64_t n, float *out) {
  static const float codes[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  const uint8_t *blocks = (const uint8_t *)w->data + first / 2, *scales = (const uint8_t *)w->scales + first / 32;
  for (int64_t i = 0; i < n; i += 2) {
    int exponent = scales[i / 32] - 127;
    out[i] = ldexpf(codes[blocks[i / 2] & 15], exponent);
    out[i + 1] = ldexpf(codes[blocks[i / 2] >> 4], exponent);
  }
}

void mo_cpu_convert_exact(const mo_weight *w, int64_t first, int64_t n, float *out) {
  if (w->dtype == MO_U8) {
    convert_mxfp4(w, first, n, out);
    return;
  }
  if (w->dtype == MO_F32) {
    memcpy(out, (const char *)w->data + first * 4, (size_t)n * 4);
    return;
  }
  const char *in = (const char *)w->data + first * 2;
  if (w->dtype == MO_BF16) {
    for (int64_t i = 0; i < n; i++) {
      uint16_t h;
      memcpy(&h, in + 2 * i, 2);
      uint32_t u = (uint32_t)h << 16;
      memcpy(out + i, &u, 4);
    }
    return;
  }
  for (int64_t i = 0; i < n; i++) {
    uint16_t h;
    memcpy(&h, in + 2 * i, 2);
    out[i] = from_f16(h);
  }
}

void mo_cpu_convert(const mo_cpu *cpu, const mo_weight *w, int64_t first, int64_t n, float *out) {
  mo_cpu_convert_exact(w, first, n, out);
  if (cpu->bf16 && w->dtype != MO_BF16)
    for (int64_t i = 0; i < n; i++) out[i] = mo_round_bf16(out[i]);
}

void mo_cpu_tile(const mo_cpu *cpu, const mo_weight *w, const float *x, int64_t m, int64_t n0, int64_t n, float *panel,
                 float *y, int64_t ldy) {
  const float *rows = panel;
  if (w->transposed) { /* stored [K, N]: the panel is [K, n] */
    for (int64_t k = 0; k < w->cols; k++) mo_cpu_convert(cpu, w, k * w->rows + n0, n, panel + k * n);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)n, (int)w->cols, 1.0f, x, (int)w->cols, panel,
                (int)n, 0.0f, y, (int)ldy);
    return;
  }
  if (w->dtype == MO_F32 && !cpu->bf16 && (uintptr_t)w->data % sizeof(float) == 0)
    rows = (const float *)w->data + n0 * w->cols;
  else
    mo_cpu_convert(cpu, w, n0 * w->cols, n * w->cols, panel);
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)m, (int)n, (int)w->cols, 1.0f, x, (int)w->cols, rows,
              (int)w->cols, 0.0f, y, (int)ldy);
}

/* y += the tile's values, rounded sums. */
static void add_tile(bool round, const float *values, int64_t m, int64_t n, float *y, int64_t ldy) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      float sum = y[i * ldy + j] + values[i * n + j];
      y[i * ldy + j] = round ? mo_round_bf16(sum) : sum;
    }
}

static void finish_tile(bool round, const float *bias, int64_t m, int64_t n, float *y, int64_t ldy) {
  if (!bias && !round) return;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      float sum = y[i * ldy + j] + (bias ? bias[j] : 0.0f);
      y[i * ldy + j] = round ? mo_round_bf16(sum) : sum;
    }
}

/* y = or += the product, which rounds if `round`. */
static mo_status product(mo_cpu *cpu, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M, bool round,
                         bool add, void *y) {
  int64_t N = w->rows, K = w->cols;
  int64_t row_tiles = (M + MO_TILE_ROWS - 1) / MO_TILE_ROWS, col_tiles = (N + MO_TILE_COLS - 1) / MO_TILE_COLS;
  int64_t sums = add ? MO_TILE_ROWS : 0;
  MO_TRY(mo_cpu_reserve(cpu, (size_t)(MO_TILE_COLS * (K + 1 + sums)) * sizeof(float)));
#pragma omp parallel for schedule(dynamic) num_threads(cpu->threads)
  for (int64_t tile = 0; tile < row_tiles * col_tiles; tile++) {
    int64_t m0 = tile % row_tiles * MO_TILE_ROWS, n0 = tile / row_tiles * MO_TILE_COLS;
    int64_t m = M - m0 < MO_TILE_ROWS ? M - m0 : MO_TILE_ROWS, n = N - n0 < MO_TILE_COLS ? N - n0 : MO_TILE_COLS;
    float *panel = mo_cpu_scratch(cpu, omp_get_thread_num()), *b = panel + MO_TILE_COLS * K;
    float *to = (float *)y + m0 * N + n0, *out = add ? b + MO_TILE_COLS : to;
    int64_t pitch = add ? n : N;
    mo_cpu_tile(cpu, w, (const float *)x + m0 * K, m, n0, n, panel, out, pitch);
    if (bias && bias->data) mo_cpu_convert(cpu, bias, n0, n, b);
    finish_tile(round && cpu->bf16, bias && bias->data ? b : NULL, m, n, out, pitch);
    if (add) add_tile(cpu->bf16, out, m, n, to, N);
  }
  return MO_OK;
}

mo_status mo_cpu_product(mo_cpu *cpu, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M, bool round,
                         void *y) {
  return product(cpu, w, bias, x, M, round, false, y);
}

mo_status cpu_linear(mo_backend *backend, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M,
                     void *y) {
  return product(mo_cpu_of(backend), w, bias, x, M, true, false, y);
}

mo_status cpu_linear_add(mo_backend *backend, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M,
                         void *y) {
  return product(mo_cpu_of(backend), w, bias, x, M, true, true, y);
}
