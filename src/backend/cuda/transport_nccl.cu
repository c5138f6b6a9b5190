/* Micro-batches from GPU to GPU with NCCL: for each directed edge between the ranks of consecutive blocks a communicator of two
 * (0 sends, 1 receives) and a stream of its own.
 *
 * A send is enqueued behind the compute stream's work on its rows, then announced to the receiver in a small MPI message, and
 * only announced rows are received: no receiving kernel occupies a GPU while the sender computes, and the compute stream never
 * waits for a peer. A fast sender's kernel may wait for the receiver; it is on the side that has time. All waits are here, poll
 * for the failure of a peer and of NCCL, and have a deadline wherever both sides have begun. After a failure everything is left
 * as it is (mo_cuda.abandoned): aborting a communicator may hang when the peer is gone, and the process ends soon. */
#include <nccl.h>
#include <stdlib.h>
#include <unistd.h>

#include "backend/cuda/cuda.cuh"

extern "C" {
#include "pipeline/progress.h"
#include "pipeline/transport.h"
}

enum {
  DEADLINE = 300, /* seconds that a transfer may take which both sides have begun */
  BLOCKS = 8,     /* thread blocks of a transfer: enough for NVLink at these sizes; the others compute */
  PROBE_BYTES = 256,
};

static_assert(NCCL_UNIQUE_ID_BYTES % sizeof(float) == 0, "the id travels as float32 values");

typedef struct {
  int from, to; /* ranks */
  ncclComm_t nccl;
  cudaStream_t stream;
} nccl_edge;

typedef struct {
  mo_transport base;
  mo_cuda *cuda;
  nccl_edge *edges; /* [n_edges] this rank's, in the order of the plan */
  int64_t n_edges;
  cudaEvent_t computed;                /* the compute stream's work on rows about to be sent */
  cudaEvent_t *moved;                  /* [n_micro] end of the last transfer of the rows, in or out */
  mo_message **arriving, **announcing; /* [n_micro] announcements */
  float *words;                        /* [n_micro] the arriving ones' contents: none */
  const nccl_edge *source;             /* of the block under way, NULL if its rows are here */
  int64_t enqueued;                    /* receives of the block so far */
  void *probe;                         /* GPU memory, PROBE_BYTES */
  ncclUniqueId id;                     /* messages' memory that must outlive a failed call */
  mo_message *incoming, *outgoing;
  float word;
  bool finished;
} nccl_transport;

static nccl_transport *nccl_of(mo_transport *transport) { return (nccl_transport *)transport; }

static bool is_sender(const nccl_transport *t, const nccl_edge *e) { return e->from == mo_comm_rank(t->base.job.comm); }

static int peer_of(const nccl_transport *t, const nccl_edge *e) { return is_sender(t, e) ? e->to : e->from; }

/* --- errors and waiting --- */

static mo_status nccl_error(ncclResult_t code, ncclComm_t nccl, const char *what, int line) {
  return mo_error_set(MO_FAILED, __FILE__, line, "NCCL: %s: %s (%s): run again with NCCL_DEBUG=WARN",
                      ncclGetErrorString(code), ncclGetLastError(nccl), what);
}

/* Calls on communicators that don't block may answer "in progress". */
#define MO_NCCL(call, nccl)                                              \
  do {                                                                   \
    ncclResult_t mo_nccl_code_ = (call);                                 \
    if (mo_nccl_code_ != ncclSuccess && mo_nccl_code_ != ncclInProgress) \
      return nccl_error(mo_nccl_code_, (nccl), #call, __LINE__);         \
  } while (0)

static mo_status check_edge(const nccl_edge *e, bool *busy) {
  ncclResult_t state = ncclSuccess;
  MO_NCCL(ncclCommGetAsyncError(e->nccl, &state), e->nccl);
  *busy = state == ncclInProgress;
  if (state == ncclSuccess || *busy) return MO_OK;
  return nccl_error(state, e->nccl, "transfer between ranks", __LINE__);
}

typedef struct {
  double until; /* 0: no deadline */
  int round;
} patience;

static patience with_deadline(void) { return {mo_seconds() + DEADLINE, 0}; }

/* One round of waiting: the peers' health, the deadline, a rest. */
static mo_status wait_round(const nccl_transport *t, const nccl_edge *edge, patience *p) {
  MO_TRY(mo_comm_poll(t->base.job.comm));
  for (int64_t i = 0; i < t->n_edges; i++) {
    bool busy;
    if (t->edges[i].nccl) MO_TRY(check_edge(t->edges + i, &busy));
  }
  if (p->until > 0 && mo_seconds() > p->until)
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
  patience p = {0, 0};
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
    MO_NCCL(ncclSend(data, bytes, ncclUint8, 1, e->nccl, e->stream), e->nccl);
  else
    MO_NCCL(ncclRecv(data, bytes, ncclUint8, 0, e->nccl, e->stream), e->nccl);
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
  MO_CUDA(cudaStreamWaitEvent(t->source->stream, t->moved[micro], 0)); /* the rows may still be on their way out */
  return move_rows(t, t->source, micro);
}

static mo_status nccl_post_receives(mo_transport *transport, int64_t block) {
  nccl_transport *t = nccl_of(transport);
  const mo_transport_job *job = &t->base.job;
  t->source = find_edge(t, block);
  t->enqueued = 0;
  for (int64_t micro = 0; micro < job->plan->n_micro; micro++)
    MO_TRY(mo_comm_receive(job->comm, t->source->from, mo_transport_tag(job->plan, block, micro), t->words + micro, 1,
                           1, &t->arriving[micro]));
  return MO_OK;
}

static mo_status nccl_await(mo_transport *transport, int64_t micro) {
  nccl_transport *t = nccl_of(transport);
  int64_t n_micro = t->base.job.plan->n_micro;
  if (!t->source) return MO_OK;
  if (t->enqueued == micro) {
    MO_TRY(await_message(t, &t->arriving[micro]));
    MO_TRY(enqueue_receive(t));
  }
  while (t->enqueued < n_micro) { /* later ones that are ready come while this one is computed */
    MO_TRY(mo_comm_test(t->base.job.comm, &t->arriving[t->enqueued]));
    if (t->arriving[t->enqueued]) break;
    MO_TRY(enqueue_receive(t));
  }
  MO_TRY(await_event(t, t->source, t->moved[micro]));
  if (micro == n_micro - 1) t->source = NULL;
  return MO_OK;
}

static mo_status nccl_send(mo_transport *transport, int64_t block, int64_t micro) {
  static const float nothing = 0;
  nccl_transport *t = nccl_of(transport);
  const mo_transport_job *job = &t->base.job;
  const nccl_edge *e = find_edge(t, block + 1);
  MO_CUDA(cudaEventRecord(t->computed, t->cuda->stream));
  MO_CUDA(cudaStreamWaitEvent(e->stream, t->computed, 0));
  MO_TRY(move_rows(t, e, micro));
  MO_TRY(await_message(t, &t->announcing[micro])); /* of an earlier block */
  return mo_comm_send(job->comm, e->to, mo_transport_tag(job->plan, block + 1, micro), &nothing, 1, 1,
                      &t->announcing[micro]);
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

/* The sender makes the id; tags below n_micro are not used by micro-batches. */
static mo_status exchange_id(nccl_transport *t, const nccl_edge *e) {
  const mo_transport_job *job = &t->base.job;
  int64_t words = NCCL_UNIQUE_ID_BYTES / sizeof(float);
  if (!is_sender(t, e)) {
    MO_TRY(mo_comm_receive(job->comm, e->from, 0, (float *)&t->id, 1, words, &t->incoming));
    return await_message(t, &t->incoming);
  }
  MO_NCCL(ncclGetUniqueId(&t->id), NULL);
  MO_TRY(mo_comm_send(job->comm, e->to, 0, (const float *)&t->id, 1, words, &t->outgoing));
  return await_message(t, &t->outgoing);
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
  MO_NCCL(ncclCommInitRankConfig(&e->nccl, 2, t->id, is_sender(t, e) ? 0 : 1, &config), NULL);
  MO_TRY(settle(t, e));
  MO_TRY(move(t, e, t->probe, PROBE_BYTES, t->computed));
  return await_event(t, e, t->computed);
}

static mo_status open_parts(nccl_transport *t) {
  size_t micro = (size_t)t->base.job.plan->n_micro;
  MO_TRY(list_edges(t));
  if (t->n_edges == 0) return MO_OK;
  t->moved = (cudaEvent_t *)mo_alloc(micro, sizeof *t->moved);
  t->arriving = (mo_message **)mo_alloc(micro, sizeof *t->arriving);
  t->announcing = (mo_message **)mo_alloc(micro, sizeof *t->announcing);
  t->words = (float *)mo_alloc(micro, sizeof *t->words);
  if (!t->moved || !t->arriving || !t->announcing || !t->words) return MO_FAILED;
  MO_CUDA(cudaSetDevice(t->cuda->device));
  MO_CUDA(cudaMalloc(&t->probe, PROBE_BYTES));
  MO_CUDA(cudaEventCreateWithFlags(&t->computed, cudaEventDisableTiming));
  for (size_t i = 0; i < micro; i++) MO_CUDA(cudaEventCreateWithFlags(&t->moved[i], cudaEventDisableTiming));
  for (int64_t i = 0; i < t->n_edges; i++)
    MO_TRY(connect(t, t->edges + i)); /* the same order on all ranks: the plan's */
  return MO_OK;
}

static bool nccl_close(mo_transport *transport) {
  nccl_transport *t = nccl_of(transport);
  if (t->n_edges > 0 && !t->finished) {
    t->cuda->abandoned = true;
    return false;
  }
  for (int64_t i = 0; i < t->n_edges; i++) {
    (void)ncclCommDestroy(t->edges[i].nccl);
    (void)cudaStreamDestroy(t->edges[i].stream);
  }
  for (int64_t i = 0; t->moved && i < t->base.job.plan->n_micro; i++) (void)cudaEventDestroy(t->moved[i]);
  if (t->computed) (void)cudaEventDestroy(t->computed);
  (void)cudaFree(t->probe);
  free(t->edges);
  free(t->moved);
  free(t->arriving);
  free(t->announcing);
  free(t->words);
  free(t);
  return true;
}

static mo_status nccl_open(mo_transport **transport, const mo_transport_job *job) {
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
  for (int64_t i = 0; i < t->n_edges; i++) {
    nccl_edge *e = t->edges + i;
    MO_TRY(farewell(t, e));
    for (int64_t micro = 0; micro < n_micro; micro++) {
      MO_TRY(await_message(t, &t->announcing[micro]));
      MO_TRY(await_event(t, e, t->moved[micro]));
    }
  }
  for (int64_t i = 0; i < t->n_edges; i++) {
    MO_NCCL(ncclCommFinalize(t->edges[i].nccl), t->edges[i].nccl);
    MO_TRY(settle(t, t->edges + i));
  }
  t->finished = true;
  return MO_OK;
}

extern "C" const mo_transport_table mo_transport_nccl = {nccl_open, nccl_post_receives, nccl_await,
                                                         nccl_send, nccl_finish,        nccl_close};
