/* How a piece is read: from the page cache where that has it, else past it, or over the network, by as many readers as
 * the storage or the network likes. */
#include "weights/file.h"
#include "weights/streamer.h"

#define FIRST_LIMIT 4
#define FIRST_LIMIT_OF_NETWORK 8
#define WINDOW_BYTES (64 << 20) /* of a measurement at least, ... */
#define WINDOW_SECONDS 0.1      /* ... and this long */
#define WINDOW_OF_NETWORK 1.0   /* it is less steady */
#define WORTH 1.1               /* a rate is better if it is this times the other */

/* Holding the lock: compare the last limit's rate with the one before. */
static void judge(mo_streamer *s, double rate) {
  direct_gate *gate = &s->gate;
  if (rate > WORTH * gate->rate && gate->limit < s->n_readers) {
    gate->rate = rate;
    gate->limit *= 2;
  } else {
    if (rate <= WORTH * gate->rate) gate->limit /= 2;
    gate->settled = true;
  }
}

/* Wait for a turn to read past the page cache or over the network, or for the end, after which the piece at hand is still read. */
static void enter(mo_streamer *s) {
  direct_gate *gate = &s->gate;
  pthread_mutex_lock(&s->lock);
  if (gate->limit == 0) gate->limit = mo_checkpoint_is_remote(s->checkpoint) ? FIRST_LIMIT_OF_NETWORK : FIRST_LIMIT;
  while (gate->active >= gate->limit && !s->stop && s->status == MO_OK) pthread_cond_wait(&s->turn, &s->lock);
  gate->active++;
  pthread_mutex_unlock(&s->lock);
}

/* Only time in which all turns are taken says what the limit is worth. */
static void leave(mo_streamer *s, int64_t bytes) {
  direct_gate *gate = &s->gate;
  double now = mo_seconds(), window = mo_checkpoint_is_remote(s->checkpoint) ? WINDOW_OF_NETWORK : WINDOW_SECONDS;
  pthread_mutex_lock(&s->lock);
  bool full = gate->active-- >= gate->limit;
  if (!full || gate->since == 0) {
    gate->since = now;
    gate->bytes = 0;
  } else {
    gate->bytes += bytes;
  }
  if (!gate->settled && gate->bytes >= WINDOW_BYTES && now - gate->since >= window) {
    judge(s, (double)gate->bytes / (now - gate->since));
    gate->since = 0;
    pthread_cond_broadcast(&s->turn);
  }
  pthread_cond_signal(&s->turn);
  pthread_mutex_unlock(&s->lock);
}

static mo_status read_file(mo_streamer *s, mo_weight_file *file, const piece *p, char *to, int64_t *bytes_direct) {
  int64_t done;
  MO_TRY(mo_file_read_cached(file, p->file_offset, p->bytes, to, &done));
  if (done == p->bytes) return MO_OK;
  int64_t at = p->file_offset + done, left = p->bytes - done;
  bool refused;
  enter(s);
  mo_status status = mo_file_read_direct(file, at, left, to + done, &refused);
  leave(s, left);
  MO_TRY(status);
  if (!refused) *bytes_direct = left;
  return refused ? mo_checkpoint_read(s->checkpoint, p->file, at, left, to + done) : MO_OK;
}

static mo_status read_remote(mo_streamer *s, const piece *p, char *to) {
  enter(s);
  mo_status status = mo_checkpoint_read(s->checkpoint, p->file, p->file_offset, p->bytes, to);
  leave(s, p->bytes);
  return status;
}

mo_status mo_stream_read(mo_streamer *s, const piece *p, char *to, bool staged, piece_cost *cost) {
  double start = mo_seconds();
  mo_weight_file *file = staged ? mo_checkpoint_source(s->checkpoint, p->file) : NULL;
  *cost = (piece_cost){0};
  if (file && mo_file_can_direct(file))
    MO_TRY(read_file(s, file, p, to, &cost->bytes_direct));
  else if (mo_checkpoint_is_remote(s->checkpoint))
    MO_TRY(read_remote(s, p, to));
  else
    MO_TRY(mo_checkpoint_read(s->checkpoint, p->file, p->file_offset, p->bytes, to));
  cost->read_seconds = mo_seconds() - start;
  return MO_OK;
}

mo_status mo_stream_sum(mo_streamer *s, const piece *p, void *again) {
  const slot *owner = &s->slots[p->slot];
  int64_t offset, bytes;
  for (int64_t e = p->entry; (bytes = mo_stream_overlap(s, p, e, &offset)) > 0; e++) {
    const mo_tensor *t = owner->catalogue->entries[e].tensor;
    for (int64_t done = 0, n; done < bytes; done += n) {
      n = bytes - done < MO_STREAM_AGAIN ? bytes - done : MO_STREAM_AGAIN;
      MO_TRY(mo_checkpoint_read(s->checkpoint, t->file, t->offset + offset + done, n, again));
      atomic_fetch_add(&s->sums[owner->first_entry + e], mo_tensor_sum(again, offset + done, n));
    }
  }
  return MO_OK;
}
