/* What a run was predicted to take, beside what it took. The prediction is a simulation of the plan at the rates that the run saw: what
 * of both differs is how well ranks, reading and computing overlapped. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "pipeline/run_plan.h"

/* What all ranks measured; each number is one rank's, so that a sum gathers them. */
typedef struct {
  double *began, *ready, *busy; /* [n_stages] as in mo_stage_clock */
  double *opened, *done;        /* [n_ranks] as in mo_engine_clock */
  double *nodes;                /* one number */
} measures;

/* A stage that was read, and the time in which its rank read it and nothing before it. */
typedef struct {
  int rank;
  int64_t place; /* among the rank's */
  double bytes, from, ready;
  bool fresh; /* its part of the arena had not been used before */
  bool alone; /* no other rank of the node read */
} reading;

typedef struct {
  const mo_run_plan_job *job;
  const mo_plan *plan;
  measures sums;
  reading *readings; /* [n_stages], in the order of the stages, as each rank reads them */
  int64_t n_readings;
  int64_t *of_rank; /* [n_ranks] readings of a rank */
  int64_t *placed;  /* [n_ranks] their bytes in the arena so far */
  double *last;     /* [n_ranks] end of a rank's last reading so far */
  double *stage;    /* [n_stages] seconds for all sequences */
  int n_ranks;      /* that read something */
} account;

static int64_t sums_of(const mo_plan *plan) { return 3 * plan->n_stages + 2 * plan->n_ranks + 1; }

static measures lay_out(double *sums, const mo_plan *plan) {
  int64_t n = plan->n_stages;
  measures m = {.began = sums, .ready = sums + n, .busy = sums + 2 * n};
  m.opened = sums + 3 * n;
  m.done = m.opened + plan->n_ranks;
  m.nodes = m.done + plan->n_ranks;
  return m;
}

/* --- storage --- */

/* Ranks of a node have numbers that follow each other. */
static int ranks_per_node(const account *a) {
  int ranks = (int)(a->plan->n_ranks / *a->sums.nodes + 0.5);
  return ranks > 1 ? ranks : 1;
}

/* Whether no other rank of the node reads, for nearly all of the time. */
static bool is_alone(const account *a, const reading *mine) {
  const double nearly = 0.1;
  int node = ranks_per_node(a);
  double shared = 0;
  for (int64_t i = 0; i < a->n_readings; i++) {
    const reading *r = a->readings + i;
    if (r->rank == mine->rank || r->rank / node != mine->rank / node) continue;
    shared += fmax(0, fmin(r->ready, mine->ready) - fmax(r->from, mine->from));
  }
  return node > 1 && shared <= nearly * (mine->ready - mine->from);
}

static void list_readings(account *a) {
  const mo_plan *plan = a->plan;
  for (int64_t stage = plan->first_stage; stage < plan->n_stages; stage++) {
    int rank = mo_plan_rank_of(plan, stage);
    double ready = a->sums.ready[stage];
    if (!(ready > 0)) continue;
    a->placed[rank] += plan->arena[stage];
    a->readings[a->n_readings++] = (reading){.rank = rank,
                                             .place = a->of_rank[rank]++,
                                             .bytes = (double)plan->costs[stage].bytes,
                                             .from = fmin(fmax(a->sums.began[stage], a->last[rank]), ready),
                                             .ready = ready,
                                             .fresh = a->placed[rank] <= plan->arena_bytes[rank]};
    a->last[rank] = fmax(a->last[rank], ready); /* a later stage may be there before */
  }
  for (int rank = 0; rank < plan->n_ranks; rank++) a->n_ranks += a->of_rank[rank] > 0;
  for (int64_t i = 0; i < a->n_readings; i++) a->readings[i].alone = is_alone(a, a->readings + i);
}

/* Bytes per second in a rank's stages that are so. The very first also tells how long memory was allocated and pinned, so that it
 * only counts where there is no other. 0: there are none. */
static double rate_of(const account *a, int rank, bool fresh, bool alone) {
  double bytes = 0, seconds = 0;
  for (int64_t i = 0; i < a->n_readings; i++) {
    const reading *r = a->readings + i;
    if (r->rank != rank || r->fresh != fresh || r->alone != alone) continue;
    if (r->place == 0 && a->of_rank[rank] > 1) continue;
    bytes += r->bytes;
    seconds += r->ready - r->from;
  }
  return seconds > 0 ? bytes / seconds : 0;
}

/* The mean over the ranks that have some. */
static double mean_rate(const account *a, bool fresh, bool alone) {
  double sum = 0;
  int n = 0;
  for (int rank = 0; rank < a->plan->n_ranks; rank++) {
    double rate = rate_of(a, rank, fresh, alone);
    sum += rate;
    n += rate > 0;
  }
  return n ? sum / n : 0;
}

/* When storage began to give, at that rate: the mean over the ranks. */
static double mean_begin(const account *a, double rate) {
  double sum = 0;
  int n = 0;
  for (int64_t i = 0; i < a->n_readings; i++) {
    const reading *r = a->readings + i;
    if (r->place > 0) continue;
    sum += fmax(r->from, r->ready - r->bytes / rate);
    n++;
  }
  return sum / n;
}

static double first_known(double a, double b, double c) { return a > 0 ? a : b > 0 ? b : c; }

/* Storage gives a rank more when the others wait, and less where memory is used for the first time. What was seen of neither is
 * taken to make no difference. */
static void set_storage(account *a, mo_plan_rates *rates) {
  double fresh = mean_rate(a, true, false), again = mean_rate(a, false, false);
  double fresh_alone = mean_rate(a, true, true), again_alone = mean_rate(a, false, true);
  double together = first_known(again, fresh, first_known(again_alone, fresh_alone, 0));
  if (!(together > 0)) return;
  rates->fresh = again > 0 && fresh > 0               ? again / fresh
                 : again_alone > 0 && fresh_alone > 0 ? again_alone / fresh_alone
                                                      : 1;
  rates->ranks_per_node = ranks_per_node(a);
  double all = together * fmin(rates->ranks_per_node, a->n_ranks);
  rates->read_seconds = mean_begin(a, together / rates->fresh);
  rates->rank_bytes_per_second = fmax(together, first_known(again_alone, fresh_alone * rates->fresh, 0));
  /* A rank alone gets no more than all together: if it seems so, it is because its memory was used before. */
  rates->bytes_per_second = fmax(all, rates->rank_bytes_per_second);
  rates->fresh *= rates->bytes_per_second / all;
}

/* --- products --- */

/* The part of the micro-batches that had the stage before them when the run began or went on. */
static double part_computed(const mo_plan *plan, int64_t stage) {
  int64_t n = 0;
  for (int64_t micro = 0; micro < plan->n_micro; micro++) n += !plan->start || plan->start[micro] <= stage;
  return (double)n / (double)plan->n_micro;
}

/* Seconds of every stage for all sequences. Those before a continued run's start take none. */
static void time_stages(account *a) {
  const mo_plan *plan = a->plan;
  for (int64_t stage = plan->first_stage; stage < plan->n_stages; stage++) {
    double part = part_computed(plan, stage);
    if (part > 0) a->stage[stage] = a->sums.busy[stage] / part;
  }
}

/* --- the line --- */

static double mean_opened(const account *a) {
  double sum = 0;
  int n = 0;
  for (int rank = 0; rank < a->plan->n_ranks; rank++) {
    sum += a->sums.opened[rank];
    n += a->sums.opened[rank] > 0;
  }
  return n ? sum / n : 0;
}

static void print_comparison(const account *a, const mo_plan_rates *rates, const mo_plan_time *time) {
  const mo_plan *plan = a->plan;
  double seconds = 0, flops = 0, measured = 0;
  char storage[100] = "", rest[60] = "";
  if (plan->first_stage > 0)
    snprintf(rest, sizeof rest, " of the last %lld of %lld stages", (long long)(plan->n_stages - plan->first_stage),
             (long long)plan->n_stages);
  for (int rank = 0; rank < plan->n_ranks; rank++) measured = fmax(measured, a->sums.done[rank]);
  for (int64_t stage = plan->first_stage; stage < plan->n_stages; stage++) {
    seconds += a->stage[stage];
    flops += plan->costs[stage].flops;
  }
  if (rates->ranks_per_node > 0) { /* else storage was not measured: all of it was there at once */
    double share = rates->bytes_per_second / fmin(rates->ranks_per_node, a->n_ranks);
    int n = snprintf(storage, sizeof storage, "%.3g GB/s", 1e-9 * share);
    if (rates->rank_bytes_per_second > share)
      n += snprintf(storage + n, sizeof storage - (size_t)n, " (alone %.3g)", 1e-9 * rates->rank_bytes_per_second);
    snprintf(storage + n, sizeof storage - (size_t)n, " and ");
  }
  fprintf(stderr,
          "moe-outliers: predicted %.3g s, measured %.3g s from the first read to the last product%s, bound by %s "
          "(at %s%.3g TFLOP/s a rank)\n",
          time->seconds, measured, rest, time->storage_alone >= time->compute_alone ? "storage" : "compute", storage,
          seconds > 0 ? 1e-12 * flops / seconds : 0);
}

static mo_status compare(account *a) {
  const char *device;
  mo_plan_time time;
  bool cuda = a->job->backend->table->memory == mo_backend_memory_cuda;
  mo_plan_rates rates = mo_plan_default_rates(cuda, "", a->job->config->engine.precision, 1, &device);
  list_readings(a);
  if (a->n_readings == 0) return MO_OK;
  set_storage(a, &rates);
  time_stages(a);
  rates.stage_seconds = a->stage;
  rates.start_seconds = mean_opened(a);
  MO_TRY(mo_plan_predict(a->plan, &rates, &time));
  print_comparison(a, &rates, &time);
  return MO_OK;
}

static mo_status compare_on_one(const mo_run_plan_job *job, const mo_plan *plan, double *sums) {
  size_t stages = (size_t)plan->n_stages, ranks = (size_t)plan->n_ranks;
  account a = {.job = job, .plan = plan, .sums = lay_out(sums, plan)};
  a.readings = mo_alloc(stages, sizeof *a.readings);
  a.of_rank = mo_alloc(2 * ranks, sizeof *a.of_rank);
  a.last = mo_alloc(ranks, sizeof *a.last);
  a.stage = mo_alloc(stages, sizeof *a.stage);
  mo_status status = a.readings && a.of_rank && a.last && a.stage ? MO_OK : MO_FAILED;
  if (status == MO_OK) {
    a.placed = a.of_rank + ranks;
    status = compare(&a);
  }
  free(a.readings);
  free(a.of_rank);
  free(a.last);
  free(a.stage);
  return status;
}

static void fill_measures(const mo_run_plan_job *job, const mo_plan *plan, const mo_engine_clock *clock,
                          const mo_stage_clock *stages, double *sums) {
  measures mine = lay_out(sums, plan);
  for (int64_t stage = 0; stage < plan->n_stages; stage++) {
    mine.began[stage] = stages[stage].began;
    mine.ready[stage] = stages[stage].ready;
    mine.busy[stage] = stages[stage].busy;
  }
  mine.opened[mo_comm_rank(job->comm)] = clock->opened;
  mine.done[mo_comm_rank(job->comm)] = clock->done;
  *mine.nodes = 1.0 / mo_comm_local_size(job->comm);
}

mo_status mo_run_compare_time(const mo_run_plan_job *job, const mo_plan *plan, const mo_engine_clock *clock,
                              const mo_stage_clock *stages) {
  if (plan->n_blocks == 0) return MO_OK;
  double *sums = mo_alloc((size_t)sums_of(plan), sizeof *sums);
  mo_status status = mo_comm_join(job->comm, sums ? MO_OK : MO_FAILED);
  if (status == MO_OK) {
    fill_measures(job, plan, clock, stages, sums);
    status = mo_comm_allreduce(job->comm, sums, sums_of(plan), MO_SUM_F64);
  }
  if (status == MO_OK && mo_comm_rank(job->comm) == 0) status = compare_on_one(job, plan, sums);
  free(sums);
  return status;
}
