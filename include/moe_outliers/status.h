/* Status codes and the one error record of a process.
 *
 * A fallible function returns mo_status. The first finder of an error fills the record with one line in the form
 * `WHAT (WHERE): what to do`; callers pass the code up with MO_TRY. Library code neither prints nor exits: main prints
 * the record once and returns the code. */
#ifndef MOE_OUTLIERS_STATUS_H
#define MOE_OUTLIERS_STATUS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  MO_OK = 0,
  MO_FAILED = 1,      /* failed while running; also the exit status */
  MO_INVALID = 2,     /* wrong usage, config or input: nothing was started, nothing written; also the exit status */
  MO_PEER_FAILED = 3, /* another rank failed and reports it: unwind silently, exit status 1 */
  MO_STOPPED = 4,     /* asked to stop, on this rank or another: what is done is saved; exit status 75 (try again) */
} mo_status;

#define MO_CHECKED __attribute__((warn_unused_result))

/* Fill the error record unless it is filled already (the first error is the cause, later ones its echo).
 * format: one printf line `WHAT (WHERE): what to do`; control characters in the result are replaced by '?'.
 * Thread-safe. Returns code, so that `return MO_FAIL(MO_INVALID, "...")` reads well. */
mo_status mo_error_set(mo_status code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#define MO_FAIL(code, ...) mo_error_set((code), __FILE__, __LINE__, __VA_ARGS__)

/* Pass a failure up. */
#define MO_TRY(expression)                              \
  do {                                                  \
    mo_status mo_try_status_ = (expression);            \
    if (mo_try_status_ != MO_OK) return mo_try_status_; \
  } while (0)

/* Pass a failure up through a cleanup label: `status` holds the code there. */
#define MO_TRY_TO(label, expression) \
  do {                               \
    status = (expression);           \
    if (status != MO_OK) goto label; \
  } while (0)

/* The recorded line without a newline, "" if none. Valid until mo_error_clear. */
const char *mo_error_message(void);

/* Source file and line that filled the record ("" and 0 if none), for MOE_OUTLIERS_DEBUG=1. */
const char *mo_error_origin(int *line);

void mo_error_clear(void);

/* From now on the calling thread has an error record of its own: for threads whose work fails apart from each other's. */
void mo_error_of_thread(void);

/* "s", and "" for 1: mo_plural(n) behind "layer" in a message about n of them. */
const char *mo_plural(int64_t n);

/* malloc/calloc/realloc/strdup that fill the record (MO_FAILED, naming the size) and return NULL on failure.
 * mo_alloc returns zeroed memory; a size of 0 gives a unique pointer. Free with free(). */
void *mo_alloc(size_t count, size_t size);
void *mo_realloc(void *pointer, size_t count, size_t size);
char *mo_strdup(const char *text);
/* The folder part of a path, "." if it has none; likewise. */
char *mo_folder_of(const char *path);

#ifdef __cplusplus
}
#endif
#endif
