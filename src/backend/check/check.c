/* The check backend: the cpu backend with its contract policed. Weights memory is private and filled by uploads that happen only
 * when they are waited for; outputs hold NaN before each operation; inputs are compared after it. A breach is an error that names
 * the operation. For tests: it is slow. (The idea is that of libCEED's memcheck backends.) */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/backend.h"

enum { PENDING = 64 };

typedef struct {
  void *destination;
  const void *host;
  size_t bytes;
  int64_t ticket; /* 0: the slot is free */
} pending_upload;

/* An input and what it was. */
typedef struct {
  const void *data;
  void *copy;
  size_t bytes;
} witness;

typedef struct {
  mo_backend base;
  mo_backend *cpu;
  pthread_mutex_t lock;
  pending_upload pending[PENDING];
  int64_t next_ticket;
  witness site; /* of site_statistics until site_results; copy NULL: none */
  bool experts; /* between expert_statistics and expert_results */
} checker;

static checker *of(mo_backend *backend) { return (checker *)backend; }
static mo_backend *inner(mo_backend *backend) { return of(backend)->cpu; }

static mo_status check_open(mo_backend **backend, const mo_backend_options *options) {
  checker *c = mo_alloc(1, sizeof *c);
  if (!c) return MO_FAILED;
  mo_status status = mo_backend_cpu.open(&c->cpu, options);
  if (status != MO_OK) {
    free(c);
    return status;
  }
  c->base = *c->cpu;
  c->base.table = &mo_backend_check;
  c->next_ticket = 1;
  pthread_mutex_init(&c->lock, NULL);
  *backend = &c->base;
  return MO_OK;
}

static void check_close(mo_backend *backend) {
  if (!backend) return;
  mo_backend_cpu.close(inner(backend));
  pthread_mutex_destroy(&of(backend)->lock);
  free(of(backend)->site.copy); /* a failure came before site_results */
  free(backend);
}

static int64_t check_available_memory(mo_backend *backend, int sharers) {
  return mo_backend_cpu.available_memory(inner(backend), sharers);
}

static mo_status check_alloc(mo_backend *backend, size_t bytes, void **memory) {
  MO_TRY(mo_backend_cpu.alloc(inner(backend), bytes, memory));
  memset(*memory, 0xff, bytes); /* NaN in every float format */
  return MO_OK;
}

static void check_free(mo_backend *backend, void *memory) { mo_backend_cpu.free(inner(backend), memory); }

/* Remember the upload; the bytes move when it is waited for, so that a staging buffer reused too early brings wrong weights. */
static mo_status check_upload(mo_backend *backend, void *destination, const void *host, size_t bytes, int64_t *ticket) {
  checker *c = of(backend);
  mo_status status = MO_OK;
  pthread_mutex_lock(&c->lock);
  pending_upload *slot = NULL;
  for (int i = 0; i < PENDING && !slot; i++)
    if (!c->pending[i].ticket) slot = c->pending + i;
  if (slot) *slot = (pending_upload){destination, host, bytes, *ticket = c->next_ticket++};
  pthread_mutex_unlock(&c->lock);
  if (!slot)
    status = MO_FAIL(MO_FAILED, "more than %d uploads under way (check backend): wait for earlier ones", PENDING);
  return status;
}

static mo_status check_upload_wait(mo_backend *backend, int64_t ticket) {
  checker *c = of(backend);
  bool found = false;
  pthread_mutex_lock(&c->lock);
  for (int i = 0; i < PENDING; i++)
    if (c->pending[i].ticket == ticket) {
      memcpy(c->pending[i].destination, c->pending[i].host, c->pending[i].bytes);
      c->pending[i].ticket = 0;
      found = true;
    }
  pthread_mutex_unlock(&c->lock);
  return found
             ? MO_OK
             : MO_FAIL(MO_FAILED, "upload %lld waited for twice or never made (check backend): a defect of the program",
                       (long long)ticket);
}

/* A float32 input of an operation: its copy from before, compared after. */
static mo_status keep(witness *w, const void *data, int64_t values) {
  *w = (witness){data, mo_alloc((size_t)values, sizeof(float)), (size_t)values * sizeof(float)};
  if (!w->copy) return MO_FAILED;
  memcpy(w->copy, data, w->bytes);
  return MO_OK;
}

static mo_status unchanged(witness *w, mo_status status, const char *operation) {
  bool same = w->copy && memcmp(w->copy, w->data, w->bytes) == 0;
  free(w->copy);
  if (status != MO_OK || same) return status;
  return MO_FAIL(MO_FAILED, "%s changed its input (check backend): a defect of the program", operation);
}

static void poison(void *out, int64_t values) { memset(out, 0xff, (size_t)values * sizeof(float)); }

/* After an operation on finite inputs no poison may be left; inputs that are not finite may give NaN themselves. */
static mo_status written(const void *out, int64_t values, mo_status status, const char *operation) {
  for (int64_t i = 0; status == MO_OK && i < values; i++) {
    uint32_t bits;
    memcpy(&bits, (const float *)out + i, 4);
    if (bits == 0xffffffffu)
      status = MO_FAIL(MO_FAILED, "%s left value %lld unwritten (check backend): a defect of the program", operation,
                       (long long)i);
  }
  return status;
}

static mo_status check_read_activations(mo_backend *backend, const void *x, int64_t count, float *host) {
  return mo_backend_cpu.read_activations(inner(backend), x, count, host);
}

static mo_status check_write_activations(mo_backend *backend, void *x, int64_t count, const float *host) {
  return mo_backend_cpu.write_activations(inner(backend), x, count, host);
}

static mo_status check_download(mo_backend *backend, const void *memory, size_t bytes, void *host) {
  return mo_backend_cpu.download(inner(backend), memory, bytes, host);
}

static mo_status check_zero(mo_backend *backend, void *memory, size_t bytes) {
  return mo_backend_cpu.zero(inner(backend), memory, bytes);
}

static mo_status check_checksum(mo_backend *backend, const void *memory, size_t bytes, uint64_t *sum) {
  return mo_backend_cpu.checksum(inner(backend), memory, bytes, sum);
}

static mo_status check_sync(mo_backend *backend) { return mo_backend_cpu.sync(inner(backend)); }

static mo_status check_embed(mo_backend *backend, const mo_weight *table, const int32_t *ids, int64_t T, void *out) {
  poison(out, T * table->cols);
  return written(out, T * table->cols, mo_backend_cpu.embed(inner(backend), table, ids, T, out), "embed");
}

static mo_status check_norm(mo_backend *backend, const mo_norm_spec *spec, const mo_weight *weight, const void *x,
                            int64_t rows, int64_t width, void *out) {
  if (x == out) return mo_backend_cpu.norm(inner(backend), spec, weight, x, rows, width, out);
  witness w;
  MO_TRY(keep(&w, x, rows * width));
  poison(out, rows * width);
  mo_status status = mo_backend_cpu.norm(inner(backend), spec, weight, x, rows, width, out);
  return written(out, rows * width, unchanged(&w, status, "norm"), "norm");
}

static mo_status check_linear(mo_backend *backend, const mo_weight *weight, const mo_weight *bias, const void *x,
                              int64_t M, void *y) {
  witness w;
  MO_TRY(keep(&w, x, M * weight->cols));
  poison(y, M * weight->rows);
  mo_status status = mo_backend_cpu.linear(inner(backend), weight, bias, x, M, y);
  return written(y, M * weight->rows, unchanged(&w, status, "linear"), "linear");
}

static mo_status check_linear_add(mo_backend *backend, const mo_weight *weight, const mo_weight *bias, const void *x,
                                  int64_t M, void *y) {
  witness w;
  MO_TRY(keep(&w, x, M * weight->cols));
  return unchanged(&w, mo_backend_cpu.linear_add(inner(backend), weight, bias, x, M, y), "linear_add");
}

static mo_status check_clamp(mo_backend *backend, void *x, int64_t count, float limit) {
  return mo_backend_cpu.clamp(inner(backend), x, count, limit);
}

static mo_status check_rope(mo_backend *backend, const mo_model_spec *spec, void *x, int64_t T, int64_t S,
                            int64_t heads) {
  return mo_backend_cpu.rope(inner(backend), spec, x, T, S, heads);
}

static mo_status check_norm_rope(mo_backend *backend, const mo_model_spec *spec, const mo_weight *weight, void *x,
                                 int64_t T, int64_t S, int64_t heads) {
  return mo_backend_cpu.norm_rope(inner(backend), spec, weight, x, T, S, heads);
}

static mo_status check_attention(mo_backend *backend, const mo_model_spec *spec, int64_t window, const mo_weight *sinks,
                                 const void *q, const void *k, const void *v, int64_t B, int64_t S, void *out,
                                 float *top) {
  int64_t values = B * S * spec->attention.heads * spec->attention.head_dim;
  int64_t keys = B * S * spec->attention.kv_heads * spec->attention.head_dim;
  witness w, w_k, w_v;
  MO_TRY(keep(&w, q, values));
  MO_TRY(keep(&w_k, k, keys));
  MO_TRY(keep(&w_v, v, keys));
  int64_t tops = top ? B * S * spec->attention.heads : 0;
  poison(out, values);
  if (top) poison(top, tops);
  mo_status status = mo_backend_cpu.attention(inner(backend), spec, window, sinks, q, k, v, B, S, out, top);
  status = written(top, tops, status, "attention");
  status = unchanged(&w_v, unchanged(&w_k, status, "attention"), "attention");
  return written(out, values, unchanged(&w, status, "attention"), "attention");
}

static mo_status check_zero_features(mo_backend *backend, void *x, int64_t T, int64_t H, const int32_t *features,
                                     int64_t n) {
  witness w;
  for (int64_t i = 0; i < n; i++)
    if (features[i] < 0 || features[i] >= H)
      return MO_FAIL(MO_FAILED, "zero_features of feature %d (check backend): a defect of the program", features[i]);
  MO_TRY(keep(&w, features, n)); /* int32_t is as wide */
  return unchanged(&w, mo_backend_cpu.zero_features(inner(backend), x, T, H, features, n), "zero_features");
}

static mo_status check_take_features(mo_backend *backend, const void *x, int64_t T, int64_t H, const int32_t *features,
                                     int64_t n, float *out) {
  witness w;
  MO_TRY(keep(&w, x, T * H));
  poison(out, T * n);
  mo_status status =
      unchanged(&w, mo_backend_cpu.take_features(inner(backend), x, T, H, features, n, out), "take_features");
  return written(out, T * n, status, "take_features");
}

static mo_status check_expert_growth(mo_backend *backend, const mo_model_spec *spec, const void *expert_out,
                                     const mo_routing *routing, int64_t B, int64_t S, const mo_followed *followed,
                                     double *growth) {
  witness w;
  MO_TRY(keep(&w, expert_out, B * S * spec->moe.top_k * spec->hidden));
  return unchanged(&w, mo_backend_cpu.expert_growth(inner(backend), spec, expert_out, routing, B, S, followed, growth),
                   "expert_growth");
}

static mo_status check_row_sums(mo_backend *backend, const float *x, int64_t rows, int64_t width, double *sums) {
  witness w;
  MO_TRY(keep(&w, x, rows * width));
  poison(sums, 2 * rows);
  mo_status status = unchanged(&w, mo_backend_cpu.row_sums(inner(backend), x, rows, width, sums), "row_sums");
  return written(sums, 2 * rows, status, "row_sums");
}

static mo_status check_add(mo_backend *backend, void *x, const void *y, int64_t count) {
  witness w;
  MO_TRY(keep(&w, y, count));
  return unchanged(&w, mo_backend_cpu.add(inner(backend), x, y, count), "add");
}

static mo_status check_glu(mo_backend *backend, const void *gate, const void *up, int64_t count, void *out) {
  witness w;
  MO_TRY(keep(&w, gate, count));
  poison(out, count);
  mo_status status = mo_backend_cpu.glu(inner(backend), gate, up, count, out);
  return written(out, count, unchanged(&w, status, "glu"), "glu");
}

static mo_status check_split(mo_backend *backend, const void *x, int64_t rows, int64_t a, int64_t b, void *left,
                             void *right) {
  witness w;
  MO_TRY(keep(&w, x, rows * (a + b)));
  poison(left, rows * a);
  poison(right, rows * b);
  mo_status status = unchanged(&w, mo_backend_cpu.split(inner(backend), x, rows, a, b, left, right), "split");
  return written(right, rows * b, written(left, rows * a, status, "split"), "split");
}

static mo_status check_sigmoid_gate(mo_backend *backend, void *x, const void *gate, int64_t rows, int64_t width,
                                    int64_t gate_width) {
  witness w;
  MO_TRY(keep(&w, gate, rows * gate_width));
  return unchanged(&w, mo_backend_cpu.sigmoid_gate(inner(backend), x, gate, rows, width, gate_width), "sigmoid_gate");
}

static int64_t delta_values(const mo_model_spec *spec) { return spec->delta.v_heads * spec->delta.v_dim; }
static int64_t delta_keys(const mo_model_spec *spec) { return spec->delta.k_heads * spec->delta.k_dim; }

static mo_status check_delta_conv(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights,
                                  const void *qkvz, const void *ba, int64_t B, int64_t S, void *mixed, float *beta,
                                  float *decay) {
  int64_t T = B * S, gates = T * spec->delta.v_heads, channels = T * (2 * delta_keys(spec) + delta_values(spec));
  witness w;
  MO_TRY(keep(&w, qkvz, T * 2 * (delta_keys(spec) + delta_values(spec))));
  poison(mixed, channels);
  poison(beta, gates);
  poison(decay, gates);
  mo_status status = mo_backend_cpu.delta_conv(inner(backend), spec, weights, qkvz, ba, B, S, mixed, beta, decay);
  status = written(mixed, channels, unchanged(&w, status, "delta_conv"), "delta_conv");
  return written(decay, gates, written(beta, gates, status, "delta_conv"), "delta_conv");
}

static mo_status check_delta_rule(mo_backend *backend, const mo_model_spec *spec, const void *mixed, const float *beta,
                                  const float *decay, int64_t B, int64_t S, void *out) {
  int64_t values = B * S * delta_values(spec);
  witness w;
  MO_TRY(keep(&w, mixed, B * S * (2 * delta_keys(spec) + delta_values(spec))));
  poison(out, values);
  mo_status status = mo_backend_cpu.delta_rule(inner(backend), spec, mixed, beta, decay, B, S, out);
  return written(out, values, unchanged(&w, status, "delta_rule"), "delta_rule");
}

static mo_status check_delta_norm(mo_backend *backend, const mo_model_spec *spec, const mo_weight *weight,
                                  const void *qkvz, int64_t T, void *x) {
  witness w;
  MO_TRY(keep(&w, qkvz, T * 2 * (delta_keys(spec) + delta_values(spec))));
  return unchanged(&w, mo_backend_cpu.delta_norm(inner(backend), spec, weight, qkvz, T, x), "delta_norm");
}

/* Each row of the routing is used once, and each expert's rows ascend. */
static mo_status check_route(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights,
                             const void *x, int64_t T, mo_routing *routing) {
  int64_t K = spec->moe.top_k, E = spec->moe.experts;
  witness w;
  MO_TRY(keep(&w, x, T * spec->hidden));
  MO_TRY(unchanged(&w, mo_backend_cpu.route(inner(backend), spec, weights, x, T, routing), "route"));
  bool right = routing->start[0] == 0 && routing->start[E] == T * K;
  for (int64_t i = 0; i < T * K && right; i++) right = routing->row[routing->place[i]] == i / K;
  for (int64_t e = 0; e < E && right; e++)
    for (int64_t r = routing->start[e] + 1; r < routing->start[e + 1] && right; r++)
      right = routing->row[r] > routing->row[r - 1];
  return right ? MO_OK : MO_FAIL(MO_FAILED, "route grouped rows wrongly (check backend): a defect of the program");
}

static mo_status check_experts(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights,
                               const void *x, const mo_routing *routing, int64_t first, int64_t last, void *out) {
  int64_t rows = routing->start[last] - routing->start[first], H = spec->hidden;
  float *block = (float *)out + routing->start[first] * H;
  witness w;
  MO_TRY(keep(&w, x, rows ? (int64_t)(routing->row[routing->start[last] - 1] + 1) * H : 0));
  poison(block, rows * H);
  mo_status status = mo_backend_cpu.experts(inner(backend), spec, weights, x, routing, first, last, out);
  return written(block, rows * H, unchanged(&w, status, "experts"), "experts");
}

static mo_status check_combine(mo_backend *backend, const mo_model_spec *spec, const void *expert_out,
                               const mo_routing *routing, int64_t T, float *peaks, void *y) {
  witness w;
  MO_TRY(keep(&w, expert_out, T * spec->moe.top_k * spec->hidden));
  poison(y, T * spec->hidden);
  if (peaks) poison(peaks, T * spec->moe.top_k);
  mo_status status = mo_backend_cpu.combine(inner(backend), spec, expert_out, routing, T, peaks, y);
  if (peaks) status = written(peaks, T * spec->moe.top_k, status, "combine");
  return written(y, T * spec->hidden, unchanged(&w, status, "combine"), "combine");
}

static mo_status check_combine_add(mo_backend *backend, const mo_model_spec *spec, const void *expert_out,
                                   const mo_routing *routing, int64_t T, float *peaks, void *x) {
  witness w;
  MO_TRY(keep(&w, expert_out, T * spec->moe.top_k * spec->hidden));
  if (peaks) poison(peaks, T * spec->moe.top_k);
  mo_status status = mo_backend_cpu.combine_add(inner(backend), spec, expert_out, routing, T, peaks, x);
  if (peaks) status = written(peaks, T * spec->moe.top_k, status, "combine_add");
  return unchanged(&w, status, "combine_add");
}

static mo_status check_row_peaks(mo_backend *backend, const void *x, int64_t rows, int64_t width, float *peaks) {
  witness w;
  MO_TRY(keep(&w, x, rows * width));
  poison(peaks, rows);
  mo_status status = unchanged(&w, mo_backend_cpu.row_peaks(inner(backend), x, rows, width, peaks), "row_peaks");
  return written(peaks, rows, status, "row_peaks");
}

static mo_status check_site_statistics(mo_backend *backend, const void *x, int64_t B, int64_t S, int64_t H,
                                       float threshold, uint64_t *positions, int64_t first_sequence,
                                       int32_t *row_counts) {
  checker *c = of(backend);
  if (c->site.copy)
    return MO_FAIL(MO_FAILED, "site_statistics without site_results before (check backend): a defect of the program");
  MO_TRY(keep(&c->site, x, B * S * H));
  return mo_backend_cpu.site_statistics(c->cpu, x, B, S, H, threshold, positions, first_sequence, row_counts);
}

static mo_status check_site_results(mo_backend *backend, mo_site_statistics *statistics) {
  checker *c = of(backend);
  witness site = c->site;
  c->site.copy = NULL;
  return unchanged(&site, mo_backend_cpu.site_results(c->cpu, statistics), "site_statistics");
}

static mo_status check_expert_statistics(mo_backend *backend, const mo_model_spec *spec, int64_t T,
                                         const int32_t *row_counts, const mo_routing *routing, const float *peaks,
                                         const float *shared) {
  checker *c = of(backend);
  if (c->experts)
    return MO_FAIL(MO_FAILED,
                   "expert_statistics without expert_results before (check backend): a defect of the program");
  c->experts = true;
  return mo_backend_cpu.expert_statistics(c->cpu, spec, T, row_counts, routing, peaks, shared);
}

static mo_status check_expert_results(mo_backend *backend, mo_expert_statistics *statistics) {
  of(backend)->experts = false;
  return mo_backend_cpu.expert_results(inner(backend), statistics);
}

static mo_status check_nll(mo_backend *backend, const mo_weight *lm_head, const void *x, const int32_t *ids, int64_t B,
                           int64_t S, float *nll, float *top) {
  int64_t n = B * (S - 1);
  poison(nll, n);
  if (top) poison(top, n);
  mo_status status = mo_backend_cpu.nll(inner(backend), lm_head, x, ids, B, S, nll, top);
  return written(top, top ? n : 0, written(nll, n, status, "nll"), "nll");
}

const mo_backend_table mo_backend_check = {
    .name = "check",
    .host_memory = false,
    .open = check_open,
    .close = check_close,
    .memory = mo_backend_memory_cpu, /* copies of inputs, which only tests pay for, are not counted */
    .available_memory = check_available_memory,
    .alloc = check_alloc,
    .free = check_free,
    .alloc_host = check_alloc,
    .free_host = check_free,
    .upload = check_upload,
    .upload_wait = check_upload_wait,
    .read_activations = check_read_activations,
    .write_activations = check_write_activations,
    .download = check_download,
    .fetch = check_download,
    .zero = check_zero,
    .checksum = check_checksum,
    .sync = check_sync,
    .embed = check_embed,
    .norm = check_norm,
    .linear = check_linear,
    .linear_add = check_linear_add,
    .clamp = check_clamp,
    .rope = check_rope,
    .norm_rope = check_norm_rope,
    .attention = check_attention,
    .zero_features = check_zero_features,
    .take_features = check_take_features,
    .expert_growth = check_expert_growth,
    .row_sums = check_row_sums,
    .add = check_add,
    .glu = check_glu,
    .split = check_split,
    .sigmoid_gate = check_sigmoid_gate,
    .delta_conv = check_delta_conv,
    .delta_rule = check_delta_rule,
    .delta_norm = check_delta_norm,
    .route = check_route,
    .experts = check_experts,
    .combine = check_combine,
    .combine_add = check_combine_add,
    .row_peaks = check_row_peaks,
    .site_statistics = check_site_statistics,
    .site_results = check_site_results,
    .expert_statistics = check_expert_statistics,
    .expert_results = check_expert_results,
    .nll = check_nll,
};
