/* Time of the forward pass with all weights in backend memory: random weights of a model's real shapes, N x S tokens.
 *
 *   bench_forward CONFIG.json [--layers L] [--sequences N] [--length S] [--micro B] [--device cuda|cpu] [--repeat R] [--profile]
 *
 * Prints the median time of a pass over the decoder layers with and without the outlier statistics, and TFLOP/s counting the
 * operations of active experts. --profile waits after every operation and prints where the time goes. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "moe_outliers/layer.h"

typedef struct {
  const char *config, *device;
  int64_t layers, sequences, length, micro, repeat;
  bool profile;
} options;

typedef struct {
  mo_model_spec spec;
  mo_backend *backend;
  mo_workspace *workspace;
  mo_stage_weights *weights; /* [L] */
  void **memory;             /* [L] */
  void *x;                   /* [N, S, H] residual stream */
  uint64_t *positions;
  const options *options;
  int64_t first; /* sequence of the micro-batch under way */
  bool statistics;
} bench;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void must(mo_status status) {
  if (status == MO_OK) return;
  fprintf(stderr, "bench_forward: error: %s\n", mo_error_message());
  exit(1);
}

/* --- profile: every operation followed by a wait, times summed by name --- */

typedef struct {
  const char *name;
  double seconds;
  int64_t calls;
} operation;

static operation operations[16];
static mo_backend_table timed; /* the backend's table with the timed operations */
static const mo_backend_table *plain;

static mo_status record(mo_backend *backend, int place, const char *name, double begin, mo_status status) {
  if (status == MO_OK) status = plain->sync(backend);
  operations[place].name = name;
  operations[place].seconds += now() - begin;
  operations[place].calls++;
  return status;
}

#define TIMED(place, name, parameters, arguments)                 \
  static mo_status timed_##name parameters {                      \
    double begin = now();                                         \
    return record(b, place, #name, begin, plain->name arguments); \
  }

TIMED(0, norm,
      (mo_backend * b, const mo_norm_spec *s, const mo_weight *w, const void *x, int64_t r, int64_t n, void *o),
      (b, s, w, x, r, n, o))
TIMED(1, linear, (mo_backend * b, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M, void *y),
      (b, w, bias, x, M, y))
TIMED(2, rope, (mo_backend * b, const mo_model_spec *s, void *x, int64_t T, int64_t S, int64_t h), (b, s, x, T, S, h))
TIMED(3, attention,
      (mo_backend * b, const mo_model_spec *s, int64_t w, const mo_weight *k, const void *q, const void *kk,
       const void *v, int64_t B, int64_t S, void *o),
      (b, s, w, k, q, kk, v, B, S, o))
TIMED(4, add, (mo_backend * b, void *x, const void *y, int64_t n), (b, x, y, n))
TIMED(5, glu, (mo_backend * b, const void *g, const void *u, int64_t n, void *o), (b, g, u, n, o))
TIMED(6, route,
      (mo_backend * b, const mo_model_spec *s, const mo_stage_weights *w, const void *x, int64_t T, mo_routing *r),
      (b, s, w, x, T, r))
TIMED(7, experts,
      (mo_backend * b, const mo_model_spec *s, const mo_stage_weights *w, const void *x, const mo_routing *r, int64_t f,
       int64_t l, void *o),
      (b, s, w, x, r, f, l, o))
TIMED(8, combine, (mo_backend * b, const mo_model_spec *s, const void *e, const mo_routing *r, int64_t T, void *y),
      (b, s, e, r, T, y))
TIMED(9, site_statistics,
      (mo_backend * b, const void *x, int64_t B, int64_t S, int64_t H, float t, uint64_t *p, int64_t f,
       mo_site_statistics *s),
      (b, x, B, S, H, t, p, f, s))
TIMED(10, delta_conv,
      (mo_backend * b, const mo_model_spec *s, const mo_stage_weights *w, const void *q, const void *ba, int64_t B,
       int64_t S, void *m, float *be, float *d),
      (b, s, w, q, ba, B, S, m, be, d))
TIMED(11, delta_rule,
      (mo_backend * b, const mo_model_spec *s, const void *m, const float *be, const float *d, int64_t B, int64_t S,
       void *o),
      (b, s, m, be, d, B, S, o))
TIMED(12, delta_norm, (mo_backend * b, const mo_model_spec *s, const mo_weight *w, const void *q, int64_t T, void *x),
      (b, s, w, q, T, x))
TIMED(13, split, (mo_backend * b, const void *x, int64_t r, int64_t a, int64_t c, void *l, void *ri),
      (b, x, r, a, c, l, ri))
TIMED(14, sigmoid_gate, (mo_backend * b, void *x, const void *g, int64_t r, int64_t w, int64_t gw), (b, x, g, r, w, gw))

static void time_operations(mo_backend *backend) {
  plain = backend->table;
  timed = *plain;
  timed.norm = timed_norm;
  timed.linear = timed_linear;
  timed.rope = timed_rope;
  timed.attention = timed_attention;
  timed.add = timed_add;
  timed.glu = timed_glu;
  timed.route = timed_route;
  timed.experts = timed_experts;
  timed.combine = timed_combine;
  timed.site_statistics = timed_site_statistics;
  timed.delta_conv = timed_delta_conv;
  timed.delta_rule = timed_delta_rule;
  timed.delta_norm = timed_delta_norm;
  timed.split = timed_split;
  timed.sigmoid_gate = timed_sigmoid_gate;
  backend->table = &timed;
}

/* --- random weights --- */

/* bf16 noise of about the deviation of a trained matrix's rows; norm weights are 1. */
static void fill_pattern(uint16_t *pattern, int64_t n) {
  uint64_t state = 1;
  for (int64_t i = 0; i < n; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    float value = ((float)(state >> 40) * 0x1p-24f - 0.5f) * 0.08f;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    pattern[i] = (uint16_t)(bits >> 16);
  }
}

static void load_layer(bench *b, int64_t layer, const uint16_t *pattern, const uint16_t *ones, int64_t n_pattern) {
  mo_tensor_need *needs;
  int64_t n, bytes = 0;
  must(mo_model_tensors(&b->spec, layer + 1, &needs, &n));
  mo_tensor *tensors = mo_alloc((size_t)n, sizeof *tensors);
  mo_entry *entries = mo_alloc((size_t)n, sizeof *entries);
  if (!tensors || !entries) must(MO_FAILED);
  for (int64_t i = 0; i < n; i++) {
    mo_tensor *t = tensors + i;
    t->name = needs[i].name;
    t->dtype = needs[i].mxfp4 ? MO_U8 : MO_BF16;
    t->n_dims = needs[i].n_dims;
    t->bytes = needs[i].mxfp4 ? 1 : 2;
    for (int d = 0; d < t->n_dims; d++) t->bytes *= t->shape[d] = needs[i].shape[d];
    entries[i] = (mo_entry){needs[i].role, needs[i].expert, t, bytes};
    bytes += (t->bytes + 255) / 256 * 256;
  }
  must(b->backend->table->alloc(b->backend, (size_t)bytes, &b->memory[layer]));
  for (int64_t i = 0; i < n; i++) {
    const uint16_t *source = needs[i].n_dims == 1 ? ones : pattern;
    for (int64_t done = 0; done < tensors[i].bytes; done += 2 * n_pattern) {
      int64_t ticket, size = tensors[i].bytes - done < 2 * n_pattern ? tensors[i].bytes - done : 2 * n_pattern;
      char *to = (char *)b->memory[layer] + entries[i].arena_offset + done;
      must(b->backend->table->upload(b->backend, to, source, (size_t)size, &ticket));
      must(b->backend->table->upload_wait(b->backend, ticket));
    }
  }
  mo_stage_catalogue stage = {entries, n, bytes, bytes};
  must(mo_stage_weights_build(&b->weights[layer], &b->spec, &stage, b->memory[layer]));
  free(entries);
  free(tensors);
  free(needs);
}

static void load_weights(bench *b) {
  enum { PATTERN = 8 << 20 };
  void *pattern, *ones;
  must(b->backend->table->alloc_host(b->backend, PATTERN * 2, &pattern));
  must(b->backend->table->alloc_host(b->backend, PATTERN * 2, &ones));
  fill_pattern(pattern, PATTERN);
  for (int64_t i = 0; i < PATTERN; i++) ((uint16_t *)ones)[i] = 0x3f80;
  for (int64_t layer = 0; layer < b->spec.n_layers; layer++) load_layer(b, layer, pattern, ones, PATTERN);
  b->backend->table->free_host(b->backend, pattern);
  b->backend->table->free_host(b->backend, ones);
}

/* --- passes --- */

static mo_status on_site(void *context, int64_t layer, mo_site site, const void *x) {
  bench *b = context;
  mo_site_statistics statistics;
  (void)layer;
  (void)site;
  if (!b->statistics) return MO_OK;
  int64_t left = b->options->sequences - b->first;
  return b->backend->table->site_statistics(b->backend, x, left < b->options->micro ? left : b->options->micro,
                                            b->options->length, b->spec.hidden, 6.0f, b->positions, b->first,
                                            &statistics);
}

static mo_status on_routing(void *context, int64_t layer, const int64_t *counts) {
  (void)context;
  (void)layer;
  (void)counts;
  return MO_OK;
}

/* Seconds of one pass of all micro-batches through all layers. */
static double one_pass(bench *b) {
  const options *o = b->options;
  mo_layer_observer observer = {b, on_site, on_routing};
  size_t row = (size_t)(o->length * b->spec.hidden * b->backend->activation_bytes);
  must(b->backend->table->sync(b->backend));
  double begin = now();
  for (b->first = 0; b->first < o->sequences; b->first += o->micro) {
    int64_t left = o->sequences - b->first, B = left < o->micro ? left : o->micro;
    void *x = (char *)b->x + (size_t)b->first * row;
    for (int64_t layer = 0; layer < b->spec.n_layers; layer++)
      must(mo_layer_forward(b->workspace, layer, &b->weights[layer], x, B, &observer));
  }
  must(b->backend->table->sync(b->backend));
  return now() - begin;
}

static void reset_stream(bench *b, const float *start, int64_t count) {
  must(b->backend->table->write_activations(b->backend, b->x, count, start));
}

static int ascending(const void *a, const void *b) {
  double d = *(const double *)a - *(const double *)b;
  return d < 0 ? -1 : d > 0;
}

static double median_pass(bench *b, const float *start, int64_t count, double *spread) {
  double seconds[64];
  int64_t n = b->options->repeat;
  for (int64_t i = 0; i < n; i++) {
    reset_stream(b, start, count);
    seconds[i] = one_pass(b);
  }
  qsort(seconds, (size_t)n, sizeof *seconds, ascending);
  *spread = seconds[n - 1] - seconds[0];
  return seconds[n / 2];
}

static void report(bench *b, const float *start, int64_t count) {
  double flops = 0, spread, with_spread;
  for (int64_t layer = 0; layer < b->spec.n_layers; layer++) {
    mo_stage_cost cost;
    must(mo_model_stage_cost(&b->spec, layer + 1, 2, b->options->sequences, b->options->length, &cost));
    flops += cost.flops;
  }
  reset_stream(b, start, count);
  one_pass(b); /* warm-up */
  b->statistics = false;
  double without = median_pass(b, start, count, &spread);
  b->statistics = true;
  double with = median_pass(b, start, count, &with_spread);
  printf("%-14s %3" PRId64 " layers %2" PRId64 " x %" PRId64 " micro %2" PRId64
         ": %8.4f s (+-%.4f) %6.1f TFLOP/s; with statistics %8.4f s (+%.1f %%)\n",
         b->spec.architecture, b->spec.n_layers, b->options->sequences, b->options->length, b->options->micro, without,
         spread / 2, 1e-12 * flops / without, with, 100 * (with / without - 1));
  if (!b->options->profile) return;
  mo_workspace_close(b->workspace); /* it keeps the plain table */
  time_operations(b->backend);
  must(mo_workspace_open(&b->workspace, &b->spec, b->backend, b->options->micro, b->options->length));
  reset_stream(b, start, count);
  double total = one_pass(b);
  for (int i = 0; i < 16; i++)
    if (operations[i].calls)
      printf("    %-16s %8.4f s %5.1f %% %6" PRId64 " calls\n", operations[i].name, operations[i].seconds,
             100 * operations[i].seconds / total, operations[i].calls);
}

static void run(const options *o) {
  bench b = {.options = o};
  const mo_backend_table *table;
  mo_backend_options backend_options = {.precision = MO_PRECISION_BF16, .threads = 0};
  must(mo_backend_choose(strcmp(o->device, "cuda") == 0 ? MO_DEVICE_CUDA : MO_DEVICE_CPU, &table));
  must(mo_model_read(&b.spec, o->config));
  if (o->layers && o->layers < b.spec.n_layers) b.spec.n_layers = o->layers;
  must(table->open(&b.backend, &backend_options));
  int64_t count = o->sequences * o->length * b.spec.hidden;
  size_t words = (size_t)(o->sequences * b.spec.hidden * ((o->length + 63) / 64)) * 8;
  b.weights = mo_alloc((size_t)b.spec.n_layers, sizeof *b.weights);
  b.memory = mo_alloc((size_t)b.spec.n_layers, sizeof *b.memory);
  float *start = mo_alloc((size_t)count, sizeof *start);
  if (!b.weights || !b.memory || !start) must(MO_FAILED);
  uint64_t state = 7;
  for (int64_t i = 0; i < count; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    start[i] = (float)(state >> 40) * 0x1p-23f - 1.0f;
  }
  load_weights(&b);
  must(table->alloc(b.backend, (size_t)(count * b.backend->activation_bytes), &b.x));
  must(table->alloc(b.backend, words, (void **)&b.positions));
  must(table->zero(b.backend, b.positions, words));
  must(mo_workspace_open(&b.workspace, &b.spec, b.backend, o->micro, o->length));
  report(&b, start, count);
  free(start);
}

static int64_t number(const char *text) { return strtoll(text, NULL, 10); }

int main(int argc, char **argv) {
  options o = {.device = "cuda", .sequences = 16, .length = 2048, .micro = 16, .repeat = 5};
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    if (strcmp(argv[i], "--profile") == 0)
      o.profile = true;
    else if (argv[i][0] != '-')
      o.config = argv[i];
    else if (strcmp(argv[i], "--layers") == 0)
      o.layers = number(value), i++;
    else if (strcmp(argv[i], "--sequences") == 0)
      o.sequences = number(value), i++;
    else if (strcmp(argv[i], "--length") == 0)
      o.length = number(value), i++;
    else if (strcmp(argv[i], "--micro") == 0)
      o.micro = number(value), i++;
    else if (strcmp(argv[i], "--repeat") == 0)
      o.repeat = number(value), i++;
    else if (strcmp(argv[i], "--device") == 0)
      o.device = value, i++;
  }
  if (!o.config || o.sequences < 1 || o.length < 1 || o.micro < 1 || o.repeat < 1 || o.repeat > 64) {
    fprintf(
        stderr,
        "usage: bench_forward CONFIG.json [--layers L] [--sequences N] [--length S] [--micro B] [--device cuda|cpu] "
        "[--repeat R] [--profile]\n");
    return 2;
  }
  run(&o);
  return 0;
}
