#include "pipeline/progress.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/meter.h"
#include "moe_outliers/network.h"
#include "moe_outliers/threads.h"

static const double poll_seconds = 0.01, tick_seconds = 0.2, note_seconds = 0.25, stall_seconds = 5;

/* How far a rank is, and what it sends. */
typedef struct {
  double work;             /* FLOP of its finished tasks */
  int64_t stages;          /* finished */
  int64_t bytes, verified; /* read */
  double stalled;          /* seconds without a byte, from stall_seconds on */
  int64_t offset;          /* of the read that is waited for, in ... */
  int32_t file;            /* ... this one; -1: unknown */
  int32_t finished;
} rank_state;

_Static_assert(sizeof(rank_state) <= MO_NOTE_BYTES, "a note holds a rank's state");

typedef struct {
  rank_state state;
  int64_t told; /* of its stages */
} rank_view;

struct mo_progress {
  mo_progress_job job;
  int rank, speaker;
  rank_state sent;
  double polled, noted;

  pthread_mutex_t lock; /* guards what follows */
  rank_view *ranks;     /* [size]; those that do not speak use their own only */
  double work, started; /* all that is to be computed, ... */
  int64_t bytes;        /* ... and to be read */
  double all_read;      /* bytes a second, once all is read */
  int64_t layers_done;
  double told_stall;         /* seconds */
  double task;               /* the largest one's work, on as many ranks as there may be */
  double worked, worked_for; /* work done, and the seconds after which the last of it was */
  mo_meter meter;

  pthread_t thread; /* of the speaker */
  pthread_cond_t wake;
  bool ticking, ending;
};

/* --- what is to be done --- */

static double work_of(const mo_plan *plan, int64_t stage, int64_t sequences) {
  return plan->costs[stage].flops * (double)sequences / (double)(plan->variants * plan->n_sequences);
}

static void count_all(mo_progress *p) {
  const mo_plan *plan = p->job.plan;
  int64_t first = mo_plan_first_start(p->job.plan, p->job.start);
  for (int64_t stage = first; stage < plan->n_stages; stage++) {
    p->bytes += p->job.catalogue->stages[stage].bytes;
    for (int64_t micro = 0; micro < plan->n_micro; micro++)
      if (p->job.start[micro] <= stage) p->work += work_of(plan, stage, mo_plan_batch(plan, micro));
    p->task = fmax(p->task, mo_comm_size(p->job.comm) * work_of(plan, stage, plan->micro_batch));
  }
  p->layers_done = first <= 1 ? 0 : first - 1 < p->job.n_layers ? first - 1 : p->job.n_layers;
}

/* The n-th of the stages that a rank has to compute, in the order in which it does; -1: it has fewer. */
static int64_t stage_of(const mo_progress *p, int rank, int64_t n) {
  const mo_plan *plan = p->job.plan;
  int64_t first = mo_plan_first_start(p->job.plan, p->job.start);
  for (int64_t b = 0; b < plan->n_blocks; b++) {
    const mo_block *block = plan->blocks + b;
    int64_t begin = block->first_stage > first ? block->first_stage : first;
    int64_t stages = block->first_stage + block->n_stages - begin;
    if (block->rank != rank || stages <= 0) continue;
    if (n < stages) return begin + n;
    n -= stages;
  }
  return -1;
}

/* --- what is told; holding the lock --- */

/* Lately; of all of it when all is read. */
static double rate_of(mo_progress *p, double now, int64_t bytes) {
  double seconds = now - p->started;
  if (bytes == p->bytes && p->all_read == 0) p->all_read = seconds > 0 ? (double)bytes / seconds : 0;
  return p->all_read > 0 ? p->all_read : mo_meter_rate(&p->meter, now, bytes);
}

/* Take note of the work that is done by now. */
static void look_at_work(mo_progress *p, double now) {
  double work = 0;
  for (int rank = 0; rank < mo_comm_size(p->job.comm); rank++) work += p->ranks[rank].state.work;
  if (work == p->worked) return;
  p->worked = work;
  p->worked_for = now - p->started;
}

/* Seconds that are left: of tasks under way as much is taken to be done as their rate allows, so that it does not grow until
 * they end. At first, when nothing is computed, *at_least. */
static double time_left(const mo_progress *p, double seconds, int64_t bytes, bool *at_least) {
  double reading = p->bytes > 0 ? mo_meter_left(seconds, (double)bytes, (double)p->bytes) : 0;
  *at_least = p->work > 0 && !(p->worked > 0);
  if (*at_least || !(p->work > 0)) return reading;
  double under_way = fmin(p->task, p->worked * (seconds / p->worked_for - 1));
  return fmax(reading, mo_meter_left(seconds, fmin(p->worked + under_way, p->work), p->work));
}

/* Share of the work that is done, and "15.3 of 61.1 GB read, 5.21 GB/s, 37 s, ETA 112 s", in the bar without the first
 * and third. */
static double describe(mo_progress *p, double now, char *text, size_t size) {
  double seconds = now - p->started;
  int64_t bytes = 0;
  char spent[MO_DURATION_BYTES], left[MO_DURATION_BYTES];
  bool at_least;
  look_at_work(p, now);
  for (int rank = 0; rank < mo_comm_size(p->job.comm); rank++) bytes += p->ranks[rank].state.bytes;
  mo_meter_duration(left, time_left(p, seconds, bytes, &at_least));
  double rate = 1e-9 * rate_of(p, now, bytes);
  const char *more = at_least && left[0] != '?' ? "> " : "";
  if (p->meter.bar)
    snprintf(text, size, "%.2f GB/s  ETA %s%s", rate, more, left);
  else
    snprintf(text, size, "%.3g of %.3g GB read, %.2f GB/s, %s, ETA %s%s", 1e-9 * (double)bytes, 1e-9 * (double)p->bytes,
             rate, mo_meter_duration(spent, seconds), more, left);
  return p->work > 0 ? p->worked / p->work : 1;
}

/* Seconds for which storage has not answered the rank that waits longest; 0: none waits. */
static double stall_of(const mo_progress *p, int *rank, int *ranks) {
  double longest = 0;
  *ranks = 0;
  for (int r = 0; r < mo_comm_size(p->job.comm); r++) {
    double seconds = p->ranks[r].state.stalled;
    *ranks += seconds > 0;
    if (seconds > longest) *rank = r, longest = seconds;
  }
  return longest;
}

/* "nothing read for 12 s, byte 4096 of FILE (rank 0 and 1 more)"; in the bar the same in few columns. */
static void describe_stall(const mo_progress *p, char *text, size_t size) {
  int rank = 0, ranks;
  double seconds = stall_of(p, &rank, &ranks);
  const rank_state *state = &p->ranks[rank].state;
  char where[300] = "", who[60] = "";
  if (state->file >= 0) {
    const char *path = mo_checkpoint_file(p->job.checkpoint, state->file), *slash = strrchr(path, '/');
    const char *name = p->meter.bar && slash ? slash + 1 : path, *dot = strrchr(name, '.');
    size_t length = p->meter.bar && dot ? (size_t)(dot - name) : strlen(name);
    snprintf(where, sizeof where, "%s byte %" PRId64 " of %.*s", p->meter.bar ? " at" : ",", state->offset, (int)length,
             name);
  }
  if (mo_comm_size(p->job.comm) > 1)
    snprintf(who, sizeof who, ranks > 1 ? " (rank %d and %d more)" : " (rank %d)", rank, ranks - 1);
  snprintf(text, size, "%s for %.0f s%s%s", p->meter.bar ? "stalled" : "nothing read", seconds, where, who);
}

static void tell_layer(mo_progress *p, int rank, int64_t layer, double now) {
  char text[400], rest[200];
  double share = describe(p, now, rest, sizeof rest);
  snprintf(text, sizeof text, "layer %" PRId64 "/%" PRId64 " done  rank %d  %.0f %%, %s", layer, p->job.n_layers, rank,
           100 * share, rest);
  mo_meter_show(&p->meter, now, share, text);
}

static void tell_state(mo_progress *p, double now) {
  char text[440], rest[400];
  double share = describe(p, now, rest, sizeof rest);
  int rank, ranks;
  if (p->meter.bar && stall_of(p, &rank, &ranks) > 0) describe_stall(p, rest, sizeof rest);
  if (p->meter.bar)
    snprintf(text, sizeof text, "%" PRId64 "/%" PRId64 " layers  %s", p->layers_done, p->job.n_layers, rest);
  else
    snprintf(text, sizeof text, "working: %" PRId64 "/%" PRId64 " layers done  %.0f %%, %s", p->layers_done,
             p->job.n_layers, 100 * share, rest);
  mo_meter_show(&p->meter, now, share, text);
}

/* Every few seconds; in the bar it is shown anyhow. */
static void tell_stall(mo_progress *p, double now) {
  char stall[400], text[440];
  int rank, ranks;
  double seconds = stall_of(p, &rank, &ranks);
  if (seconds < p->told_stall) p->told_stall = 0; /* something has come since */
  if (seconds < p->told_stall + stall_seconds || p->meter.bar) return;
  p->told_stall = seconds;
  describe_stall(p, stall, sizeof stall);
  bool remote = mo_network_is_address(mo_checkpoint_directory(p->job.checkpoint));
  snprintf(text, sizeof text, "%s: check the %s", stall, remote ? "network" : "storage");
  mo_meter_show(&p->meter, now, 0, text);
}

/* What has become known of a rank. */
static void tell(mo_progress *p, int rank) {
  rank_view *view = &p->ranks[rank];
  double now = mo_seconds();
  for (; view->told < view->state.stages; view->told++) {
    int64_t layer = stage_of(p, rank, view->told);
    if (layer < 1 || layer > p->job.n_layers) continue;
    p->layers_done++;
    if (!p->meter.bar) tell_layer(p, rank, layer, now);
  }
}

/* --- the thread --- */

static void look_at_streamer(mo_progress *p) {
  mo_stream_state stream = mo_streamer_state(p->job.streamer);
  rank_state *mine = &p->ranks[p->rank].state;
  mine->bytes = stream.bytes_read;
  mine->verified = stream.bytes_verified;
  mine->stalled = stream.stalled >= stall_seconds ? stream.stalled : 0;
  mine->file = stream.file;
  mine->offset = stream.offset;
}

static void *tick(void *argument) {
  mo_progress *p = argument;
  pthread_mutex_lock(&p->lock);
  while (!p->ending) {
    struct timespec until = mo_deadline(tick_seconds);
    pthread_cond_timedwait(&p->wake, &p->lock, &until);
    if (p->ending) break;
    look_at_streamer(p);
    look_at_work(p, mo_seconds());
    tell_stall(p, mo_seconds());
    if (mo_meter_due(&p->meter, mo_seconds())) tell_state(p, mo_seconds());
  }
  pthread_mutex_unlock(&p->lock);
  return NULL;
}

static mo_status start_thread(mo_progress *p) {
  int error = mo_thread_start(&p->thread, tick, p);
  if (error)
    return MO_FAIL(MO_FAILED, "cannot start a thread (progress): %s: raise the limit of processes (ulimit -u)",
                   strerror(error));
  p->ticking = true;
  return MO_OK;
}

/* --- notes --- */

static mo_status send_note(mo_progress *p, bool now) {
  char note[MO_NOTE_BYTES] = {0};
  bool sent;
  pthread_mutex_lock(&p->lock);
  look_at_streamer(p);
  rank_state state = p->ranks[p->rank].state;
  pthread_mutex_unlock(&p->lock);
  if (memcmp(&state, &p->sent, sizeof state) == 0 || (!now && p->polled - p->noted < note_seconds)) return MO_OK;
  memcpy(note, &state, sizeof state);
  MO_TRY(mo_comm_send_note(p->job.comm, p->speaker, note, &sent));
  if (!sent) return MO_OK;
  p->sent = state;
  p->noted = p->polled;
  return MO_OK;
}

static mo_status take_notes(mo_progress *p) {
  for (;;) {
    char note[MO_NOTE_BYTES];
    int from;
    MO_TRY(mo_comm_take_note(p->job.comm, note, &from));
    if (from < 0) return MO_OK;
    pthread_mutex_lock(&p->lock);
    memcpy(&p->ranks[from].state, note, sizeof p->ranks[from].state);
    tell(p, from);
    pthread_mutex_unlock(&p->lock);
  }
}

mo_status mo_progress_poll(mo_progress *p) {
  double now = mo_seconds();
  if (now - p->polled < poll_seconds) return MO_OK;
  p->polled = now;
  return p->rank == p->speaker ? take_notes(p) : send_note(p, false);
}

/* --- this rank --- */

void mo_progress_task(mo_progress *p, int64_t stage, int64_t sequences) {
  pthread_mutex_lock(&p->lock);
  p->ranks[p->rank].state.work += work_of(p->job.plan, stage, sequences);
  pthread_mutex_unlock(&p->lock);
}

mo_status mo_progress_stage(mo_progress *p) {
  pthread_mutex_lock(&p->lock);
  look_at_streamer(p);
  p->ranks[p->rank].state.stages++;
  if (p->rank == p->speaker) tell(p, p->rank);
  pthread_mutex_unlock(&p->lock);
  return p->rank == p->speaker ? MO_OK : send_note(p, true);
}

mo_status mo_progress_open(mo_progress **progress, const mo_progress_job *job) {
  mo_progress *p = mo_alloc(1, sizeof *p);
  *progress = NULL;
  if (!p) return MO_FAILED;
  p->ranks = mo_alloc((size_t)mo_comm_size(job->comm), sizeof *p->ranks);
  if (!p->ranks) {
    free(p);
    return MO_FAILED;
  }
  mo_condition_open(&p->wake);
  pthread_mutex_init(&p->lock, NULL);
  p->job = *job;
  p->rank = mo_comm_rank(job->comm);
  p->speaker = job->plan->blocks[job->plan->n_blocks - 1].rank;
  p->started = job->started;
  mo_meter_start(&p->meter, p->started);
  count_all(p);
  *progress = p;
  return p->rank == p->speaker ? start_thread(p) : MO_OK;
}

/* All ranks that compute something have finished. */
static bool all_finished(const mo_progress *p) {
  for (int rank = 0; rank < mo_comm_size(p->job.comm); rank++)
    if (p->job.plan->resident_bytes[rank] && !p->ranks[rank].state.finished) return false;
  return true;
}

static void tell_verified(const mo_progress *p) {
  int64_t bytes = 0;
  for (int rank = 0; rank < mo_comm_size(p->job.comm); rank++) bytes += p->ranks[rank].state.verified;
  if (bytes == 0) return;
  mo_meter_clear(&p->meter);
  fprintf(stderr, "moe-outliers: verified %.3g GB: the weights in memory are those of a second read\n",
          1e-9 * (double)bytes);
}

mo_status mo_progress_finish(mo_progress *p) {
  pthread_mutex_lock(&p->lock);
  p->ranks[p->rank].state.finished = 1;
  pthread_mutex_unlock(&p->lock);
  while (p->rank != p->speaker && !p->sent.finished) {
    MO_TRY(send_note(p, true));
    MO_TRY(mo_comm_poll(p->job.comm));
    if (!p->sent.finished) usleep(100);
  }
  if (p->rank != p->speaker) return MO_OK;
  for (;;) {
    MO_TRY(take_notes(p));
    if (all_finished(p)) break; /* the thread changes nothing of the others */
    MO_TRY(mo_comm_poll(p->job.comm));
    usleep(100);
  }
  pthread_mutex_lock(&p->lock);
  look_at_streamer(p);
  tell_verified(p);
  pthread_mutex_unlock(&p->lock);
  return MO_OK;
}

void mo_progress_close(mo_progress *p) {
  if (!p) return;
  if (p->ticking) {
    pthread_mutex_lock(&p->lock);
    p->ending = true;
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    mo_meter_clear(&p->meter);
  }
  pthread_cond_destroy(&p->wake);
  pthread_mutex_destroy(&p->lock);
  free(p->ranks);
  free(p);
}
