/* Time as the program measures it. */
#ifndef MOE_OUTLIERS_CLOCK_H
#define MOE_OUTLIERS_CLOCK_H

#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Seconds of CLOCK_MONOTONIC. */
double mo_seconds(void);
/* The time of CLOCK_MONOTONIC that many seconds from now, for a timed wait on a condition of mo_condition_open. */
struct timespec mo_deadline(double seconds);

#ifdef __cplusplus
}
#endif
#endif
