/* Exact order statistics: per feature the multiset of its outlier values as sorted runs (value, count).
 *
 * Values are appended to a buffer, which is sorted and merged into the runs when it is as long as they are. Features of
 * many values that are bf16 numbers, as all are in bf16 runs, get a table of counts by code: a value then costs one
 * addition. A feature with more than MAX_EXACT distinct values over all ranks is rounded to bf16 as a whole, which bounds its runs by the
 * number of bf16 codes. A rank that exceeds the limit alone may round at once, since the union then exceeds it too: so
 * the outcome depends on the union only, not on how the values were dealt to ranks or micro-batches. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/internal.h"

enum {
  MAX_EXACT = 32768,      /* distinct values */
  MIN_BUFFER = 256,       /* values buffered before a merge is worth it */
  BLOCK_BYTES = 64 << 20, /* of runs gathered at a time, all ranks together, at least one feature */
  RUN_BYTES = 12,
  CODES = 1024, /* bf16 magnitudes in a feature's table: from its smallest value on to 256 times that */
};

/* Sorted by key, keys distinct. */
typedef struct {
  uint32_t *keys;
  int64_t *counts;
  int64_t n, capacity;
} runs;

typedef struct {
  runs runs;
  uint32_t *buffer;
  int64_t n_buffer, buffer_capacity;
  bool rounded;       /* the runs hold bf16 values */
  uint32_t *codes;    /* [2, CODES] values counted by bf16 code, positive and negative; NULL: no table */
  int32_t first_code; /* the table's smallest magnitude */
} feature_values;

struct mo_order {
  int64_t hidden;
  feature_values *features; /* [H] */
  runs merged;              /* scratch of a merge */
  uint32_t *sorting;        /* scratch of a sort */
  int64_t sorting_capacity;
};

/* A key orders as its value does. -0 becomes +0, so that equal values have equal keys. */
static uint32_t key_of_bits(uint32_t bits) {
  if (bits == 0x80000000u) bits = 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static uint32_t bits_of_key(uint32_t key) { return key & 0x80000000u ? key & 0x7fffffffu : ~key; }

static uint32_t key_of_value(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return key_of_bits(bits);
}

static float value_of_key(uint32_t key) {
  uint32_t bits = bits_of_key(key);
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* Round to nearest even bf16; keeps the order, infinities stay. */
static uint32_t round_key(uint32_t key) {
  uint32_t bits = bits_of_key(key);
  bits += 0x7fffu + (bits >> 16 & 1u);
  return key_of_bits(bits & 0xffff0000u);
}

static void runs_free(runs *list) {
  free(list->keys);
  free(list->counts);
  *list = (runs){0};
}

static mo_status runs_reserve(runs *list, int64_t n) {
  if (n <= list->capacity) return MO_OK;
  uint32_t *keys = mo_realloc(list->keys, (size_t)n, sizeof *keys);
  if (!keys) return MO_FAILED;
  list->keys = keys;
  int64_t *counts = mo_realloc(list->counts, (size_t)n, sizeof *counts);
  if (!counts) return MO_FAILED;
  list->counts = counts;
  list->capacity = n;
  return MO_OK;
}

static void runs_append(runs *list, uint32_t key, int64_t count) {
  if (list->n > 0 && list->keys[list->n - 1] == key) {
    list->counts[list->n - 1] += count;
  } else {
    list->keys[list->n] = key;
    list->counts[list->n++] = count;
  }
}

/* out = a and n sorted keys together; counts NULL: every key counts once (and may repeat). */
static mo_status runs_merge(runs *out, const runs *a, const uint32_t *keys, const int64_t *counts, int64_t n) {
  out->n = 0;
  MO_TRY(runs_reserve(out, a->n + n));
  int64_t i = 0, j = 0;
  while (i < a->n || j < n) {
    if (j == n || (i < a->n && a->keys[i] <= keys[j])) {
      runs_append(out, a->keys[i], a->counts[i]);
      i++;
    } else {
      runs_append(out, keys[j], counts ? counts[j] : 1);
      j++;
    }
  }
  return MO_OK;
}

static void runs_round(runs *list) {
  int64_t n = list->n;
  list->n = 0;
  for (int64_t i = 0; i < n; i++) runs_append(list, round_key(list->keys[i]), list->counts[i]);
}

/* Radix sort by bytes, lowest first; a byte in which all keys agree is skipped. */
static mo_status sort_keys(mo_order *order, uint32_t *keys, int64_t n) {
  if (n > order->sorting_capacity) {
    uint32_t *sorting = mo_realloc(order->sorting, (size_t)n, sizeof *sorting);
    if (!sorting) return MO_FAILED;
    order->sorting = sorting;
    order->sorting_capacity = n;
  }
  int64_t places[4][256];
  memset(places, 0, sizeof places);
  for (int64_t i = 0; i < n; i++)
    for (int byte = 0; byte < 4; byte++) places[byte][keys[i] >> 8 * byte & 255]++;
  uint32_t *from = keys, *to = order->sorting;
  for (int byte = 0; byte < 4; byte++) {
    int64_t *place = places[byte];
    if (n == 0 || place[keys[0] >> 8 * byte & 255] == n) continue;
    int64_t next = 0;
    for (int value = 0; value < 256; value++) {
      int64_t here = place[value];
      place[value] = next;
      next += here;
    }
    for (int64_t i = 0; i < n; i++) to[place[from[i] >> 8 * byte & 255]++] = from[i];
    uint32_t *swap = from;
    from = to;
    to = swap;
  }
  if (from != keys) memcpy(keys, from, (size_t)n * sizeof *keys);
  return MO_OK;
}

/* What was merged becomes the feature's runs. */
static mo_status adopt_merged(mo_order *order, feature_values *feature) {
  runs *list = &feature->runs;
  if (!feature->rounded && order->merged.n > MAX_EXACT) {
    runs_round(&order->merged);
    feature->rounded = true;
    runs_free(list); /* far fewer runs from now on: give the memory back */
    free(feature->buffer);
    feature->buffer = NULL;
    feature->buffer_capacity = 0;
  }
  MO_TRY(runs_reserve(list, order->merged.n));
  list->n = order->merged.n;
  memcpy(list->keys, order->merged.keys, (size_t)list->n * sizeof *list->keys);
  memcpy(list->counts, order->merged.counts, (size_t)list->n * sizeof *list->counts);
  return MO_OK;
}

/* Merge the buffer into the runs. */
static mo_status flush(mo_order *order, feature_values *feature) {
  if (feature->n_buffer == 0) return MO_OK;
  if (feature->rounded)
    for (int64_t i = 0; i < feature->n_buffer; i++) feature->buffer[i] = round_key(feature->buffer[i]);
  MO_TRY(sort_keys(order, feature->buffer, feature->n_buffer));
  MO_TRY(runs_merge(&order->merged, &feature->runs, feature->buffer, NULL, feature->n_buffer));
  feature->n_buffer = 0;
  return adopt_merged(order, feature);
}

static int32_t magnitude_code(uint32_t bits) { return (int32_t)(bits >> 16 & 0x7fff); }

/* A table for a feature whose buffer is full of bf16 numbers. */
static mo_status open_codes(feature_values *feature) {
  int32_t first = INT32_MAX;
  for (int64_t i = 0; i < feature->n_buffer; i++) {
    uint32_t bits = bits_of_key(feature->buffer[i]);
    if (bits & 0xffff) return MO_OK;
    if (magnitude_code(bits) < first) first = magnitude_code(bits);
  }
  feature->codes = mo_alloc(2 * CODES, sizeof *feature->codes);
  feature->first_code = first;
  return feature->codes ? MO_OK : MO_FAILED;
}

/* Count a value in the table; false: it is not of the table's numbers. */
static bool count_code(feature_values *feature, uint32_t bits) {
  int32_t place = magnitude_code(bits) - feature->first_code;
  if (bits & 0xffff || place < 0 || place >= CODES) return false;
  uint32_t *count = feature->codes + (bits >> 31 ? CODES : 0) + place;
  if (*count == UINT32_MAX) return false;
  ++*count;
  return true;
}

/* Merge the table into the runs. */
static mo_status flush_codes(mo_order *order, feature_values *feature) {
  uint32_t keys[2 * CODES];
  int64_t counts[2 * CODES], n = 0;
  if (!feature->codes) return MO_OK;
  for (int32_t i = 0; i < 2 * CODES; i++) { /* ascending: from the largest negative magnitude to the largest positive */
    int32_t place = i < CODES ? CODES - 1 - i : i - CODES;
    uint32_t count = feature->codes[(i < CODES ? CODES : 0) + place];
    if (!count) continue;
    keys[n] = key_of_bits((uint32_t)(feature->first_code + place) << 16 | (i < CODES ? 0x80000000u : 0));
    counts[n++] = count;
  }
  free(feature->codes);
  feature->codes = NULL;
  MO_TRY(runs_merge(&order->merged, &feature->runs, keys, counts, n));
  return adopt_merged(order, feature);
}

/* Make room for one value: a buffer grows up to the length of the runs, which keeps merging linear on average. */
static mo_status make_room(mo_order *order, feature_values *feature) {
  int64_t limit = feature->runs.n > MIN_BUFFER ? feature->runs.n : MIN_BUFFER;
  if (feature->buffer_capacity >= limit) {
    if (!feature->codes) MO_TRY(open_codes(feature));
    MO_TRY(flush(order, feature));
    if (feature->buffer) return MO_OK;
  }
  int64_t capacity = feature->buffer_capacity ? 2 * feature->buffer_capacity : MIN_BUFFER / 16;
  uint32_t *buffer = mo_realloc(feature->buffer, (size_t)capacity, sizeof *buffer);
  if (!buffer) return MO_FAILED;
  feature->buffer = buffer;
  feature->buffer_capacity = capacity;
  return MO_OK;
}

mo_status mo_order_new(mo_order **order, int64_t hidden) {
  *order = NULL;
  mo_order *made = mo_alloc(1, sizeof *made);
  if (!made) return MO_FAILED;
  made->hidden = hidden;
  made->features = mo_alloc((size_t)hidden, sizeof *made->features);
  if (!made->features) {
    free(made);
    return MO_FAILED;
  }
  *order = made;
  return MO_OK;
}

void mo_order_free(mo_order *order) {
  if (!order) return;
  for (int64_t h = 0; h < order->hidden; h++) {
    runs_free(&order->features[h].runs);
    free(order->features[h].buffer);
    free(order->features[h].codes);
  }
  runs_free(&order->merged);
  free(order->sorting);
  free(order->features);
  free(order);
}

mo_status mo_order_add(mo_order *order, const mo_outlier *outliers, int64_t n_outliers) {
  for (int64_t i = 0; i < n_outliers; i++) {
    int32_t h = outliers[i].feature;
    if (h < 0 || h >= order->hidden || isnan(outliers[i].value))
      return MO_FAIL(MO_FAILED, "outlier %lld of %lld has feature %d, value %g (hidden size %lld): report as a bug",
                     (long long)i, (long long)n_outliers, h, (double)outliers[i].value, (long long)order->hidden);
    feature_values *feature = &order->features[h];
    uint32_t key = key_of_value(outliers[i].value);
    if (feature->codes && count_code(feature, bits_of_key(feature->rounded ? round_key(key) : key))) continue;
    if (feature->n_buffer == feature->buffer_capacity) MO_TRY(make_room(order, feature));
    feature->buffer[feature->n_buffer++] = key;
  }
  return MO_OK;
}

/* Value number `index` (from 0) of the sorted multiset. */
static double value_at(const runs *list, int64_t index) {
  int64_t i = 0;
  while (index >= list->counts[i]) index -= list->counts[i++];
  return (double)value_of_key(list->keys[i]);
}

/* NumPy's interpolation (numpy/lib/_function_base_impl.py, _lerp), but for infinities, where it gives NaN too often.
 * t is a multiple of 1/4, so the products are exact and a fused multiply-add gives the same result. */
static double interpolate(double a, double b, double t) {
  if (a == b || t == 0) return a;
  if (isinf(a) || isinf(b)) return a + b;
  return t >= 0.5 ? b - (b - a) * (1 - t) : a + (b - a) * t;
}

/* numpy.quantile(values, q), method "linear"; n: number of values, > 0. */
static float quantile(const runs *list, int64_t n, double q) {
  double place = (double)(n - 1) * q;
  int64_t below = (int64_t)place;
  double t = place - (double)below;
  double a = value_at(list, below);
  return (float)interpolate(a, t > 0 ? value_at(list, below + 1) : a, t);
}

static void quartiles_of(const runs *list, float *quartiles) {
  int64_t n = 0;
  for (int64_t i = 0; i < list->n; i++) n += list->counts[i];
  for (int k = 0; k < 3; k++) quartiles[k] = n > 0 ? quantile(list, n, 0.25 * (k + 1)) : NAN;
}

/* Bytes of a rank's packed block: run numbers [m] int64, then all counts int64, then all keys uint32, padded to 8. */
static size_t packed_bytes(int64_t m, int64_t n_runs) {
  return (size_t)(m + n_runs) * sizeof(int64_t) + (size_t)(n_runs + 1) / 2 * 2 * sizeof(uint32_t);
}

/* Features first..last-1 of this rank; caller frees *packed. */
static mo_status pack_block(const mo_order *order, int64_t first, int64_t last, int64_t **packed, size_t *bytes) {
  int64_t n_runs = 0;
  for (int64_t h = first; h < last; h++) n_runs += order->features[h].runs.n;
  *bytes = packed_bytes(last - first, n_runs);
  *packed = mo_alloc(*bytes, 1);
  if (!*packed) return MO_FAILED;
  int64_t *counts = *packed + (last - first);
  uint32_t *keys = (uint32_t *)(counts + n_runs);
  for (int64_t h = first; h < last; h++) {
    const runs *list = &order->features[h].runs;
    (*packed)[h - first] = list->n;
    if (list->n == 0) continue;
    memcpy(counts, list->counts, (size_t)list->n * sizeof *counts);
    memcpy(keys, list->keys, (size_t)list->n * sizeof *keys);
    counts += list->n;
    keys += list->n;
  }
  return MO_OK;
}

/* Where the unread part of one rank's packed block is. */
typedef struct {
  const int64_t *n_runs, *counts;
  const uint32_t *keys;
} cursor;

static void open_cursors(cursor *cursors, int n_ranks, const int64_t *all, int64_t m) {
  for (int rank = 0; rank < n_ranks; rank++) {
    int64_t n_runs = 0;
    for (int64_t i = 0; i < m; i++) n_runs += all[i];
    cursors[rank] = (cursor){all, all + m, (const uint32_t *)(all + m + n_runs)};
    all += packed_bytes(m, n_runs) / sizeof *all;
  }
}

/* Rank 0: merge the ranks' runs feature by feature. rounded [m]: some rank has rounded, so all have. */
static mo_status merge_block(const int64_t *all, int n_ranks, int64_t m, const int64_t *rounded, float *quartiles) {
  mo_status status = MO_OK;
  runs total = {0}, next = {0};
  cursor *cursors = mo_alloc((size_t)n_ranks, sizeof *cursors);
  if (!cursors) return MO_FAILED;
  open_cursors(cursors, n_ranks, all, m);
  for (int64_t i = 0; i < m; i++) {
    total.n = 0;
    for (int rank = 0; rank < n_ranks; rank++) {
      cursor *part = &cursors[rank];
      int64_t n = part->n_runs[i];
      if (n == 0) continue;
      MO_TRY_TO(done, runs_merge(&next, &total, part->keys, part->counts, n));
      part->keys += n;
      part->counts += n;
      runs swap = total;
      total = next;
      next = swap;
    }
    if (!rounded[i] && total.n > MAX_EXACT) runs_round(&total);
    quartiles_of(&total, quartiles + 3 * i);
  }
done:
  runs_free(&total);
  runs_free(&next);
  free(cursors);
  return status;
}

static mo_status gather_block(const mo_order *order, mo_comm *comm, int64_t first, int64_t last, const int64_t *rounded,
                              float *quartiles) {
  int64_t *packed = NULL;
  void *all = NULL;
  size_t bytes = 0, all_bytes = 0;
  mo_status status;
  MO_TRY_TO(done, pack_block(order, first, last, &packed, &bytes));
  MO_TRY_TO(done, mo_comm_gather(comm, packed, bytes, &all, &all_bytes));
  free(packed);
  packed = NULL;
  if (mo_comm_rank(comm) == 0)
    status = merge_block(all, mo_comm_size(comm), last - first, rounded + first, quartiles + 3 * first);
done:
  free(packed);
  free(all);
  return status;
}

/* Flush all buffers and round, on every rank, each feature that any rank has rounded. */
static mo_status settle(mo_order *order, mo_comm *comm, int64_t *rounded) {
  for (int64_t h = 0; h < order->hidden; h++) {
    MO_TRY(flush(order, &order->features[h]));
    MO_TRY(flush_codes(order, &order->features[h]));
    rounded[h] = order->features[h].rounded;
  }
  MO_TRY(mo_comm_allreduce(comm, rounded, (size_t)order->hidden, MO_MAX_I64));
  for (int64_t h = 0; h < order->hidden; h++) {
    feature_values *feature = &order->features[h];
    if (!rounded[h] || feature->rounded) continue;
    runs_round(&feature->runs);
    feature->rounded = true;
  }
  return MO_OK;
}

mo_status mo_order_quartiles(mo_order *order, mo_comm *comm, float *quartiles) {
  mo_status status = MO_FAILED;
  int64_t hidden = order->hidden;
  int64_t *rounded = mo_alloc((size_t)hidden, sizeof *rounded);
  int64_t *n_runs = mo_alloc((size_t)hidden, sizeof *n_runs); /* of all ranks: every rank cuts the same blocks */
  if (!rounded || !n_runs) goto done;
  MO_TRY_TO(done, settle(order, comm, rounded));
  for (int64_t h = 0; h < hidden; h++) n_runs[h] = order->features[h].runs.n;
  MO_TRY_TO(done, mo_comm_allreduce(comm, n_runs, (size_t)hidden, MO_SUM_I64));
  for (int64_t first = 0, last; first < hidden; first = last) {
    int64_t bytes = n_runs[first] * RUN_BYTES;
    for (last = first + 1; last < hidden && bytes + n_runs[last] * RUN_BYTES <= BLOCK_BYTES; last++)
      bytes += n_runs[last] * RUN_BYTES;
    MO_TRY_TO(done, gather_block(order, comm, first, last, rounded, quartiles));
  }
done:
  free(rounded);
  free(n_runs);
  return status;
}
