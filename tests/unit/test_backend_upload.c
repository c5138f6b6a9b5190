/* Uploads and checksums of a backend: bytes arrive whole from many threads at once, and their sum is that of the host.
 * backends: cpu check cuda */
#include <pthread.h>

#include "test_backend_fixture.h"

enum { LARGEST = 3000001, THREADS = 6, COPIES = 40, DEPTH = 3, PART = 5000 };

static unsigned char *noise(int64_t bytes) {
  unsigned char *data = host_memory(bytes, 1);
  uint64_t state = test_random | 1;
  for (int64_t i = 0; i < bytes; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    data[i] = (unsigned char)(state >> 56);
  }
  return data;
}

static uint64_t sum_of(const void *memory, int64_t bytes) {
  uint64_t sum;
  ok(op->checksum(be, memory, (size_t)bytes, &sum));
  return sum;
}

/* The definition, word by word. */
static void sums_of_every_size(void **state) {
  (void)state;
  const int64_t sizes[] = {0, 1, 7, 8, 9, 255, 256, 257, 2048, 4099, 65536, 1 << 20, (1 << 20) + 5, LARGEST};
  unsigned char *data = noise(LARGEST);
  void *memory = device_memory(LARGEST);
  int64_t ticket;
  ok(op->upload(be, memory, data, LARGEST, &ticket));
  ok(op->upload_wait(be, ticket));
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    assert_true(sum_of(memory, sizes[i]) == mo_tensor_sum(data, 0, sizes[i]));
  assert_true(sum_of((char *)memory + 8, 1000) == mo_tensor_sum(data + 8, 0, 1000));
}

static void a_bit_shows(void **state) {
  (void)state;
  const int64_t places[] = {0, 8, 4095, LARGEST / 2, LARGEST - 1};
  unsigned char *data = noise(LARGEST);
  void *memory = device_memory(LARGEST);
  int64_t ticket;
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    uint64_t right = mo_tensor_sum(data, 0, LARGEST);
    data[places[i]] ^= 0x10;
    ok(op->upload(be, memory, data, LARGEST, &ticket));
    ok(op->upload_wait(be, ticket));
    data[places[i]] ^= 0x10;
    assert_true(sum_of(memory, LARGEST) != right);
  }
}

typedef struct {
  pthread_t thread;
  const unsigned char *source; /* [COPIES, PART] */
  char *target;
  mo_status status;
} uploader;

/* As a reader does: a few copies on their way, each buffer filled again after its copy. */
static mo_status upload_parts(const uploader *u) {
  void *block;
  int64_t tickets[DEPTH];
  mo_status status = op->alloc_host(be, DEPTH * PART, &block);
  if (status != MO_OK) return status;
  for (int i = 0; status == MO_OK && i < COPIES + DEPTH; i++) {
    char *buffer = (char *)block + i % DEPTH * PART;
    if (i >= DEPTH) status = op->upload_wait(be, tickets[i % DEPTH]);
    if (status != MO_OK || i >= COPIES) continue;
    memcpy(buffer, u->source + (int64_t)i * PART, PART);
    status = op->upload(be, u->target + (int64_t)i * PART, buffer, PART, &tickets[i % DEPTH]);
  }
  op->free_host(be, block);
  return status;
}

static void *run_uploader(void *argument) {
  uploader *u = argument;
  u->status = upload_parts(u);
  return NULL;
}

static void many_threads(void **state) {
  (void)state;
  const int64_t bytes = THREADS * COPIES * PART;
  unsigned char *data = noise(bytes), *back = host_memory(bytes, 1);
  char *memory = device_memory((size_t)bytes);
  uploader uploaders[THREADS];
  for (int i = 0; i < THREADS; i++) {
    int64_t offset = (int64_t)i * COPIES * PART;
    uploaders[i] = (uploader){.source = data + offset, .target = memory + offset};
    assert_int_equal(pthread_create(&uploaders[i].thread, NULL, run_uploader, &uploaders[i]), 0);
  }
  for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_join(uploaders[i].thread, NULL), 0);
  for (int i = 0; i < THREADS; i++) ok(uploaders[i].status);
  ok(op->download(be, memory, (size_t)bytes, back));
  assert_memory_equal(back, data, (size_t)bytes);
  assert_true(sum_of(memory, bytes) == mo_tensor_sum(data, 0, bytes));
}

int main(int argc, char **argv) {
  int skipped = choose_backend(argc, argv);
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {VARIANTS(sums_of_every_size), VARIANTS(a_bit_shows), VARIANTS(many_threads)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
