/* What the result-file tests share: a small finished analysis with known numbers, and serial reading of what was
 * written. Included by one test program at a time. Programs run in a folder of their own. */
#ifndef TEST_RESULTS_FIXTURE_H
#define TEST_RESULTS_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <hdf5.h>

#include "moe_outliers/results.h"

#define UNUSED __attribute__((unused))

enum { L = 5, N = 3, S = 4, H = 6, E = 2, N_FEATURES = 3, N_ROWS = 2, N_POSITIONS = 3 };

static mo_comm *comm;
static UNUSED mo_together together; /* how files are written; tests are run in each way */

static UNUSED int rank(void) { return mo_comm_rank(comm); }
static UNUSED bool is_root(void) { return rank() == 0; }

static UNUSED void assert_ok(mo_status status) {
  if (status != MO_OK) fail_msg("status %d: %s", status, mo_error_message());
}

static UNUSED void wait_for_all(void) { assert_ok(mo_comm_barrier(comm)); }

/* --- an analysis --- */

typedef struct {
  mo_results_header header;
  mo_tokens tokens;
  mo_accumulator *accumulator; /* of the layers that this rank owns */
  mo_analysis analysis;        /* on rank 0, else empty */
  int owner[L];
  mo_timing_row timing[2];
  int64_t n_timing;
} fixture;

/* Outlier values of (sequence, feature) at a site: some sites and pairs have none, odd layers' ln_mlp none at all. */
static UNUSED int outliers_at(int64_t site, int64_t n, int64_t h) {
  return site % 4 == 3 ? 0 : (int)((site + 2 * n + 3 * h) % 3);
}

static UNUSED float value_at(int64_t site, int64_t n, int64_t h, int i) {
  float magnitude = 6.0f + (float)(site + 10 * n + 100 * h + i) * 0.125f;
  return (h + i) % 2 ? -magnitude : magnitude;
}

static UNUSED void add_site(mo_accumulator *accumulator, int64_t site) {
  int32_t count[N * H] = {0}, positive[N * H] = {0}, position[N * H] = {0};
  uint8_t first[N * H] = {0};
  float min[N * H] = {0}, max[N * H] = {0}, max_abs[N] = {0};
  double sum_abs[N * H] = {0}, sum[N] = {0}, squares[N] = {0};
  mo_outlier outliers[N * H * 3];
  int64_t n_outliers = 0;
  for (int n = 0; n < N; n++)
    for (int h = 0; h < H; h++)
      for (int i = 0, at = n * H + h; i < outliers_at(site, n, h); i++) {
        float x = value_at(site, n, h, i), a = x < 0 ? -x : x;
        min[at] = count[at] == 0 || x < min[at] ? x : min[at];
        max[at] = count[at] == 0 || x > max[at] ? x : max[at];
        count[at]++;
        first[at] = 1;
        position[at] = i; /* magnitudes rise with i */
        positive[at] += x > 0;
        sum_abs[at] += a;
        sum[n] += x;
        squares[n] += (double)x * x;
        max_abs[n] = a > max_abs[n] ? a : max_abs[n];
        outliers[n_outliers++] = (mo_outlier){h, x};
      }
  mo_site_statistics statistics = {.n_sequences = N,
                                   .rows = N * S,
                                   .count = count,
                                   .positive = positive,
                                   .min = min,
                                   .max = max,
                                   .sum_abs = sum_abs,
                                   .position = position,
                                   .first = first,
                                   .sum = sum,
                                   .sum_squares = squares,
                                   .max_abs = max_abs,
                                   .outliers = outliers,
                                   .n_outliers = n_outliers};
  assert_ok(mo_accumulator_add(accumulator, site / 2, (mo_site)(site % 2), 0, &statistics));
}

static UNUSED void make_tables(mo_analysis *a, bool with_rows) {
  a->n_features = with_rows ? N_FEATURES : 0;
  a->n_sequence_features = with_rows ? N_ROWS : 0;
  a->features = calloc(N_FEATURES, sizeof *a->features);
  a->sequence_features = calloc(N_ROWS, sizeof *a->sequence_features);
  a->n_sites = 2 * L;
  a->n_positions = with_rows ? N_POSITIONS : 0;
  a->positions = calloc(N_POSITIONS, sizeof *a->positions);
  for (int i = 0; i < N_POSITIONS && a->positions; i++) a->positions[i] = (mo_position_row){i / 2, i % 2, i + 1};
  a->sites = calloc(2 * L, sizeof *a->sites);
  a->nll = calloc(N * (S - 1), sizeof *a->nll);
  a->expert_tokens = calloc(L * E, sizeof *a->expert_tokens);
  assert_true(a->features && a->sequence_features && a->sites && a->nll && a->expert_tokens);
  for (int i = 0; i < N_FEATURES; i++)
    a->features[i] = (mo_feature){i + 1,
                                  i + 2,
                                  i + 3,
                                  i + 4,
                                  0.1 * i,
                                  0.2 * i,
                                  0.3 * i,
                                  7.5f + (float)i,
                                  100 + i,
                                  60 + i,
                                  40,
                                  -6.5f,
                                  6.25f,
                                  9.0f + (float)i,
                                  1.0 / (i + 1),
                                  0.75,
                                  i,
                                  i % 3,
                                  0.01,
                                  0.02,
                                  0.03,
                                  0.04,
                                  0.05,
                                  0.06,
                                  0.5,
                                  0.25};
  for (int i = 0; i < N_ROWS; i++)
    a->sequence_features[i] = (mo_sequence_feature){i, 4 - i, 0.25 * i, 0.5, 11.0f, (int64_t)1 << (33 + i), 3, 2};
  for (int i = 0; i < 2 * L; i++) a->sites[i] = (mo_site_summary){i / 2, i % 2, 10 * i, 1.5f * (float)i, 0.5, 2.0, i};
  for (int i = 0; i < N * (S - 1); i++) a->nll[i] = 0.25f * (float)i;
  for (int i = 0; i < L * E; i++) a->expert_tokens[i] = ((uint64_t)1 << 40) + (uint64_t)i;
  a->perplexity = 12.75;
  a->perplexity_low = 11.5;
  a->perplexity_high = 13.5;
  a->summary = (mo_summary){2, 1, 3,   N_ROWS, 0.5, 0.25, 0.75, 0.125, MO_SYSTEMATIC, 1,   4,
                            0, 2, 0.1, 0.9,    0.2, 0.8,  0.3,  0.7,   0.05,          0.15};
}

/* layer l belongs to rank l % R */
static UNUSED void fixture_new(fixture *f) {
  *f = (fixture){.header = {"org/model-\xc3\xa9",
                            "olmoe",
                            "bf16",
                            "cpu",
                            "model: { };\n",
                            L,
                            H,
                            E,
                            N,
                            S,
                            0,
                            6.0,
                            0.25,
                            0.06,
                            1.0,
                            {100, 7},
                            1234567890123,
                            123456789,
                            1,
                            "a \"text\""}};
  f->header.n_ranks = mo_comm_size(comm);
  f->tokens = (mo_tokens){.ids = calloc(N * S, sizeof(int32_t)), .n_sequences = N, .length = S};
  assert_non_null(f->tokens.ids);
  for (int i = 0; i < N * S; i++) f->tokens.ids[i] = 7 * i;
  mo_analysis_shape shape = {L, N, S, H, E, {6.0, 0.25, 0.06, 1.0}, {0, 0}, false, false};
  assert_ok(mo_accumulator_new(&f->accumulator, &shape));
  for (int64_t site = 0; site < 2 * L; site++) {
    f->owner[site / 2] = (int)(site / 2) % mo_comm_size(comm);
    if (f->owner[site / 2] == rank()) add_site(f->accumulator, site);
  }
  if (is_root()) make_tables(&f->analysis, true);
  /* rank r has r % 3 rows */
  f->n_timing = rank() % 3;
  for (int i = 0; i < f->n_timing; i++)
    f->timing[i] = (mo_timing_row){rank(), i - 1, 1000 + rank(), 1.5, 0.5, 2.5, 0.25};
}

static UNUSED void fixture_free(fixture *f) {
  free(f->tokens.ids);
  mo_accumulator_free(f->accumulator);
  mo_analysis_free(&f->analysis);
}

static UNUSED mo_results *create(const fixture *f, const char *path) {
  mo_results *results;
  assert_ok(mo_results_create(&results, path, comm, together, &f->header, &f->tokens, NULL, 0));
  assert_non_null(results);
  return results;
}

static UNUSED mo_status write_all(mo_results *results, fixture *f) {
  const mo_results_part part = {f->header.threshold, f->accumulator, &f->analysis};
  return mo_results_write(results, f->owner, &part, 1, f->timing, f->n_timing);
}

static UNUSED void write_file(fixture *f, const char *path) {
  mo_results *results = create(f, path);
  assert_ok(write_all(results, f));
  assert_ok(mo_results_finish(results));
  wait_for_all();
}

/* --- serial reading --- */

static UNUSED bool exists(const char *path) { return access(path, F_OK) == 0; }

static UNUSED hid_t open_file(const char *path, unsigned flags) {
  hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  assert_true(H5Pset_file_locking(access, 0, 1) >= 0);
  hid_t file = H5Fopen(path, flags, access);
  assert_true(file >= 0);
  H5Pclose(access);
  return file;
}

/* Rows of a dataset; its shape must be (n_rows,) or, if n_columns > 0, (n_rows, n_columns). */
static UNUSED void read_dataset(const char *path, const char *name, hid_t type, hsize_t n_rows, hsize_t n_columns,
                                void *data) {
  hsize_t dims[2] = {0, 0};
  hid_t file = open_file(path, H5F_ACC_RDONLY), dataset = H5Dopen2(file, name, H5P_DEFAULT);
  assert_true(dataset >= 0);
  hid_t space = H5Dget_space(dataset);
  assert_int_equal(H5Sget_simple_extent_ndims(space), n_columns ? 2 : 1);
  H5Sget_simple_extent_dims(space, dims, NULL);
  assert_int_equal(dims[0], n_rows);
  assert_int_equal(dims[1], n_columns);
  if (n_rows > 0) assert_true(H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
  H5Sclose(space);
  H5Dclose(dataset);
  H5Fclose(file);
}

static UNUSED bool has(const char *path, const char *name) {
  hid_t file = open_file(path, H5F_ACC_RDONLY);
  htri_t found = H5Lexists(file, name, H5P_DEFAULT);
  H5Fclose(file);
  return found > 0;
}

/* The error line is one line and contains `text`; forget it. */
static UNUSED void assert_error(const char *text) {
  char line[2048];
  strncpy(line, mo_error_message(), sizeof line - 1);
  line[sizeof line - 1] = '\0';
  mo_error_clear();
  if (!strstr(line, text)) fail_msg("'%s' is not in the error '%s'", text, line);
  assert_null(strchr(line, '\n'));
}

#endif
