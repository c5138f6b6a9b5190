/* Message passing between ranks: the only door to MPI outside src/pipeline and the parallel HDF5 driver.
 *
 * Failure protocol: a rank that fails tells all others (mo_comm_raise); every wait polls for such a notice and then
 * returns MO_PEER_FAILED, so that all ranks unwind to mo_comm_agree, where the lowest failing rank is chosen to print.
 * A rank that does not arrive there in time is ended by mo_comm_abort.
 *
 * A request to stop (SIGTERM, SIGUSR1) passes in the same way: the rank that got the signal tells the others, and the waits of
 * all of them end with MO_STOPPED. It is no failure: nobody is ended, and a failure outweighs it. */
#ifndef MOE_OUTLIERS_COMM_H
#define MOE_OUTLIERS_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe_outliers/status.h"

typedef struct mo_comm mo_comm;

typedef enum { MO_SUM_I64, MO_SUM_I32, MO_SUM_F64, MO_MAX_F32, MO_MAX_I64, MO_MIN_I64, MO_OR_U64 } mo_reduce;

/* Start MPI (once per process; a program started without mpirun is rank 0 of 1). Collective. */
MO_CHECKED mo_status mo_comm_open(mo_comm **comm, int *argc, char ***argv);
/* End MPI. Collective. */
void mo_comm_close(mo_comm *comm);

int mo_comm_rank(const mo_comm *comm);
int mo_comm_size(const mo_comm *comm);
int mo_comm_local_size(const mo_comm *comm); /* ranks on this node */
int mo_comm_local_rank(const mo_comm *comm); /* this rank's place among them */

/* Tell every other rank that this one failed. Local, returns at once, safe to repeat. */
void mo_comm_raise(mo_comm *comm);
/* MO_PEER_FAILED if another rank raised; MO_STOPPED if any was asked to stop. Local, cheap: called between operations and in
 * every wait. */
MO_CHECKED mo_status mo_comm_poll(mo_comm *comm);

/* Whether requests to stop count; at first they don't. A request that comes while they don't counts later. Turned off only
 * right after an agreement, so that no rank can still be stopped where the others are not. Local. */
void mo_comm_heed_stop(mo_comm *comm, bool heed);
/* The signal with which a rank was asked to stop, 0 if none that counted. */
int mo_comm_stop_signal(const mo_comm *comm);

/* The worst code of all ranks (OK, stopped, failed), the same on every rank. Collective, also for ranks that failed or saw a peer fail.
 * *speaker: true on the one rank that prints. Ranks that don't arrive within the deadline end in mo_comm_abort. */
mo_status mo_comm_agree(mo_comm *comm, mo_status status, bool *speaker);

/* End of a phase on every rank: this rank's own status if it failed, MO_PEER_FAILED if only others did, MO_STOPPED if any
 * stopped and none failed, else MO_OK.
 * Collective, like mo_comm_agree. */
MO_CHECKED mo_status mo_comm_join(mo_comm *comm, mo_status status);

/* End all ranks at once with the exit status of `status` (2 for MO_INVALID, else 1); prints `message` (may be NULL) as the one
 * error line. Does not return. */
void mo_comm_abort(mo_comm *comm, mo_status status, const char *message) __attribute__((noreturn));

/* In-place element-wise reduction over all ranks, result on every rank. Collective. */
MO_CHECKED mo_status mo_comm_allreduce(mo_comm *comm, void *data, size_t count, mo_reduce operation);
/* Concatenate the ranks' byte blocks in rank order on rank 0. *all (rank 0 only, else NULL) is malloc'ed, caller frees;
 * *all_bytes its size. Collective; blocks may be empty and larger than 2 GiB. */
MO_CHECKED mo_status mo_comm_gather(mo_comm *comm, const void *data, size_t bytes, void **all, size_t *all_bytes);
MO_CHECKED mo_status mo_comm_broadcast(mo_comm *comm, void *data, size_t bytes, int root);
MO_CHECKED mo_status mo_comm_barrier(mo_comm *comm);

/* --- notes: a few bytes to another rank, such as how far one is; nobody waits for them --- */
enum { MO_NOTE_BYTES = 64 };
/* Send a note, unless the last one is still on its way: then *sent is false. Local, returns at once. */
MO_CHECKED mo_status mo_comm_send_note(mo_comm *comm, int rank, const void *note, bool *sent);
/* The next note that has come; *from: its sender, -1 if there is none. Local, returns at once. Before the communicator is closed
 * in good order all notes must have been taken. */
MO_CHECKED mo_status mo_comm_take_note(mo_comm *comm, void *note, int *from);

/* A micro-batch on its way between two ranks: rows of B*S*H float32 values in host memory. At most one message per tag is under
 * way between two ranks. */
typedef struct mo_message mo_message;
/* Start to send / receive `rows` rows of `width` float32; `data` must stay unchanged (send) or untouched (receive) until
 * mo_comm_wait. Local, returns at once. */
MO_CHECKED mo_status mo_comm_send(mo_comm *comm, int rank, int64_t tag, const float *data, int64_t rows, int64_t width,
                                  mo_message **message);
MO_CHECKED mo_status mo_comm_receive(mo_comm *comm, int rank, int64_t tag, float *data, int64_t rows, int64_t width,
                                     mo_message **message);
/* Wait for a message's end and free it (*message becomes NULL; NULL is allowed). MO_PEER_FAILED if a rank raised meanwhile. */
MO_CHECKED mo_status mo_comm_wait(mo_comm *comm, mo_message **message);
/* The same without waiting: *message becomes NULL only if the message has ended. */
MO_CHECKED mo_status mo_comm_test(mo_comm *comm, mo_message **message);

#endif
