#include <stdlib.h>
#include <string.h>

#include "moe_outliers/threads.h"
#include "weights/streamer.h"

#define MAX_READERS 256
#define POLL_SECONDS 0.005
#define CLOSE_SECONDS 1.5 /* for readers to come back from their reads */

/* --- opening and closing --- */

static mo_status check_plan(const mo_stream_plan *plan, const mo_catalogue *catalogue) {
  if (plan->n_readers < 1 || plan->n_readers > MAX_READERS)
    return MO_FAIL(MO_INVALID, "%d reader threads: use 1 to %d", plan->n_readers, MAX_READERS);
  if (plan->chunk_bytes < 0 || plan->n_stages < 0 || plan->host_bytes < 0)
    return MO_FAIL(MO_INVALID, "%lld bytes a read, %lld stages and %lld bytes of host memory: none may be negative",
                   (long long)plan->chunk_bytes, (long long)plan->n_stages, (long long)plan->host_bytes);
  for (int64_t i = 0; i < plan->n_stages; i++) {
    int64_t stage = plan->stages[i];
    if (stage < 0 || stage >= catalogue->n_stages)
      return MO_FAIL(MO_INVALID, "stage %lld: the model has 0 to %lld", (long long)stage,
                     (long long)catalogue->n_stages - 1);
    const mo_stage_catalogue *c = &catalogue->stages[stage];
    for (int64_t e = 0; e < c->n_entries; e++)
      if (c->entries[e].tensor->bytes <= 0)
        return MO_FAIL(MO_INVALID, "tensor \"%s\" of stage %lld is empty: it cannot be loaded",
                       c->entries[e].tensor->name, (long long)stage);
    if (c->n_entries == 0)
      return MO_FAIL(MO_INVALID, "stage %lld has no tensors: it cannot be loaded", (long long)stage);
    if (c->arena_bytes > plan->arena_bytes)
      return MO_FAIL(MO_INVALID, "stage %lld needs %lld bytes, the weights may use %lld: raise engine.device_memory_gb",
                     (long long)stage, (long long)c->arena_bytes, (long long)plan->arena_bytes);
  }
  return MO_OK;
}

static mo_status make_slots(mo_streamer *s, const mo_stream_plan *plan, const mo_catalogue *catalogue) {
  s->slots = mo_alloc((size_t)plan->n_stages, sizeof *s->slots);
  if (!s->slots) return MO_FAILED;
  s->n_slots = plan->n_stages;
  int64_t room =
      plan->arena_bytes / MO_ARENA_ALIGNMENT * MO_ARENA_ALIGNMENT; /* the bound may be odd, the blocks are not */
  for (int64_t i = 0; i < s->n_slots; i++) {
    const mo_stage_catalogue *c = &catalogue->stages[plan->stages[i]];
    s->slots[i] = (slot){.stage = plan->stages[i], .catalogue = c, .first_entry = s->n_entries};
    s->n_entries += c->n_entries;
    s->arena_bytes += c->arena_bytes < room - s->arena_bytes ? c->arena_bytes : room - s->arena_bytes;
  }
  s->filled = mo_alloc((size_t)s->n_entries, sizeof *s->filled);
  if (plan->verify) s->sums = mo_alloc((size_t)s->n_entries, sizeof *s->sums);
  return s->filled && (s->sums || !plan->verify) ? mo_stream_cut(s) : MO_FAILED;
}

static mo_status make_memory(mo_streamer *s, int n_readers) {
  void *memory;
  MO_TRY(s->backend->table->alloc(s->backend, (size_t)s->arena_bytes, &memory));
  s->arena = memory;
  if (n_readers > s->n_pieces) n_readers = (int)s->n_pieces;
  s->readers = mo_alloc((size_t)n_readers, sizeof *s->readers);
  if (!s->readers) return MO_FAILED;
  s->n_readers = n_readers;
  return MO_OK;
}

static mo_status start_readers(mo_streamer *s) {
  int error = 0;
  pthread_mutex_lock(&s->lock); /* nothing is read before all are there */
  for (int i = 0; i < s->n_readers && !error; i++) {
    s->readers[i].streamer = s;
    s->readers[i].piece = -1;
    error = mo_thread_start(&s->readers[i].thread, mo_stream_reader, &s->readers[i]);
    if (!error) s->n_started++;
  }
  s->n_running = s->n_started;
  s->stop = error != 0;
  pthread_mutex_unlock(&s->lock);
  if (error)
    return MO_FAIL(MO_FAILED, "cannot start a reader thread: %s: raise the limit of processes (ulimit -u)",
                   strerror(error));
  return MO_OK;
}

static void init_locks(mo_streamer *s) {
  pthread_mutex_init(&s->lock, NULL);
  pthread_cond_init(&s->work, NULL);
  pthread_cond_init(&s->turn, NULL);
  mo_condition_open(&s->arrived);
}

mo_status mo_streamer_open(mo_streamer **streamer, const mo_stream_plan *plan, const mo_model_spec *spec,
                           const mo_catalogue *catalogue, const mo_checkpoint *checkpoint, struct mo_backend *backend) {
  *streamer = NULL;
  MO_TRY(check_plan(plan, catalogue));
  mo_streamer *s = mo_alloc(1, sizeof *s);
  if (!s) return MO_FAILED;
  s->spec = spec;
  s->checkpoint = checkpoint;
  s->backend = backend;
  s->staged = !backend->table->host_memory;
  mo_stream_plan unbounded = *plan; /* without staging buffers nothing needs to be small */
  if (!s->staged) unbounded.host_bytes = 0;
  mo_stream_ring ring = mo_stream_ring_of(&unbounded);
  s->chunk_bytes = ring.chunk_bytes;
  s->n_buffers = ring.n_buffers;
  init_locks(s);
  mo_status status = make_slots(s, plan, catalogue);
  if (status == MO_OK && s->n_slots > 0) status = make_memory(s, ring.n_readers);
  if (status == MO_OK && s->n_slots > 0) status = start_readers(s);
  if (status != MO_OK) {
    (void)mo_streamer_close(s);
    return status;
  }
  *streamer = s;
  return MO_OK;
}

/* Whether all readers have ended. */
static bool stop_readers(mo_streamer *s) {
  struct timespec until = mo_deadline(CLOSE_SECONDS);
  pthread_mutex_lock(&s->lock);
  s->stop = true;
  pthread_cond_broadcast(&s->work);
  pthread_cond_broadcast(&s->turn);
  while (s->n_running > 0 && pthread_cond_timedwait(&s->arrived, &s->lock, &until) == 0) continue;
  bool ended = s->n_running == 0;
  pthread_mutex_unlock(&s->lock);
  return ended;
}

bool mo_streamer_close(mo_streamer *s) {
  if (!s) return true;
  mo_checkpoint_interrupt(s->checkpoint, true);
  if (!stop_readers(s)) return false;
  for (int i = 0; i < s->n_started; i++) pthread_join(s->readers[i].thread, NULL);
  mo_checkpoint_interrupt(s->checkpoint, false);
  for (int i = 0; i < s->n_readers; i++) {
    if (s->readers[i].memory) s->backend->table->free_host(s->backend, s->readers[i].memory);
    free(s->readers[i].again);
  }
  if (s->arena) s->backend->table->free(s->backend, s->arena);
  for (int64_t i = 0; i < s->n_slots; i++) mo_stage_weights_free(&s->slots[i].weights);
  pthread_mutex_destroy(&s->lock);
  pthread_cond_destroy(&s->work);
  pthread_cond_destroy(&s->turn);
  pthread_cond_destroy(&s->arrived);
  free(s->readers);
  free(s->slots);
  free(s->filled);
  free(s->pieces);
  free(s->pieces_done);
  free(s->sums);
  free(s);
  return true;
}

/* --- the consumer --- */

/* Holding the lock: why waiting for the slot would never end, MO_OK if it may. All slots before it were acquired. */
static mo_status check_room(const mo_streamer *s, const slot *wanted) {
  if (wanted->state != SLOT_WAITING || mo_stream_room(s, wanted->catalogue->arena_bytes) >= 0) return MO_OK;
  return MO_FAIL(MO_FAILED,
                 "stage %lld does not fit beside the %lld stage%s still held: release them first or raise "
                 "engine.device_memory_gb",
                 (long long)wanted->stage, (long long)(s->acquired - s->released),
                 mo_plural(s->acquired - s->released));
}

/* Holding the lock, which is given up meanwhile: wait until the slot is ready. */
static mo_status wait_for(mo_streamer *s, const slot *wanted, mo_status (*poll)(void *context), void *context) {
  MO_TRY(s->status);
  while (wanted->state != SLOT_READY) {
    MO_TRY(check_room(s, wanted));
    struct timespec until = mo_deadline(POLL_SECONDS);
    pthread_cond_timedwait(&s->arrived, &s->lock, &until);
    if (poll && wanted->state != SLOT_READY) {
      pthread_mutex_unlock(&s->lock);
      mo_status polled = poll(context);
      pthread_mutex_lock(&s->lock);
      MO_TRY(polled);
    }
    MO_TRY(s->status);
  }
  return MO_OK;
}

/* Compare what is in the arena with the files. */
static mo_status verify(mo_streamer *s, const slot *loaded) {
  for (int64_t e = 0; s->sums && e < loaded->catalogue->n_entries; e++) {
    const mo_entry *entry = &loaded->catalogue->entries[e];
    const mo_tensor *t = entry->tensor;
    uint64_t sum;
    MO_TRY(s->backend->table->checksum(s->backend, s->arena + loaded->offset + entry->arena_offset, (size_t)t->bytes,
                                       &sum));
    if (sum != atomic_load(&s->sums[loaded->first_entry + e]))
      return MO_FAIL(MO_FAILED,
                     "tensor \"%s\" in memory differs from its bytes in file %s (engine.verify): run again, and check "
                     "storage and memory if it stays so",
                     t->name, mo_checkpoint_file(s->checkpoint, t->file));
  }
  pthread_mutex_lock(&s->lock);
  if (s->sums) s->bytes_verified += loaded->catalogue->bytes;
  pthread_mutex_unlock(&s->lock);
  return MO_OK;
}

mo_status mo_streamer_acquire(mo_streamer *s, int64_t stage, const mo_stage_weights **weights,
                              mo_status (*poll)(void *context), void *context) {
  *weights = NULL;
  if (s->acquired == s->n_slots || s->slots[s->acquired].stage != stage)
    return MO_FAIL(MO_FAILED, "stage %lld was acquired out of the plan's order: " MO_DEFECT, (long long)stage);
  slot *wanted = &s->slots[s->acquired];
  double start = mo_seconds();
  pthread_mutex_lock(&s->lock);
  mo_status status = wait_for(s, wanted, poll, context);
  wanted->timing.wait_seconds += mo_seconds() - start;
  pthread_mutex_unlock(&s->lock);
  MO_TRY(status);
  MO_TRY(verify(s, wanted));
  MO_TRY(mo_stage_weights_build(&wanted->weights, s->spec, wanted->catalogue, s->arena + wanted->offset));
  pthread_mutex_lock(&s->lock);
  wanted->state = SLOT_HELD;
  s->acquired++;
  pthread_mutex_unlock(&s->lock);
  *weights = &wanted->weights;
  return MO_OK;
}

bool mo_streamer_ready(mo_streamer *s, int64_t stage) {
  pthread_mutex_lock(&s->lock);
  bool ready = s->status != MO_OK || s->acquired == s->n_slots || s->slots[s->acquired].stage != stage;
  if (!ready) {
    const slot *wanted = &s->slots[s->acquired];
    ready = wanted->state == SLOT_READY ||
            (wanted->state == SLOT_WAITING && mo_stream_room(s, wanted->catalogue->arena_bytes) < 0);
  }
  pthread_mutex_unlock(&s->lock);
  return ready;
}

void mo_streamer_release(mo_streamer *s, int64_t stage) {
  pthread_mutex_lock(&s->lock);
  if (s->released < s->acquired && s->slots[s->released].stage == stage) {
    slot *oldest = &s->slots[s->released++];
    oldest->state = SLOT_RELEASED;
    mo_stage_weights_free(&oldest->weights);
    pthread_cond_broadcast(&s->work);
  } else {
    mo_stream_stop(s, MO_FAIL(MO_FAILED, "stage %lld was released out of order: " MO_DEFECT, (long long)stage));
  }
  pthread_mutex_unlock(&s->lock);
}

/* Holding the lock: the read that was begun first of those under way, NULL: none. */
static const piece *oldest_read(const mo_streamer *s) {
  const reader *oldest = NULL;
  for (int i = 0; i < s->n_started; i++) {
    const reader *r = &s->readers[i];
    if (r->piece >= 0 && (!oldest || r->begun < oldest->begun)) oldest = r;
  }
  return oldest ? &s->pieces[oldest->piece] : NULL;
}

mo_stream_state mo_streamer_state(mo_streamer *s) {
  pthread_mutex_lock(&s->lock);
  mo_stream_state state = {.bytes_read = s->bytes_read, .bytes_verified = s->bytes_verified, .file = -1};
  const piece *read = oldest_read(s);
  if (s->status == MO_OK && s->in_flight > 0) state.stalled = mo_seconds() - s->moved;
  if (read) state.file = read->file, state.offset = read->file_offset;
  pthread_mutex_unlock(&s->lock);
  return state;
}

mo_stream_timing mo_streamer_timing(const mo_streamer *s, int64_t stage) {
  for (int64_t i = 0; i < s->acquired; i++)
    if (s->slots[i].stage == stage) return s->slots[i].timing;
  return (mo_stream_timing){0};
}

/* --- the accounting --- */

static mo_status check_slot(const mo_streamer *s, const slot *owner) {
  for (int64_t e = 0; e < owner->catalogue->n_entries; e++) {
    const mo_tensor *tensor = owner->catalogue->entries[e].tensor;
    int64_t filled = atomic_load(&s->filled[owner->first_entry + e]);
    if (filled != tensor->bytes)
      return MO_FAIL(MO_FAILED, "tensor \"%s\" was filled with %lld bytes instead of %lld: " MO_DEFECT, tensor->name,
                     (long long)filled, (long long)tensor->bytes);
  }
  return MO_OK;
}

static mo_status check_pieces(const mo_streamer *s) {
  for (int64_t i = 0; i < s->n_pieces; i++) {
    const piece *p = &s->pieces[i];
    if (atomic_load(&s->pieces_done[i]) != 1)
      return MO_FAIL(MO_FAILED, "bytes %lld to %lld of file %s were loaded %d times: " MO_DEFECT,
                     (long long)p->file_offset, (long long)(p->file_offset + p->bytes),
                     mo_checkpoint_file(s->checkpoint, p->file), (int)atomic_load(&s->pieces_done[i]));
  }
  return MO_OK;
}

mo_status mo_streamer_check(const mo_streamer *s) {
  mo_streamer *unlocked = (mo_streamer *)s; /* the lock is not part of the value */
  pthread_mutex_lock(&unlocked->lock);
  mo_status status = s->status;
  pthread_mutex_unlock(&unlocked->lock);
  MO_TRY(status);
  for (int64_t i = 0; i < s->n_slots; i++) MO_TRY(check_slot(s, &s->slots[i]));
  MO_TRY(check_pieces(s));
  for (int i = 0; i < s->n_buffers * s->n_readers; i++) {
    const staging *b = &s->readers[i / s->n_buffers].buffers[i % s->n_buffers];
    if (atomic_load(&b->state) != BUFFER_FREE || atomic_load(&b->begun) != atomic_load(&b->copied))
      return MO_FAIL(MO_FAILED, "staging buffer %d was filled %lld times and copied %lld times: " MO_DEFECT, i,
                     (long long)atomic_load(&b->begun), (long long)atomic_load(&b->copied));
  }
  return MO_OK;
}
