#include "weights/file.h"
#include "weights/streamer.h"

void mo_stream_stop(mo_streamer *s, mo_status status) {
  if (s->status == MO_OK) s->status = status;
  pthread_cond_broadcast(&s->work);
  pthread_cond_broadcast(&s->turn);
  pthread_cond_broadcast(&s->arrived);
}

/* --- the arena: a ring of blocks, oldest first --- */

int64_t mo_stream_room(const mo_streamer *s, int64_t bytes) {
  if (s->released == s->placed) return bytes <= s->arena_bytes ? 0 : -1;
  const slot *oldest = &s->slots[s->released], *newest = &s->slots[s->placed - 1];
  int64_t head = newest->offset + newest->catalogue->arena_bytes;
  if (newest->offset >= oldest->offset) { /* one run of blocks: after it, else before it */
    if (s->arena_bytes - head >= bytes) return head;
    return oldest->offset >= bytes ? 0 : -1;
  }
  return oldest->offset - head >= bytes ? head : -1;
}

/* Holding the lock: give the next slot its block; false if there is no room yet. */
static bool place_slot(mo_streamer *s, slot *next) {
  int64_t offset = mo_stream_room(s, next->catalogue->arena_bytes);
  if (offset < 0) return false;
  next->offset = offset;
  next->state = SLOT_LOADING;
  next->timing.began = mo_seconds();
  s->placed++;
  return true;
}

/* --- pieces --- */

typedef enum { TAKE_PIECE, TAKE_BLOCKED, TAKE_END } take_result;

/* Take the next piece; without room for its stage TAKE_BLOCKED, or if `wait` only after a release. */
static take_result take_piece(reader *self, bool wait, int64_t *index) {
  mo_streamer *s = self->streamer;
  take_result result = TAKE_END;
  pthread_mutex_lock(&s->lock);
  self->piece = -1;
  while (!s->stop && s->status == MO_OK && s->next < s->n_pieces) {
    slot *next = &s->slots[s->pieces[s->next].slot];
    if (next->state == SLOT_LOADING || place_slot(s, next)) {
      *index = s->next++;
      self->piece = *index;
      self->begun = mo_seconds();
      if (s->in_flight++ == 0) s->moved = self->begun;
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

/* What the piece brought to each of its tensors. */
static mo_status account(mo_streamer *s, int64_t index) {
  const piece *p = &s->pieces[index];
  const slot *owner = &s->slots[p->slot];
  int64_t offset, bytes;
  if (atomic_fetch_add(&s->pieces_done[index], 1) != 0)
    return MO_FAIL(MO_FAILED, "bytes %lld to %lld of file %s were loaded twice: " MO_DEFECT, (long long)p->file_offset,
                   (long long)(p->file_offset + p->bytes), mo_checkpoint_file(s->checkpoint, p->file));
  for (int64_t e = p->entry; (bytes = mo_stream_overlap(s, p, e, &offset)) > 0; e++) {
    const mo_tensor *tensor = owner->catalogue->entries[e].tensor;
    if (atomic_fetch_add(&s->filled[owner->first_entry + e], bytes) + bytes > tensor->bytes)
      return MO_FAIL(MO_FAILED, "tensor \"%s\" was filled with more than its %lld bytes: " MO_DEFECT, tensor->name,
                     (long long)tensor->bytes);
  }
  return MO_OK;
}

/* A piece is in the arena: the accounting, and the stage is ready with its last one. */
static mo_status complete_piece(mo_streamer *s, int64_t index, const piece_cost *cost) {
  const piece *p = &s->pieces[index];
  slot *owner = &s->slots[p->slot];
  MO_TRY(account(s, index));
  pthread_mutex_lock(&s->lock);
  s->in_flight--;
  s->moved = mo_seconds();
  s->bytes_read += p->bytes;
  owner->timing.bytes_read += p->bytes;
  owner->timing.bytes_direct += cost->bytes_direct;
  owner->timing.read_seconds += cost->read_seconds;
  owner->timing.copy_seconds += cost->copy_seconds;
  owner->loaded += p->bytes;
  if (owner->loaded == owner->catalogue->bytes) {
    owner->state = SLOT_READY;
    owner->timing.ready = s->moved;
    pthread_cond_broadcast(&s->arrived);
  }
  pthread_mutex_unlock(&s->lock);
  return MO_OK;
}

static char *piece_target(const mo_streamer *s, const piece *p) {
  return s->arena + s->slots[p->slot].offset + p->arena_offset;
}

/* --- readers --- */

static mo_status load_in_place(reader *self, int64_t index) {
  mo_streamer *s = self->streamer;
  const piece *p = &s->pieces[index];
  piece_cost cost;
  MO_TRY(mo_stream_read(s, p, piece_target(s, p), false, &cost));
  if (s->sums) MO_TRY(mo_stream_sum(s, p, self->again));
  return complete_piece(s, index, &cost);
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
  double start = mo_seconds();
  mo_status status = s->backend->table->upload_wait(s->backend, buffer->ticket);
  buffer->cost.copy_seconds += mo_seconds() - start;
  MO_TRY(move_buffer(buffer, BUFFER_COPYING, BUFFER_FREE));
  MO_TRY(status);
  atomic_fetch_add(&buffer->copied, 1);
  return complete_piece(s, buffer->content, &buffer->cost);
}

/* The reader's own buffers, in one block. */
static mo_status make_buffers(reader *self) {
  mo_streamer *s = self->streamer;
  size_t bytes = (size_t)(s->n_buffers * s->buffer_bytes);
  if (s->sums && !(self->again = mo_alloc(MO_STREAM_AGAIN, 1))) return MO_FAILED;
  if (!s->staged) return MO_OK;
  MO_TRY(s->backend->table->alloc_host(s->backend, bytes + MO_DIRECT_BLOCK, &self->memory));
  uintptr_t skipped = MO_DIRECT_BLOCK - (uintptr_t)self->memory % MO_DIRECT_BLOCK;
  for (int i = 0; i < s->n_buffers; i++)
    self->buffers[i].memory = (char *)self->memory + skipped % MO_DIRECT_BLOCK + i * s->buffer_bytes;
  return MO_OK;
}

/* Read into one buffer while the others are copied. */
static mo_status load_staged(reader *self, int64_t index) {
  mo_streamer *s = self->streamer;
  const piece *p = &s->pieces[index];
  staging *buffer = &self->buffers[self->turn];
  self->turn = (self->turn + 1) % s->n_buffers;
  char *data = buffer->memory + p->file_offset % MO_DIRECT_BLOCK;
  MO_TRY(move_buffer(buffer, BUFFER_FREE, BUFFER_READING));
  atomic_fetch_add(&buffer->begun, 1);
  buffer->content = index;
  MO_TRY(mo_stream_read(s, p, data, true, &buffer->cost));
  double start = mo_seconds();
  MO_TRY(s->backend->table->upload(s->backend, piece_target(s, p), data, (size_t)p->bytes, &buffer->ticket));
  buffer->cost.copy_seconds = mo_seconds() - start;
  MO_TRY(move_buffer(buffer, BUFFER_READING, BUFFER_COPYING));
  if (s->sums) MO_TRY(mo_stream_sum(s, p, self->again));
  return finish_copy(s, &self->buffers[self->turn]);
}

/* Wait for all copies of a reader, the oldest first. */
static mo_status drain(reader *self) {
  mo_status first = MO_OK;
  for (int i = 0; i < self->streamer->n_buffers; i++) {
    mo_status status = finish_copy(self->streamer, &self->buffers[(self->turn + i) % self->streamer->n_buffers]);
    if (first == MO_OK) first = status;
  }
  return first;
}

void *mo_stream_reader(void *argument) {
  reader *self = argument;
  mo_streamer *s = self->streamer;
  mo_status status = make_buffers(self);
  while (status == MO_OK) {
    int64_t next;
    take_result got = take_piece(self, false, &next);
    if (got == TAKE_BLOCKED) {
      /* A copy on its way may complete the very stage whose release makes room. */
      status = drain(self);
      if (status == MO_OK) got = take_piece(self, true, &next);
    }
    if (status != MO_OK || got != TAKE_PIECE) break;
    status = s->staged ? load_staged(self, next) : load_in_place(self, next);
  }
  mo_status drained = drain(self); /* no copy may outlive its buffer */
  if (status == MO_OK) status = drained;
  pthread_mutex_lock(&s->lock);
  self->piece = -1;
  if (status != MO_OK) mo_stream_stop(s, status);
  s->n_running--;
  pthread_cond_broadcast(&s->arrived);
  pthread_mutex_unlock(&s->lock);
  return NULL;
}
