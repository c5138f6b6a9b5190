/* What the readers are given: the plan's bytes in pieces, and the size of the ring that they go through. */
#include "weights/file.h"
#include "weights/streamer.h"

#define CHUNK (4 << 20)         /* measured: smaller ones cost calls, larger ones leave the processor's caches */
#define GOOD_CHUNK (1 << 20)    /* to save memory, first chunks get smaller down to this, ... */
#define GOOD_READERS 4          /* ... then readers fewer down to this, ... */
#define LEAST_CHUNK (256 << 10) /* ... then chunks smaller down to this, at last readers fewer. */
#define LEAST_HOST (1 << 20)

/* --- the ring --- */

static int64_t ring_bytes(const mo_stream_ring *ring, bool verify) {
  int64_t buffers = ring->n_buffers * ring->chunk_bytes + MO_DIRECT_BLOCK;
  return ring->n_readers * (buffers + (verify ? MO_STREAM_AGAIN : 0));
}

static bool shrink(mo_stream_ring *ring) {
  if (ring->n_buffers > 2)
    ring->n_buffers--;
  else if (ring->chunk_bytes > GOOD_CHUNK)
    ring->chunk_bytes = ring->chunk_bytes / 2 < GOOD_CHUNK ? GOOD_CHUNK : ring->chunk_bytes / 2;
  else if (ring->n_readers > GOOD_READERS)
    ring->n_readers--;
  else if (ring->chunk_bytes > LEAST_CHUNK)
    ring->chunk_bytes = ring->chunk_bytes / 2 < LEAST_CHUNK ? LEAST_CHUNK : ring->chunk_bytes / 2;
  else if (ring->n_readers > 1)
    ring->n_readers--;
  else
    return false;
  return true;
}

mo_stream_ring mo_stream_ring_of(const mo_stream_plan *plan) {
  mo_stream_ring ring = {plan->n_readers, MO_STREAM_BUFFERS, plan->chunk_bytes ? plan->chunk_bytes : CHUNK};
  int64_t bound = plan->host_bytes > LEAST_HOST ? plan->host_bytes : LEAST_HOST;
  while (plan->host_bytes && ring_bytes(&ring, plan->verify) > bound && shrink(&ring)) {
  }
  return ring;
}

int64_t mo_stream_host_bytes(const mo_stream_plan *plan, bool host_memory) {
  mo_stream_ring ring = mo_stream_ring_of(plan);
  if (host_memory) return plan->verify ? (int64_t)plan->n_readers * MO_STREAM_AGAIN : 0;
  return ring_bytes(&ring, plan->verify);
}

/* --- pieces --- */

static int64_t block_down(int64_t at) { return at / MO_DIRECT_BLOCK * MO_DIRECT_BLOCK; }
static int64_t block_up(int64_t at) { return block_down(at + MO_DIRECT_BLOCK - 1); }

/* Whether entry b lies right behind a, in the file and in the arena. */
static bool follows(const mo_entry *a, const mo_entry *b) {
  return b->tensor->file == a->tensor->file && b->tensor->offset == a->tensor->offset + a->tensor->bytes &&
         b->arena_offset == a->arena_offset + a->tensor->bytes;
}

/* Pieces within a run begin at whole blocks, so that each byte is read from storage once. */
static int64_t end_of_piece(const mo_streamer *s, int64_t at, int64_t end) {
  if (end - at <= s->chunk_bytes) return end;
  int64_t stop = block_down(at + s->chunk_bytes);
  return stop > at ? stop : at + s->chunk_bytes; /* a chunk may be less than a block */
}

/* Cut the run of entries [first, last] of a slot; pieces NULL: count them. */
static int64_t cut_run(mo_streamer *s, int64_t index, int64_t first, int64_t last, piece *pieces) {
  const mo_entry *entries = s->slots[index].catalogue->entries;
  const mo_tensor *head = entries[first].tensor, *tail = entries[last].tensor;
  int64_t n = 0, at = head->offset, end = tail->offset + tail->bytes, entry = first;
  while (at < end) {
    int64_t stop = end_of_piece(s, at, end), span = block_up(stop) - block_down(at);
    while (entry < last && entries[entry + 1].tensor->offset <= at) entry++;
    if (pieces)
      pieces[n] = (piece){.slot = index,
                          .entry = entry,
                          .file = head->file,
                          .file_offset = at,
                          .arena_offset = entries[first].arena_offset + at - head->offset,
                          .bytes = stop - at};
    if (span > s->buffer_bytes) s->buffer_bytes = span;
    n++;
    at = stop;
  }
  return n;
}

static int64_t cut_slot(mo_streamer *s, int64_t index, piece *pieces) {
  const mo_stage_catalogue *stage = s->slots[index].catalogue;
  int64_t n = 0;
  for (int64_t first = 0, last; first < stage->n_entries; first = last + 1) {
    for (last = first; last + 1 < stage->n_entries; last++)
      if (!follows(&stage->entries[last], &stage->entries[last + 1])) break;
    n += cut_run(s, index, first, last, pieces ? pieces + n : NULL);
  }
  return n;
}

mo_status mo_stream_cut(mo_streamer *s) {
  for (int64_t i = 0; i < s->n_slots; i++) s->n_pieces += cut_slot(s, i, NULL);
  s->pieces = mo_alloc((size_t)s->n_pieces, sizeof *s->pieces);
  s->pieces_done = mo_alloc((size_t)s->n_pieces, sizeof *s->pieces_done);
  if (!s->pieces || !s->pieces_done) return MO_FAILED;
  for (int64_t i = 0, n = 0; i < s->n_slots; i++) n += cut_slot(s, i, s->pieces + n);
  return MO_OK;
}

int64_t mo_stream_overlap(const mo_streamer *s, const piece *p, int64_t entry, int64_t *offset) {
  const mo_stage_catalogue *stage = s->slots[p->slot].catalogue;
  if (entry >= stage->n_entries) return 0;
  int64_t place = stage->entries[entry].arena_offset, bytes = stage->entries[entry].tensor->bytes;
  int64_t begin = p->arena_offset > place ? p->arena_offset : place;
  int64_t end = p->arena_offset + p->bytes < place + bytes ? p->arena_offset + p->bytes : place + bytes;
  *offset = begin - place;
  return end > begin ? end - begin : 0;
}
