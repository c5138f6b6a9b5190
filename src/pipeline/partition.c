/* Which cut of the stages is predicted to be the fastest: several are tried, each simulated. */
#include "pipeline/partition.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/time_model.h"

typedef struct {
  mo_plan *plan;
  const mo_plan_rates *rates;
  int64_t budget, n, ranks;  /* n: stages to deal; ranks that get some */
  double *costs;             /* [n] of the balance under way */
  int64_t *ends, *best_ends; /* [ranks] */
  mo_block *best;            /* [n] */
  int64_t n_best;
  double best_price;
} search;

static int64_t sum_arena(const search *s, int64_t first, int64_t end) {
  int64_t sum = 0;
  for (int64_t i = first; i < end; i++) sum += s->plan->arena[s->plan->first_stage + i];
  return sum;
}

/* --- balance of consecutive stages --- */

/* Where the rank that starts at `first` ends if it may cost at most `cap`, leaving one stage for each rank after it. */
static int64_t take(const search *s, int64_t first, int64_t ranks_after, double cap) {
  int64_t end = first + 1;
  double sum = s->costs[first];
  while (end < s->n - ranks_after && sum + s->costs[end] <= cap) sum += s->costs[end++];
  return end;
}

static bool reachable(const search *s, double cap) {
  int64_t first = 0;
  for (int64_t rank = 0; rank < s->ranks && first < s->n; rank++) {
    if (s->costs[first] > cap) return false;
    first = take(s, first, s->ranks - 1 - rank, cap);
  }
  return first >= s->n;
}

/* ends[r]: end of rank r's consecutive stages; the costliest rank is as cheap as can be. */
static void balance(search *s) {
  double low = 0, high = 0;
  for (int64_t i = 0; i < s->n; i++) high += s->costs[i];
  high *= 1 + 1e-12; /* sums in another order may round up */
  for (int step = 0; step < 100; step++) {
    double middle = (low + high) / 2;
    if (reachable(s, middle))
      high = middle;
    else
      low = middle;
  }
  for (int64_t rank = 0, first = 0; rank < s->ranks; rank++)
    s->ends[rank] = first = take(s, first, s->ranks - 1 - rank, high);
  s->ends[s->ranks - 1] = s->n;
}

/* --- blocks --- */

static void begin_blocks(search *s) { s->plan->n_blocks = 0; }

/* Cut stages first .. end-1 into blocks of at most `bytes` and `stages`, at least one stage each. */
static void cut_blocks(search *s, int rank, int64_t first, int64_t end, int64_t bytes, int64_t stages) {
  while (first < end) {
    int64_t stop = first + 1;
    while (stop < end && stop - first < stages && sum_arena(s, first, stop + 1) <= bytes) stop++;
    s->plan->blocks[s->plan->n_blocks++] = (mo_block){rank, s->plan->first_stage + first, stop - first};
    first = stop;
  }
}

/* The arena of a rank: all its weights where they fit, else the budget. */
static void size_arenas(search *s) {
  mo_plan *plan = s->plan;
  plan->fits = true;
  memset(plan->resident_bytes, 0, (size_t)plan->n_ranks * sizeof *plan->resident_bytes);
  for (int64_t b = 0; b < plan->n_blocks; b++) {
    int64_t first = plan->blocks[b].first_stage - plan->first_stage;
    plan->resident_bytes[plan->blocks[b].rank] += sum_arena(s, first, first + plan->blocks[b].n_stages);
  }
  for (int rank = 0; rank < plan->n_ranks; rank++) {
    bool fits = plan->resident_bytes[rank] <= s->budget;
    plan->arena_bytes[rank] = fits ? plan->resident_bytes[rank] : s->budget;
    plan->fits = plan->fits && fits;
  }
}

/* Seconds, and a little more where one rank holds much more than the others: memory that is left free is worth something, and
 * the rates are only assumed. */
static double price(const search *s, double seconds) {
  const double for_the_double = 0.02;
  int64_t most = 0;
  for (int rank = 0; rank < s->plan->n_ranks; rank++)
    most = s->plan->resident_bytes[rank] > most ? s->plan->resident_bytes[rank] : most;
  double unevenness = (double)most * (double)s->ranks / (double)sum_arena(s, 0, s->n) - 1;
  return seconds * (1 + for_the_double * unevenness);
}

/* Simulate the blocks; keep them if they are better than the best so far. Equal ones within rounding are not. */
static mo_status consider(search *s, bool *better) {
  mo_plan_time time;
  size_arenas(s);
  MO_TRY(mo_plan_simulate(s->plan, s->rates, &time));
  double found = price(s, time.seconds);
  *better = found < s->best_price * (1 - 1e-9) || s->n_best == 0;
  if (!*better) return MO_OK;
  s->best_price = found;
  s->n_best = s->plan->n_blocks;
  memcpy(s->best, s->plan->blocks, (size_t)s->n_best * sizeof *s->best);
  memcpy(s->best_ends, s->ends, (size_t)s->ranks * sizeof *s->ends);
  return MO_OK;
}

/* Where stages do not fit: small blocks free room early, larger ones pass rows on less often. */
static const int64_t BLOCK_STAGES[] = {1, 2, 3, 4, 6, 8};
enum { N_BLOCK_STAGES = sizeof BLOCK_STAGES / sizeof BLOCK_STAGES[0] };

/* --- contiguous --- */

static bool ends_fit(const search *s) {
  for (int64_t rank = 0, first = 0; rank < s->ranks; first = s->ends[rank++])
    if (sum_arena(s, first, s->ends[rank]) > s->budget) return false;
  return true;
}

static void deal_contiguous(search *s, int64_t stages) {
  begin_blocks(s);
  for (int64_t rank = 0, first = 0; rank < s->ranks; first = s->ends[rank++]) {
    bool fits = sum_arena(s, first, s->ends[rank]) <= s->budget;
    cut_blocks(s, (int)rank, first, s->ends[rank], fits ? INT64_MAX : s->budget / 2, fits ? INT64_MAX : stages);
  }
}

/* must_fit: leave ends that do not fit. */
static mo_status consider_ends(search *s, bool must_fit, bool *better) {
  *better = false;
  if (must_fit && !ends_fit(s)) return MO_OK;
  deal_contiguous(s, 1);
  return consider(s, better);
}

typedef enum { BY_BYTES, BY_SECONDS_SUM, BY_SECONDS_MOST, BY_COMPUTE, N_BALANCES } balance_kind;

static void set_costs(search *s, balance_kind kind) {
  const mo_plan *plan = s->plan;
  const mo_plan_rates *rates = s->rates;
  double compute_rate = rates->flops_per_second > 0 ? rates->flops_per_second : INFINITY;
  double load_rate = rates->bytes_per_second > 0 ? rates->bytes_per_second : INFINITY;
  for (int64_t i = 0; i < s->n; i++) {
    const mo_stage_cost *cost = plan->costs + plan->first_stage + i;
    double load = (double)cost->bytes / load_rate, compute = cost->flops / compute_rate;
    s->costs[i] = kind == BY_BYTES         ? (double)plan->arena[plan->first_stage + i]
                  : kind == BY_SECONDS_SUM ? load + compute
                  : kind == BY_COMPUTE     ? compute
                                           : fmax(load, compute);
  }
}

/* Simulations take time with ranks, stages and micro-batches: no more than a second or so of them. */
static int64_t most_simulations(const search *s) {
  double one = (double)s->n * (double)s->plan->n_micro * (double)s->ranks;
  return (int64_t)fmin(2000, 2e7 / (one + 1));
}

/* Cuts of the stages into consecutive shares, or `limit` if there are more. */
static int64_t count_cuts(const search *s, int64_t limit) {
  double cuts = 1;
  for (int64_t i = 1; i < s->ranks; i++) cuts *= (double)(s->n - i) / (double)i;
  return cuts < (double)limit ? (int64_t)(cuts + 0.5) : limit;
}

/* The next of them; false after the last. Begins with one stage each for all ranks but the last. */
static bool next_cut(search *s) {
  for (int64_t rank = s->ranks - 2; rank >= 0; rank--) {
    if (s->ends[rank] + s->ranks - 1 - rank == s->n) continue;
    for (int64_t end = s->ends[rank] + 1; rank < s->ranks - 1; rank++) s->ends[rank] = end++;
    return true;
  }
  return false;
}

static mo_status try_all_cuts(search *s, bool must_fit) {
  bool better, more = true;
  for (int64_t rank = 0; rank < s->ranks; rank++) s->ends[rank] = rank < s->ranks - 1 ? rank + 1 : s->n;
  for (; more; more = next_cut(s)) MO_TRY(consider_ends(s, must_fit, &better));
  return MO_OK;
}

/* Move single stages between neighbours as long as that helps. */
static mo_status improve_ends(search *s, bool must_fit) {
  int64_t left = most_simulations(s);
  if (count_cuts(s, left) < left) return try_all_cuts(s, must_fit);
  for (bool improved = true; improved && left > 0;) {
    improved = false;
    for (int64_t rank = 0; rank + 1 < s->ranks && left > 0; rank++)
      for (int step = -1; step <= 1; step += 2) {
        memcpy(s->ends, s->best_ends, (size_t)s->ranks * sizeof *s->ends);
        s->ends[rank] += step;
        if (s->ends[rank] <= (rank ? s->ends[rank - 1] : 0) || s->ends[rank] >= s->ends[rank + 1]) continue;
        bool better;
        MO_TRY(consider_ends(s, must_fit, &better));
        improved = improved || better;
        left--;
      }
  }
  return MO_OK;
}

static mo_status choose_contiguous(search *s, bool must_fit) {
  bool better;
  for (balance_kind kind = BY_BYTES; kind < N_BALANCES; kind++) {
    set_costs(s, kind);
    balance(s);
    MO_TRY(consider_ends(s, must_fit, &better));
  }
  MO_TRY(improve_ends(s, must_fit));
  for (int i = 1; i < N_BLOCK_STAGES; i++) {
    memcpy(s->ends, s->best_ends, (size_t)s->ranks * sizeof *s->ends);
    if (ends_fit(s)) break; /* one block each */
    deal_contiguous(s, BLOCK_STAGES[i]);
    MO_TRY(consider(s, &better));
  }
  return MO_OK;
}

/* --- interleaved --- */

static mo_status choose_interleaved(search *s) {
  int64_t share = sum_arena(s, 0, s->n) / (2 * s->ranks), half = s->budget / 2; /* at least two rounds */
  bool better;
  for (int i = 0; i < N_BLOCK_STAGES; i++) {
    begin_blocks(s);
    cut_blocks(s, 0, 0, s->n, share < half ? share : half, BLOCK_STAGES[i]);
    for (int64_t b = 0; b < s->plan->n_blocks; b++) s->plan->blocks[b].rank = (int)(b % s->ranks);
    MO_TRY(consider(s, &better));
  }
  return MO_OK;
}

/* --- the choice --- */

static mo_status choose(search *s) {
  mo_plan *plan = s->plan;
  set_costs(s, BY_BYTES);
  balance(s);
  for (int64_t rank = 0, first = 0; rank < s->ranks; first = s->ends[rank++]) {
    int64_t own = sum_arena(s, first, s->ends[rank]);
    plan->contiguous_bytes = own > plan->contiguous_bytes ? own : plan->contiguous_bytes;
  }
  bool fits = plan->contiguous_bytes <= s->budget;
  plan->partition = plan->asked;
  if (plan->asked == MO_PARTITION_AUTO)
    plan->partition = fits || s->ranks == 1 ? MO_PARTITION_CONTIGUOUS : MO_PARTITION_INTERLEAVED;
  MO_TRY(plan->partition == MO_PARTITION_CONTIGUOUS ? choose_contiguous(s, fits) : choose_interleaved(s));
  plan->n_blocks = s->n_best;
  memcpy(plan->blocks, s->best, (size_t)s->n_best * sizeof *s->best);
  size_arenas(s);
  return MO_OK;
}

mo_status mo_partition_choose(mo_plan *plan, const mo_plan_rates *rates, int64_t budget) {
  search s = {.plan = plan, .rates = rates, .budget = budget, .n = plan->n_stages - plan->first_stage};
  s.ranks = plan->n_ranks < s.n ? plan->n_ranks : s.n;
  if (s.n == 0) { /* nothing is left to do */
    plan->partition = plan->asked == MO_PARTITION_AUTO ? MO_PARTITION_CONTIGUOUS : plan->asked;
    plan->fits = true;
    return MO_OK;
  }
  s.costs = mo_alloc((size_t)s.n, sizeof *s.costs);
  s.ends = mo_alloc((size_t)s.ranks, sizeof *s.ends);
  s.best_ends = mo_alloc((size_t)s.ranks, sizeof *s.best_ends);
  s.best = mo_alloc((size_t)s.n, sizeof *s.best);
  mo_status status = s.costs && s.ends && s.best_ends && s.best ? choose(&s) : MO_FAILED;
  free(s.costs);
  free(s.ends);
  free(s.best_ends);
  free(s.best);
  return status;
}
