/* How long to wait before an HTTP request is tried again. */
#ifndef MO_COMMON_PATIENCE_H
#define MO_COMMON_PATIENCE_H

#include <time.h>

/* Seconds that a Retry-After header asks for, given as seconds or as an HTTP date (RFC 9110, 10.2.3); -1: not understood. */
double mo_retry_after(const char *value, time_t now);

/* Seconds to wait after `failures` (1 and up): 0.25, doubling, at most 30. Callers take a random part of it, so that those that
 * failed together part. */
double mo_backoff(int failures);

#endif
