/* Private to the pipeline: how the rows of micro-batches pass from the rank of one block to the rank of the next.
 *
 * Two implementations fill the same table: through host memory and MPI (transport_mpi.c, every backend), and from GPU
 * to GPU with NCCL (backend/cuda/transport_nccl.cu, if all ranks run the cuda backend of a program built with NCCL). */
#ifndef MO_PIPELINE_TRANSPORT_H
#define MO_PIPELINE_TRANSPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "moe_outliers/backend.h"
#include "moe_outliers/comm.h"
#include "moe_outliers/plan.h"

/* Where a micro-batch's part of the residual stream lies: [rows, width] in backend memory. */
typedef struct {
  void *data;
  int64_t rows;
} mo_transport_rows;

/* What a transport works with; the pointers are the caller's and outlive it. */
typedef struct {
  mo_comm *comm;
  mo_backend *backend;
  const mo_plan *plan;
  const mo_transport_rows *rows; /* [n_micro] */
  int64_t width;
  const int64_t *start; /* [n_micro] where a micro-batch begins: blocks up to this stage don't get it from a peer */
} mo_transport_job;

typedef struct mo_transport mo_transport;

/* The functions below without their common part; block and micro are valid and between two ranks. arrived is asked for
 * micro-batches that pass to the block under way, in their order. */
typedef struct {
  mo_status (*open)(mo_transport **transport, const mo_transport_job *job);
  mo_status (*post_receives)(mo_transport *transport, int64_t block);
  mo_status (*arrived)(mo_transport *transport, int64_t micro, bool *here);
  mo_status (*send)(mo_transport *transport, int64_t block, int64_t micro);
  mo_status (*finish)(mo_transport *transport);
  bool (*close)(mo_transport *transport);
} mo_transport_table;

/* Every implementation's struct begins with this. */
struct mo_transport {
  const mo_transport_table *table;
  mo_transport_job job;
  int64_t block; /* under way */
};

extern const mo_transport_table mo_transport_mpi;
#ifdef MO_HAVE_NCCL
extern const mo_transport_table mo_transport_nccl;
#endif

/* The table that every rank can use. Collective over all ranks, also those without a block. */
MO_CHECKED mo_status mo_transport_choose(mo_comm *comm, const mo_backend *backend, const mo_transport_table **table);

/* Connect this rank to its neighbours in the plan. Collective over the ranks that have a block. */
MO_CHECKED mo_status mo_transport_open(mo_transport **transport, const mo_transport_table *table,
                                       const mo_transport_job *job);
/* Before the first micro-batch of a block: rows of micro-batches that pass to it may be written from now on. Each block
 * once, when all micro-batches have left the one before on this rank. */
MO_CHECKED mo_status mo_transport_post_receives(mo_transport *transport, int64_t block);
/* Whether operations of the backend may use the micro-batch's rows in the block under way. Asked for again and again,
 * in the order of micro-batches. Local, returns at once. */
MO_CHECKED mo_status mo_transport_arrived(mo_transport *transport, int64_t micro, bool *here);
/* Start to send a block's rows of a micro-batch, as operations enqueued so far leave them, to the rank of the next
 * block. They must stay as they are until mo_transport_finish or until they are received anew. In the order of
 * micro-batches; for those that began behind the block nothing happens. Local, returns at once. */
MO_CHECKED mo_status mo_transport_send(mo_transport *transport, int64_t block, int64_t micro);
/* Wait for the end of all sends and take leave of the neighbours. */
MO_CHECKED mo_status mo_transport_finish(mo_transport *transport);
/* Free the transport (NULL is allowed). False, after a failure: messages under way may read or write the rows until the
 * process ends, so the rows must not be freed. */
bool mo_transport_close(mo_transport *transport);

/* Whether a block's rows come from another rank. */
bool mo_transport_comes_from_peer(const mo_plan *plan, int64_t block);
/* Whether those of the micro-batch do: it begins before the block. */
bool mo_transport_passes(const mo_transport_job *job, int64_t block, int64_t micro);
/* The tag of a micro-batch on its way to a block; at least n_micro, so that the tags below are free for other uses. */
int64_t mo_transport_tag(const mo_plan *plan, int64_t block, int64_t micro);

#endif
