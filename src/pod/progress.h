/* How far a run is, from its log as it is here. */
#ifndef MO_POD_PROGRESS_H
#define MO_POD_PROGRESS_H

#include "pod/pod.h"

typedef struct {
  int layer, layers; /* 0: not known */
  double share;      /* of the work, 0..1; -1: not known */
  double rate;       /* GB/s; -1: not known */
  char left[32];     /* "112 s", "" */
} pod_progress;

/* The last line of progress in the text of a log of moe-outliers. */
void pod_progress_parse(const char *log, pod_progress *progress);
/* The same of the run's last pod. */
void pod_progress_of(const pod_settings *settings, const char *key, pod_progress *progress);

/* What the run is doing, in a word or two; busy: a process drives it. */
const char *pod_run_state(const pod_run *run, bool busy);

#endif
