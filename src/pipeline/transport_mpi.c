/* Micro-batches through host memory and MPI: straight from the rows where the backend's memory is the host's, else through
 * host copies in float32. Receives of a block are posted before its first micro-batch is computed, and sends are only waited
 * for before their rows are written again: messages and compute overlap. */
#include <stdlib.h>

#include "pipeline/transport.h"

typedef struct {
  mo_transport base;
  float **staging; /* [n_micro] host copies where backend memory is not the host's; else NULL entries */
  mo_message **receiving, **sending; /* [n_micro] */
} mpi_transport;

static mpi_transport *mpi_of(mo_transport *transport) { return (mpi_transport *)transport; }

static bool exchanges(const mo_plan *plan, int rank) {
  for (int64_t b = 1; b < plan->n_blocks; b++)
    if (mo_transport_comes_from_peer(plan, b) && (plan->blocks[b - 1].rank == rank || plan->blocks[b].rank == rank))
      return true;
  return false;
}

static bool messages_pending(const mpi_transport *t) {
  for (int64_t i = 0; t->receiving && t->sending && i < t->base.job.plan->n_micro; i++)
    if (t->receiving[i] || t->sending[i]) return true;
  return false;
}

static bool mpi_close(mo_transport *transport) {
  mpi_transport *t = mpi_of(transport);
  const mo_transport_job *job = &t->base.job;
  if (messages_pending(t)) return false; /* MPI may still read or write the rows and the copies */
  for (int64_t i = 0; t->staging && i < job->plan->n_micro; i++)
    job->backend->table->free_host(job->backend, t->staging[i]);
  free(t->staging);
  free(t->receiving);
  free(t->sending);
  free(t);
  return true;
}

static mo_status open_buffers(mpi_transport *t) {
  const mo_transport_job *job = &t->base.job;
  const mo_backend_table *op = job->backend->table;
  size_t micro = (size_t)job->plan->n_micro;
  t->staging = mo_alloc(micro, sizeof *t->staging);
  t->receiving = mo_alloc(micro, sizeof *t->receiving);
  t->sending = mo_alloc(micro, sizeof *t->sending);
  if (!t->staging || !t->receiving || !t->sending) return MO_FAILED;
  if (op->host_memory || !exchanges(job->plan, mo_comm_rank(job->comm))) return MO_OK;
  for (size_t i = 0; i < micro; i++)
    MO_TRY(op->alloc_host(job->backend, (size_t)(job->rows[i].rows * job->width) * sizeof(float),
                          (void **)&t->staging[i]));
  return MO_OK;
}

static mo_status mpi_open(mo_transport **transport, const mo_transport_job *job) {
  mpi_transport *t = mo_alloc(1, sizeof *t);
  if (!t) return MO_FAILED;
  t->base = (mo_transport){.table = &mo_transport_mpi, .job = *job};
  mo_status status = open_buffers(t);
  if (status == MO_OK)
    *transport = &t->base;
  else
    (void)mpi_close(&t->base);
  return status;
}

static float *host_rows(const mpi_transport *t, int64_t micro) {
  return t->base.job.backend->table->host_memory ? t->base.job.rows[micro].data : t->staging[micro];
}

static mo_status mpi_post_receives(mo_transport *transport, int64_t block) {
  mpi_transport *t = mpi_of(transport);
  const mo_transport_job *job = &t->base.job;
  const mo_plan *plan = job->plan;
  for (int64_t micro = 0; micro < plan->n_micro; micro++) {
    if (!mo_transport_passes(job, block, micro)) continue;
    MO_TRY(mo_comm_wait(job->comm, &t->sending[micro])); /* the rows may still be on their way out */
    MO_TRY(mo_comm_receive(job->comm, plan->blocks[block - 1].rank, mo_transport_tag(plan, block, micro),
                           host_rows(t, micro), job->rows[micro].rows, job->width, &t->receiving[micro]));
  }
  return MO_OK;
}

static mo_status mpi_arrived(mo_transport *transport, int64_t micro, bool *here) {
  mpi_transport *t = mpi_of(transport);
  const mo_transport_job *job = &t->base.job;
  const mo_backend_table *op = job->backend->table;
  MO_TRY(mo_comm_test(job->comm, &t->receiving[micro]));
  *here = !t->receiving[micro];
  if (!*here || op->host_memory) return MO_OK;
  return op->write_activations(job->backend, job->rows[micro].data, job->rows[micro].rows * job->width,
                               t->staging[micro]);
}

static mo_status mpi_send(mo_transport *transport, int64_t block, int64_t micro) {
  mpi_transport *t = mpi_of(transport);
  const mo_transport_job *job = &t->base.job;
  const mo_backend_table *op = job->backend->table;
  const mo_transport_rows *rows = job->rows + micro;
  if (!op->host_memory)
    MO_TRY(op->read_activations(job->backend, rows->data, rows->rows * job->width, t->staging[micro]));
  return mo_comm_send(job->comm, job->plan->blocks[block + 1].rank, mo_transport_tag(job->plan, block + 1, micro),
                      host_rows(t, micro), rows->rows, job->width, &t->sending[micro]);
}

static mo_status mpi_finish(mo_transport *transport) {
  mpi_transport *t = mpi_of(transport);
  for (int64_t micro = 0; micro < t->base.job.plan->n_micro; micro++)
    MO_TRY(mo_comm_wait(t->base.job.comm, &t->sending[micro]));
  return MO_OK;
}

const mo_transport_table mo_transport_mpi = {
    .open = mpi_open,
    .post_receives = mpi_post_receives,
    .arrived = mpi_arrived,
    .send = mpi_send,
    .finish = mpi_finish,
    .close = mpi_close,
};
