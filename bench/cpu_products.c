/* How fast are the CPU backend's matrix products, compared with OpenBLAS's own sgemm at the same shapes, with the same
 * number of threads, in the same run?
 *
 * usage: bench_cpu_products [THREADS [REPEATS]]   (default: 1 thread, 7 repeats; at least 5)
 *
 * Weights are bf16 and runs are bf16 runs: the backend also converts weights, rounds results, gathers rows and, for
 * experts, applies the activation between the products. sgemm gets float32 weights, ready in memory, and does the
 * products alone. Both are warmed up, then measured in turn. Results are compared in the same run. Prints a Markdown
 * table; exit status 1 if a result is wrong or a ratio of medians is below 0.70, 2 for wrong usage. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cblas.h>

#include "moe_outliers/backend.h"

enum { MOST_REPEATS = 101 };
static const double least_ratio = 0.70;
static const double most_error = 0.01; /* relative, in the Euclidean norm; four bf16 roundings are about 0.004 */

typedef struct {
  const char *name;
  int64_t experts;       /* 0: a projection */
  int64_t M;             /* rows; of each expert */
  int64_t hidden, width; /* experts: H and F; projection: columns and rows of the matrix */
} shape;

static const shape shapes[] = {
    {"OLMoE-1B-7B experts", 8, 512, 2048, 1024},    {"Qwen3-30B-A3B experts", 8, 512, 2048, 768},
    {"Qwen3-Next-80B experts", 16, 160, 2048, 512}, {"Mixtral-8x7B expert", 1, 512, 4096, 14336},
    {"OLMoE-1B-7B q_proj", 0, 2048, 2048, 2048},    {"Qwen3-30B-A3B k_proj", 0, 2048, 2048, 512},
    {"GLM-4.5-Air q_proj", 0, 1024, 4096, 12288},
};

typedef struct {
  const shape *shape;
  mo_backend *backend;
  int threads;
  mo_model_spec spec;
  mo_stage_weights weights;
  mo_weight *matrices; /* gate, up and down of every expert, or the projection */
  float **plain;       /* the same as float32 */
  int64_t n_matrices, T;
  mo_routing routing;
  float *x, *y;                            /* input rows [T, hidden]; the backend's result */
  float *gathered, *gate, *up, *reference; /* of the plain products */
} bench;

static void stop(const char *what) {
  fprintf(stderr, "bench_cpu_products: %s: %s\n", what, mo_error_message());
  exit(1);
}

static void *memory(int64_t count, size_t size) {
  void *block = aligned_alloc(256, ((size_t)count * size + 255) / 256 * 256);
  if (!block) stop("out of memory");
  return block;
}

/* Uniform in (-1, 1), representable in bf16; a linear congruential generator is random enough here. */
static float next_value(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (float)((int64_t)(*state >> 56) - 128) / 128.0f;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fill_matrix(mo_weight *w, float **plain, int64_t rows, int64_t cols, uint64_t *state) {
  uint16_t *bf16 = memory(rows * cols, sizeof *bf16);
  float *values = memory(rows * cols, sizeof *values), scale = exp2f(-floorf(log2f((float)cols) / 2));
  for (int64_t i = 0; i < rows * cols; i++) {
    uint32_t bits;
    values[i] = next_value(state) * scale;
    memcpy(&bits, values + i, 4);
    bf16[i] = (uint16_t)(bits >> 16); /* exact: few bits are set */
  }
  *w = (mo_weight){.data = bf16, .dtype = MO_BF16, .rows = rows, .cols = cols};
  *plain = values;
}

/* Expert e gets rows e, e + 2, e + 4, .. of the tokens, so that rows are really gathered. */
static void fill_routing(bench *b) {
  int64_t E = b->shape->experts, M = b->shape->M;
  b->routing.row = memory(E * M, sizeof *b->routing.row);
  b->routing.start = memory(E + 1, sizeof *b->routing.start);
  for (int64_t e = 0; e <= E; e++) b->routing.start[e] = e * M;
  for (int64_t i = 0; i < E * M; i++) b->routing.row[i] = (int32_t)(2 * (i % M) + i / M % 2);
}

static void open_experts(bench *b, uint64_t *state) {
  int64_t E = b->shape->experts, H = b->shape->hidden, F = b->shape->width;
  b->spec.hidden = H;
  b->spec.moe.experts = E;
  b->spec.moe.top_k = 1;
  b->spec.moe.width = F;
  for (int64_t e = 0; e < E; e++) {
    fill_matrix(b->matrices + e, b->plain + e, F, H, state);
    fill_matrix(b->matrices + E + e, b->plain + E + e, F, H, state);
    fill_matrix(b->matrices + 2 * E + e, b->plain + 2 * E + e, H, F, state);
  }
  b->weights.expert_gate = b->matrices;
  b->weights.expert_up = b->matrices + E;
  b->weights.expert_down = b->matrices + 2 * E;
  b->gathered = memory(b->shape->M * H, sizeof(float));
  b->gate = memory(b->shape->M * F, sizeof(float));
  b->up = memory(b->shape->M * F, sizeof(float));
  fill_routing(b);
}

static void open_bench(bench *b, const shape *s, mo_backend *backend, int threads) {
  uint64_t state = 1;
  int64_t rows = s->experts ? s->experts * s->M : s->M, columns = s->experts ? s->hidden : s->width;
  *b = (bench){.shape = s, .backend = backend, .threads = threads};
  b->n_matrices = s->experts ? 3 * s->experts : 1;
  b->matrices = memory(b->n_matrices, sizeof *b->matrices);
  b->plain = memory(b->n_matrices, sizeof *b->plain);
  b->T = s->experts ? 2 * s->M : s->M;
  b->x = memory(b->T * s->hidden, sizeof(float));
  b->y = memory(rows * columns, sizeof(float));
  b->reference = memory(rows * columns, sizeof(float));
  for (int64_t i = 0; i < b->T * s->hidden; i++) b->x[i] = next_value(&state);
  if (s->experts)
    open_experts(b, &state);
  else
    fill_matrix(b->matrices, b->plain, s->width, s->hidden, &state);
}

static void close_bench(bench *b) {
  for (int64_t i = 0; i < b->n_matrices; i++) {
    free((void *)b->matrices[i].data);
    free(b->plain[i]);
  }
  void *blocks[] = {b->matrices, b->plain, b->x,         b->y,           b->gathered,
                    b->gate,     b->up,    b->reference, b->routing.row, b->routing.start};
  for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) free(blocks[i]);
}

static void sgemm(int64_t M, int64_t N, int64_t K, const float *x, const float *w, float *y) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)M, (int)N, (int)K, 1.0f, x, (int)K, w, (int)K, 0.0f, y,
              (int)N);
}

/* Idle threads of OpenBLAS and OpenMP spin for some 30 ms before they sleep: the one would slow the other down. */
static void let_threads_sleep(void) { usleep(100000); }

static double time_backend(bench *b) {
  const mo_backend_table *op = b->backend->table;
  let_threads_sleep();
  double begin = now();
  mo_status status = b->shape->experts
                         ? op->experts(b->backend, &b->spec, &b->weights, b->x, &b->routing, 0, b->shape->experts, b->y)
                         : op->linear(b->backend, b->matrices, NULL, b->x, b->shape->M, b->y);
  if (status == MO_OK) status = op->sync(b->backend);
  if (status != MO_OK) stop(b->shape->name);
  return now() - begin;
}

static void activate(const bench *b) {
  for (int64_t i = 0; i < b->shape->M * b->shape->width; i++)
    b->gate[i] = b->gate[i] / (1.0f + expf(-b->gate[i])) * b->up[i];
}

/* Seconds of the plain products alone; gathering and activation are outside the clock. */
static double time_plain(bench *b) {
  const shape *s = b->shape;
  int64_t M = s->M, H = s->hidden, F = s->width, E = s->experts;
  double seconds = 0;
  openblas_set_num_threads(b->threads);
  let_threads_sleep();
  double begin = now();
  if (!E) sgemm(M, F, H, b->x, b->plain[0], b->reference);
  seconds += now() - begin;
  for (int64_t e = 0; e < E; e++) {
    for (int64_t i = 0; i < M; i++)
      memcpy(b->gathered + i * H, b->x + b->routing.row[e * M + i] * H, (size_t)H * sizeof(float));
    begin = now();
    sgemm(M, F, H, b->gathered, b->plain[e], b->gate);
    sgemm(M, F, H, b->gathered, b->plain[E + e], b->up);
    seconds += now() - begin;
    activate(b);
    begin = now();
    sgemm(M, H, F, b->gate, b->plain[2 * E + e], b->reference + e * M * H);
    seconds += now() - begin;
  }
  openblas_set_num_threads(1); /* as the backend wants it */
  return seconds;
}

/* Relative distance of the backend's result from the plain one. */
static double distance(const bench *b) {
  int64_t n = b->shape->experts ? b->shape->experts * b->shape->M * b->shape->hidden : b->shape->M * b->shape->width;
  double difference = 0, size = 0;
  for (int64_t i = 0; i < n; i++) {
    double d = (double)b->y[i] - b->reference[i];
    difference += d * d;
    size += (double)b->reference[i] * b->reference[i];
  }
  return sqrt(difference / size);
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* A series of measurements: its median, and its range relative to the median. */
typedef struct {
  double median, spread;
} summary;

static summary summarise(double *seconds, int n) {
  qsort(seconds, (size_t)n, sizeof *seconds, ascending);
  double median = (seconds[(n - 1) / 2] + seconds[n / 2]) / 2;
  return (summary){median, (seconds[n - 1] - seconds[0]) / median};
}

/* Measure one shape and print its row; false if it is too slow or wrong. */
static bool measure(const shape *s, mo_backend *backend, int threads, int repeats) {
  bench b;
  double ours[MOST_REPEATS], plain[MOST_REPEATS];
  open_bench(&b, s, backend, threads);
  time_plain(&b);
  time_backend(&b);
  double error = distance(&b);
  for (int i = 0; i < repeats; i++) {
    plain[i] = time_plain(&b);
    ours[i] = time_backend(&b);
  }
  summary theirs = summarise(plain, repeats), mine = summarise(ours, repeats);
  double gflop = 2e-9 * (double)(s->experts ? 3 * s->experts : 1) * (double)(s->M * s->hidden * s->width);
  double ratio = theirs.median / mine.median;
  bool right = error <= most_error, fast = ratio >= least_ratio;
  printf("| %-22s | %7lld | %4lld | %6lld | %5lld | %2d | %7.1f ±%3.0f%% | %7.1f ±%3.0f%% | %5.2f | %.4f |%s\n",
         s->name, (long long)s->experts, (long long)s->M, (long long)s->hidden, (long long)s->width, threads,
         gflop / mine.median, 50 * mine.spread, gflop / theirs.median, 50 * theirs.spread, ratio, error,
         !right  ? " wrong result"
         : !fast ? " too slow"
                 : "");
  fflush(stdout);
  close_bench(&b);
  return right && fast;
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 1, repeats = argc > 2 ? atoi(argv[2]) : 7;
  if (argc > 3 || threads < 1 || repeats < 5 || repeats > MOST_REPEATS) {
    fprintf(stderr, "usage: bench_cpu_products [THREADS [REPEATS]]  (REPEATS 5 to %d)\n", MOST_REPEATS);
    return 2;
  }
  mo_backend *backend;
  mo_backend_options options = {.precision = MO_PRECISION_BF16, .threads = threads};
  if (mo_backend_cpu.open(&backend, &options) != MO_OK) stop("cannot open the cpu backend");
  printf("%s, %d thread%s, median of %d, ± half the range\n\n", openblas_get_config(), threads, threads > 1 ? "s" : "",
         repeats);
  printf(
      "| shape | experts | rows | hidden | width | threads | backend GFLOP/s | sgemm GFLOP/s | ratio | distance |\n"
      "|---|---|---|---|---|---|---|---|---|---|\n");
  bool passed = true;
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
    passed = measure(shapes + i, backend, threads, repeats) && passed;
  backend->table->close(backend);
  return passed ? 0 : 1;
}
