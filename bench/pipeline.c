/* Time of the forward pass over a pipeline of ranks with all weights in backend memory: random weights of a model's real shapes,
 * N x S tokens in micro-batches of B sequences, rows passed on by the program's own transport, statistics collected.
 *
 *   mpirun -np P bench_pipeline CONFIG.json [--layers L] [--sequences N] [--length S] [--micro B] [--device cuda|cpu]
 *                               [--threads T] [--repeat R] [--check] [--profile]
 *
 * A pass begins at a barrier and ends with the last rank's last operation: filling the pipeline counts. Prints each repeat's
 * seconds and the median, TFLOP/s counting the operations of active experts, the share of a pass that P equal stages must wait,
 * (P-1)/(M+P-1), the layers of each rank, the bytes that ranks send each other, how long a pass takes that only passes
 * rows on, and a checksum of the last rank's rows: the same for every P. --threads: of a rank on the CPU (0: its share of the
 * cores). --check makes rank 0 compute the pass alone too (it must hold all layers) and fails unless the rows are the same
 * bit for bit. --profile prints where each rank's host thread spends a further pass: route, site_results and await are where
 * it waits. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"
#include "moe_outliers/comm.h"
#include "moe_outliers/plan.h"
#include "pipeline/transport.h"
#include "profile.h"

enum { MAX_REPEATS = 64 };

typedef struct {
  const char *config, *device;
  int64_t layers, sequences, length, micro, threads, repeat;
  bool check, profile;
} options;

typedef struct {
  const options *options;
  bench_model model;
  mo_comm *comm;
  mo_plan plan;
  const mo_transport_table *transport_table;
  mo_transport_rows *rows; /* [n_micro] */
  int64_t *start;          /* [n_micro] all 0: every micro-batch begins with the first block */
  double await, send;      /* host seconds of this rank in the last pass */
  bool rows_only;          /* nothing is computed */
} pipeline;

/* --- set up --- */

static void open_model(pipeline *p) {
  const options *o = p->options;
  bench_model *m = &p->model;
  const mo_backend_table *table;
  int local = mo_comm_local_size(p->comm);
  long threads = o->threads ? (long)o->threads : sysconf(_SC_NPROCESSORS_ONLN) / local;
  mo_backend_options backend_options = {
      .precision = MO_PRECISION_BF16, .threads = threads < 1 ? 1 : (int)threads, .device = mo_comm_local_rank(p->comm)};
#ifdef MO_HAVE_CUDA
  if (mo_comm_size(p->comm) > 1) mo_backend_cuda_meet_peers();
#endif
  bench_must(mo_backend_choose(strcmp(o->device, "cuda") == 0 ? MO_DEVICE_CUDA : MO_DEVICE_CPU, &table));
  *m = (bench_model){
      .sequences = o->sequences, .length = o->length, .micro = o->micro, .statistics = true, .experts = true};
  bench_model_read(m, o->config, o->layers);
  bench_model_open(m, table, &backend_options);
}

/* Balanced by operations alone: nothing is read. Stage 0, the embedding, is not computed. */
static void make_plan(pipeline *p) {
  const bench_model *m = &p->model;
  mo_plan_request request = {
      .spec = &m->spec,
      .n_sequences = m->sequences,
      .length = m->length,
      .micro_batch = m->micro,
      .n_ranks = mo_comm_size(p->comm),
      .activation_bytes = m->backend->activation_bytes,
      .partition = MO_PARTITION_CONTIGUOUS,
      .element_bytes = 2,
      .rates = {.bytes_per_second = 1e15, .flops_per_second = 1e14},
  };
  if (request.n_ranks > m->spec.n_layers)
    bench_must(MO_FAIL(MO_INVALID, "%d ranks but only %" PRId64 " layers: use fewer ranks", request.n_ranks,
                       m->spec.n_layers));
  bench_must(mo_plan_make(&p->plan, &request));
  if (request.n_ranks == 1) { /* planned to stream stage after stage; here all weights stay */
    p->plan.n_blocks = 1;
    p->plan.blocks[0].n_stages = p->plan.n_stages;
  }
  if (p->plan.n_blocks != request.n_ranks)
    bench_must(
        MO_FAIL(MO_FAILED, "%" PRId64 " blocks on %d ranks: each should have one", p->plan.n_blocks, request.n_ranks));
}

/* The decoder layers of a block. */
static void layers_of(const mo_block *block, int64_t *first, int64_t *n) {
  *first = block->first_stage > 0 ? block->first_stage - 1 : 0;
  *n = block->first_stage + block->n_stages - 1 - *first;
}

static void open_pipeline(pipeline *p) {
  bench_model *m = &p->model;
  int64_t first, n;
  open_model(p);
  make_plan(p);
  layers_of(p->plan.blocks + mo_comm_rank(p->comm), &first, &n);
  bench_model_load(m, first, n);
  p->rows = mo_alloc((size_t)p->plan.n_micro, sizeof *p->rows);
  p->start = mo_alloc((size_t)p->plan.n_micro, sizeof *p->start);
  if (!p->rows || !p->start) bench_must(MO_FAILED);
  for (int64_t i = 0; i < p->plan.n_micro; i++)
    p->rows[i] = (mo_transport_rows){bench_micro_rows(m, i), bench_micro_batch(m, i) * m->length};
  bench_must(mo_transport_choose(p->comm, m->backend, &p->transport_table));
}

/* --- a pass --- */

/* As long as it takes; a failing peer ends all ranks. */
static void await_rows(mo_transport *transport, int64_t micro) {
  bool here = false;
  for (int round = 0; !here; round++) {
    bench_must(mo_transport_arrived(transport, micro, &here));
    if (!here && round > 2000) usleep(20); /* spin for the length of a transfer, then leave the core to others */
  }
}

/* Rows that are taken while others are computed, as in a run. */
typedef struct {
  mo_transport *transport;
  int64_t micro, n_micro;
} coming;

static mo_status take_coming(void *context) {
  const coming *c = context;
  bool here;
  return c->micro < c->n_micro ? mo_transport_arrived(c->transport, c->micro, &here) : MO_OK;
}

static void run_block(pipeline *p, mo_transport *transport) {
  bench_model *m = &p->model;
  m->poll = take_coming;
  int64_t index = mo_comm_rank(p->comm), first, n;
  layers_of(p->plan.blocks + index, &first, &n);
  bench_must(mo_transport_post_receives(transport, index));
  for (int64_t i = 0; i < p->plan.n_micro; i++) {
    double begin = bench_now();
    await_rows(transport, i);
    p->await += bench_now() - begin;
    coming next = {transport, i + 1, p->plan.n_micro};
    m->poll_context = &next;
    if (!p->rows_only) bench_model_run(m, i, first, n);
    begin = bench_now();
    bench_must(mo_transport_send(transport, index, i));
    p->send += bench_now() - begin;
  }
  m->poll = NULL;
  bench_must(m->backend->table->sync(m->backend));
}

/* Seconds from the barrier to the end of the slowest rank. A transport serves one pass; making it is not part of the time. */
static double one_pass(pipeline *p) {
  mo_transport *transport;
  mo_transport_job job = {p->comm, p->model.backend, &p->plan, p->rows, p->model.spec.hidden, p->start};
  bench_model_reset(&p->model);
  bench_must(mo_transport_open(&transport, p->transport_table, &job));
  bench_must(p->model.backend->table->sync(p->model.backend));
  p->await = p->send = 0;
  bench_must(mo_comm_barrier(p->comm)); /* who waited long here leaves up to 1 ms late, */
  bench_must(mo_comm_barrier(p->comm)); /* and here at once */
  double begin = bench_now();
  run_block(p, transport);
  int64_t nanoseconds = (int64_t)(1e9 * (bench_now() - begin));
  bench_must(mo_comm_allreduce(p->comm, &nanoseconds, 1, MO_MAX_I64));
  bench_must(mo_transport_finish(transport));
  (void)mo_transport_close(transport);
  return 1e-9 * (double)nanoseconds;
}

/* --- the check --- */

/* FNV-1a over the stream, the same for equal rows. */
static uint64_t checksum(const bench_model *m) {
  size_t bytes = (size_t)(bench_model_values(m) * m->backend->activation_bytes);
  unsigned char *copy = mo_alloc(bytes, 1);
  if (!copy) bench_must(MO_FAILED);
  bench_must(m->backend->table->download(m->backend, m->x, bytes, copy));
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < bytes; i++) hash = (hash ^ copy[i]) * 0x100000001b3u;
  free(copy);
  return hash;
}

/* The checksum of the last rank's rows, on every rank. */
static uint64_t final_checksum(pipeline *p) {
  uint64_t hash = checksum(&p->model);
  bench_must(mo_comm_broadcast(p->comm, &hash, sizeof hash, mo_comm_size(p->comm) - 1));
  return hash;
}

/* On rank 0: the pass without the others. */
static void check_alone(pipeline *p, uint64_t expected) {
  bench_model *m = &p->model;
  bench_model_load(m, 0, m->spec.n_layers);
  bench_model_reset(m);
  for (int64_t i = 0; i < p->plan.n_micro; i++) bench_model_run(m, i, 0, m->spec.n_layers);
  uint64_t alone = checksum(m);
  if (alone != expected)
    bench_must(MO_FAIL(MO_FAILED, "the rows differ: checksum %016" PRIx64 " on one rank, %016" PRIx64 " on %d", alone,
                       expected, p->plan.n_ranks));
  printf("  the same rows as on one rank, bit for bit\n");
}

/* --- reports --- */

static void print_rank(const profile_entry *entries, int rank, double total) {
  double waits = 0, calls = 0;
  for (int i = 0; i < PROFILE_OPERATIONS + 2; i++) {
    const char *name = entries[i].name;
    bool wait = strcmp(name, "route") == 0 || strcmp(name, "site_results") == 0 || strcmp(name, "await") == 0;
    *(wait ? &waits : &calls) += entries[i].seconds;
  }
  printf("  host of rank %d: %.1f %% of the pass in calls that wait, %.1f %% in others, %.1f %% between\n", rank,
         100 * waits / total, 100 * calls / total, 100 * (1 - (waits + calls) / total));
  for (int i = 0; i < PROFILE_OPERATIONS + 2; i++)
    if (entries[i].calls)
      printf("    %-16s %8.4f s %5.1f %% %6" PRId64 " calls\n", entries[i].name, entries[i].seconds,
             100 * entries[i].seconds / total, entries[i].calls);
}

/* One more pass with the host's time in each call. */
static void print_profile(pipeline *p) {
  bench_model *m = &p->model;
  profile_entry mine[PROFILE_OPERATIONS + 2];
  void *all;
  size_t bytes;
  mo_workspace_close(m->workspace);
  profile_begin(m->backend, false);
  bench_must(mo_workspace_open(&m->workspace, &m->spec, m->backend, m->micro, m->length));
  double total = one_pass(p);
  memcpy(mine, profile_entries(), PROFILE_OPERATIONS * sizeof *mine);
  mine[PROFILE_OPERATIONS] = (profile_entry){"await", p->await, p->plan.n_micro};
  mine[PROFILE_OPERATIONS + 1] = (profile_entry){"send", p->send, p->plan.n_micro};
  bench_must(mo_comm_gather(p->comm, mine, sizeof mine, &all, &bytes));
  for (int rank = 0; all && rank < p->plan.n_ranks; rank++)
    print_rank((const profile_entry *)all + rank * (PROFILE_OPERATIONS + 2), rank, total);
  free(all);
}

/* What the rows cost by themselves. Ranks pass them on as they come, so that a pass takes as long as M + P - 2 messages. */
static void print_rows(pipeline *p, int64_t value_bytes) {
  int ranks = p->plan.n_ranks;
  double seconds[3], spread;
  if (ranks == 1) return;
  p->rows_only = true;
  for (int i = 0; i < 3; i++) seconds[i] = one_pass(p);
  p->rows_only = false;
  double message = bench_median(seconds, 3, &spread) / (double)(p->plan.n_micro + ranks - 2);
  double bytes = (double)(bench_model_values(&p->model) * value_bytes) / (double)p->plan.n_micro;
  if (mo_comm_rank(p->comm) == 0)
    printf("  rows alone: %.6f s a pass, %.6f s a message of %.3f MB, %.2f GB/s\n", seconds[1], message, 1e-6 * bytes,
           1e-9 * bytes / message);
}

static void print_layers(const mo_plan *plan) {
  printf("  layers of the ranks:");
  for (int64_t b = 0; b < plan->n_blocks; b++) {
    int64_t first, n;
    layers_of(plan->blocks + b, &first, &n);
    printf(" %" PRId64, n);
  }
  printf("\n");
}

static void report(pipeline *p) {
  const options *o = p->options;
  const bench_model *m = &p->model;
  bool speaks = mo_comm_rank(p->comm) == 0;
  double seconds[MAX_REPEATS], spread, ranks = p->plan.n_ranks, micros = (double)p->plan.n_micro;
  bool nccl = p->transport_table != &mo_transport_mpi;
  int64_t value_bytes = nccl ? m->backend->activation_bytes : (int64_t)sizeof(float);
  one_pass(p); /* warm-up */
  for (int64_t i = 0; i < o->repeat; i++) {
    seconds[i] = one_pass(p);
    if (speaks) printf("  pass %" PRId64 ": %.4f s\n", i + 1, seconds[i]);
  }
  uint64_t hash = final_checksum(p);
  double median = bench_median(seconds, o->repeat, &spread);
  if (speaks) {
    printf("%-14s %3" PRId64 " layers %2" PRId64 " x %" PRId64 " micro %2" PRId64
           " ranks %d: %8.4f s (+-%.4f) %6.1f TFLOP/s\n",
           m->spec.architecture, m->spec.n_layers, o->sequences, o->length, o->micro, p->plan.n_ranks, median,
           spread / 2, 1e-12 * bench_model_flops(m) / median);
    printf("  pipeline's share of waiting %.1f %%, %.1f MB of messages with %s, checksum %016" PRIx64 "\n",
           100 * (ranks - 1) / (micros + ranks - 1), 1e-6 * (ranks - 1) * (double)(bench_model_values(m) * value_bytes),
           nccl ? "NCCL" : "MPI", hash);
    print_layers(&p->plan);
  }
  print_rows(p, value_bytes);
  if (o->profile) print_profile(p);
  if (o->check && speaks) check_alone(p, hash);
  bench_must(mo_comm_barrier(p->comm)); /* nobody leaves before the check */
}

/* The value of a number's option, NULL if it is none. */
static int64_t *number_of(options *o, const char *name) {
  if (strcmp(name, "--layers") == 0) return &o->layers;
  if (strcmp(name, "--sequences") == 0) return &o->sequences;
  if (strcmp(name, "--length") == 0) return &o->length;
  if (strcmp(name, "--micro") == 0) return &o->micro;
  if (strcmp(name, "--threads") == 0) return &o->threads;
  if (strcmp(name, "--repeat") == 0) return &o->repeat;
  return NULL;
}

static bool take_options(options *o, int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    int64_t *number = number_of(o, argv[i]);
    if (number)
      *number = bench_number(value), i++;
    else if (strcmp(argv[i], "--device") == 0)
      o->device = value, i++;
    else if (strcmp(argv[i], "--check") == 0)
      o->check = true;
    else if (strcmp(argv[i], "--profile") == 0)
      o->profile = true;
    else if (argv[i][0] != '-')
      o->config = argv[i];
    else
      return false;
  }
  return o->config && o->layers >= 0 && o->sequences >= 1 && o->length >= 1 && o->micro >= 1 && o->threads >= 0 &&
         o->repeat >= 1 && o->repeat <= MAX_REPEATS;
}

int main(int argc, char **argv) {
  options o = {.device = "cuda", .sequences = 16, .length = 2048, .micro = 1, .repeat = 5};
  pipeline p = {.options = &o};
  bench_program = "bench_pipeline";
  if (!take_options(&o, argc, argv)) {
    fprintf(stderr,
            "usage: [mpirun -np P] bench_pipeline CONFIG.json [--layers L] [--sequences N] [--length S] [--micro B] "
            "[--device cuda|cpu] [--threads T] [--repeat R] [--check] [--profile]\n");
    return 2;
  }
  bench_must(mo_comm_open(&p.comm, &argc, &argv));
  open_pipeline(&p);
  report(&p);
  mo_plan_free(&p.plan);
  bench_model_close(&p.model);
  free(p.rows);
  free(p.start);
  mo_comm_close(p.comm);
  return 0;
}
