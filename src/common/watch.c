#include "moe_outliers/watch.h"

#include "moe_outliers/clock.h"
#include "moe_outliers/threads.h"

static void *watch_steps(void *argument) {
  mo_watch *watch = argument;
  pthread_mutex_lock(&watch->lock);
  while (!watch->over) {
    double left = watch->end - mo_seconds();
    if (left <= 0) break;
    struct timespec deadline = mo_deadline(left);
    (void)pthread_cond_timedwait(&watch->changed, &watch->lock, &deadline);
  }
  bool expired = !watch->over;
  pthread_mutex_unlock(&watch->lock);
  if (expired) watch->expired(watch->context);
  return NULL;
}

void mo_watch_begin(mo_watch *watch, double seconds, void (*expired)(void *context), void *context) {
  *watch = (mo_watch){.seconds = seconds, .end = mo_seconds() + seconds, .expired = expired, .context = context};
  pthread_mutex_init(&watch->lock, NULL);
  mo_condition_open(&watch->changed);
  watch->watching = mo_thread_start(&watch->thread, watch_steps, watch) == 0;
}

void mo_watch_step(mo_watch *watch) {
  pthread_mutex_lock(&watch->lock);
  watch->end = mo_seconds() + watch->seconds;
  pthread_mutex_unlock(&watch->lock);
}

void mo_watch_end(mo_watch *watch) {
  pthread_mutex_lock(&watch->lock);
  watch->over = true;
  pthread_cond_signal(&watch->changed);
  pthread_mutex_unlock(&watch->lock);
  if (watch->watching) pthread_join(watch->thread, NULL);
  pthread_cond_destroy(&watch->changed);
  pthread_mutex_destroy(&watch->lock);
}
