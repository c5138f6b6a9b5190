/* A backend for tests of the streamer. Its staged form copies as late as the contract allows, in upload_wait, so that
 * a staging buffer reused too early brings wrong bytes. */
#ifndef TEST_WEIGHTS_FAKE_H
#define TEST_WEIGHTS_FAKE_H

#include <pthread.h>

#include "moe_outliers/backend.h"
#include "test_weights_fixture.h"

enum { MAX_UPLOADS = 100000 };

typedef struct {
  mo_backend base; /* first: a backend begins with its table */
  mo_backend_table table;
  pthread_mutex_t lock;
  pthread_cond_t opened;
  bool gate_closed;               /* upload_wait blocks meanwhile */
  int64_t fail_upload, fail_wait; /* ticket that fails, -1: none */
  struct {
    void *destination;
    const void *host;
    size_t bytes;
  } uploads[MAX_UPLOADS];
  int64_t n_uploads;
  char *arena;
  size_t arena_bytes;
  int n_alloc, n_free, n_alloc_host, n_free_host;
  size_t host_bytes;      /* of all alloc_host */
  int64_t corrupt_upload; /* ticket whose first byte arrives wrong, -1: none */
} fake;

static inline mo_status fake_alloc(mo_backend *backend, size_t bytes, void **memory) {
  fake *f = (fake *)backend;
  *memory = f->arena = aligned_alloc(256, bytes);
  assert_non_null(f->arena);
  memset(f->arena, 0xee, bytes);
  f->arena_bytes = bytes;
  f->n_alloc++;
  return MO_OK;
}

static inline void fake_free(mo_backend *backend, void *memory) {
  ((fake *)backend)->n_free++;
  free(memory);
}

static inline mo_status fake_alloc_host(mo_backend *backend, size_t bytes, void **memory) {
  fake *f = (fake *)backend;
  pthread_mutex_lock(&f->lock); /* readers make their own buffers */
  f->n_alloc_host++;
  f->host_bytes += bytes;
  pthread_mutex_unlock(&f->lock);
  *memory = malloc(bytes);
  return *memory ? MO_OK : MO_FAILED;
}

static inline void fake_free_host(mo_backend *backend, void *memory) {
  ((fake *)backend)->n_free_host++;
  free(memory);
}

static inline mo_status fake_upload(mo_backend *backend, void *destination, const void *host, size_t bytes,
                                    int64_t *ticket) {
  fake *f = (fake *)backend;
  pthread_mutex_lock(&f->lock);
  *ticket = f->n_uploads++;
  bool inside = (char *)destination >= f->arena && (char *)destination + bytes <= f->arena + f->arena_bytes;
  bool good = *ticket < MAX_UPLOADS && *ticket != f->fail_upload && inside;
  if (good) {
    f->uploads[*ticket].destination = destination;
    f->uploads[*ticket].host = host;
    f->uploads[*ticket].bytes = bytes;
  }
  pthread_mutex_unlock(&f->lock);
  return good ? MO_OK : MO_FAIL(MO_FAILED, "upload %d failed (fake): nothing to do", (int)*ticket);
}

static inline mo_status fake_upload_wait(mo_backend *backend, int64_t ticket) {
  fake *f = (fake *)backend;
  pthread_mutex_lock(&f->lock);
  while (f->gate_closed) pthread_cond_wait(&f->opened, &f->lock);
  if (ticket == f->fail_wait) {
    pthread_mutex_unlock(&f->lock);
    return MO_FAIL(MO_FAILED, "copy %d failed (fake): nothing to do", (int)ticket);
  }
  memcpy(f->uploads[ticket].destination, f->uploads[ticket].host, f->uploads[ticket].bytes);
  if (ticket == f->corrupt_upload) *(char *)f->uploads[ticket].destination ^= 1;
  pthread_mutex_unlock(&f->lock);
  return MO_OK;
}

static inline mo_status fake_checksum(mo_backend *backend, const void *memory, size_t bytes, uint64_t *sum) {
  (void)backend;
  *sum = mo_tensor_sum(memory, 0, (int64_t)bytes);
  return MO_OK;
}

static inline fake *fake_open(bool host_memory) {
  fake *f = calloc(1, sizeof *f);
  assert_non_null(f);
  f->table = (mo_backend_table){.name = "fake",
                                .host_memory = host_memory,
                                .alloc = fake_alloc,
                                .free = fake_free,
                                .alloc_host = fake_alloc_host,
                                .free_host = fake_free_host,
                                .upload = fake_upload,
                                .upload_wait = fake_upload_wait,
                                .checksum = fake_checksum};
  f->base.table = &f->table;
  f->fail_upload = f->fail_wait = f->corrupt_upload = -1;
  pthread_mutex_init(&f->lock, NULL);
  pthread_cond_init(&f->opened, NULL);
  return f;
}

static inline void set_gate(fake *f, bool closed) {
  pthread_mutex_lock(&f->lock);
  f->gate_closed = closed;
  pthread_cond_broadcast(&f->opened);
  pthread_mutex_unlock(&f->lock);
}

/* All its memory was given back. */
static inline void fake_close(fake *f) {
  assert_int_equal(f->n_alloc, f->n_free);
  assert_int_equal(f->n_alloc_host, f->n_free_host);
  pthread_mutex_destroy(&f->lock);
  pthread_cond_destroy(&f->opened);
  free(f);
}

#endif
