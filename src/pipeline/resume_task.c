#include "pipeline/resume_task.h"

#include <stdlib.h>
#include <string.h>

/* Kinds of a record's parts; the index of a site's parts is 2 * threshold + site, that of positions the threshold. */
enum {
  HEAD = 1,
  SUM,
  SUM_SQUARES,
  MAX_ABS,
  CELLS,
  OUTLIERS,
  PACKED,
  N_SITE_KINDS,
  ROUTING = 16,
  NLL,
  POSITIONS,
  TIMING,
  EXPERTS
};

typedef struct {
  int64_t n_sequences, rows;
} site_head;

/* A (sequence, feature) with outlier values. */
typedef struct {
  int64_t place; /* in [B, H] */
  int32_t count, positive;
  float min, max;
  double sum_abs;
  int32_t position, first;
} cell;

typedef struct {
  uint64_t place, bits;
} word;

int64_t mo_task_words(const mo_task *task) { return task->n_sequences * task->hidden * ((task->length + 63) / 64); }

/* --- writing --- */

static mo_status put(mo_journal *journal, int32_t kind, int32_t index, const void *data, size_t bytes) {
  void *place;
  MO_TRY(mo_journal_part(journal, kind, index, bytes, &place));
  if (bytes > 0) memcpy(place, data, bytes);
  return MO_OK;
}

static mo_status put_cells(mo_journal *journal, const mo_task *task, int32_t index, const mo_site_statistics *s) {
  int64_t n = s->n_sequences * task->hidden, n_cells = 0;
  void *place;
  for (int64_t i = 0; i < n; i++) n_cells += s->count[i] != 0;
  MO_TRY(mo_journal_part(journal, CELLS, index, (size_t)n_cells * sizeof(cell), &place));
  cell *next = place;
  for (int64_t i = 0; i < n; i++)
    if (s->count[i] != 0)
      *next++ =
          (cell){i, s->count[i], s->positive[i], s->min[i], s->max[i], s->sum_abs[i], s->position[i], s->first[i]};
  return MO_OK;
}

static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* bf16 numbers of features whose index has 16 bits. */
static bool can_pack(const mo_task *task, const mo_site_statistics *s) {
  uint32_t lost = 0;
  for (int64_t i = 0; i < s->n_outliers; i++) lost |= bits_of(s->outliers[i].value) & 0xffff;
  return !lost && task->hidden <= 1 << 16;
}

/* The list of outlier values, which is most of a record: packed it takes half the room. */
static mo_status put_outliers(mo_journal *journal, const mo_task *task, int32_t index, const mo_site_statistics *s) {
  void *place;
  if (!can_pack(task, s))
    return put(journal, OUTLIERS, index, s->outliers, (size_t)s->n_outliers * sizeof *s->outliers);
  MO_TRY(mo_journal_part(journal, PACKED, index, (size_t)s->n_outliers * sizeof(uint32_t), &place));
  uint32_t *packed = place;
  for (int64_t i = 0; i < s->n_outliers; i++)
    packed[i] = bits_of(s->outliers[i].value) | (uint32_t)s->outliers[i].feature;
  return MO_OK;
}

mo_status mo_task_put_site(mo_journal *journal, const mo_task *task, int64_t threshold, mo_site site,
                           const mo_site_statistics *s) {
  const site_head head = {s->n_sequences, s->rows};
  size_t B = (size_t)s->n_sequences;
  int32_t index = (int32_t)(2 * threshold + site);
  MO_TRY(put(journal, HEAD, index, &head, sizeof head));
  MO_TRY(put(journal, SUM, index, s->sum, B * sizeof *s->sum));
  MO_TRY(put(journal, SUM_SQUARES, index, s->sum_squares, B * sizeof *s->sum_squares));
  MO_TRY(put(journal, MAX_ABS, index, s->max_abs, B * sizeof *s->max_abs));
  MO_TRY(put_cells(journal, task, index, s));
  return put_outliers(journal, task, index, s);
}

mo_status mo_task_put_routing(mo_journal *journal, const mo_task *task, const int64_t *counts) {
  return put(journal, ROUTING, 0, counts, (size_t)task->n_experts * sizeof *counts);
}

mo_status mo_task_put_experts(mo_journal *journal, const mo_expert_statistics *statistics) {
  return put(journal, EXPERTS, 0, statistics->experts, (size_t)statistics->n * sizeof *statistics->experts);
}

static size_t nll_bytes(const mo_task *task) {
  return (size_t)(task->n_sequences * (task->length - 1)) * sizeof(float);
}

mo_status mo_task_put_nll(mo_journal *journal, const mo_task *task, const float *nll) {
  return put(journal, NLL, 0, nll, nll_bytes(task));
}

mo_status mo_task_put_positions(mo_journal *journal, const mo_task *task, int64_t threshold, const uint64_t *words) {
  int64_t n = mo_task_words(task), n_hit = 0;
  void *place;
  for (int64_t i = 0; i < n; i++) n_hit += words[i] != 0;
  MO_TRY(mo_journal_part(journal, POSITIONS, (int32_t)threshold, (size_t)n_hit * sizeof(word), &place));
  word *next = place;
  for (int64_t i = 0; i < n; i++)
    if (words[i] != 0) *next++ = (word){(uint64_t)i, words[i]};
  return MO_OK;
}

mo_status mo_task_put_timing(mo_journal *journal, const mo_timing_row *timing) {
  return put(journal, TIMING, 0, timing, sizeof *timing);
}

/* --- reading --- */

static mo_status bad_record(const mo_record *record) {
  return MO_FAIL(MO_FAILED,
                 "a record of stage %lld, micro-batch %lld makes no sense (interrupted run): start over with --fresh, "
                 "and report this",
                 (long long)record->stage, (long long)record->micro);
}

/* Dense [B, H] arrays of a site. */
static mo_status open_cells(mo_site_statistics *s, int64_t n, const cell *cells, size_t n_cells) {
  size_t size = (size_t)n;
  s->count = mo_alloc(size, sizeof *s->count);
  s->positive = mo_alloc(size, sizeof *s->positive);
  s->min = mo_alloc(size, sizeof *s->min);
  s->max = mo_alloc(size, sizeof *s->max);
  s->sum_abs = mo_alloc(size, sizeof *s->sum_abs);
  s->position = mo_alloc(size, sizeof *s->position);
  s->first = mo_alloc(size, sizeof *s->first);
  if (!s->count || !s->positive || !s->min || !s->max || !s->sum_abs || !s->position || !s->first) return MO_FAILED;
  for (size_t i = 0; i < n_cells; i++) {
    const cell *c = cells + i;
    if (c->place < 0 || c->place >= n) return MO_FAIL(MO_FAILED, "a record is wrong (interrupted run): report this");
    s->count[c->place] = c->count;
    s->positive[c->place] = c->positive;
    s->min[c->place] = c->min;
    s->max[c->place] = c->max;
    s->sum_abs[c->place] = c->sum_abs;
    s->position[c->place] = c->position;
    s->first[c->place] = (uint8_t)c->first;
  }
  return MO_OK;
}

static void close_cells(mo_site_statistics *s) {
  free(s->count);
  free(s->positive);
  free(s->min);
  free(s->max);
  free(s->sum_abs);
  free(s->position);
  free(s->first);
}

/* *unpacked: the caller's to free. */
static mo_status open_outliers(mo_site_statistics *s, const mo_record_part *parts, mo_outlier **unpacked) {
  const uint32_t *packed = parts[PACKED].data;
  s->outliers = (mo_outlier *)parts[OUTLIERS].data;
  s->n_outliers = (int64_t)(parts[OUTLIERS].bytes / sizeof *s->outliers);
  if (!packed) return MO_OK;
  s->n_outliers = (int64_t)(parts[PACKED].bytes / sizeof *packed);
  s->outliers = *unpacked = mo_alloc((size_t)s->n_outliers, sizeof **unpacked);
  if (!*unpacked) return MO_FAILED;
  for (int64_t i = 0; i < s->n_outliers; i++) {
    uint32_t bits = packed[i] & 0xffff0000u;
    s->outliers[i].feature = (int32_t)(packed[i] & 0xffff);
    memcpy(&s->outliers[i].value, &bits, sizeof bits);
  }
  return MO_OK;
}

static mo_status restore_site(const mo_task *task, const mo_record *record, int index, const mo_record_part *parts) {
  size_t B = (size_t)task->n_sequences;
  const site_head *head = parts[HEAD].data;
  if (parts[HEAD].bytes != sizeof *head || head->n_sequences != task->n_sequences ||
      parts[SUM].bytes != B * sizeof(double) || parts[SUM_SQUARES].bytes != B * sizeof(double) ||
      parts[MAX_ABS].bytes != B * sizeof(float) || parts[CELLS].bytes % sizeof(cell) ||
      parts[OUTLIERS].bytes % sizeof(mo_outlier) || parts[PACKED].bytes % sizeof(uint32_t))
    return bad_record(record);
  mo_site_statistics s = {.n_sequences = head->n_sequences,
                          .rows = head->rows,
                          .sum = (double *)parts[SUM].data,
                          .sum_squares = (double *)parts[SUM_SQUARES].data,
                          .max_abs = (float *)parts[MAX_ABS].data};
  mo_outlier *unpacked = NULL;
  mo_status status =
      open_cells(&s, task->n_sequences * task->hidden, parts[CELLS].data, parts[CELLS].bytes / sizeof(cell));
  if (status == MO_OK) status = open_outliers(&s, parts, &unpacked);
  if (status == MO_OK)
    status = mo_accumulator_add(task->accumulators[index / 2], record->stage - 1, (mo_site)(index % 2),
                                task->first_sequence, &s);
  close_cells(&s);
  free(unpacked);
  return status;
}

static mo_status restore_positions(const mo_task *task, const mo_record *record, const mo_record_part *part) {
  uint64_t n = (uint64_t)mo_task_words(task);
  uint64_t *words = mo_alloc(n, sizeof *words);
  const word *hit = part->data;
  mo_status status = words ? MO_OK : MO_FAILED;
  for (size_t i = 0; status == MO_OK && i < part->bytes / sizeof *hit; i++)
    if (hit[i].place < n)
      words[hit[i].place] = hit[i].bits;
    else
      status = bad_record(record);
  if (status == MO_OK)
    mo_accumulator_add_positions(task->accumulators[part->index], task->first_sequence, task->n_sequences, words);
  free(words);
  return status;
}

static void add_timing(mo_timing_row *timing, const mo_timing_row *more) {
  timing->bytes_read += more->bytes_read;
  timing->read += more->read;
  timing->copy += more->copy;
  timing->compute += more->compute;
  timing->wait += more->wait;
}

static mo_status restore_part(const mo_task *task, const mo_record *record, const mo_record_part *part,
                              mo_timing_row *timing) {
  if (part->kind == POSITIONS && part->index >= 0 && part->index < task->n_thresholds)
    return restore_positions(task, record, part);
  if (part->kind == ROUTING && part->bytes == (size_t)task->n_experts * sizeof(int64_t)) {
    mo_accumulator_add_routing(task->accumulators[0], record->stage - 1, part->data);
    return MO_OK;
  }
  if (part->kind == NLL && part->bytes == nll_bytes(task)) {
    mo_accumulator_add_nll(task->accumulators[0], task->first_sequence, task->n_sequences, part->data);
    return MO_OK;
  }
  if (part->kind == EXPERTS && part->bytes % sizeof(mo_expert_sums) == 0) {
    const mo_expert_statistics statistics = {(int64_t)(part->bytes / sizeof(mo_expert_sums)),
                                             (mo_expert_sums *)part->data};
    return mo_accumulator_add_experts(task->accumulators[0], record->stage - 1, task->first_sequence, &statistics);
  }
  if (part->kind != TIMING || part->bytes != sizeof *timing) return bad_record(record);
  add_timing(timing, part->data);
  return MO_OK;
}

mo_status mo_task_restore(const mo_task *task, const mo_record *record, mo_timing_row *timing) {
  mo_record_part part, sites[2 * MO_MOST_THRESHOLDS][N_SITE_KINDS] = {0};
  size_t offset = 0;
  while (mo_record_next(record, &offset, &part)) {
    if (part.kind >= HEAD && part.kind < N_SITE_KINDS && part.index >= 0 && part.index < 2 * task->n_thresholds)
      sites[part.index][part.kind] = part;
    else
      MO_TRY(restore_part(task, record, &part, timing));
  }
  for (int i = 0; i < 2 * task->n_thresholds; i++)
    if (sites[i][HEAD].data) MO_TRY(restore_site(task, record, i, sites[i]));
  return MO_OK;
}
