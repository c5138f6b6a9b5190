/* mo_comm over MPI. Every wait polls: for its own completion, and for a failure notice of another rank. */
#include "moe_outliers/comm.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe_outliers/clock.h"
#include "pipeline/comm_mpi.h"
#include "pipeline/signals.h"

enum { TAG_FAILURE = 1, TAG_STOP, TAG_NOTE };
static const double agreement_seconds = 4; /* for the others to arrive once a failure is known */
static const double witness_seconds = 1;   /* longer waits a rank that cannot say what failed */

struct mo_comm {
  MPI_Comm world, control; /* control: failure notices and agreements, apart from data */
  int rank, size, local_rank, local_size, tag_limit;
  bool raised, peer_failed;
  bool heeds_stop;
  int stop;                 /* the signal with which a rank was asked to stop */
  char note[MO_NOTE_BYTES]; /* on its way */
  MPI_Request noting;
};

struct mo_message {
  MPI_Request request;
  MPI_Datatype row;
};

static mo_status mpi_error(int code, const char *what) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  return MO_FAIL(MO_FAILED, "MPI: %s (%s): check the network and the launch line", text, what);
}

#define MO_MPI(call)                                                        \
  do {                                                                      \
    int mo_mpi_code_ = (call);                                              \
    if (mo_mpi_code_ != MPI_SUCCESS) return mpi_error(mo_mpi_code_, #call); \
  } while (0)

/* Spin a little for short waits, then sleep, so that waiting ranks leave the cores to working ones. */
static void back_off(int round) {
  if (round > 200) usleep(round > 2000 ? 1000 : 50);
}

static mo_status open_communicators(mo_comm *comm) {
  MPI_Comm node;
  int *limit, found;
  MO_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &comm->world));
  MO_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &comm->control));
  MO_MPI(MPI_Comm_set_errhandler(comm->world, MPI_ERRORS_RETURN));
  MO_MPI(MPI_Comm_set_errhandler(comm->control, MPI_ERRORS_RETURN));
  MO_MPI(MPI_Comm_rank(comm->world, &comm->rank));
  MO_MPI(MPI_Comm_size(comm->world, &comm->size));
  MO_MPI(MPI_Comm_split_type(comm->world, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &node));
  MO_MPI(MPI_Comm_rank(node, &comm->local_rank));
  MO_MPI(MPI_Comm_size(node, &comm->local_size));
  MO_MPI(MPI_Comm_free(&node));
  MO_MPI(MPI_Comm_get_attr(comm->world, MPI_TAG_UB, &limit, &found));
  comm->tag_limit = found ? *limit : 32767;
  comm->noting = MPI_REQUEST_NULL;
  return MO_OK;
}

/* Whether the launcher says that this process is one of several, or may be. */
static bool has_peers(const char *size) {
  return size ? strcmp(size, "1") != 0 : getenv("PMIX_RANK") || getenv("PMI_RANK") || getenv("PMI_SIZE");
}

/* A process alone sends nothing: Open MPI need not look for networks, which takes it 0.2 s and more, nor, where no launcher has
 * started the process, start a daemon and make folders for it. What the user has set stays; other MPIs don't read these. */
static void spare_a_lone_process(void) {
  const char *size = getenv("OMPI_COMM_WORLD_SIZE");
  if (has_peers(size)) return;
  (void)setenv("OMPI_MCA_pml", "ob1", 0);
  (void)setenv("OMPI_MCA_btl", "self", 0);
  if (size) return;
  (void)setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
  (void)setenv("OMPI_MCA_orte_create_session_dirs", "0", 0); /* their names are the same for all such processes */
  (void)setenv("OMPI_MCA_sharedfp", "^sm", 0);               /* needs them, and complains */
}

/* MPI looks at the machine through hwloc, whose plugins would wake OpenCL, CUDA and X for devices that nobody asks it for:
 * 0.2 s where there is one. */
static void spare_devices(void) { (void)setenv("HWLOC_COMPONENTS", "-opencl,-gl,-cuda,-nvml,-rsmi,-levelzero", 0); }

mo_status mo_comm_open(mo_comm **comm, int *argc, char ***argv) {
  int provided;
  mo_comm *c = mo_alloc(1, sizeof *c);
  if (!c) return MO_FAILED;
  spare_a_lone_process();
  spare_devices();
  int code = MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
  mo_status status = code == MPI_SUCCESS ? open_communicators(c) : mpi_error(code, "MPI_Init_thread");
  if (status != MO_OK) {
    free(c);
    return status;
  }
  *comm = c;
  return MO_OK;
}

void mo_comm_close(mo_comm *comm) {
  if (!comm) return;
  if (!comm->raised && !comm->peer_failed && !comm->stop) { /* else messages may still be under way */
    MPI_Wait(&comm->noting, MPI_STATUS_IGNORE);
    MPI_Comm_free(&comm->world);
    MPI_Comm_free(&comm->control);
  }
  MPI_Finalize();
  free(comm);
}

int mo_comm_rank(const mo_comm *comm) { return comm->rank; }
int mo_comm_size(const mo_comm *comm) { return comm->size; }
int mo_comm_local_size(const mo_comm *comm) { return comm->local_size; }
int mo_comm_local_rank(const mo_comm *comm) { return comm->local_rank; }
MPI_Comm mo_comm_mpi(const mo_comm *comm) { return comm->world; }

/* notice: must outlive the sends. */
static void tell_others(mo_comm *comm, int tag, const int *notice) {
  for (int rank = 0; rank < comm->size; rank++) {
    MPI_Request request;
    if (rank != comm->rank && MPI_Isend(notice, 1, MPI_INT, rank, tag, comm->control, &request) == MPI_SUCCESS)
      MPI_Request_free(&request);
  }
}

void mo_comm_raise(mo_comm *comm) {
  static const int nothing;
  if (comm->raised) return;
  comm->raised = true;
  tell_others(comm, TAG_FAILURE, &nothing);
}

void mo_comm_heed_stop(mo_comm *comm, bool heed) { comm->heeds_stop = heed; }
int mo_comm_stop_signal(const mo_comm *comm) { return comm->stop; }

static mo_status poll_stop(mo_comm *comm) {
  static int notice;
  int found = 0;
  if (comm->stop || !comm->heeds_stop) return comm->stop && comm->heeds_stop ? MO_STOPPED : MO_OK;
  if ((notice = mo_signals_received())) {
    comm->stop = notice;
    tell_others(comm, TAG_STOP, &notice);
  } else if (comm->size > 1) {
    MPI_Status from;
    MO_MPI(MPI_Iprobe(MPI_ANY_SOURCE, TAG_STOP, comm->control, &found, &from));
    if (found) MO_MPI(MPI_Recv(&comm->stop, 1, MPI_INT, from.MPI_SOURCE, TAG_STOP, comm->control, MPI_STATUS_IGNORE));
  }
  return comm->stop ? MO_STOPPED : MO_OK;
}

mo_status mo_comm_poll(mo_comm *comm) {
  int found = 0;
  if (!comm->peer_failed && comm->size > 1) {
    MPI_Status from;
    MO_MPI(MPI_Iprobe(MPI_ANY_SOURCE, TAG_FAILURE, comm->control, &found, &from));
    if (found) {
      int notice;
      MO_MPI(MPI_Recv(&notice, 1, MPI_INT, from.MPI_SOURCE, TAG_FAILURE, comm->control, MPI_STATUS_IGNORE));
      comm->peer_failed = true;
    }
  }
  return comm->peer_failed ? MO_PEER_FAILED : poll_stop(comm);
}

/* Wait for a request of a collective or a message; a peer's failure ends the wait and abandons the request. */
static mo_status wait_for(mo_comm *comm, MPI_Request *request) {
  for (int round = 0;; round++) {
    int done;
    MO_MPI(MPI_Test(request, &done, MPI_STATUS_IGNORE));
    if (done) return MO_OK;
    MO_TRY(mo_comm_poll(comm));
    back_off(round);
  }
}

/* How bad a status is, for the choice of the one that is reported. */
static int64_t severity(mo_status status) {
  return status == MO_OK ? 0 : status == MO_STOPPED ? 1 : status == MO_PEER_FAILED ? 2 : status == MO_INVALID ? 3 : 4;
}

static bool is_failure(mo_status status) { return severity(status) > severity(MO_STOPPED); }

mo_status mo_comm_agree(mo_comm *comm, mo_status status, bool *speaker) {
  int64_t mine = severity(status) << 32 | (int64_t)(comm->size - comm->rank), worst = mine;
  bool speaks = is_failure(status) && status != MO_PEER_FAILED; /* knows what failed */
  if (speaks) mo_comm_raise(comm);
  MPI_Request request;
  if (MPI_Iallreduce(&mine, &worst, 1, MPI_INT64_T, MPI_MAX, comm->control, &request) != MPI_SUCCESS)
    mo_comm_abort(comm, status,
                  speaks ? mo_error_message() : "MPI: agreement failed (mo_comm_agree): check the network");
  double deadline = 0;
  for (int round = 0, done = 0; !done; round++) {
    if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) mo_comm_abort(comm, status, mo_error_message());
    if (!is_failure(status) && !is_failure(mo_comm_poll(comm))) {
      back_off(round);
      continue;
    }
    if (deadline == 0) deadline = mo_seconds() + agreement_seconds + (speaks ? 0 : witness_seconds);
    if (!done && mo_seconds() > deadline) mo_comm_abort(comm, status, speaks ? mo_error_message() : NULL);
    back_off(round);
  }
  static const mo_status by_severity[] = {MO_OK, MO_STOPPED, MO_PEER_FAILED, MO_INVALID, MO_FAILED};
  if (speaker) *speaker = worst == mine;
  return by_severity[worst >> 32];
}

mo_status mo_comm_join(mo_comm *comm, mo_status status) {
  mo_status worst = mo_comm_agree(comm, status, NULL);
  if (is_failure(status) || !is_failure(worst)) return is_failure(status) ? status : worst;
  return MO_PEER_FAILED;
}

void mo_comm_abort(mo_comm *comm, mo_status status, const char *message) {
  int exit_status = status == MO_INVALID ? MO_INVALID : MO_FAILED;
  if (message) fprintf(stderr, "moe-outliers: error: %s\n", message);
  fflush(NULL);
  MPI_Abort(comm ? comm->world : MPI_COMM_WORLD, exit_status);
  _exit(exit_status);
}

static void reduce_types(mo_reduce operation, MPI_Datatype *type, MPI_Op *op, size_t *size) {
  static const size_t sizes[] = {8, 4, 8, 4, 8, 8, 8};
  MPI_Datatype types[] = {MPI_INT64_T, MPI_INT32_T, MPI_DOUBLE, MPI_FLOAT, MPI_INT64_T, MPI_INT64_T, MPI_UINT64_T};
  MPI_Op ops[] = {MPI_SUM, MPI_SUM, MPI_SUM, MPI_MAX, MPI_MAX, MPI_MIN, MPI_BOR};
  *type = types[operation];
  *op = ops[operation];
  *size = sizes[operation];
}

enum { PIECE = 1 << 24 }; /* elements of one MPI call: counts are int, and buffers stay moderate */

/* A copy of what an MPI call works on. When a peer's failure abandons the call, MPI may touch its buffer until the process
 * ends: the caller's memory may be gone by then, this copy is not. */
typedef struct bounce {
  struct bounce *next; /* of the abandoned ones, which stay */
  char data[];
} bounce;

static bounce *abandoned;

static bounce *new_bounce(const void *data, size_t bytes) {
  bounce *b = mo_alloc(1, sizeof *b + bytes);
  if (b && data && bytes) memcpy(b->data, data, bytes);
  return b;
}

/* Wait for the call on b, copy the result to `to` (NULL: none) and free b, or keep b for good. */
static mo_status finish_bounce(mo_comm *comm, MPI_Request *request, bounce *b, void *to, size_t bytes) {
  mo_status status = wait_for(comm, request);
  if (status != MO_OK) {
    b->next = abandoned;
    abandoned = b;
    return status;
  }
  if (to) memcpy(to, b->data, bytes);
  free(b);
  return MO_OK;
}

mo_status mo_comm_allreduce(mo_comm *comm, void *data, size_t count, mo_reduce operation) {
  MPI_Datatype type;
  MPI_Op op;
  size_t size;
  if (comm->size == 1) return MO_OK;
  reduce_types(operation, &type, &op, &size);
  for (size_t done = 0; done < count; done += PIECE) {
    MPI_Request request;
    int n = (int)(count - done < PIECE ? count - done : PIECE);
    char *part = (char *)data + done * size;
    bounce *b = new_bounce(part, (size_t)n * size);
    if (!b) return MO_FAILED;
    MO_MPI(MPI_Iallreduce(MPI_IN_PLACE, b->data, n, type, op, comm->world, &request));
    MO_TRY(finish_bounce(comm, &request, b, part, (size_t)n * size));
  }
  return MO_OK;
}

mo_status mo_comm_broadcast(mo_comm *comm, void *data, size_t bytes, int root) {
  if (comm->size == 1) return MO_OK;
  for (size_t done = 0; done < bytes; done += PIECE) {
    MPI_Request request;
    int n = (int)(bytes - done < PIECE ? bytes - done : PIECE);
    char *part = (char *)data + done;
    bounce *b = new_bounce(part, (size_t)n);
    if (!b) return MO_FAILED;
    MO_MPI(MPI_Ibcast(b->data, n, MPI_BYTE, root, comm->world, &request));
    MO_TRY(finish_bounce(comm, &request, b, part, (size_t)n));
  }
  return MO_OK;
}

/* Rank 0's side of a gather: its own block, then the others' in rank order. */
static mo_status collect(mo_comm *comm, const void *data, const int64_t *sizes, char *to) {
  if (sizes[0] > 0) memcpy(to, data, (size_t)sizes[0]); /* an empty block may be NULL */
  to += sizes[0];
  for (int rank = 1; rank < comm->size; rank++)
    for (int64_t done = 0; done < sizes[rank]; done += PIECE) {
      MPI_Request request;
      int64_t n = sizes[rank] - done < PIECE ? sizes[rank] - done : PIECE;
      bounce *b = new_bounce(NULL, (size_t)n);
      if (!b) return MO_FAILED;
      MO_MPI(MPI_Irecv(b->data, (int)n, MPI_BYTE, rank, 0, comm->world, &request));
      MO_TRY(finish_bounce(comm, &request, b, to, (size_t)n));
      to += n;
    }
  return MO_OK;
}

static mo_status deliver(mo_comm *comm, const char *data, size_t bytes) {
  for (size_t done = 0; done < bytes; done += PIECE) {
    MPI_Request request;
    int n = (int)(bytes - done < PIECE ? bytes - done : PIECE);
    bounce *b = new_bounce(data + done, (size_t)n);
    if (!b) return MO_FAILED;
    MO_MPI(MPI_Isend(b->data, n, MPI_BYTE, 0, 0, comm->world, &request));
    MO_TRY(finish_bounce(comm, &request, b, NULL, 0));
  }
  return MO_OK;
}

mo_status mo_comm_gather(mo_comm *comm, const void *data, size_t bytes, void **all, size_t *all_bytes) {
  mo_status status = MO_FAILED;
  int64_t *sizes = mo_alloc((size_t)comm->size, sizeof *sizes);
  *all = NULL;
  *all_bytes = 0;
  if (!sizes) return MO_FAILED;
  sizes[comm->rank] = (int64_t)bytes;
  MO_TRY_TO(done, mo_comm_allreduce(comm, sizes, (size_t)comm->size, MO_SUM_I64));
  if (comm->rank != 0) {
    status = deliver(comm, data, bytes);
    goto done;
  }
  for (int rank = 0; rank < comm->size; rank++) *all_bytes += (size_t)sizes[rank];
  *all = mo_alloc(*all_bytes, 1);
  status = *all ? collect(comm, data, sizes, *all) : MO_FAILED;
  if (status != MO_OK) {
    free(*all);
    *all = NULL;
  }
done:
  free(sizes);
  return status;
}

mo_status mo_comm_send_note(mo_comm *comm, int rank, const void *note, bool *sent) {
  int free_again;
  *sent = false;
  MO_MPI(MPI_Test(&comm->noting, &free_again, MPI_STATUS_IGNORE));
  if (!free_again) return MO_OK;
  memcpy(comm->note, note, MO_NOTE_BYTES);
  MO_MPI(MPI_Isend(comm->note, MO_NOTE_BYTES, MPI_BYTE, rank, TAG_NOTE, comm->control, &comm->noting));
  *sent = true;
  return MO_OK;
}

mo_status mo_comm_take_note(mo_comm *comm, void *note, int *from) {
  int found = 0;
  MPI_Status status;
  *from = -1;
  if (comm->size == 1) return MO_OK;
  MO_MPI(MPI_Iprobe(MPI_ANY_SOURCE, TAG_NOTE, comm->control, &found, &status));
  if (!found) return MO_OK;
  MO_MPI(MPI_Recv(note, MO_NOTE_BYTES, MPI_BYTE, status.MPI_SOURCE, TAG_NOTE, comm->control, MPI_STATUS_IGNORE));
  *from = status.MPI_SOURCE;
  return MO_OK;
}

mo_status mo_comm_barrier(mo_comm *comm) {
  MPI_Request request;
  MO_MPI(MPI_Ibarrier(comm->world, &request));
  return wait_for(comm, &request);
}

/* A datatype of one row, so that counts stay in int however large the micro-batch. */
static mo_status new_message(int64_t rows, int64_t width, mo_message **message) {
  if (rows > INT_MAX || width > INT_MAX)
    return MO_FAIL(MO_FAILED,
                   "a micro-batch of %lld x %lld values is too large for one message (pipeline): set a smaller "
                   "engine.micro_batch",
                   (long long)rows, (long long)width);
  mo_message *m = mo_alloc(1, sizeof *m);
  if (!m) return MO_FAILED;
  if (MPI_Type_contiguous((int)width, MPI_FLOAT, &m->row) != MPI_SUCCESS || MPI_Type_commit(&m->row) != MPI_SUCCESS) {
    free(m);
    return MO_FAIL(MO_FAILED, "MPI cannot make a datatype (pipeline): check the MPI installation");
  }
  *message = m;
  return MO_OK;
}

static int data_tag(const mo_comm *comm, int64_t tag) { return (int)(1 + tag % (comm->tag_limit - 1)); }

mo_status mo_comm_send(mo_comm *comm, int rank, int64_t tag, const float *data, int64_t rows, int64_t width,
                       mo_message **message) {
  MO_TRY(new_message(rows, width, message));
  MO_MPI(MPI_Isend(data, (int)rows, (*message)->row, rank, data_tag(comm, tag), comm->world, &(*message)->request));
  return MO_OK;
}

mo_status mo_comm_receive(mo_comm *comm, int rank, int64_t tag, float *data, int64_t rows, int64_t width,
                          mo_message **message) {
  MO_TRY(new_message(rows, width, message));
  MO_MPI(MPI_Irecv(data, (int)rows, (*message)->row, rank, data_tag(comm, tag), comm->world, &(*message)->request));
  return MO_OK;
}

static void free_message(mo_message **message) {
  MPI_Type_free(&(*message)->row);
  free(*message);
  *message = NULL;
}

mo_status mo_comm_wait(mo_comm *comm, mo_message **message) {
  if (!*message) return MO_OK;
  MO_TRY(wait_for(comm, &(*message)->request));
  free_message(message);
  return MO_OK;
}

mo_status mo_comm_test(mo_comm *comm, mo_message **message) {
  int done;
  if (!*message) return MO_OK;
  MO_MPI(MPI_Test(&(*message)->request, &done, MPI_STATUS_IGNORE));
  if (!done) return mo_comm_poll(comm);
  free_message(message);
  return MO_OK;
}
