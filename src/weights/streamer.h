/* The streamer's state, shared by its files: streamer.c is the consumer's side, reader.c what the reader threads do,
 * pieces.c what they are given to read, storage.c how.
 *
 * The plan's stages are slots. Tensors that follow each other in file and arena are one run; runs are cut into pieces
 * of at most a chunk, handed to the readers in the order of the plan and, within a stage, of the file. One mutex
 * guards slots, cursor and counters of the ring; the accounting that is checked at the end is kept apart, in atomics
 * that only the completion of a piece touches. */
#ifndef MOE_OUTLIERS_WEIGHTS_STREAMER_H
#define MOE_OUTLIERS_WEIGHTS_STREAMER_H

#include <pthread.h>
#include <stdatomic.h>

#include "moe_outliers/backend.h"
#include "moe_outliers/clock.h"
#include "moe_outliers/weights.h"

#define MO_DEFECT "this is a defect of the program, report it"

enum {
  MO_STREAM_BUFFERS = 3,
  MO_STREAM_AGAIN = 256 << 10
}; /* buffers of a reader at most; bytes that verify reads at a time */

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

/* Bytes of a file that have their place in the arena side by side. */
typedef struct {
  int64_t slot, entry; /* entry: within the stage, the one that its first byte belongs to */
  int32_t file;
  int64_t file_offset, arena_offset; /* arena_offset: within the slot's block */
  int64_t bytes;
} piece;

/* A staging buffer belongs to one reader. FREE -> READING -> COPYING -> FREE; `begun` counts the first transition,
 * `copied` the last, so that a reuse before the end of the copy shows as a wrong state and as counts that differ. */
typedef enum { BUFFER_FREE, BUFFER_READING, BUFFER_COPYING } buffer_state;

/* What reading a piece took. */
typedef struct {
  double read_seconds, copy_seconds;
  int64_t bytes_direct;
} piece_cost;

typedef struct {
  char *memory; /* at a multiple of MO_DIRECT_BLOCK */
  atomic_int state;
  atomic_llong begun, copied;
  int64_t ticket;
  int64_t content; /* piece */
  piece_cost cost;
} staging;

typedef struct {
  mo_streamer *streamer;
  pthread_t thread;
  void *memory; /* of the buffers */
  staging buffers[MO_STREAM_BUFFERS];
  int turn;      /* the buffer of the next read */
  int64_t piece; /* that it is reading, -1: none */
  double begun;  /* when it took that */
  void *again;   /* [MO_STREAM_AGAIN] for verify */
} reader;

/* How many readers may read past the page cache, or over the network, at once. It starts low, for disks that more
 * readers only disturb, and doubles as long as that makes reading faster. */
typedef struct {
  int limit, active;
  bool settled;
  double since, rate; /* begin of the measurement; bytes a second of the one before */
  int64_t bytes;      /* since then */
} direct_gate;

struct mo_streamer {
  const mo_model_spec *spec;
  const mo_checkpoint *checkpoint;
  mo_backend *backend;
  bool staged; /* backend memory cannot be written by the host */
  char *arena;
  int64_t arena_bytes, chunk_bytes, buffer_bytes;
  int n_buffers; /* of a reader */

  pthread_mutex_t lock;
  pthread_cond_t work;    /* room in the arena, or the end */
  pthread_cond_t arrived; /* a stage is ready, or an error */
  pthread_cond_t turn;    /* of the gate */
  direct_gate gate;
  bool stop;
  mo_status status; /* the first error */
  slot *slots;
  int64_t n_slots;
  int64_t acquired, released, placed; /* counts of slots; placed: that have their block in the arena */
  int64_t next;                       /* piece to hand out */
  int64_t in_flight;                  /* pieces that were handed out and have not arrived */
  double moved;                       /* when bytes came last, or were first asked for */
  int64_t bytes_read, bytes_verified;

  reader *readers;
  int n_readers, n_started;
  int n_running; /* reader threads that have not come to their end */

  piece *pieces;
  int64_t n_pieces, n_entries;
  atomic_llong *filled; /* bytes per tensor of the plan */
  atomic_uchar *pieces_done;
  atomic_ullong *sums; /* [n_entries] of the files' bytes, for verify; else NULL */
};

/* Cut all slots into pieces; buffer_bytes: the largest piece with the blocks around it. */
MO_CHECKED mo_status mo_stream_cut(mo_streamer *s);

/* The part of a piece that belongs to its tensor `entry` of the stage, from that tensor's byte *offset on; 0: none. */
int64_t mo_stream_overlap(const mo_streamer *s, const piece *p, int64_t entry, int64_t *offset);

/* Holding the lock: keep the first error and wake everybody. */
void mo_stream_stop(mo_streamer *s, mo_status status);

/* Holding the lock: where a block of `bytes` fits into the arena now, -1 if nowhere. Blocks [released, placed) are
 * alive. */
int64_t mo_stream_room(const mo_streamer *s, int64_t bytes);

/* Read a piece to host memory. staged: into a staging buffer, where the byte at `to` lies as far behind a multiple of
 * MO_DIRECT_BLOCK as in the file and whole blocks may be written. Thread-safe. */
MO_CHECKED mo_status mo_stream_read(mo_streamer *s, const piece *p, char *to, bool staged, piece_cost *cost);

/* Read a piece again, through the page cache, and add it to its tensors' sums. again: [MO_STREAM_AGAIN]. */
MO_CHECKED mo_status mo_stream_sum(mo_streamer *s, const piece *p, void *again);

/* A reader thread; argument: its reader. Ends with the plan, the first error or `stop`. */
void *mo_stream_reader(void *argument);

#endif
