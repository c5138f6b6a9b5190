#include "model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
  PATTERN = 8 << 20,
  SHIFT = 64,
  OUTLIERS = 6,
  NEXT = 331
}; /* values of the random pattern; how far a layer's begins behind the one before; outlier features, NEXT apart */

static const float THRESHOLD = 6.0f;

const char *bench_program = "bench";

void bench_must(mo_status status) {
  if (status == MO_OK) return;
  fprintf(stderr, "%s: error: %s\n", bench_program, mo_error_message());
  exit(1);
}

double bench_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int64_t bench_number(const char *text) {
  char *end;
  long long value = strtoll(text, &end, 10);
  return end == text || *end ? -1 : value;
}

static int ascending(const void *a, const void *b) {
  double d = *(const double *)a - *(const double *)b;
  return d < 0 ? -1 : d > 0;
}

double bench_median(double *seconds, int64_t n, double *spread) {
  qsort(seconds, (size_t)n, sizeof *seconds, ascending);
  *spread = seconds[n - 1] - seconds[0];
  return seconds[n / 2];
}

/* --- open and close --- */

void bench_model_read(bench_model *m, const char *path, int64_t layers) {
  bench_must(mo_model_read(&m->spec, path));
  if (layers && layers < m->spec.n_layers) m->spec.n_layers = layers;
  m->weights = mo_alloc((size_t)m->spec.n_layers, sizeof *m->weights);
  m->memory = mo_alloc((size_t)m->spec.n_layers, sizeof *m->memory);
  if (!m->weights || !m->memory) bench_must(MO_FAILED);
}

int64_t bench_model_values(const bench_model *m) { return m->sequences * m->length * m->spec.hidden; }

void bench_model_open(bench_model *m, const mo_backend_table *table, const mo_backend_options *options) {
  int64_t count = bench_model_values(m);
  size_t words = (size_t)(m->sequences * m->spec.hidden * ((m->length + 63) / 64)) * 8;
  uint64_t state = 7;
  bench_must(table->open(&m->backend, options));
  m->start = mo_alloc((size_t)count, sizeof *m->start);
  if (!m->start) bench_must(MO_FAILED);
  /* Large beside what layers of random weights add: tokens stay different, so that all layers route them alike. */
  for (int64_t i = 0; i < count; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    m->start[i] = ((float)(state >> 40) * 0x1p-23f - 1.0f) * 16;
  }
  bench_must(table->alloc(m->backend, (size_t)(count * m->backend->activation_bytes), &m->x));
  bench_must(table->alloc(m->backend, words, (void **)&m->positions));
  bench_must(table->zero(m->backend, m->positions, words));
  bench_must(table->alloc(m->backend, (size_t)(m->micro * m->length) * sizeof *m->row_counts, (void **)&m->row_counts));
  bench_must(mo_workspace_open(&m->workspace, &m->spec, m->backend, m->micro, m->length));
}

void bench_model_close(bench_model *m) {
  const mo_backend_table *op = m->backend->table;
  mo_workspace_close(m->workspace);
  for (int64_t layer = 0; layer < m->spec.n_layers; layer++) {
    mo_stage_weights_free(m->weights + layer);
    op->free(m->backend, m->memory[layer]);
  }
  op->free(m->backend, m->x);
  op->free(m->backend, m->positions);
  op->free(m->backend, m->row_counts);
  op->close(m->backend);
  mo_model_free(&m->spec);
  free(m->start);
  free(m->weights);
  free(m->memory);
}

/* --- random weights --- */

static uint16_t bf16_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return (uint16_t)(bits >> 16);
}

/* bf16 noise of about the deviation of a trained matrix's rows. */
static void fill_pattern(uint16_t *pattern, int64_t n) {
  uint64_t state = 1;
  for (int64_t i = 0; i < n; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    pattern[i] = bf16_of(((float)(state >> 40) * 0x1p-24f - 0.5f) * 0.08f);
  }
}

/* Norm weights are 1; those of the sites 8 at a few features, about half of whose values are outlier values then. */
static void fill_norm(const bench_model *m, bool site, uint16_t *weights, int64_t n) {
  const float shift = m->spec.norm.zero_centred ? 1.0f : 0.0f;
  for (int64_t i = 0; i < n; i++) weights[i] = bf16_of(site ? 1.0f - shift : 1.0f);
  for (int64_t i = 0; i < OUTLIERS && site; i++) weights[i * NEXT % n] = bf16_of(8.0f - shift);
}

static void upload_repeated(mo_backend *backend, char *to, int64_t bytes, const uint16_t *source) {
  for (int64_t done = 0; done < bytes; done += 2 * PATTERN) {
    int64_t ticket, size = bytes - done < 2 * PATTERN ? bytes - done : 2 * PATTERN;
    bench_must(backend->table->upload(backend, to + done, source, (size_t)size, &ticket));
    bench_must(backend->table->upload_wait(backend, ticket));
  }
}

static void load_layer(bench_model *m, int64_t layer, const uint16_t *pattern, uint16_t *norm) {
  mo_tensor_need *needs;
  int64_t n, bytes = 0;
  bench_must(mo_model_tensors(&m->spec, layer + 1, &needs, &n));
  mo_tensor *tensors = mo_alloc((size_t)n, sizeof *tensors);
  mo_entry *entries = mo_alloc((size_t)n, sizeof *entries);
  if (!tensors || !entries) bench_must(MO_FAILED);
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
  bench_must(m->backend->table->alloc(m->backend, (size_t)bytes, &m->memory[layer]));
  for (int64_t i = 0; i < n; i++) {
    bool vector = needs[i].n_dims == 1;
    if (vector)
      fill_norm(m, needs[i].role == MO_INPUT_NORM || needs[i].role == MO_POST_NORM, norm, tensors[i].bytes / 2);
    upload_repeated(m->backend, (char *)m->memory[layer] + entries[i].arena_offset, tensors[i].bytes,
                    vector ? norm : pattern);
  }
  mo_stage_catalogue stage = {entries, n, bytes, bytes};
  bench_must(mo_stage_weights_build(&m->weights[layer], &m->spec, &stage, m->memory[layer]));
  free(entries);
  free(tensors);
  free(needs);
}

void bench_model_load(bench_model *m, int64_t first, int64_t n) {
  int64_t values = PATTERN + SHIFT * m->spec.n_layers;
  void *pattern, *norm;
  bench_must(m->backend->table->alloc_host(m->backend, (size_t)values * 2, &pattern));
  bench_must(m->backend->table->alloc_host(m->backend, PATTERN * 2, &norm));
  fill_pattern(pattern, values);
  for (int64_t layer = first; layer < first + n; layer++)
    if (!m->memory[layer]) load_layer(m, layer, (const uint16_t *)pattern + SHIFT * layer, norm);
  m->backend->table->free_host(m->backend, pattern);
  m->backend->table->free_host(m->backend, norm);
}

/* --- passes --- */

void bench_model_reset(bench_model *m) {
  bench_must(m->backend->table->write_activations(m->backend, m->x, bench_model_values(m), m->start));
}

int64_t bench_micro_count(const bench_model *m) { return (m->sequences + m->micro - 1) / m->micro; }

int64_t bench_micro_batch(const bench_model *m, int64_t index) {
  int64_t left = m->sequences - index * m->micro;
  return left < m->micro ? left : m->micro;
}

void *bench_micro_rows(const bench_model *m, int64_t index) {
  return (char *)m->x + index * m->micro * m->length * m->spec.hidden * m->backend->activation_bytes;
}

static mo_status on_site(void *context, int64_t layer, mo_site site, const void *x) {
  bench_model *m = context;
  (void)layer;
  if (!m->statistics) return MO_OK;
  return m->backend->table->site_statistics(m->backend, x, bench_micro_batch(m, m->first / m->micro), m->length,
                                            m->spec.hidden, THRESHOLD, m->positions, m->first,
                                            site == MO_SITE_LN_MLP ? m->row_counts : NULL);
}

static mo_status on_settle(void *context) {
  bench_model *m = context;
  mo_site_statistics statistics;
  if (m->statistics) MO_TRY(m->backend->table->site_results(m->backend, &statistics));
  return m->poll ? m->poll(m->poll_context) : MO_OK;
}

/* As the engine does: the experts' statistics are taken when the next layer is under way. */
static mo_status take_experts(bench_model *m) {
  mo_expert_statistics statistics;
  if (!m->experts_expected) return MO_OK;
  m->experts_expected = false;
  return m->backend->table->expert_results(m->backend, &statistics);
}

static mo_status on_experts(void *context, int64_t layer, const mo_routing *routing, const float *peaks,
                            const float *shared) {
  bench_model *m = context;
  int64_t rows = bench_micro_batch(m, m->first / m->micro) * m->length;
  (void)layer;
  m->experts_expected = true;
  return m->backend->table->expert_statistics(m->backend, &m->spec, rows, m->row_counts, routing, peaks, shared);
}

static mo_status on_routing(void *context, int64_t layer, const int64_t *counts) {
  bench_model *m = context;
  (void)layer;
  (void)counts;
  MO_TRY(take_experts(m));
  return m->poll ? m->poll(m->poll_context) : MO_OK;
}

void bench_model_run(bench_model *m, int64_t index, int64_t first, int64_t n) {
  mo_layer_observer observer = {.context = m, .site = on_site, .routing = on_routing, .settle = on_settle};
  if (m->statistics && m->experts) observer.experts = on_experts;
  m->first = index * m->micro;
  for (int64_t layer = first; layer < first + n; layer++)
    bench_must(mo_layer_forward(m->workspace, layer, &m->weights[layer], bench_micro_rows(m, index),
                                bench_micro_batch(m, index), &observer));
}

double bench_model_flops(const bench_model *m) {
  double flops = 0;
  for (int64_t layer = 0; layer < m->spec.n_layers; layer++) {
    mo_stage_cost cost;
    bench_must(mo_model_stage_cost(&m->spec, layer + 1, 2, m->sequences, m->length, &cost));
    flops += cost.flops;
  }
  return flops;
}
