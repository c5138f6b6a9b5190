/* The streamer: every byte arrives, in bounded memory, on both paths; errors and early ends leave nothing behind.
 *
 * How the bytes are read, and verify, are tested in test_weights_storage.c. */
#include <dirent.h>
#include <time.h>

#include "test_weights_fake.h"

/* --- a checkpoint of stages with tensors of odd sizes, and its catalogue --- */

enum { STAGES = 24, PER_STAGE = 4, FILES = 3 };

static struct {
  char *folder;
  mo_checkpoint *checkpoint;
  mo_catalogue catalogue;
  mo_entry entries[STAGES][PER_STAGE];
  mo_stage_catalogue stages[STAGES];
  mo_model_spec spec;
  int64_t order[STAGES];
  int64_t largest, total; /* arena bytes */
} scene;

static int64_t size_of(int stage, int tensor) { return 1 + (stage * 977 + tensor * 3571) % 5000; }

/* Stages s with s % FILES == file. */
static void write_shard(int file) {
  fixture_tensor tensors[STAGES * PER_STAGE];
  size_t n = 0;
  char name[40];
  snprintf(name, sizeof name, "part-%d.safetensors", file);
  for (int s = file; s < STAGES; s += FILES)
    for (int t = 0; t < PER_STAGE; t++) {
      tensors[n] = (fixture_tensor){.dtype = "U8", .element = 1, .n_dims = 1, .shape = {size_of(s, t)}};
      snprintf(tensors[n++].name, sizeof tensors[0].name, "stage%d.tensor%d", s, t);
    }
  fixture_safetensors(scene.folder, name, tensors, n);
}

static int make_checkpoint(void **state) {
  (void)state;
  scene.folder = fixture_folder();
  char index[20000] = "{\"weight_map\":{", part[100], name[40];
  for (int f = 0; f < FILES; f++) write_shard(f);
  for (int s = 0; s < STAGES; s++)
    for (int t = 0; t < PER_STAGE; t++) {
      snprintf(part, sizeof part, "%s\"stage%d.tensor%d\":\"part-%d.safetensors\"", s + t ? "," : "", s, t, s % FILES);
      strcat(index, part);
    }
  strcat(index, "}}");
  fixture_text(scene.folder, "model.safetensors.index.json", index);
  expect_ok(mo_checkpoint_open(&scene.checkpoint, scene.folder));
  for (int s = 0; s < STAGES; s++) {
    mo_stage_catalogue *stage = &scene.stages[s];
    *stage = (mo_stage_catalogue){.entries = scene.entries[s], .n_entries = PER_STAGE};
    for (int t = 0; t < PER_STAGE; t++) {
      snprintf(name, sizeof name, "stage%d.tensor%d", s, t);
      const mo_tensor *tensor = mo_checkpoint_find(scene.checkpoint, name);
      assert_non_null(tensor);
      scene.entries[s][t] = (mo_entry){(mo_role)(MO_Q + t), -1, tensor, stage->arena_bytes};
      stage->bytes += tensor->bytes;
      stage->arena_bytes += (tensor->bytes + 255) / 256 * 256;
    }
    scene.order[s] = s;
    scene.total += stage->arena_bytes;
    if (stage->arena_bytes > scene.largest) scene.largest = stage->arena_bytes;
  }
  scene.catalogue = (mo_catalogue){.stages = scene.stages, .n_stages = STAGES};
  return 0;
}

static int remove_checkpoint(void **state) {
  (void)state;
  mo_checkpoint_close(scene.checkpoint);
  fixture_remove(scene.folder);
  return 0;
}

static mo_stream_plan plan_of(int64_t arena_bytes, int64_t chunk_bytes, int n_readers) {
  return (mo_stream_plan){.stages = scene.order,
                          .n_stages = STAGES,
                          .arena_bytes = arena_bytes,
                          .chunk_bytes = chunk_bytes,
                          .n_readers = n_readers};
}

static mo_streamer *open_streamer(fake *f, const mo_stream_plan *plan) {
  mo_streamer *streamer;
  expect_ok(mo_streamer_open(&streamer, plan, &scene.spec, &scene.catalogue, scene.checkpoint, &f->base));
  return streamer;
}

static const mo_stage_weights *acquired(mo_streamer *streamer, int64_t stage) {
  const mo_stage_weights *w;
  expect_ok(mo_streamer_acquire(streamer, stage, &w, NULL, NULL));
  assert_non_null(w);
  return w;
}

/* Every tensor of the stage has its bytes, inside the arena. */
static void verify(const fake *f, const mo_stage_weights *w, int64_t stage) {
  for (int t = 0; t < PER_STAGE; t++) {
    const mo_weight *v = &w->one[MO_Q + t];
    char name[40];
    snprintf(name, sizeof name, "stage%d.tensor%d", (int)stage, t);
    assert_int_equal(v->cols, size_of((int)stage, t));
    assert_true((const char *)v->data >= f->arena && (const char *)v->data + v->cols <= f->arena + f->arena_bytes);
    if (!fixture_equal(name, v->data, 0, v->cols)) fail_msg("wrong bytes in %s", name);
  }
}

/* Run the whole plan with `held` stages held at a time; each is verified when it arrives and before its release. */
static void stream_all(bool host_memory, int64_t arena_bytes, int64_t chunk_bytes, int n_readers, int held) {
  fake *f = fake_open(host_memory);
  mo_stream_plan plan = plan_of(arena_bytes, chunk_bytes, n_readers);
  mo_streamer *streamer = open_streamer(f, &plan);
  assert_true((int64_t)f->arena_bytes <= arena_bytes);
  const mo_stage_weights *weights[STAGES];
  for (int s = 0; s < STAGES + held - 1; s++) {
    if (s < STAGES) {
      weights[s] = acquired(streamer, s);
      verify(f, weights[s], s);
    }
    int oldest = s - held + 1;
    if (oldest < 0) continue;
    verify(f, weights[oldest], oldest);
    mo_streamer_release(streamer, oldest);
  }
  expect_ok(mo_streamer_check(streamer));
  for (int s = 0; s < STAGES; s++)
    assert_int_equal(mo_streamer_timing(streamer, s).bytes_read, scene.catalogue.stages[s].bytes);
  mo_streamer_close(streamer);
  fake_close(f);
}

/* --- tests --- */

static void every_byte_arrives(void **state) {
  (void)state;
  const int64_t arenas[] = {scene.largest, scene.largest * 3 / 2, scene.largest * 3 + 100, INT64_MAX};
  const int64_t chunks[] = {97, 1024, 0};
  const int readers[] = {1, 2, 5};
  for (int host = 0; host < 2; host++)
    for (int a = 0; a < 4; a++)
      for (int c = 0; c < 3; c++)
        for (int r = 0; r < 3; r++) stream_all(host, arenas[a], chunks[c], readers[r], 1);
}

static void held_stages_stay_whole(void **state) {
  (void)state;
  for (int host = 0; host < 2; host++)
    for (int held = 2; held <= 4; held++) stream_all(host, scene.largest * (2 * held - 1), 500, 3, held);
  stream_all(true, scene.total, 500, 2, STAGES);
}

static void arena_is_cut_to_the_plan(void **state) {
  (void)state;
  fake *f = fake_open(true);
  mo_stream_plan plan = plan_of(INT64_MAX, 0, 1);
  mo_streamer *streamer = open_streamer(f, &plan);
  assert_int_equal(f->arena_bytes, scene.total);
  mo_streamer_close(streamer);
  fake_close(f);
}

static void part_of_the_stages_in_any_order(void **state) {
  (void)state;
  const int64_t order[] = {7, 2, 23, 0};
  fake *f = fake_open(false);
  mo_stream_plan plan = plan_of(scene.largest, 300, 2);
  plan.stages = order;
  plan.n_stages = 4;
  mo_streamer *streamer = open_streamer(f, &plan);
  for (int i = 0; i < 4; i++) {
    verify(f, acquired(streamer, order[i]), order[i]);
    mo_streamer_release(streamer, order[i]);
  }
  expect_ok(mo_streamer_check(streamer));
  assert_int_equal(mo_streamer_timing(streamer, 5).bytes_read, 0);
  mo_streamer_close(streamer);
  fake_close(f);
}

static void no_stages(void **state) {
  (void)state;
  fake *f = fake_open(false);
  mo_stream_plan plan = {.n_readers = 1};
  mo_streamer *streamer = open_streamer(f, &plan);
  const mo_stage_weights *w;
  expect_error(mo_streamer_acquire(streamer, 0, &w, NULL, NULL), MO_FAILED, "out of the plan's order");
  expect_ok(mo_streamer_check(streamer));
  mo_streamer_close(streamer);
  assert_int_equal(f->n_alloc, 0);
  fake_close(f);
}

static void refused(const mo_stream_plan *plan, const char *part) {
  fake *f = fake_open(true);
  mo_streamer *streamer;
  expect_error(mo_streamer_open(&streamer, plan, &scene.spec, &scene.catalogue, scene.checkpoint, &f->base), MO_INVALID,
               part);
  assert_null(streamer);
  fake_close(f);
}

static void bad_plans(void **state) {
  (void)state;
  const int64_t beyond = STAGES;
  mo_stream_plan plan = plan_of(scene.largest - 1, 0, 1);
  refused(&plan, "raise engine.device_memory_gb");
  plan = plan_of(scene.total, 0, 0);
  refused(&plan, "0 reader threads");
  plan = plan_of(scene.total, -1, 1);
  refused(&plan, "negative");
  plan = plan_of(scene.total, 0, 1);
  plan.stages = &beyond;
  plan.n_stages = 1;
  refused(&plan, "stage 24: the model has 0 to 23");
}

static void order_of_acquisition(void **state) {
  (void)state;
  fake *f = fake_open(true);
  mo_stream_plan plan = plan_of(scene.total, 0, 2);
  mo_streamer *streamer = open_streamer(f, &plan);
  const mo_stage_weights *w;
  expect_error(mo_streamer_acquire(streamer, 1, &w, NULL, NULL), MO_FAILED,
               "stage 1 was acquired out of the plan's order");
  assert_null(w);
  acquired(streamer, 0);
  expect_error(mo_streamer_acquire(streamer, 0, &w, NULL, NULL), MO_FAILED,
               "stage 0 was acquired out of the plan's order");
  mo_streamer_close(streamer);
  fake_close(f);
}

static void order_of_release(void **state) {
  (void)state;
  fake *f = fake_open(true);
  mo_stream_plan plan = plan_of(scene.total, 0, 2);
  mo_streamer *streamer = open_streamer(f, &plan);
  acquired(streamer, 0);
  acquired(streamer, 1);
  mo_streamer_release(streamer, 1);
  const mo_stage_weights *w;
  expect_error(mo_streamer_acquire(streamer, 2, &w, NULL, NULL), MO_FAILED, "stage 1 was released out of order");
  assert_int_equal(mo_streamer_check(streamer), MO_FAILED);
  mo_streamer_close(streamer);
  fake_close(f);
}

/* Waiting for room that only the waiting thread could make must not hang. */
static void holding_more_than_fits(void **state) {
  (void)state;
  fake *f = fake_open(false);
  mo_stream_plan plan = plan_of(scene.largest, 0, 2);
  mo_streamer *streamer = open_streamer(f, &plan);
  const mo_stage_weights *w;
  int64_t held = 0;
  mo_status status;
  while ((status = mo_streamer_acquire(streamer, held, &w, NULL, NULL)) == MO_OK) held++;
  assert_in_range(held, 1, STAGES - 1);
  expect_error(status, MO_FAILED, "release them first");
  mo_streamer_release(streamer, 0); /* it goes on after a release of enough */
  for (int64_t s = 1; s < held; s++) mo_streamer_release(streamer, s);
  verify(f, acquired(streamer, held), held);
  mo_streamer_close(streamer);
  fake_close(f);
}

static void file_that_shrank(void **state) {
  (void)state;
  char path[512];
  fixture_path(path, scene.folder, "part-1.safetensors");
  for (int host = 0; host < 2; host++) {
    const mo_tensor *t = scene.entries[10][2].tensor;
    assert_int_equal(truncate(path, t->offset + 1), 0);
    fake *f = fake_open(host);
    mo_stream_plan plan = plan_of(scene.largest * 2, 256, 3);
    mo_streamer *streamer = open_streamer(f, &plan);
    const mo_stage_weights *w;
    mo_status status = MO_OK;
    int64_t stage = 0;
    for (; status == MO_OK; stage++) {
      status = mo_streamer_acquire(streamer, stage, &w, NULL, NULL);
      if (status == MO_OK) mo_streamer_release(streamer, stage);
    }
    assert_true(stage - 1 <= 10);
    assert_int_equal(mo_streamer_check(streamer), MO_FAILED);
    assert_non_null(strstr(mo_error_message(), path));
    assert_int_equal(mo_streamer_acquire(streamer, stage - 1, &w, NULL, NULL), MO_FAILED);
    mo_streamer_close(streamer); /* before the line is cleared: other readers may be about to fail too */
    expect_error(status, MO_FAILED, "ends at byte");
    fake_close(f);
    write_shard(1); /* as it was */
  }
}

static void fails_with(fake *f, const char *part) {
  mo_stream_plan plan = plan_of(scene.largest * 2, 256, 3);
  mo_streamer *streamer = open_streamer(f, &plan);
  const mo_stage_weights *w;
  mo_status status = MO_OK;
  for (int64_t s = 0; status == MO_OK; s++) {
    status = mo_streamer_acquire(streamer, s, &w, NULL, NULL);
    if (status == MO_OK) mo_streamer_release(streamer, s);
  }
  assert_int_equal(mo_streamer_check(streamer), MO_FAILED);
  mo_streamer_close(streamer);
  expect_error(status, MO_FAILED, part);
  fake_close(f);
}

static void failing_uploads(void **state) {
  (void)state;
  fake *f = fake_open(false);
  f->fail_upload = 40;
  fails_with(f, "upload 40 failed");
  f = fake_open(false);
  f->fail_wait = 40;
  fails_with(f, "copy 40 failed");
}

typedef struct {
  fake *f;
  int calls;
  int answer_after;
  mo_status answer;
} poll_state;

static mo_status count_polls(void *context) {
  poll_state *p = context;
  if (++p->calls < p->answer_after) return MO_OK;
  set_gate(p->f, false);
  return p->answer;
}

static void polls_while_waiting(void **state) {
  (void)state;
  fake *f = fake_open(false);
  set_gate(f, true);
  mo_stream_plan plan = plan_of(scene.total, 0, 2);
  mo_streamer *streamer = open_streamer(f, &plan);
  const mo_stage_weights *w;
  poll_state p = {f, 0, 5, MO_OK};
  expect_ok(mo_streamer_acquire(streamer, 0, &w, count_polls, &p));
  assert_true(p.calls >= 5);
  assert_true(mo_streamer_timing(streamer, 0).wait_seconds > 0);
  verify(f, w, 0);
  mo_streamer_close(streamer);
  fake_close(f);
}

static void poll_ends_the_wait(void **state) {
  (void)state;
  fake *f = fake_open(false);
  set_gate(f, true);
  mo_stream_plan plan = plan_of(scene.total, 0, 2);
  mo_streamer *streamer = open_streamer(f, &plan);
  const mo_stage_weights *w;
  poll_state p = {f, 0, 3, MO_PEER_FAILED};
  assert_int_equal(mo_streamer_acquire(streamer, 0, &w, count_polls, &p), MO_PEER_FAILED);
  assert_null(w);
  assert_int_equal(p.calls, 3);
  assert_string_equal(mo_error_message(), "");
  mo_streamer_close(streamer);
  fake_close(f);
}

static void unfinished_plan_fails_the_check(void **state) {
  (void)state;
  fake *f = fake_open(false);
  set_gate(f, true);
  mo_stream_plan plan = plan_of(scene.total, 0, 1);
  mo_streamer *streamer = open_streamer(f, &plan);
  expect_error(mo_streamer_check(streamer), MO_FAILED,
               "tensor \"stage0.tensor0\" was filled with 0 bytes instead of 1");
  set_gate(f, false);
  mo_streamer_close(streamer);
  fake_close(f);
}

/* A joined thread leaves /proc a moment after its join. */
static int threads_after_a_while(int expected) {
  int n = 0;
  for (int attempt = 0; attempt < 1000; attempt++) {
    DIR *tasks = opendir("/proc/self/task");
    assert_non_null(tasks);
    n = 0;
    for (struct dirent *e; (e = readdir(tasks));) n += e->d_name[0] != '.';
    closedir(tasks);
    if (n <= expected) break;
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
  return n;
}

static void closing_at_any_point(void **state) {
  (void)state;
  int before = threads_after_a_while(1);
  for (int host = 0; host < 2; host++)
    for (int stages = 0; stages < STAGES; stages++) {
      fake *f = fake_open(host);
      mo_stream_plan plan = plan_of(scene.largest * 2, 128, 4);
      mo_streamer *streamer = open_streamer(f, &plan);
      for (int s = 0; s < stages; s++) {
        acquired(streamer, s);
        if (s + 1 < stages) mo_streamer_release(streamer, s);
      }
      mo_streamer_close(streamer);
      fake_close(f);
    }
  assert_int_equal(threads_after_a_while(before), before);
  mo_streamer_close(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_byte_arrives),
      cmocka_unit_test(held_stages_stay_whole),
      cmocka_unit_test(arena_is_cut_to_the_plan),
      cmocka_unit_test(part_of_the_stages_in_any_order),
      cmocka_unit_test(no_stages),
      cmocka_unit_test(bad_plans),
      cmocka_unit_test(order_of_acquisition),
      cmocka_unit_test(order_of_release),
      cmocka_unit_test(holding_more_than_fits),
      cmocka_unit_test(file_that_shrank),
      cmocka_unit_test(failing_uploads),
      cmocka_unit_test(polls_while_waiting),
      cmocka_unit_test(poll_ends_the_wait),
      cmocka_unit_test(unfinished_plan_fails_the_check),
      cmocka_unit_test(closing_at_any_point),
  };
  return cmocka_run_group_tests(tests, make_checkpoint, remove_checkpoint);
}
