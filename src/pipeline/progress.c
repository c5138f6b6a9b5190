#include "pipeline/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

double mo_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void mo_progress_start(mo_progress *progress, const mo_plan *plan, const mo_comm *comm, int64_t n_layers,
                       int64_t first_stage) {
  *progress = (mo_progress){.plan = plan, .rank = mo_comm_rank(comm), .n_layers = n_layers, .started = mo_seconds()};
  for (int64_t stage = first_stage; stage < plan->n_stages; stage++) {
    if (mo_plan_rank_of(plan, stage) != progress->rank) continue;
    progress->stages_mine++;
    progress->bytes_mine += plan->costs[stage].bytes;
  }
  progress->bar = isatty(STDERR_FILENO) && mo_comm_size(comm) == 1;
}

static void draw_bar(const mo_progress *progress, double rate, double left) {
  enum { WIDTH = 30 };
  char bar[WIDTH + 1];
  int64_t filled = progress->stages_done * WIDTH / progress->stages_mine;
  for (int64_t i = 0; i < WIDTH; i++) bar[i] = i < filled ? '#' : '.';
  bar[WIDTH] = '\0';
  fprintf(stderr, "\r[%s] %" PRId64 "/%" PRId64 " stages  %.2f GB/s  ETA %.0f s ", bar, progress->stages_done,
          progress->stages_mine, rate, left);
  fflush(stderr);
}

void mo_progress_stage(mo_progress *progress, int64_t stage) {
  double seconds = mo_seconds() - progress->started;
  progress->stages_done++;
  progress->bytes_done += progress->plan->costs[stage].bytes;
  double rate = seconds > 0 ? 1e-9 * (double)progress->bytes_done / seconds : 0;
  double left = progress->bytes_done > 0
                    ? seconds * (double)(progress->bytes_mine - progress->bytes_done) / (double)progress->bytes_done
                    : 0;
  if (progress->bar)
    draw_bar(progress, rate, left);
  else if (stage >= 1 && stage <= progress->n_layers)
    fprintf(stderr, "moe-outliers: layer %" PRId64 "/%" PRId64 " done  rank %d  %.2f GB/s  %.1f s  ETA %.0f s\n", stage,
            progress->n_layers, progress->rank, rate, seconds, left);
}

void mo_progress_stalled(mo_progress *progress, double seconds) {
  const double step = 5;
  if (seconds < progress->stalled) progress->stalled = 0; /* something has come since */
  if (seconds < progress->stalled + step) return;
  progress->stalled = seconds;
  fprintf(stderr, "%smoe-outliers: rank %d waits for weights: nothing read for %.0f s: check the storage%s",
          progress->bar ? "\r\033[K" : "", progress->rank, seconds, progress->bar ? "" : "\n");
  fflush(stderr);
}

void mo_progress_end(mo_progress *progress) {
  if (progress->bar) fprintf(stderr, "\r\033[K");
}
