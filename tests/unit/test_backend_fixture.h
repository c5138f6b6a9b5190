/* For the tests of backend operations: the backend named by argv[1] (cpu, check, cuda, cuda-portable; default cpu), inputs
 * in its memory, and comparisons with references computed in double. cuda-portable is cuda without the kernels that only
 * some GPUs have.
 *
 * Every test runs in fp32 and in bf16 with several seeds of its inputs, each with 1 and with 2 threads; what it reads back
 * must be the same bytes for both numbers of threads, on a GPU thus in two runs. References round to bf16 where the contract says so ("rounds" in backend.h); results must
 * be bf16-representable, within a few bf16 ulps of the reference, and nearly all equal to it: where float32 and
 * double fall on different sides of a rounding boundary, a value may be one step off. */
#ifndef TEST_BACKEND_FIXTURE_H
#define TEST_BACKEND_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/backend.h"

enum { SEEDS = 3 };

typedef struct {
  mo_precision precision;
  int threads, seed;
  CMUnitTestFunction test;
} variant;

static const mo_backend_table *op;
static mo_backend *be;
static bool bf16;
static uint64_t test_random, digest;
static void *device_blocks[1024], *host_blocks[2048];
static int n_device, n_host;
static struct {
  CMUnitTestFunction test;
  uint64_t digest[2][SEEDS]; /* by precision and seed: of what the test read back with one thread */
} known_digests[64];

static inline void ok(mo_status status) {
  if (status != MO_OK) fail_msg("status %d: %s", (int)status, mo_error_message());
}

static inline int begin(void **state) {
  const variant *v = *state;
  mo_backend_options options = {.precision = v->precision, .threads = v->threads};
  bf16 = v->precision == MO_PRECISION_BF16;
  test_random = 20261122 * (uint64_t)(2 * v->seed + 1);
  digest = 1469598103934665603u;
  n_device = n_host = 0;
  return op->open(&be, &options) == MO_OK ? 0 : -1;
}

static inline int end(void **state) {
  const variant *v = *state;
  for (int i = 0; i < n_device; i++) op->free(be, device_blocks[i]);
  for (int i = 0; i < n_host; i++) free(host_blocks[i]);
  op->close(be);
  int i = 0;
  while (known_digests[i].test && known_digests[i].test != v->test) i++;
  known_digests[i].test = v->test;
  uint64_t *known = &known_digests[i].digest[v->precision][v->seed];
  if (v->threads == 1) *known = digest;
  if (*known == digest) return 0;
  print_error("results with %d threads differ from those with 1\n", v->threads);
  return -1;
}

static inline void *host_memory(int64_t count, size_t size) {
  assert_true(n_host < (int)(sizeof host_blocks / sizeof host_blocks[0]));
  void *block = calloc((size_t)count + 1, size);
  assert_non_null(block);
  return host_blocks[n_host++] = block;
}

static inline double *doubles(int64_t count) { return host_memory(count, sizeof(double)); }

static inline void *device_memory(size_t bytes) {
  assert_true(n_device < (int)(sizeof device_blocks / sizeof device_blocks[0]));
  ok(op->alloc(be, bytes, &device_blocks[n_device]));
  return device_blocks[n_device++];
}

/* --- numbers --- */

static inline uint64_t random_bits(void) { /* xorshift64*: Vigna 2016 */
  test_random ^= test_random >> 12;
  test_random ^= test_random << 25;
  test_random ^= test_random >> 27;
  return test_random * UINT64_C(2685821657736338717);
}

static inline double uniform(double low, double high) {
  return low + (high - low) * ((double)(random_bits() >> 11) * 0x1p-53);
}

static inline int64_t random_below(int64_t n) { return (int64_t)(random_bits() % (uint64_t)n); }

/* To `bits` significant bits, ties to even. */
static inline double round_to(double x, int bits) {
  int exponent;
  if (!isfinite(x) || x == 0) return x;
  double fraction = frexp(x, &exponent);
  return ldexp(nearbyint(ldexp(fraction, bits)), exponent - bits);
}

static inline double as_bf16(double x) { return round_to(x, 8); }
static inline double rounded(double x) { return bf16 ? as_bf16(x) : x; }
static inline double bf16_ulp(double x) { return x == 0 ? 0x1p-133 : ldexp(1, ilogb(x) - 7); }

/* --- inputs --- */

/* Activations from host values, which become what the backend holds. */
static inline void *activations(double *values, int64_t count) {
  float *host = host_memory(count, sizeof *host);
  for (int64_t i = 0; i < count; i++) {
    host[i] = (float)rounded(values[i]);
    values[i] = host[i];
  }
  void *x = device_memory((size_t)count * (size_t)be->activation_bytes);
  ok(op->write_activations(be, x, count, host));
  return x;
}

/* Random activations in (-scale, scale); *values: what the backend holds. */
static inline void *random_activations(int64_t count, double scale, double **values) {
  *values = doubles(count);
  for (int64_t i = 0; i < count; i++) (*values)[i] = uniform(-scale, scale);
  return activations(*values, count);
}

/* Room for a result. */
static inline void *activations_out(int64_t count) {
  return device_memory((size_t)count * (size_t)be->activation_bytes);
}

static inline void hash(const void *data, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) digest = (digest ^ ((const uint8_t *)data)[i]) * 1099511628211u;
}

static inline float *result(const void *x, int64_t count) {
  float *host = host_memory(count, sizeof *host);
  ok(op->read_activations(be, x, count, host));
  hash(host, (size_t)count * sizeof *host);
  return host;
}

static inline void *downloaded(const void *memory, size_t bytes) {
  void *host = host_memory((int64_t)bytes, 1);
  ok(op->download(be, memory, bytes, host));
  hash(host, bytes);
  return host;
}

static inline void *uploaded(const void *host, size_t bytes) {
  int64_t ticket;
  void *memory = device_memory(bytes);
  ok(op->upload(be, memory, host, bytes, &ticket));
  ok(op->upload_wait(be, ticket));
  return memory;
}

static inline double f16_value(uint16_t h) {
  int exponent = h >> 10 & 31, mantissa = h & 1023;
  double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
  return h & 0x8000 ? -magnitude : magnitude;
}

/* Nearest F16 of a value in its normal range, or zero. */
static inline uint16_t f16_bits(double x) {
  int exponent;
  if (fabs(x) < 0x1p-14) return 0;
  double fraction = frexp(fabs(round_to(x, 11)), &exponent);
  return (uint16_t)((x < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | ((int)ldexp(fraction, 11) & 1023));
}

static inline uint16_t bf16_bits(double x) {
  float value = (float)as_bf16(x);
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return (uint16_t)(bits >> 16);
}

/* A weight stored as `dtype`; values become what a run of this precision computes with. */
static inline mo_weight weight_of(mo_dtype dtype, int64_t rows, int64_t cols, double *values) {
  int64_t count = rows * cols;
  size_t size = dtype == MO_F32 ? 4 : 2;
  char *stored = host_memory(count, size);
  for (int64_t i = 0; i < count; i++) {
    float value = (float)values[i];
    uint16_t half = dtype == MO_F16 ? f16_bits(values[i]) : bf16_bits(values[i]);
    memcpy(stored + (size_t)i * size, dtype == MO_F32 ? (const void *)&value : (const void *)&half, size);
    values[i] = rounded(dtype == MO_F32 ? value : dtype == MO_F16 ? f16_value(half) : as_bf16(values[i]));
  }
  return (mo_weight){.data = uploaded(stored, (size_t)count * size), .dtype = dtype, .rows = rows, .cols = cols};
}

static inline mo_weight random_weight(mo_dtype dtype, int64_t rows, int64_t cols, double scale, double **values) {
  *values = doubles(rows * cols);
  for (int64_t i = 0; i < rows * cols; i++) (*values)[i] = uniform(-scale, scale);
  return weight_of(dtype, rows, cols, *values);
}

/* --- comparisons --- */

/* How close results must be: */
typedef struct {
  double relative;     /* fp32 runs: of the reference, besides the slack */
  int ulps;            /* bf16 runs: of the reference, besides the slack */
  double unequal;      /* bf16 runs: share of values that may differ from the reference at all */
  const double *slack; /* [count] absolute, or NULL */
} closeness;

static inline void expect_close(const char *what, const float *got, const double *want, int64_t count, closeness c) {
  int64_t unequal = 0;
  for (int64_t i = 0; i < count; i++) {
    double slack = c.slack ? c.slack[i] : 0;
    double allowed = slack + (bf16 ? c.ulps * bf16_ulp(want[i]) : c.relative * fabs(want[i]));
    if (!(fabs(got[i] - want[i]) <= allowed))
      fail_msg("%s: value %lld of %lld is %.9g, expected %.9g +- %.3g", what, (long long)i, (long long)count,
               (double)got[i], want[i], allowed);
    if (bf16 && as_bf16(got[i]) != got[i]) fail_msg("%s: %.9g is not bf16", what, (double)got[i]);
    unequal += bf16 && got[i] != want[i];
  }
  if ((double)unequal > 1 + c.unequal * (double)count)
    fail_msg("%s: %lld of %lld values are not rounded as expected", what, (long long)unequal, (long long)count);
}

/* y = x w^T + bias in double, unrounded; slack[i] = 1e-6 times the sum of the magnitudes that were added. */
static inline void naive_linear(const double *x, int64_t M, const double *w, int64_t N, int64_t K, const double *bias,
                                double *y, double *slack) {
  for (int64_t i = 0; i < M; i++)
    for (int64_t n = 0; n < N; n++) {
      double sum = bias ? bias[n] : 0, magnitude = fabs(sum);
      for (int64_t k = 0; k < K; k++) {
        double product = x[i * K + k] * w[n * K + k];
        sum += product;
        magnitude += fabs(product);
      }
      y[i * N + n] = sum;
      slack[i * N + n] = 1e-6 * magnitude;
    }
}

static inline double silu(double x) { return x / (1 + exp(-x)); }

/* --- running --- */

#define VARIANT(function, precision, threads, seed)                                         \
  {                                                                                         \
#function "." #precision "." #threads ".seed" #seed, function, begin, end, &(variant) { \
      MO_PRECISION_##precision, threads, seed, function                                     \
    }                                                                                       \
  }
#define SEED_VARIANTS(function, seed)                                                                   \
  VARIANT(function, FP32, 1, seed), VARIANT(function, FP32, 2, seed), VARIANT(function, BF16, 1, seed), \
      VARIANT(function, BF16, 2, seed)
/* The entries of a test, for the list in main. */
#define VARIANTS(function) SEED_VARIANTS(function, 0), SEED_VARIANTS(function, 1), SEED_VARIANTS(function, 2)

static inline bool gpu_is_there(void) {
#ifdef MO_HAVE_CUDA
  return mo_backend_cuda_count() > 0;
#else
  return false;
#endif
}

/* 0; else the exit status with a reason printed: 77 (skipped) where there is no GPU, 1 otherwise. */
static inline int choose_backend(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "cpu";
  bool cuda = strncmp(name, "cuda", 4) == 0;
  bool check = strcmp(name, "check") == 0;
  if (!cuda && !check && strcmp(name, "cpu") != 0) {
    print_message("no backend %s: cpu, check, cuda or cuda-portable\n", name);
    return 1;
  }
  mo_device_choice device = cuda ? MO_DEVICE_CUDA : check ? MO_DEVICE_CHECK : MO_DEVICE_CPU;
  mo_backend_options options = {.precision = MO_PRECISION_FP32, .threads = 1};
  if (cuda && !gpu_is_there()) {
    print_message("skipped: no CUDA device\n");
    return 77;
  }
  setenv("MO_CUDA_PORTABLE", strcmp(name, "cuda-portable") == 0 ? "1" : "0", 1);
  if (mo_backend_choose(device, &op) == MO_OK && op->open(&be, &options) == MO_OK) {
    op->close(be);
    return 0;
  }
  print_message("no backend %s: %s\n", name, mo_error_message());
  return 1;
}

#endif
