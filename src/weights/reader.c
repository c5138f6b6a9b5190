#include <time.h>

#include "weights/streamer.h"

double mo_stream_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int64_t mo_stream_pieces(const mo_streamer *s, const mo_tensor *tensor) {
  return (tensor->bytes - 1) / s->chunk_bytes + 1;
}

void mo_stream_stop(mo_streamer *s, mo_status status) {
  if (s->status == MO_OK) s->status = status;
  pthread_cond_broadcast(&s->work);
  pthread_cond_broadcast(&s->arrived);
}

/* --- the arena: a ring of blocks, oldest first --- */

int64_t mo_stream_room(const mo_streamer *s, int64_t bytes) {
  if (s->released == s->cursor.slot) return bytes <= s->arena_bytes ? 0 : -1;
  const slot *oldest = &s->slots[s->released], *newest = &s->slots[s->cursor.slot - 1];
  int64_t head = newest->offset + newest->catalogue->arena_bytes;
  if (newest->offset >= oldest->offset) { /* one run of blocks: after it, else before it */
    if (s->arena_bytes - head >= bytes) return head;
    return oldest->offset >= bytes ? 0 : -1;
  }
  return oldest->offset - head >= bytes ? head : -1;
}

/* Holding the lock: give the slot at the cursor its block; false if there is no room yet. */
static bool place_slot(mo_streamer *s, slot *next) {
  int64_t offset = mo_stream_room(s, next->catalogue->arena_bytes);
  if (offset < 0) return false;
  next->offset = offset;
  next->state = SLOT_LOADING;
  return true;
}

/* --- pieces --- */

static const mo_entry *piece_entry(const mo_streamer *s, const piece *p) {
  return &s->slots[p->slot].catalogue->entries[p->entry];
}

/* Holding the lock: the piece at the cursor, which moves on. */
static piece cut_piece(mo_streamer *s) {
  const mo_stage_catalogue *stage = s->slots[s->cursor.slot].catalogue;
  piece *cursor = &s->cursor, cut = s->cursor;
  int64_t left = stage->entries[cut.entry].tensor->bytes - cut.offset;
  cut.bytes = left < s->chunk_bytes ? left : s->chunk_bytes;
  cursor->index++;
  cursor->offset += cut.bytes;
  if (cut.bytes == left) {
    cursor->offset = 0;
    if (++cursor->entry == stage->n_entries) {
      cursor->entry = 0;
      cursor->slot++;
    }
  }
  return cut;
}

typedef enum { TAKE_PIECE, TAKE_BLOCKED, TAKE_END } take_result;

/* Take the next piece; without room for its stage TAKE_BLOCKED, or if `wait` only after a release. */
static take_result take_piece(mo_streamer *s, bool wait, piece *p) {
  take_result result = TAKE_END;
  pthread_mutex_lock(&s->lock);
  while (!s->stop && s->status == MO_OK && s->cursor.slot < s->n_slots) {
    slot *next = &s->slots[s->cursor.slot];
    if (next->state == SLOT_LOADING || place_slot(s, next)) {
      *p = cut_piece(s);
      result = TAKE_PIECE;
      break;
    }
    if (!wait) {
      result = TAKE_BLOCKED;
      break;
    }
    pthread_cond_wait(&s->work, &s->lock);
  }
  pthread_mutex_unlock(&s->lock);
  return result;
}

/* A piece is in the arena: the accounting, and the stage is ready with its last one. */
static mo_status complete_piece(mo_streamer *s, const piece *p, double read_seconds, double copy_seconds) {
  slot *owner = &s->slots[p->slot];
  const mo_tensor *tensor = piece_entry(s, p)->tensor;
  if (atomic_fetch_add(&s->pieces_done[p->index], 1) != 0)
    return MO_FAIL(MO_FAILED, "bytes %lld to %lld of tensor \"%s\" were loaded twice: " MO_DEFECT, (long long)p->offset,
                   (long long)(p->offset + p->bytes), tensor->name);
  if (atomic_fetch_add(&s->filled[owner->first_entry + p->entry], p->bytes) + p->bytes > tensor->bytes)
    return MO_FAIL(MO_FAILED, "tensor \"%s\" was filled with more than its %lld bytes: " MO_DEFECT, tensor->name,
                   (long long)tensor->bytes);
  pthread_mutex_lock(&s->lock);
  owner->timing.bytes_read += p->bytes;
  owner->timing.read_seconds += read_seconds;
  owner->timing.copy_seconds += copy_seconds;
  owner->loaded += p->bytes;
  if (owner->loaded == owner->catalogue->bytes) {
    owner->state = SLOT_READY;
    pthread_cond_broadcast(&s->arrived);
  }
  pthread_mutex_unlock(&s->lock);
  return MO_OK;
}

static char *piece_target(const mo_streamer *s, const piece *p) {
  return s->arena + s->slots[p->slot].offset + piece_entry(s, p)->arena_offset + p->offset;
}

static mo_status read_piece(const mo_streamer *s, const piece *p, void *buffer, double *seconds) {
  const mo_tensor *tensor = piece_entry(s, p)->tensor;
  double start = mo_stream_now();
  MO_TRY(mo_checkpoint_read(s->checkpoint, tensor->file, tensor->offset + p->offset, p->bytes, buffer));
  *seconds = mo_stream_now() - start;
  return MO_OK;
}

/* --- readers --- */

static mo_status load_direct(mo_streamer *s, const piece *p) {
  double seconds;
  MO_TRY(read_piece(s, p, piece_target(s, p), &seconds));
  return complete_piece(s, p, seconds, 0);
}

static mo_status move_buffer(staging *buffer, buffer_state from, buffer_state to) {
  int found = from;
  if (!atomic_compare_exchange_strong(&buffer->state, &found, to))
    return MO_FAIL(MO_FAILED,
                   "a staging buffer was reused before its copy was done (state %d instead of %d): " MO_DEFECT, found,
                   (int)from);
  return MO_OK;
}

/* Wait for the copy of a buffer, if it has one. It is free afterwards, also on error. */
static mo_status finish_copy(mo_streamer *s, staging *buffer) {
  if (atomic_load(&buffer->state) != BUFFER_COPYING) return MO_OK;
  double start = mo_stream_now();
  mo_status status = s->backend->table->upload_wait(s->backend, buffer->ticket);
  buffer->copy_seconds += mo_stream_now() - start;
  MO_TRY(move_buffer(buffer, BUFFER_COPYING, BUFFER_FREE));
  MO_TRY(status);
  atomic_fetch_add(&buffer->copied, 1);
  return complete_piece(s, &buffer->content, buffer->read_seconds, buffer->copy_seconds);
}

/* Read into the one buffer while the other is copied. */
static mo_status load_staged(reader *self, const piece *p) {
  mo_streamer *s = self->streamer;
  staging *buffer = &self->buffers[self->turn], *other = &self->buffers[self->turn ^ 1];
  self->turn ^= 1;
  MO_TRY(move_buffer(buffer, BUFFER_FREE, BUFFER_READING));
  atomic_fetch_add(&buffer->begun, 1);
  buffer->content = *p;
  MO_TRY(read_piece(s, p, buffer->memory, &buffer->read_seconds));
  double start = mo_stream_now();
  MO_TRY(s->backend->table->upload(s->backend, piece_target(s, p), buffer->memory, (size_t)p->bytes, &buffer->ticket));
  buffer->copy_seconds = mo_stream_now() - start;
  MO_TRY(move_buffer(buffer, BUFFER_READING, BUFFER_COPYING));
  return finish_copy(s, other);
}

/* Wait for all copies of a reader, the older one first. */
static mo_status drain(reader *self) {
  mo_status older = finish_copy(self->streamer, &self->buffers[self->turn]);
  mo_status newer = finish_copy(self->streamer, &self->buffers[self->turn ^ 1]);
  return older != MO_OK ? older : newer;
}

void *mo_stream_reader(void *argument) {
  reader *self = argument;
  mo_streamer *s = self->streamer;
  mo_status status = MO_OK;
  while (status == MO_OK) {
    piece next;
    take_result got = take_piece(s, false, &next);
    if (got == TAKE_BLOCKED) {
      /* A copy on its way may complete the very stage whose release makes room. */
      status = drain(self);
      if (status == MO_OK) got = take_piece(s, true, &next);
    }
    if (status != MO_OK || got != TAKE_PIECE) break;
    status = s->staged ? load_staged(self, &next) : load_direct(s, &next);
  }
  mo_status drained = drain(self); /* no copy may outlive its buffer */
  if (status == MO_OK) status = drained;
  if (status != MO_OK) {
    pthread_mutex_lock(&s->lock);
    mo_stream_stop(s, status);
    pthread_mutex_unlock(&s->lock);
  }
  return NULL;
}
