#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/config.h"
#include "results/export.h"
#include "results/probe.h"

static mo_status damaged(const mo_export_source *source, const char *table, const char *what, int64_t row) {
  return MO_FAIL(MO_INVALID, "%s: %s (%s: row %" PRId64 "): %s", table, what, source->file.path, row, MO_EXPORT_REMEDY);
}

/* --- opening --- */

/* MO_INVALID unless the dataset has the shape [rows, columns]. */
static mo_status check_shape(const mo_h5_file *file, const char *name, int64_t rows, int64_t columns) {
  hsize_t dims[2] = {0};
  int64_t n = 0;
  hid_t space = H5I_INVALID_HID, dataset = H5Dopen2(file->id, name, H5P_DEFAULT);
  if (dataset < 0) return mo_h5_fail(file, "open dataset", name);
  mo_status status = mo_h5_count(file, dataset, name, 2, &n);
  if (status == MO_OK && ((space = H5Dget_space(dataset)) < 0 || H5Sget_simple_extent_dims(space, dims, NULL) < 0))
    status = mo_h5_fail(file, "read", name);
  if (status == MO_OK && (dims[0] != (hsize_t)rows || dims[1] != (hsize_t)columns))
    status = MO_FAIL(MO_INVALID, "%s is not [%" PRId64 ", %" PRId64 "] (%s): %s", name, rows, columns, file->path,
                     MO_EXPORT_REMEDY);
  status = mo_h5_close(file, status, space);
  return mo_h5_close(file, status, dataset);
}

/* Sizes that agree with what the file holds, so that a damaged one can take neither much memory nor much time. */
static mo_status check_sizes(const mo_export_source *source) {
  const mo_results_file *result = &source->result;
  const mo_h5_file *file = &source->file;
  const int64_t sizes[] = {result->n_layers, result->hidden_size, result->n_sequences, result->sequence_length};
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    if (sizes[i] < 1 || sizes[i] > INT32_MAX / 2)
      return MO_FAIL(MO_INVALID,
                     "bad size (%s: n_layers %" PRId64 ", hidden_size %" PRId64 ", n_sequences %" PRId64
                     ", sequence_length %" PRId64 "): %s",
                     file->path, sizes[0], sizes[1], sizes[2], sizes[3], MO_EXPORT_REMEDY);
  MO_TRY(check_shape(file, "/tokens", result->n_sequences, result->sequence_length));
  H5G_info_t group;
  if (H5Gget_info_by_name(file->id, "/layers", &group, H5P_DEFAULT) < 0) return mo_h5_fail(file, "open", "/layers");
  if (group.nlinks < (hsize_t)result->n_layers)
    return MO_FAIL(MO_INVALID, "/layers has %llu groups for %" PRId64 " layers (%s): %s",
                   (unsigned long long)group.nlinks, result->n_layers, file->path, MO_EXPORT_REMEDY);
  return MO_OK;
}

static mo_status read_config(mo_export_source *source) {
  char *name = mo_alloc(strlen(source->file.path) + sizeof ": config", 1);
  if (!name) return MO_FAILED;
  sprintf(name, "%s: config", source->file.path);
  mo_status status = mo_config_json(&source->config_json, source->config, name);
  free(name);
  MO_TRY(status);
  json_t *root = json_loads(source->config_json, 0, NULL);
  if (!root)
    return MO_FAIL(MO_INVALID, "config with numbers out of range (%s): %s", source->file.path, MO_EXPORT_REMEDY);
  const json_t *data = json_object_get(root, "data");
  const char *tokens = json_string_value(json_object_get(data, "tokens"));
  source->skip = json_integer_value(json_object_get(data, "skip"));
  source->dataset = mo_strdup(tokens ? tokens : "");
  json_decref(root);
  if (source->skip < 0 || source->skip > INT64_MAX / 2)
    return MO_FAIL(MO_INVALID, "bad data.skip %" PRId64 " in the config (%s): %s", source->skip, source->file.path,
                   MO_EXPORT_REMEDY);
  return source->dataset ? MO_OK : MO_FAILED;
}

/* S = 1 predicts nothing: no perplexity, as in the reference. */
static mo_status find_perplexity(mo_export_source *source) {
  const mo_results_file *result = &source->result;
  htri_t exists = H5Lexists(source->file.id, "perplexity", H5P_DEFAULT);
  if (exists < 0) return mo_h5_fail(&source->file, "read", "/perplexity");
  source->perplexity = exists && result->sequence_length > 1;
  if (!source->perplexity) return MO_OK;
  return check_shape(&source->file, "/perplexity/nll", result->n_sequences, result->sequence_length - 1);
}

typedef struct {
  const char *name;
  int64_t site;
} named_site;

static int by_name(const void *a, const void *b) {
  return strcmp(((const named_site *)a)->name, ((const named_site *)b)->name);
}

/* The reference sorts names as texts: layer_10_ln_attn comes before layer_1_ln_attn. */
static mo_status sort_sites(mo_export_source *source) {
  named_site *names = mo_alloc((size_t)source->n_sites, sizeof *names);
  source->sorted_sites = mo_alloc((size_t)source->n_sites, sizeof *source->sorted_sites);
  if (names && source->sorted_sites) {
    for (int64_t s = 0; s < source->n_sites; s++) names[s] = (named_site){source->sites[s].name, s};
    qsort(names, (size_t)source->n_sites, sizeof *names, by_name);
    for (int64_t s = 0; s < source->n_sites; s++) source->sorted_sites[s] = names[s].site;
  }
  mo_status status = names && source->sorted_sites ? MO_OK : MO_FAILED;
  free(names);
  return status;
}

static mo_status open_tables(mo_export_source *source) {
  char name[64];
  MO_TRY(mo_table_cursor_open(&source->rows, &source->file, &mo_table_sequence_features, "/sequence_features"));
  source->n_sites = 2 * source->result.n_layers;
  source->sites = mo_alloc((size_t)source->n_sites, sizeof *source->sites);
  if (!source->sites) return MO_FAILED;
  for (int64_t s = 0; s < source->n_sites; s++) {
    const char *site = mo_site_name((mo_site)(s % 2));
    snprintf(source->sites[s].name, sizeof source->sites[s].name, "layer_%" PRId64 "_%s", s / 2, site);
    snprintf(name, sizeof name, "/layers/%03" PRId64 "/%s", s / 2, site);
    MO_TRY(mo_table_cursor_open(&source->sites[s].rows, &source->file, &mo_table_site_rows, name));
  }
  return sort_sites(source);
}

static mo_status allocate(mo_export_source *source) {
  size_t hidden = (size_t)source->result.hidden_size;
  source->hit_words = (source->n_sites + 63) / 64;
  source->seen = mo_alloc(hidden, sizeof *source->seen);
  source->slots = mo_alloc(hidden, sizeof *source->slots);
  return source->seen && source->slots ? MO_OK : MO_FAILED;
}

/* All strings of variable length are read here. On failure there is nothing to close. */
static mo_status read_texts(mo_export_source *source, const char *path) {
  *source = (mo_export_source){0};
  source->file = (mo_h5_file){.path = path, .code = MO_INVALID, .remedy = MO_EXPORT_REMEDY, .id = H5I_INVALID_HID};
  MO_TRY(mo_results_read_unguarded(&source->result, path));
  mo_status status = mo_h5_open(&source->file, H5F_ACC_RDONLY);
  if (status == MO_OK) status = mo_h5_get_text(&source->file, source->file.id, "config", NULL, &source->config);
  return status == MO_OK ? MO_OK : mo_export_close(source, status);
}

static mo_status open_unguarded(mo_export_source *source, const char *path) {
  mo_status status = MO_OK;
  MO_TRY(read_texts(source, path));
  if (status == MO_OK) status = check_sizes(source);
  if (status == MO_OK) status = read_config(source);
  if (status == MO_OK) status = find_perplexity(source);
  if (status == MO_OK) status = open_tables(source);
  if (status == MO_OK) status = allocate(source);
  return status == MO_OK ? MO_OK : mo_export_close(source, status);
}

/* Strings of variable length, and of each table what its type leads to: its first rows. */
static void try_opening(const char *path, void *context) {
  mo_export_source source;
  const void *row;
  (void)context;
  if (open_unguarded(&source, path) != MO_OK) return;
  mo_status status = mo_table_cursor_peek(&source.rows, &row);
  for (int64_t s = 0; s < source.n_sites && status == MO_OK; s++)
    status = mo_table_cursor_peek(&source.sites[s].rows, &row);
  (void)!mo_export_close(&source, status);
}

mo_status mo_export_open(mo_export_source *source, const char *path) {
  MO_TRY(mo_probe(try_opening, NULL, path, MO_EXPORT_REMEDY));
  return open_unguarded(source, path);
}

mo_status mo_export_close(mo_export_source *source, mo_status status) {
  for (int64_t s = 0; source->sites && s < source->n_sites; s++)
    status = mo_table_cursor_close(&source->sites[s].rows, status);
  status = mo_table_cursor_close(&source->rows, status);
  status = mo_h5_close(&source->file, status, source->file.id);
  void *const owned[] = {source->config, source->config_json, source->dataset,  source->sites, source->sorted_sites,
                         source->seen,   source->slots,       source->features, source->hits};
  for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) free(owned[i]);
  mo_results_file_free(&source->result);
  *source = (mo_export_source){0};
  return status;
}

/* --- /sequence_features --- */

/* The next row; checked, as it is used as an index. previous: the row before it in this pass, NULL for the first. */
static mo_status peek_feature(mo_export_source *source, const mo_sequence_feature *previous,
                              const mo_sequence_feature **row) {
  const void *found;
  MO_TRY(mo_table_cursor_peek(&source->rows, &found));
  const mo_sequence_feature *r = *row = found;
  if (!r) return MO_OK;
  const char *name = source->rows.name;
  if (r->sequence < 0 || r->sequence >= source->result.n_sequences || r->feature < 0 ||
      r->feature >= source->result.hidden_size)
    return damaged(source, name, "sequence or feature out of range", source->rows.next);
  if (!(r->max_magnitude >= 0) || !isfinite(r->layer_percentage) || !isfinite(r->seq_percentage))
    return damaged(source, name, "not a number", source->rows.next);
  if (previous && (r->sequence < previous->sequence ||
                   (r->sequence == previous->sequence && r->max_magnitude > previous->max_magnitude)))
    return damaged(source, name, "not sorted by sequence and magnitude", source->rows.next);
  return MO_OK;
}

static int by_magnitude(const void *a, const void *b) {
  const mo_export_top *left = a, *right = b;
  if (left->max_magnitude != right->max_magnitude) return left->max_magnitude > right->max_magnitude ? -1 : 1;
  return left->first < right->first ? -1 : left->first > right->first;
}

/* slots: zero, and again when it returns. */
static mo_status collect_top(mo_export_source *source, mo_export_top **top, int64_t *n) {
  const mo_sequence_feature *row;
  mo_sequence_feature previous;
  int64_t capacity = 0;
  for (source->rows.next = 0;; source->rows.next++) {
    MO_TRY(peek_feature(source, source->rows.next ? &previous : NULL, &row));
    if (!row) return MO_OK;
    previous = *row;
    int32_t slot = source->slots[row->feature];
    if (slot == 0 && *n == capacity) {
      capacity = capacity ? 2 * capacity : 256;
      mo_export_top *more = mo_realloc(*top, (size_t)capacity, sizeof *more);
      if (!more) return MO_FAILED;
      *top = more;
    }
    if (slot == 0) {
      (*top)[*n] = (mo_export_top){row->feature, 0, row->max_magnitude, source->rows.next};
      slot = source->slots[row->feature] = (int32_t)++ * n;
    }
    mo_export_top *entry = &(*top)[slot - 1];
    entry->occurrences++;
    if (row->max_magnitude > entry->max_magnitude) entry->max_magnitude = row->max_magnitude;
  }
}

mo_status mo_export_read_top(mo_export_source *source, mo_export_top **top, int64_t *n) {
  *top = NULL;
  *n = 0;
  mo_status status = collect_top(source, top, n);
  for (int64_t i = 0; i < *n; i++) source->slots[(*top)[i].feature] = 0;
  if (status == MO_OK && *n > 1) qsort(*top, (size_t)*n, sizeof **top, by_magnitude);
  if (status == MO_OK) return MO_OK;
  free(*top);
  *top = NULL;
  return status;
}

/* --- a sequence --- */

void mo_export_rewind(mo_export_source *source) {
  source->rows.next = 0;
  for (int64_t s = 0; s < source->n_sites; s++) source->sites[s].rows.next = 0;
}

static mo_status grow(mo_export_source *source) {
  int64_t capacity = source->capacity ? 2 * source->capacity : 64;
  mo_export_feature *features = mo_realloc(source->features, (size_t)capacity, sizeof *features);
  if (!features) return MO_FAILED;
  source->features = features;
  uint64_t *hits = mo_realloc(source->hits, (size_t)(capacity * source->hit_words), sizeof *hits);
  if (!hits) return MO_FAILED;
  source->hits = hits;
  source->capacity = capacity;
  return MO_OK;
}

static mo_status load_features(mo_export_source *source, int64_t sequence) {
  for (int64_t i = 0; i < source->n_features; i++) source->slots[source->features[i].row.feature] = 0;
  source->n_features = 0;
  for (;; source->rows.next++) {
    const mo_sequence_feature *row;
    int64_t n = source->n_features;
    MO_TRY(peek_feature(source, n ? &source->features[n - 1].row : NULL, &row));
    if (!row || row->sequence > sequence) return MO_OK;
    if (row->sequence < sequence)
      return damaged(source, source->rows.name, "not sorted by sequence", source->rows.next);
    if (source->slots[row->feature])
      return damaged(source, source->rows.name, "a feature twice in a sequence", source->rows.next);
    if (n == source->capacity) MO_TRY(grow(source));
    source->features[n] = (mo_export_feature){.row = *row};
    memset(&source->hits[n * source->hit_words], 0, (size_t)source->hit_words * sizeof *source->hits);
    source->slots[row->feature] = (int32_t)(n + 1);
    source->n_features = n + 1;
  }
}

/* previous: the feature of the row before it in this sequence, -1 for the first. */
static mo_status check_site_row(const mo_export_source *source, const mo_table_cursor *rows, const mo_site_row *row,
                                int64_t sequence, int64_t previous) {
  if (row->sequence < 0 || row->sequence >= source->result.n_sequences || row->feature < 0 ||
      row->feature >= source->result.hidden_size || row->count < 1 || row->count > source->result.sequence_length)
    return damaged(source, rows->name, "sequence, feature or count out of range", rows->next);
  if (row->sequence < sequence || (row->sequence == sequence && row->feature <= previous))
    return damaged(source, rows->name, "not sorted by sequence and feature", rows->next);
  if (!(row->min <= row->max) || !(row->max_abs >= 0))
    return damaged(source, rows->name, "min, max and max_abs disagree", rows->next);
  return MO_OK;
}

static void take_site_row(mo_export_source *source, int64_t s, const mo_site_row *row) {
  mo_export_site *site = &source->sites[s];
  site->count += row->count;
  if (row->max_abs > site->max_abs) site->max_abs = row->max_abs;
  if (source->seen[row->feature] != source->load) source->features_hit++;
  source->seen[row->feature] = source->load;
  int64_t slot = source->slots[row->feature] - 1;
  if (slot < 0) return;
  mo_export_feature *feature = &source->features[slot];
  source->hits[slot * source->hit_words + s / 64] |= (uint64_t)1 << (s % 64);
  feature->occurrences += row->count;
  /* With one value the two are the same one. */
  const float values[] = {row->min, row->max};
  for (int i = 0; i < (row->count > 1 ? 2 : 1) && feature->n_examples < MO_EXPORT_EXAMPLES; i++)
    feature->examples[feature->n_examples++] = values[i];
}

static mo_status load_site(mo_export_source *source, int64_t s, int64_t sequence) {
  mo_export_site *site = &source->sites[s];
  int64_t previous = -1;
  site->count = 0;
  site->max_abs = 0;
  for (;; site->rows.next++) {
    const void *found;
    MO_TRY(mo_table_cursor_peek(&site->rows, &found));
    const mo_site_row *row = found;
    if (!row) return MO_OK;
    MO_TRY(check_site_row(source, &site->rows, row, sequence, previous));
    if (row->sequence > sequence) return MO_OK;
    take_site_row(source, s, row);
    previous = row->feature;
  }
}

mo_status mo_export_load(mo_export_source *source, int64_t sequence) {
  source->load++;
  source->features_hit = 0;
  MO_TRY(load_features(source, sequence));
  for (int64_t s = 0; s < source->n_sites; s++) MO_TRY(load_site(source, s, sequence));
  for (int64_t i = 0; i < source->n_features; i++) {
    const mo_export_feature *feature = &source->features[i];
    int64_t sites = 0;
    for (int64_t s = 0; s < source->n_sites; s++) sites += mo_export_hits(source, i, s);
    if (sites != feature->row.sites_hit || feature->occurrences != feature->row.total_occurrences)
      return MO_FAIL(MO_INVALID, "/sequence_features and /layers disagree (%s: sequence %" PRId64 ", feature %d): %s",
                     source->file.path, sequence, (int)feature->row.feature, MO_EXPORT_REMEDY);
  }
  return MO_OK;
}

mo_status mo_export_check_end(mo_export_source *source) {
  if (source->rows.next < source->rows.n_rows)
    return damaged(source, source->rows.name, "not sorted by sequence", source->rows.next);
  for (int64_t s = 0; s < source->n_sites; s++) {
    const mo_table_cursor *rows = &source->sites[s].rows;
    if (rows->next < rows->n_rows) return damaged(source, rows->name, "not sorted by sequence", rows->next);
  }
  return MO_OK;
}

/* --- perplexity --- */

mo_status mo_export_mean_nll(mo_export_source *source, int64_t sequence, double *mean) {
  const char *const name = "/perplexity/nll";
  enum { PIECE = 4096 };
  float values[PIECE];
  const int64_t n = source->result.sequence_length - 1;
  const mo_h5_file *file = &source->file;
  mo_status status = MO_OK;
  double sum = 0;
  hid_t space = H5I_INVALID_HID, dataset = H5Dopen2(file->id, name, H5P_DEFAULT);
  if (dataset < 0) return mo_h5_fail(file, "open dataset", name);
  if ((space = H5Dget_space(dataset)) < 0) status = mo_h5_fail(file, "read", name);
  for (int64_t first = 0; first < n && status == MO_OK; first += PIECE) {
    const hsize_t start[] = {(hsize_t)sequence, (hsize_t)first};
    const hsize_t count[] = {1, (hsize_t)(n - first < PIECE ? n - first : PIECE)};
    hid_t memory = H5Screate_simple(2, count, NULL);
    if (memory < 0 || H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL) < 0 ||
        H5Dread(dataset, H5T_NATIVE_FLOAT, memory, space, H5P_DEFAULT, values) < 0)
      status = mo_h5_fail(file, "read", name);
    status = mo_h5_close(file, status, memory);
    for (hsize_t i = 0; i < count[1] && status == MO_OK; i++) sum += values[i];
  }
  *mean = sum / (double)n;
  status = mo_h5_close(file, status, space);
  return mo_h5_close(file, status, dataset);
}
