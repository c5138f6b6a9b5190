/* Private to http.c: how long to wait before a request is tried again. */
#ifndef MO_POD_HTTP_WAIT_H
#define MO_POD_HTTP_WAIT_H

/* Seconds until all windows that a RateLimit header says are used up are open again, e.g. `"minute";r=0;t=12,
 * "hour";r=5;t=99`; 0: none is. */
double pod_rate_limit(const char *value);
/* Seconds before attempt number `attempt` (1: the second) is made: doubling, at most 30, with jitter. */
double pod_backoff(int attempt, unsigned *random);

#endif
