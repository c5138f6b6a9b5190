/* For the tests that run an operation on two backends, the one under test and cpu, with the same bytes as inputs.
 *
 * fp32 runs: relative error at most 1e-4; where terms cancel, what is left is compared with the size of the result's other
 * values (`floor` times their root mean square), because the order of float32 sums differs. bf16 runs: a few bf16 ulps, and
 * where results of several roundings enter (`spread` times the root mean square), as any of them may fall on the other
 * side of a boundary. */
#ifndef TEST_BACKEND_PAIR_FIXTURE_H
#define TEST_BACKEND_PAIR_FIXTURE_H

#include "test_backend_fixture.h"

static const mo_backend_table *const cpu_op = &mo_backend_cpu;
static mo_backend *cpu;
static void *cpu_blocks[1024];
static int n_cpu;

/* The same thing in the memory of both. */
typedef struct {
  void *here, *cpu;
} twin;

typedef struct {
  mo_weight here, cpu;
} twin_weight;

static inline int begin_pair(void **state) {
  const variant *v = *state;
  mo_backend_options options = {.precision = v->precision, .threads = v->threads};
  n_cpu = 0;
  return begin(state) == 0 && cpu_op->open(&cpu, &options) == MO_OK ? 0 : -1;
}

static inline int end_pair(void **state) {
  for (int i = 0; i < n_cpu; i++) cpu_op->free(cpu, cpu_blocks[i]);
  cpu_op->close(cpu);
  return end(state);
}

static inline void *cpu_memory(size_t bytes) {
  assert_true(n_cpu < (int)(sizeof cpu_blocks / sizeof cpu_blocks[0]));
  ok(cpu_op->alloc(cpu, bytes, &cpu_blocks[n_cpu]));
  return cpu_blocks[n_cpu++];
}

static inline twin twin_memory(size_t bytes) { return (twin){device_memory(bytes), cpu_memory(bytes)}; }

static inline twin twin_upload(const void *data, size_t bytes) {
  twin t = {uploaded(data, bytes), cpu_memory(bytes)};
  memcpy(t.cpu, data, bytes);
  return t;
}

static inline twin twin_out(int64_t count) {
  return (twin){activations_out(count), cpu_memory((size_t)count * (size_t)cpu->activation_bytes)};
}

/* Activations: float32 host values, which must be bf16 in bf16 runs. */
static inline twin twin_values(const float *values, int64_t count) {
  twin t = twin_out(count);
  ok(op->write_activations(be, t.here, count, values));
  ok(cpu_op->write_activations(cpu, t.cpu, count, values));
  return t;
}

/* Random numbers in (-scale, scale), one in 50 of them `tail` times larger. */
static inline float *random_values(int64_t count, double scale, double tail) {
  float *values = host_memory(count, sizeof *values);
  for (int64_t i = 0; i < count; i++)
    values[i] = (float)rounded(uniform(-scale, scale) * (random_below(50) ? 1 : tail));
  return values;
}

static inline twin twin_random(int64_t count, double scale) {
  return twin_values(random_values(count, scale, 1), count);
}

static inline twin_weight twin_matrix(mo_dtype dtype, int64_t rows, int64_t cols, double scale) {
  size_t size = dtype == MO_F32 ? 4 : 2, bytes = (size_t)(rows * cols) * size;
  char *stored = host_memory((int64_t)bytes, 1);
  for (int64_t i = 0; i < rows * cols; i++) {
    float value = (float)uniform(-scale, scale);
    uint16_t half = dtype == MO_F16 ? f16_bits((double)value) : bf16_bits((double)value);
    memcpy(stored + (size_t)i * size, dtype == MO_F32 ? (const void *)&value : (const void *)&half, size);
  }
  twin data = twin_upload(stored, bytes);
  mo_weight w = {.data = data.here, .dtype = dtype, .rows = rows, .cols = cols};
  twin_weight both = {w, w};
  both.cpu.data = data.cpu;
  return both;
}

static inline twin_weight twin_transposed(mo_dtype dtype, int64_t rows, int64_t cols, double scale) {
  twin_weight w = twin_matrix(dtype, cols, rows, scale);
  w.here.rows = w.cpu.rows = rows;
  w.here.cols = w.cpu.cols = cols;
  w.here.transposed = w.cpu.transposed = true;
  return w;
}

/* --- comparisons --- */

typedef struct {
  double floor;   /* fp32 runs; 0: 1e-5 */
  int ulps;       /* bf16 runs */
  double spread;  /* bf16 runs */
  double unequal; /* bf16 runs: share of values that may differ at all */
} nearness;

static const nearness exactly = {.floor = -1};

static inline void expect_near(const char *what, const float *got, const float *want, int64_t count, nearness n) {
  double squares = 0;
  int64_t unequal = 0;
  for (int64_t i = 0; i < count; i++) squares += isfinite(want[i]) ? (double)want[i] * (double)want[i] : 0;
  double size = sqrt(squares / (double)(count > 0 ? count : 1)), floor = n.floor > 0 ? n.floor : 1e-5;
  for (int64_t i = 0; i < count; i++) {
    double error = fabs((double)got[i] - (double)want[i]);
    double allowed =
        bf16 ? n.ulps * bf16_ulp((double)want[i]) + n.spread * size : 1e-4 * fabs((double)want[i]) + floor * size;
    if (n.floor < 0) allowed = 0;
    if (!(error <= allowed) && memcmp(got + i, want + i, sizeof *got) != 0)
      fail_msg("%s: value %lld of %lld is %.9g, on the cpu %.9g +- %.3g (rms %.3g)", what, (long long)i,
               (long long)count, (double)got[i], (double)want[i], allowed, size);
    if (bf16 && isfinite(got[i]) && as_bf16(got[i]) != got[i]) fail_msg("%s: %.9g is not bf16", what, (double)got[i]);
    unequal += error > 0;
  }
  if (bf16 && (double)unequal > 1 + n.unequal * (double)count)
    fail_msg("%s: %lld of %lld values differ from the cpu's", what, (long long)unequal, (long long)count);
}

/* Activations that both have computed. */
static inline void expect_same(const char *what, twin t, int64_t count, nearness n) {
  float *want = host_memory(count, sizeof *want);
  ok(cpu_op->read_activations(cpu, t.cpu, count, want));
  expect_near(what, result(t.here, count), want, count, n);
}

static inline void expect_same_bytes(const char *what, twin t, size_t bytes) {
  const uint8_t *got = downloaded(t.here, bytes), *want = t.cpu;
  for (size_t i = 0; i < bytes; i++)
    if (got[i] != want[i]) fail_msg("%s: byte %zu of %zu differs from the cpu's", what, i, bytes);
}

/* --- running --- */

#define PAIR_VARIANT(function, precision, threads, seed)                                              \
  {                                                                                                   \
#function "." #precision "." #threads ".seed" #seed, function, begin_pair, end_pair, &(variant) { \
      MO_PRECISION_##precision, threads, seed, function                                               \
    }                                                                                                 \
  }
#define PAIR_SEED_VARIANTS(function, seed)                                                                             \
  PAIR_VARIANT(function, FP32, 1, seed), PAIR_VARIANT(function, FP32, 2, seed), PAIR_VARIANT(function, BF16, 1, seed), \
      PAIR_VARIANT(function, BF16, 2, seed)
#define PAIR_VARIANTS(function) \
  PAIR_SEED_VARIANTS(function, 0), PAIR_SEED_VARIANTS(function, 1), PAIR_SEED_VARIANTS(function, 2)

#endif
