/* Safetensors files for the tests of the weights room: written by code of their own, into a temporary folder, with
 * bytes that follow from tensor name and position, so that a test knows what must arrive where. */
#ifndef TEST_WEIGHTS_FIXTURE_H
#define TEST_WEIGHTS_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe_outliers/status.h"
#include "moe_outliers/weights.h"

typedef struct {
  char name[160];
  const char *dtype;
  int64_t element; /* bytes */
  int32_t n_dims;
  int64_t shape[4];
} fixture_tensor;

/* The byte at position i of a tensor's data (FNV-1a of the name, mixed with the position). */
static inline uint8_t fixture_byte(const char *name, int64_t i) {
  uint64_t h = 1469598103934665603ull;
  for (const char *c = name; *c; c++) h = (h ^ (uint8_t)*c) * 1099511628211ull;
  h = (h ^ (uint64_t)i) * 0x9e3779b97f4a7c15ull;
  return (uint8_t)(h >> 56);
}

static inline int64_t fixture_bytes(const fixture_tensor *t) {
  int64_t bytes = t->element;
  for (int32_t d = 0; d < t->n_dims; d++) bytes *= t->shape[d];
  return bytes;
}

static inline char *fixture_folder(void) {
  char *path = strdup("weights-XXXXXX");
  assert_non_null(path);
  assert_non_null(mkdtemp(path));
  return path;
}

static inline int fixture_unlink(const char *path, const struct stat *info, int kind, struct FTW *where) {
  (void)info;
  (void)kind;
  (void)where;
  return remove(path);
}

static inline void fixture_remove(char *folder) {
  assert_int_equal(nftw(folder, fixture_unlink, 8, FTW_DEPTH | FTW_PHYS), 0);
  free(folder);
}

static inline void fixture_path(char path[static 512], const char *folder, const char *name) {
  assert_true(snprintf(path, 512, "%s/%s", folder, name) < 512);
}

static inline void fixture_file(const char *folder, const char *name, const void *bytes, size_t n) {
  char path[512];
  fixture_path(path, folder, name);
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(bytes, 1, n, f), n);
  assert_int_equal(fclose(f), 0);
}

static inline void fixture_text(const char *folder, const char *name, const char *text) {
  fixture_file(folder, name, text, strlen(text));
}

/* A file of header length, header and `data_bytes` zeros. */
static inline void fixture_header(const char *folder, const char *name, const char *json, size_t data_bytes) {
  size_t n = strlen(json);
  uint8_t *bytes = calloc(1, 8 + n + data_bytes);
  assert_non_null(bytes);
  for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(n >> 8 * i);
  memcpy(bytes + 8, json, n);
  fixture_file(folder, name, bytes, 8 + n + data_bytes);
  free(bytes);
}

/* A valid file with the tensors in the given order. */
static inline void fixture_safetensors(const char *folder, const char *name, const fixture_tensor *tensors, size_t n) {
  char *json = NULL, path[512];
  size_t size = 0;
  FILE *header = open_memstream(&json, &size);
  assert_non_null(header);
  fputs("{\"__metadata__\":{\"format\":\"pt\"}", header);
  int64_t offset = 0;
  for (size_t i = 0; i < n; i++) {
    fprintf(header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensors[i].name, tensors[i].dtype);
    for (int32_t d = 0; d < tensors[i].n_dims; d++) fprintf(header, "%s%" PRId64, d ? "," : "", tensors[i].shape[d]);
    int64_t end = offset + fixture_bytes(&tensors[i]);
    fprintf(header, "],\"data_offsets\":[%" PRId64 ",%" PRId64 "]}", offset, end);
    offset = end;
  }
  fputs("}", header);
  assert_int_equal(fclose(header), 0);
  fixture_header(folder, name, json, 0);
  free(json);
  fixture_path(path, folder, name);
  FILE *f = fopen(path, "ab");
  assert_non_null(f);
  for (size_t i = 0; i < n; i++)
    for (int64_t b = 0; b < fixture_bytes(&tensors[i]); b++) fputc(fixture_byte(tensors[i].name, b), f);
  assert_int_equal(fclose(f), 0);
}

static inline bool fixture_equal(const char *name, const void *data, int64_t offset, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i++)
    if (((const uint8_t *)data)[i] != fixture_byte(name, offset + i)) return false;
  return true;
}

/* The status and a part of the error line, which is then cleared. */
static inline void expect_error(mo_status status, mo_status code, const char *part) {
  if (!strstr(mo_error_message(), part)) fail_msg("\"%s\" is not in \"%s\"", part, mo_error_message());
  assert_int_equal(status, code);
  mo_error_clear();
}

static inline void expect_ok(mo_status status) {
  if (status != MO_OK) fail_msg("status %d: %s", (int)status, mo_error_message());
}

#endif
