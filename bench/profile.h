/* Times of a backend's operations, summed by name. One backend of the program can be timed. */
#ifndef MO_BENCH_PROFILE_H
#define MO_BENCH_PROFILE_H

#include "moe_outliers/backend.h"

enum { PROFILE_OPERATIONS = 21 };

typedef struct {
  char name[24];
  double seconds;
  int64_t calls;
} profile_entry;

/* From now on the backend's operations are timed. wait: each is followed by a wait for its end, so that times are those of the
 * operations; else they are those of the calls, what the host spends to enqueue or to wait in them. A workspace opened before
 * keeps the plain operations. */
void profile_begin(mo_backend *backend, bool wait);
/* [PROFILE_OPERATIONS], those not called with 0 calls. */
const profile_entry *profile_entries(void);

#endif
