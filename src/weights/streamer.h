/* The streamer's state, shared by its two files: streamer.c is the consumer's side, reader.c what the reader threads
 * do.
 *
 * The plan's stages are slots; slots are cut into pieces of at most a chunk, handed to the readers in the order of
 * the plan and, within a stage, of the file. One mutex guards slots, cursor and counters of the ring; the accounting
 * that is checked at the end is kept apart, in atomics that only the completion of a piece touches. */
#ifndef MOE_OUTLIERS_WEIGHTS_STREAMER_H
#define MOE_OUTLIERS_WEIGHTS_STREAMER_H

#include <pthread.h>
#include <stdatomic.h>

#include "moe_outliers/backend.h"
#include "moe_outliers/weights.h"

#define MO_DEFECT "this is a defect of the program, report it"

typedef enum { SLOT_WAITING, SLOT_LOADING, SLOT_READY, SLOT_HELD, SLOT_RELEASED } slot_state;

typedef struct {
  int64_t stage;
  const mo_stage_catalogue *catalogue;
  slot_state state;
  int64_t offset;      /* of its block in the arena, once placed */
  int64_t first_entry; /* index of its first tensor in `filled` */
  int64_t loaded;      /* bytes that have arrived */
  mo_stage_weights weights;
  mo_stream_timing timing;
} slot;

typedef struct {
  int64_t slot, entry; /* entry: within the stage */
  int64_t index;       /* within the whole plan */
  int64_t offset;      /* within the tensor */
  int64_t bytes;
} piece;

/* A staging buffer belongs to one reader. FREE -> READING -> COPYING -> FREE; `begun` counts the first transition,
 * `copied` the last, so that a reuse before the end of the copy shows as a wrong state and as counts that differ. */
typedef enum { BUFFER_FREE, BUFFER_READING, BUFFER_COPYING } buffer_state;

typedef struct {
  void *memory;
  atomic_int state;
  atomic_llong begun, copied;
  int64_t ticket;
  piece content;
  double read_seconds, copy_seconds;
} staging;

typedef struct {
  mo_streamer *streamer;
  pthread_t thread;
  staging buffers[2];
  int turn; /* the buffer of the next read */
} reader;

struct mo_streamer {
  const mo_model_spec *spec;
  const mo_checkpoint *checkpoint;
  mo_backend *backend;
  bool staged; /* backend memory cannot be written by the host */
  char *arena;
  int64_t arena_bytes, chunk_bytes, buffer_bytes;

  pthread_mutex_t lock;
  pthread_cond_t work;    /* room in the arena, or the end */
  pthread_cond_t arrived; /* a stage is ready, or an error */
  bool stop;
  mo_status status; /* the first error */
  slot *slots;
  int64_t n_slots;
  int64_t acquired, released; /* counts of slots */
  piece cursor;               /* the next piece to hand out; slots before cursor.slot are placed in the arena */

  reader *readers;
  int n_readers, n_started;

  atomic_llong *filled; /* bytes per tensor of the plan */
  atomic_uchar *pieces_done;
  int64_t n_entries, n_pieces;
};

double mo_stream_now(void);                                              /* CLOCK_MONOTONIC, seconds */
int64_t mo_stream_pieces(const mo_streamer *s, const mo_tensor *tensor); /* that a tensor is cut into */

/* Holding the lock: keep the first error and wake everybody. */
void mo_stream_stop(mo_streamer *s, mo_status status);

/* Holding the lock: where a block of `bytes` fits into the arena now, -1 if nowhere. Blocks [released, cursor.slot)
 * are alive. */
int64_t mo_stream_room(const mo_streamer *s, int64_t bytes);

/* A reader thread; argument: its reader. Ends with the plan, the first error or `stop`. */
void *mo_stream_reader(void *argument);

#endif
