#include "moe_outliers/clock.h"

#define NANOSECONDS 1000000000

double mo_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct timespec mo_deadline(double seconds) {
  struct timespec t;
  time_t whole = (time_t)seconds;
  clock_gettime(CLOCK_MONOTONIC, &t);
  t.tv_sec += whole;
  t.tv_nsec += (long)(NANOSECONDS * (seconds - (double)whole));
  if (t.tv_nsec >= NANOSECONDS) t.tv_sec++, t.tv_nsec -= NANOSECONDS;
  return t;
}
