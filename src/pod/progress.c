#include "pod/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pod/files.h"

/* "layer 5/16 done  rank 0  31 %, 4.2 of 14 GB read, 5.21 GB/s, 37 s, ETA 112 s", or "working: 5/16 layers done  31
 * %, ...". */
static bool parse_line(const char *line, size_t n, pod_progress *p) {
  char text[400];
  snprintf(text, sizeof text, "%.*s", (int)(n < sizeof text ? n : sizeof text - 1), line);
  const char *at = strstr(text, "layer "), *working = strstr(text, "working: ");
  int layer, layers;
  if (!(at && sscanf(at, "layer %d/%d done", &layer, &layers) == 2) &&
      !(working && sscanf(working, "working: %d/%d layers", &layer, &layers) == 2))
    return false;
  *p = (pod_progress){.layer = layer, .layers = layers, .share = -1, .rate = -1};
  const char *percent = strstr(text, " %,"), *rate = strstr(text, " GB/s"), *left = strstr(text, "ETA ");
  while (percent && percent > text && percent[-1] != ' ') percent--;
  if (percent) p->share = atof(percent) / 100;
  while (rate && rate > text && rate[-1] != ' ') rate--;
  if (rate) p->rate = atof(rate);
  if (left) snprintf(p->left, sizeof p->left, "%.*s", 31, left + 4);
  return true;
}

void pod_progress_parse(const char *log, pod_progress *progress) {
  *progress = (pod_progress){.share = -1, .rate = -1};
  const char *end = log + strlen(log);
  while (end > log) {
    const char *begin = end;
    while (begin > log && begin[-1] != '\n') begin--;
    if (parse_line(begin, (size_t)(end - begin), progress)) return;
    end = begin > log ? begin - 1 : log;
  }
}

void pod_progress_of(const pod_settings *settings, const char *key, pod_progress *progress) {
  char path[POD_PATH_BYTES], *text = NULL;
  size_t bytes;
  if (pod_path(path, "%s/runs/%s/last/run.log", settings->state, key) != MO_OK ||
      pod_read_file(&text, &bytes, path, 65536) != MO_OK)
    mo_error_clear();
  pod_progress_parse(text ? text : "", progress);
  free(text);
}

const char *pod_run_state(const pod_run *run, bool busy) {
  static const char *const doing[] = {
      "choosing a pod", "starting", "sending the source",  "setting up",     "fetching the model",
      "starting",       "running",  "fetching the result", "ending its pod", "done"};
  if (run->step == STEP_ENDED) return run->error[0] ? "failed" : "done";
  if (!busy && !run->id[0] && !(run->created > 0)) return run->attempts ? "not finished" : "waiting";
  if (!busy) return run->step == STEP_BROUGHT ? "kept" : "left alone";
  if (run->step == STEP_NAMED && !run->attempts) return "waiting";
  return doing[run->step];
}
