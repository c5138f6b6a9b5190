#include "moe_outliers/status.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  char message[2048];
  const char *file;
  int line;
} error_record;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static error_record of_process;
static _Thread_local error_record of_thread;
static _Thread_local error_record *own; /* NULL: the process's */

static error_record *current(void) { return own ? own : &of_process; }

void mo_error_of_thread(void) { own = &of_thread; }

mo_status mo_error_set(mo_status code, const char *file, int line, const char *format, ...) {
  error_record *record = current();
  pthread_mutex_lock(&lock);
  if (record->message[0] == '\0') {
    va_list args;
    va_start(args, format);
    int length = vsnprintf(record->message, sizeof record->message, format, args);
    va_end(args);
    if (length >= (int)sizeof record->message) memcpy(record->message + sizeof record->message - 4, "...", 4);
    for (char *c = record->message; *c; c++)
      if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    if (record->message[0] == '\0') snprintf(record->message, sizeof record->message, "error with no text");
    record->file = file;
    record->line = line;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

const char *mo_error_message(void) { return current()->message; }

const char *mo_error_origin(int *line) {
  const error_record *record = current();
  *line = record->line;
  return record->file ? record->file : "";
}

void mo_error_clear(void) {
  error_record *record = current();
  pthread_mutex_lock(&lock);
  record->message[0] = '\0';
  record->file = NULL;
  record->line = 0;
  pthread_mutex_unlock(&lock);
}

const char *mo_plural(int64_t n) { return n == 1 ? "" : "s"; }

static void *checked(void *pointer, size_t count, size_t size) {
  if (!pointer)
    (void)MO_FAIL(MO_FAILED, "out of memory (%zu x %zu bytes): use fewer sequences, more ranks or a larger machine",
                  count, size);
  return pointer;
}

void *mo_alloc(size_t count, size_t size) {
  return checked(count && size ? calloc(count, size) : calloc(1, 1), count, size);
}

void *mo_realloc(void *pointer, size_t count, size_t size) {
  if (size && count > (size_t)-1 / size) return checked(NULL, count, size);
  return checked(realloc(pointer, count && size ? count * size : 1), count, size);
}

char *mo_strdup(const char *text) {
  size_t n = strlen(text) + 1;
  char *copy = mo_alloc(n, 1);
  if (copy) memcpy(copy, text, n);
  return copy;
}

char *mo_folder_of(const char *path) {
  const char *slash = strrchr(path, '/');
  char *folder = mo_strdup(!slash ? "." : slash == path ? "/" : path);
  if (folder && slash && slash != path) folder[slash - path] = '\0';
  return folder;
}
