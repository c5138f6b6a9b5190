/* How the streamer reads: in long ranges over several tensors, past the page cache where that is empty, within its
 * bound of host memory; and what verify compares. */
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>

#include "test_weights_fake.h"

enum { TENSORS = 40, FILES = 2, MIB = 1 << 20 };

/* One stage of tensors in two files. Sizes are multiples of 256, so that all of a file is one range, but for one
 * tensor. */
static struct {
  char *folder;
  mo_checkpoint *checkpoint;
  fixture_tensor tensors[TENSORS];
  mo_entry entries[TENSORS];
  mo_stage_catalogue stage;
  mo_catalogue catalogue;
  mo_model_spec spec;
} scene;

static const int64_t first_stage = 0;

static int64_t size_of(int t) { return t == 7 ? 3333 : 256 * (1 + t * 37 % 101); }

static void path_of(char path[static 512], int file) {
  fixture_path(path, scene.folder, file ? "b.safetensors" : "a.safetensors");
}

static void write_file(int file) {
  int first = file * TENSORS / FILES, n = TENSORS / FILES;
  fixture_safetensors(scene.folder, file ? "b.safetensors" : "a.safetensors", scene.tensors + first, (size_t)n);
}

static int make_checkpoint(void **state) {
  (void)state;
  scene.folder = fixture_folder();
  char index[20000] = "{\"weight_map\":{", part[100];
  for (int t = 0; t < TENSORS; t++) {
    scene.tensors[t] = (fixture_tensor){.dtype = "U8", .element = 1, .n_dims = 1, .shape = {size_of(t)}};
    snprintf(scene.tensors[t].name, sizeof scene.tensors[t].name, "tensor%02d", t);
    snprintf(part, sizeof part, "%s\"tensor%02d\":\"%c.safetensors\"", t ? "," : "", t,
             t < TENSORS / FILES ? 'a' : 'b');
    strcat(index, part);
  }
  strcat(index, "}}");
  fixture_text(scene.folder, "model.safetensors.index.json", index);
  for (int file = 0; file < FILES; file++) write_file(file);
  expect_ok(mo_checkpoint_open(&scene.checkpoint, scene.folder));
  scene.stage = (mo_stage_catalogue){.entries = scene.entries, .n_entries = TENSORS};
  for (int t = 0; t < TENSORS; t++) {
    const mo_tensor *tensor = mo_checkpoint_find(scene.checkpoint, scene.tensors[t].name);
    assert_non_null(tensor);
    scene.entries[t] = (mo_entry){MO_Q, -1, tensor, scene.stage.arena_bytes};
    scene.stage.bytes += tensor->bytes;
    scene.stage.arena_bytes += (tensor->bytes + 255) / 256 * 256;
  }
  scene.catalogue = (mo_catalogue){.stages = &scene.stage, .n_stages = 1};
  return 0;
}

static int remove_checkpoint(void **state) {
  (void)state;
  mo_checkpoint_close(scene.checkpoint);
  fixture_remove(scene.folder);
  return 0;
}

static mo_stream_plan plan_of(int64_t chunk_bytes, int n_readers) {
  return (mo_stream_plan){.stages = &first_stage,
                          .n_stages = 1,
                          .arena_bytes = scene.stage.arena_bytes,
                          .chunk_bytes = chunk_bytes,
                          .n_readers = n_readers};
}

static mo_streamer *open_streamer(fake *f, const mo_stream_plan *plan) {
  mo_streamer *streamer;
  expect_ok(mo_streamer_open(&streamer, plan, &scene.spec, &scene.catalogue, scene.checkpoint, &f->base));
  return streamer;
}

/* Stream the stage and compare every byte. *timing and the number of uploads: of this pass. */
static int64_t stream(bool host_memory, const mo_stream_plan *plan, mo_stream_timing *timing) {
  fake *f = fake_open(host_memory);
  mo_streamer *streamer = open_streamer(f, plan);
  const mo_stage_weights *weights;
  expect_ok(mo_streamer_acquire(streamer, 0, &weights, NULL, NULL));
  for (int t = 0; t < TENSORS; t++)
    if (!fixture_equal(scene.tensors[t].name, f->arena + scene.entries[t].arena_offset, 0, size_of(t)))
      fail_msg("wrong bytes in %s", scene.tensors[t].name);
  mo_streamer_release(streamer, 0);
  expect_ok(mo_streamer_check(streamer));
  *timing = mo_streamer_timing(streamer, 0);
  assert_int_equal(timing->bytes_read, scene.stage.bytes);
  int64_t uploads = f->n_uploads;
  mo_streamer_close(streamer);
  fake_close(f);
  return uploads;
}

static void tensors_side_by_side_are_read_together(void **state) {
  (void)state;
  mo_stream_timing timing;
  mo_stream_plan plan = plan_of(0, 3);
  assert_int_equal(stream(false, &plan, &timing), 3); /* a up to tensor 7; a behind it; b */
  const int64_t chunks[] = {100, 4096, 8192, 10000, 65536};
  for (int c = 0; c < 5; c++)
    for (int host = 0; host < 2; host++) {
      plan = plan_of(chunks[c], 2);
      int64_t uploads = stream(host, &plan, &timing), most = scene.stage.bytes / 4096 + 8;
      if (chunks[c] < 4096) most += scene.stage.bytes / chunks[c];
      assert_true(host ? uploads == 0 : uploads >= scene.stage.bytes / chunks[c] && uploads <= most);
    }
}

/* Take the files from the page cache; false where the file system does not read past it. */
static bool make_cold(void) {
  for (int file = 0; file < FILES; file++) {
    char path[512];
    path_of(path, file);
    int direct = open(path, O_RDONLY | O_DIRECT), fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fsync(fd), 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    char *block = aligned_alloc(4096, 4096);
    bool works = direct >= 0 && pread(direct, block, 4096, 0) > 0;
    free(block);
    if (direct >= 0) close(direct);
    close(fd);
    if (!works) return false;
  }
  return true;
}

static void past_the_page_cache(void **state) {
  (void)state;
  const int64_t chunks[] = {4096, 12288, 0};
  for (int c = 0; c < 3; c++)
    for (int readers = 1; readers <= 9; readers += 4) {
      mo_stream_plan plan = plan_of(chunks[c], readers);
      mo_stream_timing timing;
      if (!make_cold()) skip();
      stream(false, &plan, &timing);
      if (timing.bytes_direct == 0) skip(); /* a file system whose pages stay, or one that is not asked */
      assert_true(timing.bytes_direct <= scene.stage.bytes);
      if (!make_cold()) skip();
      stream(true, &plan, &timing);
      assert_int_equal(timing.bytes_direct, 0); /* the backend's memory has no room for whole blocks */
    }
}

static void from_the_page_cache(void **state) {
  (void)state;
  mo_stream_plan plan = plan_of(4096, 2);
  mo_stream_timing timing;
  stream(true, &plan, &timing);
  stream(false, &plan, &timing);
  assert_int_equal(timing.bytes_direct, 0);
}

static void a_file_that_shrank_past_the_page_cache(void **state) {
  (void)state;
  char path[512], part[600];
  path_of(path, 1);
  const mo_tensor *t = scene.entries[TENSORS - 5].tensor;
  assert_int_equal(truncate(path, t->offset + 1), 0);
  make_cold();
  fake *f = fake_open(false);
  mo_stream_plan plan = plan_of(8192, 3);
  mo_streamer *streamer = open_streamer(f, &plan);
  const mo_stage_weights *weights;
  mo_status status = mo_streamer_acquire(streamer, 0, &weights, NULL, NULL);
  mo_streamer_close(streamer);
  snprintf(part, sizeof part, "file %s ends at byte ", path);
  expect_error(status, MO_FAILED, part);
  fake_close(f);
  write_file(1);
}

static void verified(void **state) {
  (void)state;
  mo_stream_timing timing;
  for (int host = 0; host < 2; host++) {
    mo_stream_plan plan = plan_of(host ? 0 : 5000, 3);
    plan.verify = true;
    stream(host, &plan, &timing);
  }
}

static void verify_finds_a_wrong_byte(void **state) {
  (void)state;
  fake *f = fake_open(false);
  f->corrupt_upload = 2; /* one reader: the third piece of the first file */
  mo_stream_plan plan = plan_of(8192, 1);
  plan.verify = true;
  mo_streamer *streamer = open_streamer(f, &plan);
  const mo_stage_weights *weights;
  mo_status status = mo_streamer_acquire(streamer, 0, &weights, NULL, NULL);
  assert_null(weights);
  mo_streamer_close(streamer);
  assert_non_null(strstr(mo_error_message(), "a.safetensors (engine.verify): run again"));
  expect_error(status, MO_FAILED, "in memory differs from its bytes in file");
  fake_close(f);
}

static void stalled(void **state) {
  (void)state;
  fake *f = fake_open(false);
  set_gate(f, true);
  mo_stream_plan plan = plan_of(4096, 2);
  mo_streamer *streamer = open_streamer(f, &plan);
  double seconds = 0;
  for (int i = 0; i < 5000 && seconds < 0.05; i++) {
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    seconds = mo_streamer_state(streamer).stalled;
  }
  assert_true(seconds >= 0.05);
  set_gate(f, false);
  const mo_stage_weights *weights;
  expect_ok(mo_streamer_acquire(streamer, 0, &weights, NULL, NULL));
  assert_true(mo_streamer_state(streamer).stalled == 0);
  mo_streamer_close(streamer);
  fake_close(f);
}

static void rings(void **state) {
  (void)state;
  mo_stream_plan plan = {.n_readers = 16};
  mo_stream_ring ring = mo_stream_ring_of(&plan);
  assert_int_equal(ring.n_readers, 16);
  assert_int_equal(ring.n_buffers, 3);
  assert_int_equal(ring.chunk_bytes, 4 * MIB);
  assert_int_equal(mo_stream_host_bytes(&plan, false), 16 * (3 * 4 * MIB + 4096));
  assert_int_equal(mo_stream_host_bytes(&plan, true), 0);
  plan.verify = true;
  assert_int_equal(mo_stream_host_bytes(&plan, true), 16 * 256 * 1024);
  int64_t before = INT64_MAX;
  for (int64_t bound = 1000 * MIB; bound > MIB; bound = bound * 3 / 4) {
    plan.host_bytes = bound;
    ring = mo_stream_ring_of(&plan);
    int64_t bytes = mo_stream_host_bytes(&plan, false);
    assert_true(bytes <= bound && bytes <= before);
    assert_true(ring.n_readers >= 1 && ring.n_buffers >= 2 && ring.chunk_bytes >= 256 * 1024);
    before = bytes;
  }
  plan.host_bytes = 1;
  assert_true(mo_stream_host_bytes(&plan, false) <= MIB);
  plan.host_bytes = 70 * MIB;
  plan.verify = false;
  ring = mo_stream_ring_of(&plan);
  assert_int_equal(ring.n_readers, 16); /* chunks give way first */
  assert_int_equal(ring.chunk_bytes, 2 * MIB);
}

static void the_bound_holds(void **state) {
  (void)state;
  for (int verify = 0; verify < 2; verify++) {
    fake *f = fake_open(false);
    mo_stream_plan plan = plan_of(0, 7);
    plan.host_bytes = 2 * MIB;
    plan.verify = verify;
    mo_streamer *streamer = open_streamer(f, &plan);
    const mo_stage_weights *weights;
    expect_ok(mo_streamer_acquire(streamer, 0, &weights, NULL, NULL));
    mo_streamer_release(streamer, 0);
    expect_ok(mo_streamer_check(streamer));
    mo_streamer_close(streamer);
    assert_true((int64_t)f->host_bytes <= mo_stream_host_bytes(&plan, false) && f->host_bytes <= 2 * MIB);
    fake_close(f);
  }
}

static void sums_of_parts(void **state) {
  (void)state;
  uint8_t bytes[201];
  for (int i = 0; i < 201; i++) bytes[i] = fixture_byte("sum", i);
  uint64_t whole = mo_tensor_sum(bytes, 0, 201);
  for (int a = 0; a <= 201; a++)
    for (int b = a; b <= 201; b += 7)
      assert_true(whole == mo_tensor_sum(bytes + b, b, 201 - b) + mo_tensor_sum(bytes, 0, a) +
                               mo_tensor_sum(bytes + a, a, b - a));
  for (int i = 0; i < 201; i++) { /* every byte counts, and so does its place */
    bytes[i] ^= 0x40;
    assert_true(mo_tensor_sum(bytes, 0, 201) != whole);
    bytes[i] ^= 0x40;
    uint8_t kept = bytes[i];
    bytes[i] = bytes[(i + 64) % 201];
    bytes[(i + 64) % 201] = kept;
    assert_true(bytes[i] == kept || mo_tensor_sum(bytes, 0, 201) != whole);
    bytes[(i + 64) % 201] = bytes[i];
    bytes[i] = kept;
  }
  assert_true(mo_tensor_sum(bytes, 0, 0) == 0);
  memset(bytes, 0, sizeof bytes);
  bytes[8] = 1; /* factors are odd: the sum of a one is not even */
  assert_true(mo_tensor_sum(bytes, 0, 201) % 2 == 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tensors_side_by_side_are_read_together),
      cmocka_unit_test(past_the_page_cache),
      cmocka_unit_test(from_the_page_cache),
      cmocka_unit_test(a_file_that_shrank_past_the_page_cache),
      cmocka_unit_test(verified),
      cmocka_unit_test(verify_finds_a_wrong_byte),
      cmocka_unit_test(stalled),
      cmocka_unit_test(rings),
      cmocka_unit_test(the_bound_holds),
      cmocka_unit_test(sums_of_parts),
  };
  return cmocka_run_group_tests(tests, make_checkpoint, remove_checkpoint);
}
