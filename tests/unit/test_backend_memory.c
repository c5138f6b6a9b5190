/* What a backend says that it takes beside its allocs, against what the cpu backend's operations really take. */
#include "../../src/backend/cpu/cpu.h"
#include "moe_outliers/layer.h"
#include "test_model_fixture.h"

static void ok(mo_status status) {
  if (status != MO_OK) fail_msg("status %d: %s", (int)status, mo_error_message());
}

typedef struct {
  mo_backend *backend;
  uint64_t *positions;
  int64_t B, S, H;
} watcher;

/* A threshold that all values reach: the longest list of outliers. */
static mo_status on_site(void *context, int64_t layer, mo_site site, const void *x) {
  watcher *w = context;
  mo_site_statistics statistics;
  (void)layer;
  (void)site;
  MO_TRY(w->backend->table->site_statistics(w->backend, x, w->B, w->S, w->H, 0, w->positions, 0, NULL));
  return w->backend->table->site_results(w->backend, &statistics);
}

static mo_status on_routing(void *context, int64_t layer, const int64_t *counts) {
  (void)context;
  (void)layer;
  (void)counts;
  return MO_OK;
}

/* All stages on random weights. */
static void run_model(const mo_model_spec *spec, mo_backend *backend, int64_t B, int64_t S) {
  mo_checkpoint *checkpoint;
  mo_catalogue catalogue;
  mo_streamer *streamer;
  mo_workspace *workspace;
  int64_t stages[64], N = mo_model_stages(spec), bytes = 0;
  ok(mo_checkpoint_open_synthetic(&checkpoint, spec, MO_BF16, 1));
  ok(mo_catalogue_build(&catalogue, spec, checkpoint));
  for (int64_t i = 0; i < N; i++) bytes += catalogue.stages[stages[i] = i].arena_bytes;
  mo_stream_plan plan = {.stages = stages, .n_stages = N, .arena_bytes = bytes, .n_readers = 1};
  ok(mo_streamer_open(&streamer, &plan, spec, &catalogue, checkpoint, backend));
  ok(mo_workspace_open(&workspace, spec, backend, B, S));
  float *x = mo_alloc((size_t)(B * S * spec->hidden), sizeof *x), *nll = mo_alloc((size_t)(B * S), sizeof *nll);
  int32_t *ids = mo_alloc((size_t)(B * S), sizeof *ids);
  uint64_t *positions = mo_alloc((size_t)(B * spec->hidden * ((S + 63) / 64)), sizeof *positions);
  assert_true(x && nll && ids && positions);
  for (int64_t i = 0; i < B * S; i++) ids[i] = (int32_t)(i * 7 % spec->vocab);
  watcher w = {backend, positions, B, S, spec->hidden};
  mo_layer_observer observer = {.context = &w, .site = on_site, .routing = on_routing, .settle = NULL};
  for (int64_t stage = 0; stage < N; stage++) {
    const mo_stage_weights *weights;
    ok(mo_streamer_acquire(streamer, stage, &weights, NULL, NULL));
    if (stage == 0)
      ok(backend->table->embed(backend, &weights->one[MO_EMBED], ids, B * S, x));
    else if (stage < N - 1)
      ok(mo_layer_forward(workspace, stage - 1, weights, x, B, &observer));
    else
      ok(mo_head_forward(workspace, weights, x, B, ids, nll, NULL));
    mo_streamer_release(streamer, stage);
  }
  free(x);
  free(nll);
  free(ids);
  free(positions);
  mo_workspace_close(workspace);
  mo_streamer_close(streamer);
  mo_catalogue_free(&catalogue);
  mo_checkpoint_close(checkpoint);
}

static void operations_stay_below_the_bound(void **state) {
  (void)state;
  static const int64_t shapes[][2] = {{1, 1}, {2, 3}, {3, 130}, {2, 1100}};
  for (int config = 0; config < N_CONFIGS; config++)
    for (size_t shape = 0; shape < sizeof shapes / sizeof shapes[0]; shape++)
      for (int threads = 1; threads <= 3; threads += 2) {
        mo_model_spec spec = parsed(all_configs[config]);
        mo_backend *backend;
        mo_backend_options options = {.precision = shape % 2 ? MO_PRECISION_FP32 : MO_PRECISION_BF16,
                                      .threads = threads};
        ok(mo_backend_cpu.open(&backend, &options));
        mo_backend_load load = {.spec = &spec,
                                .precision = options.precision,
                                .threads = threads,
                                .stored = MO_BF16,
                                .B = shapes[shape][0],
                                .S = shapes[shape][1]};
        run_model(&spec, backend, load.B, load.S);
        const mo_cpu *cpu = mo_cpu_of(backend);
        int64_t taken = (int64_t)(cpu->scratch_bytes * (size_t)threads + cpu->rows_bytes + cpu->statistics_bytes) +
                        cpu->outlier_capacity * (int64_t)sizeof(mo_outlier);
        int64_t said = mo_backend_cpu.memory(&load).scratch;
        if (!(taken <= said)) fail_msg("%s: takes %" PRId64 ", says %" PRId64, spec.architecture, taken, said);
        if (!(said <= taken * 3 / 2 + 1000000)) /* a bound that says little would waste memory */
          fail_msg("%s: takes %" PRId64 ", says %" PRId64, spec.architecture, taken, said);
        mo_backend_cpu.close(backend);
        mo_model_free(&spec);
      }
}

/* More of anything takes no less, on both kinds of device. */
static void bounds_grow_with_the_load(void **state) {
  (void)state;
  mo_backend_memory (*const kinds[])(const mo_backend_load *) = {mo_backend_memory_cpu, mo_backend_memory_cuda};
  for (int config = 0; config < N_CONFIGS; config++) {
    mo_model_spec spec = parsed(all_configs[config]);
    for (int kind = 0; kind < 2; kind++)
      for (int64_t B = 1; B <= 64; B *= 4)
        for (int64_t S = 1; S <= 4096; S *= 4) {
          mo_backend_load load = {
              .spec = &spec, .precision = MO_PRECISION_BF16, .threads = 2, .stored = MO_BF16, .B = B, .S = S};
          mo_backend_load longer = load, converting = load;
          longer.S++;
          converting.stored = MO_OTHER;
          mo_backend_memory plain = kinds[kind](&load);
          assert_true(plain.scratch > 0 && plain.overhead > 0);
          assert_true(kinds[kind](&longer).scratch >= plain.scratch);
          assert_true(kinds[kind](&converting).scratch >= plain.scratch);
        }
    mo_model_free(&spec);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(operations_stay_below_the_bound),
      cmocka_unit_test(bounds_grow_with_the_load),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
