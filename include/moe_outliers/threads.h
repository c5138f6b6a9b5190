/* Threads that help the main thread. */
#ifndef MOE_OUTLIERS_THREADS_H
#define MOE_OUTLIERS_THREADS_H

#include <pthread.h>

#ifdef __cplusplus
extern "C" {
#endif

/* pthread_create with all signals blocked, since those are the main thread's. Returns 0 or an errno. */
int mo_thread_start(pthread_t *thread, void *(*run)(void *), void *argument);
/* A condition whose timed waits end at times of mo_deadline, whatever happens to the wall clock. */
void mo_condition_open(pthread_cond_t *condition);

#ifdef __cplusplus
}
#endif
#endif
