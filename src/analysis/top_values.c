/* Where the largest values are: each rank finds those of its own sites, rank 0 puts them together. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/internal.h"

/* The features that qualify, ascending, and the largest values of each at one site. */
typedef struct {
  int64_t n;
  int32_t *features; /* [n] */
  int32_t *place;    /* [H] in features, -1: not there */
  int32_t *found;    /* [n] values at the site so far */
  mo_top_value *top; /* [n, MO_TOP_VALUES] */
} search;

typedef struct {
  mo_top_value *rows;
  int64_t n, capacity;
} row_list;

static void search_close(search *s) {
  free(s->features);
  free(s->place);
  free(s->found);
  free(s->top);
}

static int row_compare(const void *left, const void *right) {
  const mo_top_value *a = left, *b = right;
  if (a->feature != b->feature) return a->feature < b->feature ? -1 : 1;
  if (a->layer != b->layer) return a->layer < b->layer ? -1 : 1;
  if (a->site != b->site) return a->site < b->site ? -1 : 1;
  return (a->rank > b->rank) - (a->rank < b->rank);
}

static mo_status search_open(search *s, const mo_analysis *analysis, int64_t hidden, mo_comm *comm) {
  MO_TRY(mo_outlier_features_share(analysis, comm, &s->features, &s->n));
  s->place = mo_alloc((size_t)hidden, sizeof *s->place);
  s->found = mo_alloc((size_t)s->n, sizeof *s->found);
  s->top = mo_alloc((size_t)s->n * MO_TOP_VALUES, sizeof *s->top);
  if (!s->place || !s->found || !s->top) return MO_FAILED;
  for (int64_t h = 0; h < hidden; h++) s->place[h] = -1;
  for (int64_t i = 0; i < s->n; i++) s->place[s->features[i]] = (int32_t)i;
  return MO_OK;
}

/* Is a before b. */
static bool precedes(const mo_top_value *a, const mo_top_value *b) {
  if (fabsf(a->value) != fabsf(b->value)) return fabsf(a->value) > fabsf(b->value);
  return a->sequence < b->sequence;
}

static void insert(search *s, int32_t place, const mo_top_value *value) {
  mo_top_value *top = s->top + (int64_t)place * MO_TOP_VALUES;
  int32_t at = s->found[place];
  if (at == MO_TOP_VALUES && !precedes(value, &top[at - 1])) return;
  if (at < MO_TOP_VALUES)
    s->found[place]++;
  else
    at--;
  for (; at > 0 && precedes(value, &top[at - 1]); at--) top[at] = top[at - 1];
  top[at] = *value;
}

static mo_status append(row_list *list, const search *s) {
  for (int64_t i = 0; i < s->n; i++)
    for (int32_t k = 0; k < s->found[i]; k++) {
      if (list->n == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 64;
        mo_top_value *rows = mo_realloc(list->rows, (size_t)capacity, sizeof *rows);
        if (!rows) return MO_FAILED;
        list->rows = rows;
        list->capacity = capacity;
      }
      list->rows[list->n] = s->top[i * MO_TOP_VALUES + k];
      list->rows[list->n++].rank = k;
    }
  return MO_OK;
}

/* Of this rank's sites. */
static mo_status find(row_list *list, search *s, const mo_accumulator *accumulator) {
  for (int64_t place = 0; place < 2 * accumulator->shape.n_layers; place++) {
    const mo_site_sums *site = &accumulator->sites[place];
    memset(s->found, 0, (size_t)s->n * sizeof *s->found);
    for (int64_t r = 0; r < site->n_rows; r++) {
      const mo_site_row *row = &site->rows[r];
      mo_top_value value = {.feature = row->feature,
                            .layer = (int32_t)(place / 2),
                            .site = (int32_t)(place % 2),
                            .sequence = row->sequence,
                            .position = row->position,
                            .token = -1,
                            .value = row->max == row->max_abs ? row->max : row->min};
      if (s->place[row->feature] >= 0) insert(s, s->place[row->feature], &value);
    }
    MO_TRY(append(list, s));
  }
  return MO_OK;
}

static mo_status gather(mo_analysis *analysis, const row_list *list, mo_comm *comm) {
  void *all = NULL;
  size_t bytes = 0;
  MO_TRY(mo_comm_gather(comm, list->rows, (size_t)list->n * sizeof *list->rows, &all, &bytes));
  if (mo_comm_rank(comm) != 0) return MO_OK;
  analysis->top_values = all;
  analysis->n_top_values = (int64_t)(bytes / sizeof *analysis->top_values);
  qsort(all, (size_t)analysis->n_top_values, sizeof *analysis->top_values, row_compare);
  return MO_OK;
}

mo_status mo_top_values_gather(mo_analysis *analysis, const mo_accumulator *accumulator, mo_comm *comm, bool good) {
  MO_TRY(mo_comm_broadcast(comm, &good, sizeof good, 0)); /* of interest on rank 0 */
  if (!good) return MO_OK;
  search s = {0};
  row_list list = {0};
  mo_status status = search_open(&s, analysis, accumulator->shape.hidden, comm);
  if (status == MO_OK) status = find(&list, &s, accumulator);
  if (status == MO_OK) status = gather(analysis, &list, comm);
  search_close(&s);
  free(list.rows);
  return status;
}

void mo_analysis_name_tokens(mo_analysis *analysis, const int32_t *ids, int64_t length) {
  for (int64_t i = 0; i < analysis->n_top_values; i++) {
    mo_top_value *row = &analysis->top_values[i];
    row->token = ids[row->sequence * length + row->position];
  }
  for (int64_t i = 0; i < analysis->n_experts; i++) {
    mo_expert *row = &analysis->experts[i];
    if (row->max_sequence >= 0) row->max_token = ids[row->max_sequence * length + row->max_position];
  }
}
