/* What the tables are made of: a cell per (sequence, feature) with outlier values, filled from a run's totals or from
 * the rows of a result file. */
#include <stdlib.h>
#include <string.h>

#include "analysis/internal.h"

#define REMEDY "make the file again with moe-outliers run"

static mo_status counts_alloc(mo_counts **counts, const mo_analysis_shape *shape, const char *where, int64_t n_cells) {
  *counts = NULL;
  mo_counts *made = mo_alloc(1, sizeof *made);
  if (!made) return MO_FAILED;
  made->shape = *shape;
  made->where = where;
  made->words = mo_site_words(shape);
  made->n_cells = n_cells;
  made->first = mo_alloc((size_t)(shape->hidden + 1), sizeof *made->first);
  made->cells = mo_alloc((size_t)n_cells, sizeof *made->cells);
  made->sites = mo_alloc((size_t)(n_cells * made->words), sizeof *made->sites);
  made->quartiles = mo_alloc((size_t)(3 * shape->hidden), sizeof *made->quartiles);
  *counts = made;
  if (made->first && made->cells && made->sites && made->quartiles) return MO_OK;
  mo_counts_free(made);
  *counts = NULL;
  return MO_FAILED;
}

void mo_counts_free(mo_counts *counts) {
  if (!counts) return;
  free(counts->first);
  free(counts->cells);
  free(counts->sites);
  free(counts->quartiles);
  free(counts);
}

static mo_status check_rows(const mo_analysis_shape *shape, const char *where, const mo_position_row *rows, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const mo_position_row *row = &rows[i], *last = i ? row - 1 : NULL;
    bool in_range = row->sequence >= 0 && row->sequence < shape->n_sequences && row->feature >= 0 &&
                    row->feature < shape->hidden && row->positions_hit > 0 && row->positions_hit <= shape->length;
    bool in_order =
        !last || last->sequence < row->sequence || (last->sequence == row->sequence && last->feature < row->feature);
    if (!in_range || !in_order)
      return MO_FAIL(MO_INVALID, "/positions row %lld is %s: sequence %d, feature %d, %d positions (%s): " REMEDY,
                     (long long)i, in_range ? "out of order" : "out of range", row->sequence, row->feature,
                     row->positions_hit, where);
  }
  return MO_OK;
}

mo_status mo_counts_new(mo_counts **counts, const mo_analysis_shape *shape, const char *where,
                        const mo_position_row *rows, int64_t n_rows) {
  *counts = NULL;
  MO_TRY(check_rows(shape, where, rows, n_rows));
  MO_TRY(counts_alloc(counts, shape, where, n_rows));
  mo_counts *made = *counts;
  int64_t *next = mo_alloc((size_t)shape->hidden, sizeof *next);
  if (!next) {
    mo_counts_free(made);
    *counts = NULL;
    return MO_FAILED;
  }
  for (int64_t i = 0; i < n_rows; i++) made->first[rows[i].feature + 1]++;
  for (int64_t h = 0; h < shape->hidden; h++) made->first[h + 1] += made->first[h];
  memcpy(next, made->first, (size_t)shape->hidden * sizeof *next);
  for (int64_t i = 0; i < n_rows; i++) /* sorted by sequence, so those of a feature come in their order */
    made->cells[next[rows[i].feature]++] =
        (mo_cell){.sequence = rows[i].sequence, .positions_hit = rows[i].positions_hit};
  free(next);
  return MO_OK;
}

/* The cell of (sequence, feature), -1 if there is none. */
static int64_t find_cell(const mo_counts *counts, int32_t sequence, int32_t feature) {
  if (feature < 0 || feature >= counts->shape.hidden) return -1;
  int64_t low = counts->first[feature], high = counts->first[feature + 1];
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (counts->cells[middle].sequence < sequence)
      low = middle + 1;
    else
      high = middle;
  }
  return low < counts->first[feature + 1] && counts->cells[low].sequence == sequence ? low : -1;
}

mo_status mo_counts_add_site(mo_counts *counts, int64_t layer, mo_site site, const mo_site_row *rows, int64_t n_rows) {
  int64_t bit = 2 * layer + (site == MO_SITE_LN_MLP);
  uint64_t mask = UINT64_C(1) << bit % 64;
  for (int64_t r = 0; r < n_rows; r++) {
    const mo_site_row *row = &rows[r];
    int64_t i = find_cell(counts, row->sequence, row->feature);
    uint64_t *word = counts->sites + i * counts->words + bit / 64;
    if (i < 0 || *word & mask || row->count <= 0 || row->positive < 0 || row->positive > row->count || row->first > 1)
      return MO_FAIL(MO_INVALID, "row %lld of layer %lld %s is %s: sequence %d, feature %d, %d values (%s): " REMEDY,
                     (long long)r, (long long)layer, mo_site_name(site), i < 0 ? "not in /positions" : "damaged",
                     row->sequence, row->feature, row->count, counts->where);
    *word |= mask;
    mo_cell *cell = &counts->cells[i];
    cell->occurrences += row->count;
    cell->positive += row->positive;
    cell->first = row->first < 0 || cell->first < 0 ? -1 : cell->first + row->first;
    if (row->max_abs > cell->max_magnitude) cell->max_magnitude = row->max_abs;
  }
  return MO_OK;
}

mo_status mo_counts_set_quartiles(mo_counts *counts, int32_t feature, const float quartiles[3]) {
  if (feature < 0 || feature >= counts->shape.hidden || counts->first[feature] == counts->first[feature + 1])
    return MO_FAIL(MO_INVALID, "/features has feature %d, which has no row in /positions (%s): " REMEDY, feature,
                   counts->where);
  memcpy(counts->quartiles + 3 * feature, quartiles, 3 * sizeof *quartiles);
  return MO_OK;
}

mo_status mo_counts_of_totals(mo_counts **counts, mo_analysis *analysis, const mo_analysis_shape *shape,
                              const mo_totals *totals) {
  int64_t n_cells = shape->n_sequences * shape->hidden, n = 0;
  for (int64_t i = 0; i < n_cells; i++) n += totals->sequence_count[i] > 0;
  mo_position_row *row = analysis->positions = mo_alloc((size_t)n, sizeof *row);
  if (!row) return MO_FAILED;
  analysis->n_positions = n;
  for (int64_t i = 0; i < n_cells; i++)
    if (totals->sequence_count[i] > 0)
      *row++ =
          (mo_position_row){(int32_t)(i / shape->hidden), (int32_t)(i % shape->hidden), totals->sequence_positions[i]};
  MO_TRY(mo_counts_new(counts, shape, "analysis", analysis->positions, n));
  mo_counts *made = *counts;
  for (int64_t h = 0; h < shape->hidden; h++)
    for (int64_t c = made->first[h]; c < made->first[h + 1]; c++) {
      mo_cell *cell = &made->cells[c];
      int64_t i = cell->sequence * shape->hidden + h;
      cell->occurrences = totals->sequence_count[i];
      cell->positive = totals->sequence_positive[i];
      cell->first = totals->sequence_first[i];
      cell->max_magnitude = totals->sequence_max[i];
      memcpy(made->sites + c * made->words, totals->sequence_sites + i * made->words,
             (size_t)made->words * sizeof *made->sites);
    }
  memcpy(made->quartiles, totals->quartiles, (size_t)(3 * shape->hidden) * sizeof *made->quartiles);
  return MO_OK;
}
