/* Micro-batches from GPU to GPU with NCCL: for each directed edge between the ranks of consecutive blocks a communicator of two
 * (0 sends, 1 receives) and a stream of its own.
 *
 * A rank that begins a block asks for its rows in a small MPI message; only then are they sent, behind the compute stream's
 * work on them, and announced in another; only announced rows are received. So no kernel of NCCL waits on a GPU longer than
 * its peer's task takes, and the compute stream never waits for a peer. That matters: with such a kernel under way, a call of
 * CUDA that waits for the whole GPU (the first use of a kernel may be one) would wait for the peer, which may be in one, too.
 *
 * All waits are here, and poll for the failure of a peer and of NCCL. They have no deadline where a peer may be at work
 * of its own, however long it loads or computes: that it is gone is told by its notice, by NCCL or by the launcher. Where
 * both sides have begun, so that nothing is left to do but to transfer, DEADLINE ends what NCCL does not notice, a dead
 * network for one. Only time in which this rank could look counts, none in which it was stopped itself. After a failure
 * everything is left as it is (mo_cuda.abandoned): aborting a communicator may hang when the peer is gone, as may all
 * that waits for the GPU, and the process ends soon. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "backend/cuda/cuda.cuh"
#include "moe_outliers/clock.h"

extern "C" {
#include "pipeline/transport.h"
}

enum {
  DEADLINE = 300, /* seconds that a transfer may take which both sides have begun */
  BLOCKS = 4,     /* thread blocks of a transfer: enough for NVLink at these sizes; the others compute */
  PROBE_BYTES = 256,
};

static_assert(NCCL_UNIQUE_ID_BYTES % sizeof(float) == 0, "the id travels as float32 values");

typedef struct {
  int from, to; /* ranks */
  ncclComm_t nccl;
  cudaStream_t stream;
} nccl_edge;

typedef struct {
  double left, seen; /* seconds, negative: no deadline; when it was counted last */
  int round;
} patience;

typedef struct {
  mo_transport base;
  mo_cuda *cuda;
  nccl_edge *edges; /* [n_edges] this rank's, in the order of the plan */
  int64_t n_edges;
  cudaEvent_t *computed; /* [n_micro] the compute stream's work on rows to be sent */
  mo_message **asked;    /* [n_blocks] the request for a block's rows; NULL once it is here */
  bool *pending;         /* [n_micro] of block `sending`: to be sent when they are asked for */
  int64_t sending, n_pending;
  cudaEvent_t *moved;                  /* [n_micro] end of the last transfer of the rows, in or out */
  mo_message **arriving, **announcing; /* [n_micro] announcements */
  float *words;                        /* [n_micro] and [n_blocks]: what the messages carry: nothing */
  const nccl_edge *source;             /* of the block under way */
  int64_t enqueued; /* micro-batches of the block whose receives are enqueued, or that it does not get */
  patience arrival; /* for the last of them */
  void *probe;      /* GPU memory, PROBE_BYTES */
  ncclUniqueId id;  /* messages' memory that must outlive a failed call */
  mo_message *incoming, *outgoing, *asking;
  float word;
  bool finished;
} nccl_transport;

static nccl_transport *nccl_of(mo_transport *transport) { return (nccl_transport *)transport; }

static bool is_sender(const nccl_transport *t, const nccl_edge *e) { return e->from == mo_comm_rank(t->base.job.comm); }

static int peer_of(const nccl_transport *t, const nccl_edge *e) { return is_sender(t, e) ? e->to : e->from; }

/* --- errors and waiting --- */

static mo_status nccl_error(ncclResult_t code, const nccl_edge *e, const char *what, int line) {
  return mo_error_set(MO_FAILED, __FILE__, line,
                      "NCCL: %s: %s (%s, rank %d to rank %d): check whether both still run and the network between "
                      "them, run again with NCCL_DEBUG=WARN",
                      mo_nccl.error_string(code), mo_nccl.last_error(e->nccl), what, e->from, e->to);
}

/* Calls on communicators that don't block may answer "in progress". */
#define MO_NCCL(call, edge)                                              \
  do {                                                                   \
    ncclResult_t mo_nccl_code_ = (call);                                 \
    if (mo_nccl_code_ != ncclSuccess && mo_nccl_code_ != ncclInProgress) \
      return nccl_error(mo_nccl_code_, (edge), #call, __LINE__);         \
  } while (0)

static mo_status check_edge(const nccl_edge *e, bool *busy) {
  ncclResult_t state = ncclSuccess;
  MO_NCCL(mo_nccl.async_error(e->nccl, &state), e);
  *busy = state == ncclInProgress;
  if (state == ncclSuccess || *busy) return MO_OK;
  return nccl_error(state, e, "transfer", __LINE__);
}

static patience with_deadline(void) { return {DEADLINE, mo_seconds(), 0}; }

/* Of a longer time between two looks a second counts: this rank was stopped, or computed. */
static bool ran_out(patience *p) {
  double now = mo_seconds(), passed = now - p->seen;
  if (p->left < 0) return false;
  p->seen = now;
  p->left = fmax(0, p->left - fmin(passed, 1));
  return p->left == 0;
}

static mo_status check_peers(const nccl_transport *t) {
  MO_TRY(mo_comm_poll(t->base.job.comm));
  for (int64_t i = 0; i < t->n_edges; i++) {
    bool busy;
    if (t->edges[i].nccl) MO_TRY(check_edge(t->edges + i, &busy));
  }
  return MO_OK;
}

/* One round of waiting: the peers' health, the deadline, a rest. */
static mo_status wait_round(const nccl_transport *t, const nccl_edge *edge, patience *p) {
  MO_TRY(check_peers(t));
  if (ran_out(p))
    return MO_FAIL(
        MO_FAILED,
        "NCCL: no progress for %d s (from rank %d to rank %d): check the network between them, run again with "
        "NCCL_DEBUG=INFO",
        (int)DEADLINE, edge->from, edge->to);
  if (p->round++ > 2000) usleep(50); /* spin for the length of a transfer, then leave the core to others */
  return MO_OK;
}

/* Until NCCL has taken up what was asked of it: only then is it on the stream. */
static mo_status settle(const nccl_transport *t, const nccl_edge *e) {
  patience p = with_deadline();
  for (bool busy = true;;) {
    MO_TRY(check_edge(e, &busy));
    if (!busy) return MO_OK;
    MO_TRY(wait_round(t, e, &p));
  }
}

static mo_status await_event(const nccl_transport *t, const nccl_edge *e, cudaEvent_t event) {
  patience p = with_deadline();
  for (;;) {
    cudaError_t code = cudaEventQuery(event);
    if (code == cudaSuccess) return MO_OK;
    if (code != cudaErrorNotReady) return mo_cuda_error(code, "transfer between ranks", __FILE__, __LINE__);
    (void)cudaGetLastError(); /* "not ready" is no error to the next launch */
    MO_TRY(wait_round(t, e, &p));
  }
}

/* No deadline: the peer may compute for as long as it likes. */
static mo_status await_message(const nccl_transport *t, mo_message **message) {
  patience p = {-1, 0, 0};
  for (;;) {
    MO_TRY(mo_comm_test(t->base.job.comm, message));
    if (!*message) return MO_OK;
    MO_TRY(wait_round(t, NULL, &p));
  }
}

/* --- transfers --- */

/* Enqueue one side of a transfer and the event behind it. */
static mo_status move(const nccl_transport *t, const nccl_edge *e, void *data, size_t bytes, cudaEvent_t moved) {
  if (is_sender(t, e))
    MO_NCCL(mo_nccl.send(data, bytes, ncclUint8, 1, e->nccl, e->stream), e);
  else
    MO_NCCL(mo_nccl.receive(data, bytes, ncclUint8, 0, e->nccl, e->stream), e);
  MO_TRY(settle(t, e));
  MO_CUDA(cudaEventRecord(moved, e->stream));
  return MO_OK;
}

static mo_status move_rows(const nccl_transport *t, const nccl_edge *e, int64_t micro) {
  const mo_transport_rows *rows = t->base.job.rows + micro;
  size_t bytes = (size_t)(rows->rows * t->base.job.width) * (size_t)t->cuda->base.activation_bytes;
  return move(t, e, rows->data, bytes, t->moved[micro]);
}

static const nccl_edge *find_edge(const nccl_transport *t, int64_t block) {
  const mo_block *blocks = t->base.job.plan->blocks;
  for (int64_t i = 0; i < t->n_edges; i++)
    if (t->edges[i].from == blocks[block - 1].rank && t->edges[i].to == blocks[block].rank) return t->edges + i;
  return NULL;
}

static mo_status enqueue_receive(nccl_transport *t) {
  int64_t micro = t->enqueued++;
  t->arrival = with_deadline();
  MO_CUDA(cudaStreamWaitEvent(t->source->stream, t->moved[micro], 0)); /* the rows may still be on their way out */
  return move_rows(t, t->source, micro);
}

/* Send what is pending, in order, if it has been asked for by now. */
static mo_status send_pending(nccl_transport *t) {
  static const float nothing = 0;
  const mo_transport_job *job = &t->base.job;
  if (!t->n_pending) return MO_OK;
  MO_TRY(mo_comm_test(job->comm, &t->asked[t->sending + 1]));
  if (t->asked[t->sending + 1]) return MO_OK;
  const nccl_edge *e = find_edge(t, t->sending + 1);
  for (int64_t micro = 0; t->n_pending && micro < job->plan->n_micro; micro++) {
    if (!t->pending[micro]) continue;
    t->pending[micro] = false;
    t->n_pending--;
    MO_CUDA(cudaStreamWaitEvent(e->stream, t->computed[micro], 0));
    MO_TRY(move_rows(t, e, micro));
    MO_TRY(await_message(t, &t->announcing[micro])); /* of an earlier block */
    MO_TRY(mo_comm_send(job->comm, e->to, mo_transport_tag(job->plan, t->sending + 1, micro), &nothing, 1, 1,
                        &t->announcing[micro]));
  }
  return MO_OK;
}

/* Until all that is pending is on its way. */
static mo_status send_all(nccl_transport *t) {
  patience p = {-1, 0, 0};
  for (;;) {
    MO_TRY(send_pending(t));
    if (!t->n_pending) return MO_OK;
    MO_TRY(wait_round(t, NULL, &p));
  }
}

static mo_status nccl_post_receives(mo_transport *transport, int64_t block) {
  static const float nothing = 0;
  nccl_transport *t = nccl_of(transport);
  const mo_transport_job *job = &t->base.job;
  t->source = find_edge(t, block);
  t->enqueued = 0;
  for (int64_t micro = 0; micro < job->plan->n_micro; micro++)
    if (mo_transport_passes(job, block, micro))
      MO_TRY(mo_comm_receive(job->comm, t->source->from, mo_transport_tag(job->plan, block, micro), t->words + micro, 1,
                             1, &t->arriving[micro]));
  MO_TRY(await_message(t, &t->asking)); /* of an earlier block */
  MO_TRY(mo_comm_send(job->comm, t->source->from, mo_transport_tag(job->plan, block, 0), &nothing, 1, 1, &t->asking));
  return send_pending(t);
}

static mo_status nccl_arrived(mo_transport *transport, int64_t micro, bool *here) {
  nccl_transport *t = nccl_of(transport);
  const mo_transport_job *job = &t->base.job;
  *here = false;
  MO_TRY(send_pending(t));
  while (t->enqueued < job->plan->n_micro) { /* later ones that are ready come while this one is computed */
    if (mo_transport_passes(job, t->base.block, t->enqueued)) {
      MO_TRY(mo_comm_test(job->comm, &t->arriving[t->enqueued]));
      if (t->arriving[t->enqueued]) break;
      MO_TRY(enqueue_receive(t));
    } else {
      t->enqueued++;
    }
  }
  if (t->enqueued <= micro) return check_peers(t); /* not announced */
  cudaError_t code = cudaEventQuery(t->moved[micro]);
  *here = code == cudaSuccess;
  if (*here) return MO_OK;
  if (code != cudaErrorNotReady) return mo_cuda_error(code, "transfer between ranks", __FILE__, __LINE__);
  (void)cudaGetLastError(); /* "not ready" is no error to the next launch */
  return wait_round(t, t->source, &t->arrival);
}

static mo_status nccl_send(mo_transport *transport, int64_t block, int64_t micro) {
  nccl_transport *t = nccl_of(transport);
  if (block != t->sending) MO_TRY(send_all(t)); /* a block's rows are asked for before this rank's next block ends */
  t->sending = block;
  MO_CUDA(cudaEventRecord(t->computed[micro], t->cuda->stream));
  t->pending[micro] = true;
  t->n_pending++;
  return send_pending(t);
}

/* --- open and close --- */

static mo_status list_edges(nccl_transport *t) {
  const mo_plan *plan = t->base.job.plan;
  int rank = mo_comm_rank(t->base.job.comm);
  t->edges = (nccl_edge *)mo_alloc((size_t)plan->n_blocks, sizeof *t->edges);
  if (!t->edges) return MO_FAILED;
  for (int64_t b = 1; b < plan->n_blocks; b++) {
    int from = plan->blocks[b - 1].rank, to = plan->blocks[b].rank;
    if (mo_transport_comes_from_peer(plan, b) && (from == rank || to == rank) && !find_edge(t, b)) {
      t->edges[t->n_edges].from = from;
      t->edges[t->n_edges++].to = to;
    }
  }
  return MO_OK;
}

/* The sender makes the id; the receiver answers, so that both are there when the deadline begins to run. Tags below
 * n_micro are not used by micro-batches. */
static mo_status exchange_id(nccl_transport *t, const nccl_edge *e) {
  static const float nothing = 0;
  const mo_transport_job *job = &t->base.job;
  int64_t words = NCCL_UNIQUE_ID_BYTES / sizeof(float);
  if (!is_sender(t, e)) {
    MO_TRY(mo_comm_receive(job->comm, e->from, 0, (float *)&t->id, 1, words, &t->incoming));
    MO_TRY(await_message(t, &t->incoming));
    MO_TRY(mo_comm_send(job->comm, e->from, 0, &nothing, 1, 1, &t->outgoing));
    return await_message(t, &t->outgoing);
  }
  MO_NCCL(mo_nccl.unique_id(&t->id), e);
  MO_TRY(mo_comm_send(job->comm, e->to, 0, (const float *)&t->id, 1, words, &t->outgoing));
  MO_TRY(mo_comm_receive(job->comm, e->to, 0, &t->word, 1, 1, &t->incoming));
  MO_TRY(await_message(t, &t->outgoing));
  return await_message(t, &t->incoming);
}

/* The first transfer makes the connection, for which NCCL needs both sides at once: later ones are only enqueued. */
static mo_status connect(nccl_transport *t, nccl_edge *e) {
  int least, greatest;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.maxCTAs = BLOCKS;
  MO_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  MO_CUDA(cudaStreamCreateWithPriority(&e->stream, cudaStreamNonBlocking,
                                       greatest)); /* transfers start among computing kernels */
  MO_TRY(exchange_id(t, e));
  MO_NCCL(mo_nccl.open(&e->nccl, 2, t->id, is_sender(t, e) ? 0 : 1, &config), e);
  MO_TRY(settle(t, e));
  MO_TRY(move(t, e, t->probe, PROBE_BYTES, t->computed[0]));
  return await_event(t, e, t->computed[0]);
}

/* Requests for this rank's rows may come from now on. */
static mo_status await_requests(nccl_transport *t) {
  const mo_transport_job *job = &t->base.job;
  const mo_plan *plan = job->plan;
  for (int64_t b = 1; b < plan->n_blocks; b++)
    if (mo_transport_comes_from_peer(plan, b) && plan->blocks[b - 1].rank == mo_comm_rank(job->comm))
      MO_TRY(mo_comm_receive(job->comm, plan->blocks[b].rank, mo_transport_tag(plan, b, 0),
                             t->words + plan->n_micro + b, 1, 1, &t->asked[b]));
  return MO_OK;
}

static mo_status open_parts(nccl_transport *t) {
  const mo_plan *plan = t->base.job.plan;
  size_t micro = (size_t)plan->n_micro, blocks = (size_t)plan->n_blocks;
  MO_TRY(list_edges(t));
  if (t->n_edges == 0) return MO_OK;
  t->computed = (cudaEvent_t *)mo_alloc(micro, sizeof *t->computed);
  t->moved = (cudaEvent_t *)mo_alloc(micro, sizeof *t->moved);
  t->pending = (bool *)mo_alloc(micro, sizeof *t->pending);
  t->arriving = (mo_message **)mo_alloc(micro, sizeof *t->arriving);
  t->announcing = (mo_message **)mo_alloc(micro, sizeof *t->announcing);
  t->asked = (mo_message **)mo_alloc(blocks, sizeof *t->asked);
  t->words = (float *)mo_alloc(micro + blocks, sizeof *t->words);
  if (!t->computed || !t->moved || !t->pending || !t->arriving || !t->announcing || !t->asked || !t->words)
    return MO_FAILED;
  MO_CUDA(cudaSetDevice(t->cuda->device));
  MO_CUDA(cudaMalloc(&t->probe, PROBE_BYTES));
  for (size_t i = 0; i < micro; i++) {
    MO_CUDA(cudaEventCreateWithFlags(&t->computed[i], cudaEventDisableTiming));
    MO_CUDA(cudaEventCreateWithFlags(&t->moved[i], cudaEventDisableTiming));
  }
  for (int64_t i = 0; i < t->n_edges; i++)
    MO_TRY(connect(t, t->edges + i)); /* the same order on all ranks: the plan's */
  return await_requests(t);
}

/* At the exit of a process whose GPU still waits for a peer, before what libraries do there: that may wait for the GPU. */
static void leave(int exit_status, void *unused) {
  (void)unused;
  fflush(NULL);
  _exit(exit_status);
}

static bool nccl_close(mo_transport *transport) {
  nccl_transport *t = nccl_of(transport);
  if (t->n_edges > 0 && !t->finished) {
    if (!t->cuda->abandoned) (void)on_exit(leave, NULL);
    t->cuda->abandoned = true;
    return false;
  }
  for (int64_t i = 0; i < t->n_edges; i++) {
    (void)mo_nccl.destroy(t->edges[i].nccl);
    (void)cudaStreamDestroy(t->edges[i].stream);
  }
  for (int64_t i = 0; t->n_edges && i < t->base.job.plan->n_micro; i++) {
    (void)cudaEventDestroy(t->moved[i]);
    (void)cudaEventDestroy(t->computed[i]);
  }
  (void)cudaFree(t->probe);
  free(t->edges);
  free(t->computed);
  free(t->moved);
  free(t->pending);
  free(t->asked);
  free(t->arriving);
  free(t->announcing);
  free(t->words);
  free(t);
  return true;
}

static mo_status nccl_open(mo_transport **transport, const mo_transport_job *job) {
  MO_TRY(mo_nccl_bind());
  nccl_transport *t = (nccl_transport *)mo_alloc(1, sizeof *t);
  if (!t) return MO_FAILED;
  t->base.table = &mo_transport_nccl;
  t->base.job = *job;
  t->cuda = mo_cuda_of(job->backend);
  mo_status status = open_parts(t);
  if (status == MO_OK)
    *transport = &t->base;
  else
    (void)nccl_close(&t->base);
  return status;
}

/* Both ends of an edge say that they are done: what is left to wait for is short. */
static mo_status farewell(nccl_transport *t, const nccl_edge *e) {
  static const float nothing = 0;
  const mo_transport_job *job = &t->base.job;
  MO_TRY(mo_comm_send(job->comm, peer_of(t, e), 0, &nothing, 1, 1, &t->outgoing));
  MO_TRY(mo_comm_receive(job->comm, peer_of(t, e), 0, &t->word, 1, 1, &t->incoming));
  MO_TRY(await_message(t, &t->outgoing));
  return await_message(t, &t->incoming);
}

static mo_status nccl_finish(mo_transport *transport) {
  nccl_transport *t = nccl_of(transport);
  int64_t n_micro = t->base.job.plan->n_micro;
  MO_TRY(send_all(t));
  for (int64_t b = 1; t->n_edges && b < t->base.job.plan->n_blocks; b++) MO_TRY(await_message(t, &t->asked[b]));
  MO_TRY(await_message(t, &t->asking));
  for (int64_t i = 0; i < t->n_edges; i++) {
    nccl_edge *e = t->edges + i;
    MO_TRY(farewell(t, e));
    for (int64_t micro = 0; micro < n_micro; micro++) {
      MO_TRY(await_message(t, &t->announcing[micro]));
      MO_TRY(await_event(t, e, t->moved[micro]));
    }
  }
  for (int64_t i = 0; i < t->n_edges; i++) {
    MO_NCCL(mo_nccl.finalize(t->edges[i].nccl), t->edges + i);
    MO_TRY(settle(t, t->edges + i));
  }
  t->finished = true;
  return MO_OK;
}

extern "C" const mo_transport_table mo_transport_nccl = {nccl_open, nccl_post_receives, nccl_arrived,
                                                         nccl_send, nccl_finish,        nccl_close};
