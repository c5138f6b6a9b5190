/* The decoder layer of every architecture, on random weights: properties that hold whatever the weights are. (That
 * the numbers are those of the reference implementation is tested end to end.) */
#include "moe_outliers/layer.h"
#include "test_model_fixture.h"

enum { B = 3, S = 9, MOST_TENSORS = 64 };

/* A stage's weights in one block, BF16, in the order of the list of needs. */
typedef struct {
  mo_tensor tensors[MOST_TENSORS];
  mo_entry entries[MOST_TENSORS];
  mo_stage_catalogue stage;
  mo_stage_weights weights;
  uint16_t *block;
} stage_block;

typedef struct {
  mo_model_spec spec;
  mo_backend *backend;
  mo_workspace *workspace;
  stage_block layer, head;
} scene;

/* What the observer saw. */
typedef struct {
  int64_t layers[4], tokens;
  mo_site sites[4];
  int n_sites, n_routings, n_settled, fail_at; /* fail_at: the site (from 1) at which the observer gives up; 0: none */
  const scene *scene;
  const void *tensor; /* of the last site */
  float site[2][B * S * 64];
} watcher;

static uint64_t random_state = 20261122;

static double uniform(double low, double high) { /* xorshift64*: Vigna 2016 */
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return low + (high - low) * ((double)(random_state * UINT64_C(2685821657736338717) >> 11) * 0x1p-53);
}

static uint16_t bf16_of(double x) {
  float value = (float)x;
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return (uint16_t)(bits >> 16);
}

static void ok(mo_status status) {
  if (status != MO_OK) fail_msg("status %d: %s", (int)status, mo_error_message());
}

static bool is_vector_of_ones(mo_role role) {
  return role == MO_INPUT_NORM || role == MO_POST_NORM || role == MO_FINAL_NORM || role == MO_Q_NORM ||
         role == MO_K_NORM || role == MO_DELTA_NORM;
}

static void open_stage(stage_block *s, const mo_model_spec *spec, int64_t stage) {
  mo_tensor_need *needs;
  int64_t n;
  ok(mo_model_tensors(spec, stage, &needs, &n));
  assert_true(n <= MOST_TENSORS);
  memset(s, 0, sizeof *s);
  for (int64_t i = 0; i < n; i++) {
    mo_tensor *t = s->tensors + i;
    *t = (mo_tensor){.name = "t", .dtype = MO_BF16, .dtype_name = "BF16", .n_dims = needs[i].n_dims, .bytes = 2};
    for (int d = 0; d < needs[i].n_dims; d++) t->bytes *= t->shape[d] = needs[i].shape[d];
    s->entries[i] = (mo_entry){needs[i].role, needs[i].expert, t, s->stage.arena_bytes};
    s->stage.arena_bytes += (t->bytes + 255) / 256 * 256;
  }
  s->stage.entries = s->entries;
  s->stage.n_entries = n;
  s->block = aligned_alloc(256, (size_t)s->stage.arena_bytes);
  assert_non_null(s->block);
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < s->tensors[i].bytes / 2; j++)
      s->block[s->entries[i].arena_offset / 2 + j] =
          bf16_of(is_vector_of_ones(needs[i].role) ? uniform(0.5, 2) : uniform(-0.4, 0.4));
  free(needs);
  ok(mo_stage_weights_build(&s->weights, spec, &s->stage, s->block));
}

static void close_stage(stage_block *s) {
  mo_stage_weights_free(&s->weights);
  free(s->block);
}

static void open_scene(scene *s, const char *json, int64_t layer, mo_precision precision) {
  mo_backend_options options = {.precision = precision, .threads = 1};
  s->spec = parsed(json);
  ok(mo_backend_cpu.open(&s->backend, &options));
  ok(mo_workspace_open(&s->workspace, &s->spec, s->backend, B, S));
  open_stage(&s->layer, &s->spec, layer + 1);
  open_stage(&s->head, &s->spec, s->spec.n_layers + 1);
}

static void close_scene(scene *s) {
  close_stage(&s->layer);
  close_stage(&s->head);
  mo_workspace_close(s->workspace);
  s->backend->table->close(s->backend);
  mo_model_free(&s->spec);
}

static mo_status on_site(void *context, int64_t layer, mo_site site, const void *x) {
  watcher *w = context;
  assert_true(w->n_sites < 2);
  w->layers[w->n_sites] = layer;
  w->sites[w->n_sites] = site;
  w->tensor = x;
  memcpy(w->site[w->n_sites], x, (size_t)(B * S * w->scene->spec.hidden) * sizeof(float));
  return ++w->n_sites == w->fail_at ? MO_FAIL(MO_FAILED, "enough (test): stop") : MO_OK;
}

static mo_status on_routing(void *context, int64_t layer, const int64_t *counts) {
  watcher *w = context;
  w->layers[2] = layer;
  w->n_routings++;
  for (int64_t e = 0; e < w->scene->spec.moe.experts; e++) {
    assert_true(counts[e] >= 0 && counts[e] <= B * S);
    w->tokens += counts[e];
  }
  return MO_OK;
}

/* Rows of bf16 numbers, so that both precisions start from the same. */
static float *random_rows(const scene *s) {
  int64_t n = B * S * s->spec.hidden;
  float *x = aligned_alloc(256, ((size_t)n * sizeof *x + 255) / 256 * 256);
  assert_non_null(x);
  for (int64_t i = 0; i < n; i++) x[i] = (float)(int)(uniform(-64, 64)) / 16;
  return x;
}

/* Each site is settled while its tensor is what it was. */
static mo_status on_settle(void *context) {
  watcher *w = context;
  assert_int_equal(w->n_sites, w->n_settled + 1);
  assert_memory_equal(w->tensor, w->site[w->n_settled], (size_t)(B * S * w->scene->spec.hidden) * sizeof(float));
  w->n_settled++;
  return MO_OK;
}

static watcher forward(scene *s, int64_t layer, float *x) {
  watcher w = {.scene = s};
  mo_layer_observer observer = {.context = &w, .site = on_site, .routing = on_routing, .settle = on_settle};
  ok(mo_layer_forward(s->workspace, layer, &s->layer.weights, x, B, &observer));
  return w;
}

/* Calls `check` for each kind of layer of each architecture, in both precisions. */
static void for_every_layer(void (*check)(scene *s, int64_t layer)) {
  for (int i = 0; i < N_CONFIGS; i++)
    for (int64_t layer = 0; layer < 2; layer++)
      for (int precision = 0; precision < 2; precision++) {
        scene s;
        open_scene(&s, all_configs[i], layer, precision ? MO_PRECISION_BF16 : MO_PRECISION_FP32);
        check(&s, layer);
        close_scene(&s);
      }
}

/* --- the observer --- */

static void check_observer(scene *s, int64_t layer) {
  float *x = random_rows(s);
  watcher w = forward(s, layer, x);
  bool routes = s->spec.layers[layer].mlp == MO_MLP_MOE;
  assert_int_equal(w.n_sites, 2);
  assert_int_equal(w.sites[0], MO_SITE_LN_ATTN);
  assert_int_equal(w.sites[1], MO_SITE_LN_MLP);
  assert_true(w.layers[0] == layer && w.layers[1] == layer);
  assert_int_equal(w.n_routings, routes);
  assert_int_equal(w.n_settled, 2);
  assert_int_equal(w.tokens, routes ? B * S * s->spec.moe.top_k : 0);
  free(x);
}

/* Columns that are zeroed are 0 at both sites, the others of the first as they were; attention's largest probabilities are between
 * that of equal ones and 1. */
static void check_zeroed(scene *s, int64_t layer) {
  static const int32_t zeroed[] = {1, 5};
  int64_t heads = s->spec.attention.heads, H = s->spec.hidden;
  bool attends = s->spec.layers[layer].mixer == MO_MIXER_ATTENTION;
  float *x = random_rows(s), *y = random_rows(s), top[B * S * 64];
  memcpy(y, x, (size_t)(B * S * H) * sizeof *x);
  watcher intact = forward(s, layer, x), w = {.scene = s};
  mo_layer_observer observer = {
      .context = &w, .site = on_site, .routing = on_routing, .settle = on_settle, .zeroed = zeroed, .n_zeroed = 2};
  assert_true(heads <= 64);
  for (int64_t i = 0; i < B * S * heads; i++) top[i] = -1;
  observer.top = top;
  ok(mo_layer_forward(s->workspace, layer, &s->layer.weights, y, B, &observer));
  for (int64_t t = 0; t < B * S; t++)
    for (int64_t h = 0; h < H; h++) {
      float before = intact.site[0][t * H + h], after = w.site[0][t * H + h];
      assert_true(h == 1 || h == 5 ? after == 0 && w.site[1][t * H + h] == 0 : after == before);
    }
  for (int64_t i = 0; i < B * S * heads; i++) assert_true(attends ? top[i] > 0 && top[i] <= 1.0001f : top[i] == -1);
  free(x);
  free(y);
}

static void observer_can_zero_features(void **state) {
  (void)state;
  for_every_layer(check_zeroed);
}

static void observer_sees_two_sites_and_the_routing(void **state) {
  (void)state;
  for_every_layer(check_observer);
}

static void check_stop(scene *s, int64_t layer) {
  for (int at = 1; at <= 2; at++) {
    float *x = random_rows(s);
    watcher w = {.scene = s, .fail_at = at};
    mo_layer_observer observer = {.context = &w, .site = on_site, .routing = on_routing, .settle = on_settle};
    assert_int_equal(mo_layer_forward(s->workspace, layer, &s->layer.weights, x, B, &observer), MO_FAILED);
    assert_int_equal(w.n_sites, at);
    assert_int_equal(w.n_routings, 0);
    mo_error_clear();
    free(x);
  }
}

static void observer_can_end_the_layer(void **state) {
  (void)state;
  for_every_layer(check_stop);
}

/* --- sites are norms of the residual stream --- */

static float bf16_value(const stage_block *s, mo_role role, int64_t i) {
  uint32_t bits = (uint32_t)((const uint16_t *)s->weights.one[role].data)[i] << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static void expect_norm(const scene *s, mo_role role, const float *x, const float *site) {
  int64_t H = s->spec.hidden;
  double tolerance = s->backend->precision == MO_PRECISION_BF16 ? 0x1p-7 : 1e-6;
  for (int64_t t = 0; t < B * S; t++) {
    double squares = 0;
    for (int64_t h = 0; h < H; h++) squares += (double)x[t * H + h] * x[t * H + h];
    double scale = 1 / sqrt(squares / (double)H + (double)s->spec.norm.eps);
    for (int64_t h = 0; h < H; h++) {
      double weight = bf16_value(&s->layer, role, h) + (s->spec.norm.zero_centred ? 1 : 0);
      double want = x[t * H + h] * scale * weight;
      if (!(fabs(site[t * H + h] - want) <= tolerance * fabs(want)))
        fail_msg("%s: site value %.9g, expected %.9g", s->spec.architecture, (double)site[t * H + h], want);
    }
  }
}

static void clear(stage_block *s, mo_role role) {
  for (int64_t i = 0; i < s->stage.n_entries; i++)
    if (s->entries[i].role == role)
      memset((char *)s->block + s->entries[i].arena_offset, 0, (size_t)s->tensors[i].bytes);
}

static void clear_all(stage_block *s, const mo_role *roles, size_t n) {
  for (size_t i = 0; i < n; i++) clear(s, roles[i]);
}

static const mo_role mixer_outputs[] = {MO_O, MO_O_BIAS, MO_DELTA_OUT};
static const mo_role mlp_outputs[] = {MO_DOWN,        MO_DOWN_BIAS,    MO_EXPERT_DOWN,
                                      MO_SHARED_DOWN, MO_EXPERTS_DOWN, MO_EXPERTS_DOWN_BIAS};

/* A layer without its MLP's or without its mixer's output: where it adds nothing, the residual stream stays as it is,
 * and each site is the norm of the stream at its place. */
static void check_residual(scene *s, int64_t layer) {
  int64_t n = B * S * s->spec.hidden;
  size_t bytes = (size_t)n * sizeof(float);
  float *x = random_rows(s), *before = random_rows(s);
  size_t arena = (size_t)s->layer.stage.arena_bytes;
  uint16_t *copy = malloc(arena);
  assert_non_null(copy);
  memcpy(copy, s->layer.block, arena);

  memcpy(before, x, bytes);
  clear_all(&s->layer, mlp_outputs, sizeof mlp_outputs / sizeof mlp_outputs[0]);
  watcher w = forward(s, layer, x);
  expect_norm(s, MO_INPUT_NORM, before, w.site[0]);
  expect_norm(s, MO_POST_NORM, x, w.site[1]);
  assert_true(memcmp(x, before, bytes) != 0);

  memcpy(s->layer.block, copy, arena);
  memcpy(x, before, bytes);
  clear_all(&s->layer, mixer_outputs, sizeof mixer_outputs / sizeof mixer_outputs[0]);
  w = forward(s, layer, x);
  expect_norm(s, MO_INPUT_NORM, before, w.site[0]);
  expect_norm(s, MO_POST_NORM, before, w.site[1]);
  assert_true(memcmp(x, before, bytes) != 0);

  memcpy(x, before, bytes);
  clear_all(&s->layer, mlp_outputs, sizeof mlp_outputs / sizeof mlp_outputs[0]);
  forward(s, layer, x);
  assert_memory_equal(x, before, bytes);
  free(copy);
  free(x);
  free(before);
}

static void residual_stream_gains_what_each_part_adds(void **state) {
  (void)state;
  for_every_layer(check_residual);
}

/* --- what a token depends on --- */

static void check_causality(scene *s, int64_t layer) {
  int64_t H = s->spec.hidden, changed = S / 2; /* token 4 of sequence 1 */
  size_t bytes = (size_t)(B * S * H) * sizeof(float);
  float *x = random_rows(s), *y = random_rows(s),
        tolerance = s->backend->precision == MO_PRECISION_BF16 ? 0x1p-6f : 1e-5f;
  memcpy(y, x, bytes);
  for (int64_t h = 0; h < H; h++) y[(S + changed) * H + h] += 1;
  forward(s, layer, x);
  forward(s, layer, y);
  for (int64_t t = 0; t < B * S; t++) {
    bool may_differ = t >= S + changed && t < 2 * S, differs = false;
    for (int64_t h = 0; h < H; h++) /* other rows in a product may move the last bit */
      differs |= !(fabsf(x[t * H + h] - y[t * H + h]) <= tolerance * (1 + fabsf(x[t * H + h])));
    if (differs && !may_differ)
      fail_msg("%s layer %d: token %d saw a later one or another sequence", s->spec.architecture, (int)layer, (int)t);
    if (t == S + changed) assert_true(differs);
  }
  free(x);
  free(y);
}

static void tokens_depend_on_earlier_ones_only(void **state) {
  (void)state;
  for_every_layer(check_causality);
}

static void check_repeat(scene *s, int64_t layer) {
  size_t bytes = (size_t)(B * S * s->spec.hidden) * sizeof(float);
  float *x = random_rows(s), *y = random_rows(s);
  memcpy(y, x, bytes);
  forward(s, layer, x);
  forward(s, layer, y);
  assert_memory_equal(x, y, bytes);
  for (int64_t i = 0; i < B * S * s->spec.hidden; i++) assert_true(isfinite(x[i]));
  free(x);
  free(y);
}

static void same_input_gives_the_same_bits(void **state) {
  (void)state;
  for_every_layer(check_repeat);
}

/* --- the head --- */

static void check_head(scene *s, int64_t layer) {
  (void)layer;
  int32_t ids[B * S];
  float *x = random_rows(s), *normed = random_rows(s), nll[B * S], want[B * S];
  for (int i = 0; i < B * S; i++) ids[i] = (int32_t)((i * 7) % s->spec.vocab);
  ok(mo_head_forward(s->workspace, &s->head.weights, x, B, ids, nll, NULL));
  ok(mo_backend_cpu.norm(s->backend, &s->spec.norm, &s->head.weights.one[MO_FINAL_NORM], x, B * S, s->spec.hidden,
                         normed));
  ok(mo_backend_cpu.nll(s->backend, &s->head.weights.one[MO_LM_HEAD], normed, ids, B, S, want, NULL));
  assert_memory_equal(nll, want, B * (S - 1) * sizeof *nll);
  free(x);
  free(normed);
}

static void head_norms_and_scores(void **state) {
  (void)state;
  for_every_layer(check_head);
}

/* --- the workspace: a backend that counts its memory, and may run out of it --- */

static int64_t live, allocated, allocations, fail_after;

static mo_status counting_alloc(mo_backend *backend, size_t bytes, void **memory) {
  if (fail_after >= 0 && allocations >= fail_after) return MO_FAIL(MO_FAILED, "out of memory (test): stop");
  allocations++;
  allocated += (int64_t)bytes;
  live++;
  return mo_backend_cpu.alloc(backend, bytes, memory);
}

static void counting_free(mo_backend *backend, void *memory) {
  live -= memory != NULL;
  mo_backend_cpu.free(backend, memory);
}

static mo_status open_counted(const mo_model_spec *spec, mo_workspace **workspace, mo_backend **backend,
                              mo_backend_table *table) {
  mo_backend_options options = {.precision = MO_PRECISION_FP32, .threads = 1};
  *table = mo_backend_cpu;
  table->alloc = counting_alloc;
  table->free = counting_free;
  live = allocated = allocations = 0;
  ok(mo_backend_cpu.open(backend, &options));
  (*backend)->table = table;
  return mo_workspace_open(workspace, spec, *backend, B, S);
}

static void workspace_takes_what_it_says(void **state) {
  (void)state;
  for (int i = 0; i < N_CONFIGS; i++) {
    mo_model_spec spec = parsed(all_configs[i]);
    mo_backend_table table;
    mo_backend *backend;
    mo_workspace *workspace;
    fail_after = -1;
    ok(open_counted(&spec, &workspace, &backend, &table));
    int64_t said = mo_workspace_bytes(&spec, B, S, 4);
    if (!(said >= allocated && said <= allocated + 4096))
      fail_msg("%s: %" PRId64 " bytes said, %" PRId64 " taken", spec.architecture, said, allocated);
    mo_workspace_close(workspace);
    assert_int_equal(live, 0);
    mo_backend_cpu.close(backend);
    mo_model_free(&spec);
  }
}

static void workspace_gives_back_what_it_got(void **state) {
  (void)state;
  for (int i = 0; i < N_CONFIGS; i++) {
    mo_model_spec spec = parsed(all_configs[i]);
    mo_status status = MO_FAILED;
    for (fail_after = 0; status != MO_OK; fail_after++) {
      mo_backend_table table;
      mo_backend *backend;
      mo_workspace *workspace = NULL;
      status = open_counted(&spec, &workspace, &backend, &table);
      if (status == MO_OK) mo_workspace_close(workspace);
      assert_int_equal(live, 0);
      assert_true(fail_after < 30);
      mo_backend_cpu.close(backend);
      mo_error_clear();
    }
    mo_model_free(&spec);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(observer_sees_two_sites_and_the_routing),
      cmocka_unit_test(observer_can_zero_features),
      cmocka_unit_test(observer_can_end_the_layer),
      cmocka_unit_test(residual_stream_gains_what_each_part_adds),
      cmocka_unit_test(tokens_depend_on_earlier_ones_only),
      cmocka_unit_test(same_input_gives_the_same_bits),
      cmocka_unit_test(head_norms_and_scores),
      cmocka_unit_test(workspace_takes_what_it_says),
      cmocka_unit_test(workspace_gives_back_what_it_got),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
