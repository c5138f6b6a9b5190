/* What both ways of passing micro-batches share: the choice between them, and which blocks pass a message at all. */
#include "pipeline/transport.h"

static bool can_use_nccl(const mo_backend *backend) {
#ifdef MO_HAVE_NCCL
  return backend->table == &mo_backend_cuda;
#else
  (void)backend;
  return false;
#endif
}

mo_status mo_transport_choose(mo_comm *comm, const mo_backend *backend, const mo_transport_table **table) {
  static int64_t nccl;          /* must outlive a reduction that a peer's failure ends early */
  nccl = can_use_nccl(backend); /* a rank on a node without a GPU makes all use MPI */
  *table = &mo_transport_mpi;
  MO_TRY(mo_comm_allreduce(comm, &nccl, 1, MO_MIN_I64));
#ifdef MO_HAVE_NCCL
  if (nccl) *table = &mo_transport_nccl;
#endif
  return MO_OK;
}

bool mo_transport_comes_from_peer(const mo_plan *plan, int64_t block) {
  return block > 0 && block < plan->n_blocks && plan->blocks[block - 1].rank != plan->blocks[block].rank;
}

bool mo_transport_passes(const mo_transport_job *job, int64_t block, int64_t micro) {
  return mo_transport_comes_from_peer(job->plan, block) && job->start[micro] < job->plan->blocks[block].first_stage;
}

int64_t mo_transport_tag(const mo_plan *plan, int64_t block, int64_t micro) { return block * plan->n_micro + micro; }

mo_status mo_transport_open(mo_transport **transport, const mo_transport_table *table, const mo_transport_job *job) {
  return table->open(transport, job);
}

mo_status mo_transport_post_receives(mo_transport *transport, int64_t block) {
  transport->block = block;
  if (!mo_transport_comes_from_peer(transport->job.plan, block)) return MO_OK;
  return transport->table->post_receives(transport, block);
}

mo_status mo_transport_arrived(mo_transport *transport, int64_t micro, bool *here) {
  *here = !mo_transport_passes(&transport->job, transport->block, micro);
  return *here ? MO_OK : transport->table->arrived(transport, micro, here);
}

mo_status mo_transport_send(mo_transport *transport, int64_t block, int64_t micro) {
  if (!mo_transport_passes(&transport->job, block + 1, micro)) return MO_OK;
  return transport->table->send(transport, block, micro);
}

mo_status mo_transport_finish(mo_transport *transport) { return transport->table->finish(transport); }

bool mo_transport_close(mo_transport *transport) { return !transport || transport->table->close(transport); }
