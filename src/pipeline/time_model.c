/* How long a plan takes: a simulation of storage, ranks and messages, event by event. */
#include "pipeline/time_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_MICRO = 64 }; /* more are simulated as this many: what they change is the length of a pipeline's start */

/* A rank: where it is in its list of stages, and what it does now. */
typedef struct {
  const int64_t *stages; /* its stages in the order of the plan */
  int64_t n;
  int64_t loaded, placed, released; /* counts of stages; one is loading where placed > loaded */
  int64_t touched;                  /* bytes of the arena that have been used */
  double left;                      /* bytes of it */
  int64_t block;                    /* of the plan, under way; n_blocks: done */
  int64_t begin;                    /* place of the block's first stage in `stages` */
  int64_t micro;                    /* being computed; -1: none */
  double until;                     /* the end of that */
  double link_free;                 /* when its link to earlier ranks has nothing more to carry */
  double compute, load;             /* seconds so far */
} rank_state;

typedef struct {
  const mo_plan *plan;
  const mo_plan_rates *rates;
  int64_t n_micro;
  double now, message; /* seconds of one message */
  rank_state *ranks;
  int64_t *stages, *offsets; /* [n_stages] of all ranks; place in the arena, by stage */
  int64_t *next;             /* [n_ranks, n_micro] place in the block of the stage that comes next */
  double *here; /* [n_blocks, n_micro] when the rows are where the block is computed; INFINITY: not known yet */
  double *sent; /* [n_blocks, n_micro] when the rank before had them ready */
} simulation;

static double part_of(const simulation *s) { return 1.0 / (double)s->n_micro; }

/* The stage at which a simulated micro-batch goes on. */
static int64_t start_of(const simulation *s, int64_t m) {
  return s->plan->start ? s->plan->start[m * s->plan->n_micro / s->n_micro] : s->plan->first_stage;
}

static double compute_seconds(const simulation *s, int64_t stage) {
  if (s->rates->stage_seconds) return s->rates->stage_seconds[stage] * part_of(s);
  return s->rates->flops_per_second > 0 ? s->plan->costs[stage].flops / s->rates->flops_per_second * part_of(s) : 0;
}

/* --- loading --- */

/* Where the rank's next stage finds room in its arena, a ring of blocks; -1: nowhere yet. */
static int64_t room(const simulation *s, const rank_state *r, int rank) {
  int64_t bytes = s->plan->arena[r->stages[r->placed]], size = s->plan->arena_bytes[rank];
  if (r->released == r->placed) return bytes <= size ? 0 : -1;
  int64_t newest = r->stages[r->placed - 1], oldest = s->offsets[r->stages[r->released]];
  int64_t head = s->offsets[newest] + s->plan->arena[newest];
  if (s->offsets[newest] < oldest) return oldest - head >= bytes ? head : -1;
  if (size - head >= bytes) return head;
  return oldest >= bytes ? 0 : -1;
}

static void start_load(simulation *s, int rank, double *wakes) {
  rank_state *r = s->ranks + rank;
  if (r->placed > r->loaded || r->placed == r->n) return;
  if (s->now < s->rates->read_seconds) {
    *wakes = fmin(*wakes, s->rates->read_seconds);
    return;
  }
  int64_t offset = room(s, r, rank);
  if (offset < 0) return;
  int64_t stage = r->stages[r->placed++];
  s->offsets[stage] = offset;
  r->left = (double)s->plan->costs[stage].bytes * (s->rates->times_read > 0 ? s->rates->times_read : 1);
  int64_t end = offset + s->plan->arena[stage], begin = offset > r->touched ? offset : r->touched;
  if (end <= begin) return;
  r->touched = end;
  if (s->rates->fresh > 0) r->left *= 1 + (s->rates->fresh - 1) * (double)(end - begin) / (double)s->plan->arena[stage];
}

/* Bytes per second that each reading rank of this rank's node gets. */
static double speed(const simulation *s, int rank) {
  const mo_plan_rates *rates = s->rates;
  int of_node = rates->ranks_per_node > 0 ? rates->ranks_per_node : s->plan->n_ranks, readers = 0;
  int first = rank / of_node * of_node, end = first + of_node < s->plan->n_ranks ? first + of_node : s->plan->n_ranks;
  for (int i = first; i < end; i++) readers += s->ranks[i].placed > s->ranks[i].loaded;
  if (!(rates->bytes_per_second > 0)) return INFINITY;
  double share = rates->bytes_per_second / readers, most = rates->rank_bytes_per_second;
  return most > 0 && most < share ? most : share;
}

/* --- computing --- */

/* The rank's lowest micro-batch that can go on now, -1 if none; *wakes: when rows of one arrive later. */
static int64_t ready_micro(const simulation *s, int rank, double *wakes) {
  const rank_state *r = s->ranks + rank;
  const mo_block *block = s->plan->blocks + r->block;
  for (int64_t m = 0; m < s->n_micro; m++) {
    int64_t at = s->next[rank * s->n_micro + m];
    if (at == block->n_stages || r->begin + at >= r->loaded) continue;
    double here = at ? 0 : s->here[r->block * s->n_micro + m];
    if (here <= s->now) return m;
    if (here < *wakes) *wakes = here;
  }
  return -1;
}

/* Whether what the rank waits for are weights: those that its least advanced micro-batch needs next. */
static bool lacks_weights(const simulation *s, int rank) {
  const rank_state *r = s->ranks + rank;
  int64_t least = s->plan->blocks[r->block].n_stages;
  for (int64_t m = 0; m < s->n_micro; m++)
    if (s->next[rank * s->n_micro + m] < least) least = s->next[rank * s->n_micro + m];
  return r->begin + least >= r->loaded;
}

/* Rows travel once both sides are ready and the link is free. */
static void deliver(simulation *s, int64_t block, int64_t m) {
  rank_state *r = s->ranks + s->plan->blocks[block].rank;
  double begin = fmax(s->now, r->link_free);
  s->here[block * s->n_micro + m] = r->link_free = begin + s->message;
}

/* The rank's next block from index `from` on; rows that wait for it come in. Those of a micro-batch that goes on here, or
 * later, are here. */
static void enter_block(simulation *s, int rank, int64_t from) {
  rank_state *r = s->ranks + rank;
  const mo_plan *plan = s->plan;
  for (r->block = from; r->block < plan->n_blocks && plan->blocks[r->block].rank != rank;) r->block++;
  if (r->block == plan->n_blocks) return;
  const mo_block *block = plan->blocks + r->block;
  for (int64_t m = 0; m < s->n_micro; m++) {
    int64_t cell = r->block * s->n_micro + m, passed = start_of(s, m) - block->first_stage;
    s->next[rank * s->n_micro + m] = passed < 0 ? 0 : passed < block->n_stages ? passed : block->n_stages;
    if (r->block == 0 || passed >= 0 || plan->blocks[r->block - 1].rank == rank)
      s->here[cell] = s->now;
    else if (s->sent[cell] <= s->now)
      deliver(s, r->block, m);
  }
}

/* The micro-batch has left the block. */
static void leave_block(simulation *s, int rank, int64_t m) {
  rank_state *r = s->ranks + rank;
  int64_t following = r->block + 1;
  if (following == s->plan->n_blocks) return;
  s->sent[following * s->n_micro + m] = s->now;
  int to = s->plan->blocks[following].rank;
  if (to != rank && s->ranks[to].block == following) deliver(s, following, m);
}

/* A product has ended: the stage is released after its last micro-batch, the block left after its last stage. */
static void end_compute(simulation *s, int rank) {
  rank_state *r = s->ranks + rank;
  const mo_block *block = s->plan->blocks + r->block;
  int64_t m = r->micro, *next = s->next + rank * s->n_micro, least = block->n_stages;
  r->micro = -1;
  if (++next[m] == block->n_stages) leave_block(s, rank, m);
  for (int64_t i = 0; i < s->n_micro; i++) least = next[i] < least ? next[i] : least;
  r->released = r->begin + least;
  if (least < block->n_stages) return;
  r->begin += block->n_stages;
  enter_block(s, rank, r->block + 1);
}

/* --- time --- */

static void start_work(simulation *s, int rank, double *wakes) {
  rank_state *r = s->ranks + rank;
  start_load(s, rank, wakes);
  if (r->micro >= 0 || r->block == s->plan->n_blocks) return;
  if (s->now < s->rates->start_seconds) {
    *wakes = fmin(*wakes, s->rates->start_seconds);
    return;
  }
  r->micro = ready_micro(s, rank, wakes);
  if (r->micro < 0) return;
  double seconds = compute_seconds(s, r->stages[r->begin + s->next[rank * s->n_micro + r->micro]]);
  r->until = s->now + seconds;
  r->compute += seconds;
}

/* Let `seconds` pass: bytes arrive, ranks wait. */
static void pass(simulation *s, double seconds, const double *speeds) {
  for (int rank = 0; rank < s->plan->n_ranks; rank++) {
    rank_state *r = s->ranks + rank;
    if (r->micro < 0 && r->block < s->plan->n_blocks && lacks_weights(s, rank)) r->load += seconds;
    if (r->placed > r->loaded) r->left -= isinf(speeds[rank]) ? r->left : seconds * speeds[rank];
  }
  s->now += seconds;
}

/* To the next event and over it; false if there is none. */
static bool advance(simulation *s, double *speeds) {
  double wakes = INFINITY;
  for (int rank = 0; rank < s->plan->n_ranks; rank++) start_work(s, rank, &wakes);
  double next = wakes;
  for (int rank = 0; rank < s->plan->n_ranks; rank++) {
    const rank_state *r = s->ranks + rank;
    if (r->micro >= 0) next = fmin(next, r->until);
    if (r->placed == r->loaded) continue;
    speeds[rank] = speed(s, rank);
    next = fmin(next, s->now + r->left / speeds[rank]);
  }
  if (isinf(next)) return false;
  pass(s, next - s->now, speeds);
  s->now = next;
  for (int rank = 0; rank < s->plan->n_ranks; rank++) {
    rank_state *r = s->ranks + rank;
    /* Less than a byte, or than the clock can show, is rounding. */
    if (r->placed > r->loaded && (r->left < 1 || s->now + r->left / speeds[rank] <= s->now)) r->loaded++;
    if (r->micro >= 0 && r->until <= s->now) end_compute(s, rank);
  }
  return true;
}

static mo_status allocate(simulation *s, double **speeds) {
  size_t micro = (size_t)s->n_micro, ranks = (size_t)s->plan->n_ranks, blocks = (size_t)s->plan->n_blocks;
  s->ranks = mo_alloc(ranks, sizeof *s->ranks);
  s->stages = mo_alloc((size_t)s->plan->n_stages, sizeof *s->stages);
  s->offsets = mo_alloc((size_t)s->plan->n_stages, sizeof *s->offsets);
  s->next = mo_alloc(ranks * micro, sizeof *s->next);
  s->here = mo_alloc(blocks * micro, sizeof *s->here);
  s->sent = mo_alloc(blocks * micro, sizeof *s->sent);
  *speeds = mo_alloc(ranks, sizeof **speeds);
  return s->ranks && s->stages && s->offsets && s->next && s->here && s->sent && *speeds ? MO_OK : MO_FAILED;
}

static void begin(simulation *s) {
  int64_t n = 0;
  for (int64_t i = 0; i < s->plan->n_blocks * s->n_micro; i++) s->here[i] = s->sent[i] = INFINITY;
  for (int rank = 0; rank < s->plan->n_ranks; rank++) {
    rank_state *r = s->ranks + rank;
    r->stages = s->stages + n;
    r->micro = -1;
    for (int64_t b = 0; b < s->plan->n_blocks; b++)
      for (int64_t i = 0; s->plan->blocks[b].rank == rank && i < s->plan->blocks[b].n_stages; i++, r->n++)
        s->stages[n++] = s->plan->blocks[b].first_stage + i;
    enter_block(s, rank, 0);
  }
}

static void summarise(const simulation *s, mo_plan_time *time) {
  int working = 0;
  *time = (mo_plan_time){.seconds = s->now};
  for (int rank = 0; rank < s->plan->n_ranks; rank++) {
    time->compute += s->ranks[rank].compute;
    time->load += s->ranks[rank].load;
    working += s->ranks[rank].n > 0;
  }
  if (working == 0) return;
  time->compute /= working;
  time->load /= working;
  double rest = time->seconds - time->compute - time->load;
  time->bubble = rest > 1e-9 * time->seconds ? rest : 0; /* less is rounding */
}

mo_status mo_plan_simulate(const mo_plan *plan, const mo_plan_rates *rates, mo_plan_time *time) {
  simulation s = {.plan = plan, .rates = rates};
  double *speeds = NULL;
  s.n_micro = plan->n_micro < MOST_MICRO ? plan->n_micro : MOST_MICRO;
  if (rates->message_bytes_per_second > 0)
    s.message = (double)plan->activation_bytes / rates->message_bytes_per_second * part_of(&s);
  mo_status status = allocate(&s, &speeds);
  if (status == MO_OK) {
    begin(&s);
    while (advance(&s, speeds)) {
    }
    summarise(&s, time);
  }
  free(s.ranks);
  free(s.stages);
  free(s.offsets);
  free(s.next);
  free(s.here);
  free(s.sent);
  free(speeds);
  return status;
}

mo_status mo_plan_predict(const mo_plan *plan, const mo_plan_rates *rates, mo_plan_time *time) {
  mo_plan_rates only = *rates;
  mo_plan_time alone;
  double *nothing = mo_alloc((size_t)plan->n_stages, sizeof *nothing);
  mo_status status = nothing ? mo_plan_simulate(plan, rates, time) : MO_FAILED;
  only.stage_seconds = nothing;
  if (status == MO_OK) status = mo_plan_simulate(plan, &only, &alone);
  free(nothing);
  MO_TRY(status);
  time->storage_alone = alone.seconds;
  only = *rates;
  only.bytes_per_second = 0;
  MO_TRY(mo_plan_simulate(plan, &only, &alone));
  time->compute_alone = alone.seconds;
  return MO_OK;
}

/* --- defaults --- */

/* Sustained TFLOP/s of whole models, not of one product: on an H100 the models of docs/performance.md reach 420 to 630 (a few
 * 200) in bf16. The others scale by the published dense rates. Memory: GB, of the smallest that is sold by the name. */
static const struct {
  const char *name;
  double bf16, fp32, memory;
} GPUS[] = {{"B300", 900, 60, 270},    {"B200", 900, 60, 180},    {"H200", 450, 45, 141},   {"H100", 450, 45, 80},
            {"A100", 180, 15, 40},     {"L40", 120, 40, 48},      {"A4000", 35, 10, 16},    {"A4500", 43, 12, 20},
            {"A40", 70, 20, 48},       {"PRO 6000", 220, 60, 96}, {"5090", 120, 50, 32},    {"5080", 60, 28, 16},
            {"4090", 90, 40, 24},      {"4080", 50, 24, 16},      {"3090", 35, 18, 24},     {"A6000", 75, 20, 48},
            {"6000 Ada", 140, 45, 48}, {"5000 Ada", 100, 32, 32}, {"4000 Ada", 45, 13, 20}, {"2000 Ada", 20, 6, 16},
            {"A5000", 50, 14, 24},     {"L4", 40, 13, 24},        {"A30", 75, 6, 24},       {"A10", 45, 13, 24}};
enum { N_GPUS = sizeof GPUS / sizeof GPUS[0] };

/* The place of a name that contains one of the table's; N_GPUS: none. */
static size_t find_gpu(const char *gpu) {
  size_t at = 0;
  while (at < N_GPUS && !strstr(gpu, GPUS[at].name)) at++;
  return at;
}

double mo_plan_gpu_memory(const char *gpu) {
  size_t at = find_gpu(gpu);
  return at < N_GPUS ? GPUS[at].memory : 0;
}

mo_plan_rates mo_plan_default_rates(bool cuda, const char *gpu, mo_precision precision, int threads,
                                    const char **name) {
  if (!cuda) {
    *name = "cpu";
    return (mo_plan_rates){.bytes_per_second = 2e9,
                           .flops_per_second = 50e9 * (threads > 0 ? threads : 1),
                           .message_bytes_per_second = 3e9};
  }
  size_t at = find_gpu(gpu);
  *name = at < N_GPUS ? GPUS[at].name : "an H100 (deployment.gpu_filter names no known GPU)";
  if (at == N_GPUS) at = find_gpu("H100");
  double tflops = precision == MO_PRECISION_BF16 ? GPUS[at].bf16 : GPUS[at].fp32;
  return (mo_plan_rates){.bytes_per_second = 5e9, .flops_per_second = 1e12 * tflops, .message_bytes_per_second = 100e9};
}
