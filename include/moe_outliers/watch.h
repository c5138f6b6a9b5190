/* A limit on how long the main thread may take for a step: calls of file systems and of MPI-IO cannot be ended, and
 * some never come back. */
#ifndef MOE_OUTLIERS_WATCH_H
#define MOE_OUTLIERS_WATCH_H

#include <pthread.h>
#include <stdbool.h>

typedef struct {
  double seconds, end; /* of a step; when the one under way ends, by mo_seconds */
  void (*expired)(void *context);
  void *context;
  bool watching, over;
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
} mo_watch;

/* From now on `expired` is called, once and on a thread of its own, when a step takes longer than so many seconds; it
 * should end the process. Where no thread can be started nothing is watched. */
void mo_watch_begin(mo_watch *watch, double seconds, void (*expired)(void *context), void *context);
/* The next step begins. */
void mo_watch_step(mo_watch *watch);
/* Nothing is watched any more. */
void mo_watch_end(mo_watch *watch);

#endif
