/* The columns of every table of the result file, as data: names, types, units and meaning in one place, used by the
 * writer for the file's types and descriptions and by the reader. */
#ifndef MOE_OUTLIERS_RESULTS_TABLES_H
#define MOE_OUTLIERS_RESULTS_TABLES_H

#include <hdf5.h>
#include <stdbool.h>
#include <stddef.h>

#include "moe_outliers/results.h"
#include "results/h5.h"

typedef enum {
  MO_COLUMN_I32,
  MO_COLUMN_I64,
  MO_COLUMN_F32,
  MO_COLUMN_F64,
  MO_COLUMN_SITE,           /* int32_t holding mo_site, an HDF5 enum */
  MO_COLUMN_CLASSIFICATION, /* int32_t holding mo_classification, an HDF5 enum */
  MO_COLUMN_VARIANT         /* int32_t holding mo_variant_kind, an HDF5 enum */
} mo_column_kind;

typedef struct {
  const char *name;
  mo_column_kind kind;
  size_t offset;       /* in the row struct */
  const char *units;   /* NULL if it has none */
  const char *meaning; /* one line */
  bool later;          /* files of older programs lack it: read as NaN, or -1 */
} mo_column;

typedef struct {
  const char *description;
  size_t row_bytes;
  const mo_column *columns;
  int n_columns;
} mo_table;

extern const mo_table mo_table_site_rows;         /* /layers/NNN/SITE, mo_site_row */
extern const mo_table mo_table_positions;         /* mo_position_row */
extern const mo_table mo_table_sequence_features; /* mo_sequence_feature */
extern const mo_table mo_table_features;          /* mo_feature */
extern const mo_table mo_table_sites;             /* mo_site_summary */
extern const mo_table mo_table_experts;           /* mo_expert */
extern const mo_table mo_table_top_values;        /* mo_top_value */
extern const mo_table mo_table_timing;            /* mo_timing_row */
extern const mo_table mo_table_ablation;          /* mo_ablation_row */
extern const mo_table mo_table_ablation_features; /* mo_ablation_feature */
extern const mo_table mo_table_growth;            /* mo_growth_row */
extern const mo_table mo_table_summary;           /* mo_summary: each column a scalar dataset of its own */

/* Where the tables of a threshold that is not the first lie: "/thresholds/5", the shortest number that reads back as it. */
enum { MO_PART_BYTES = 48 };
void mo_part_path(char path[MO_PART_BYTES], double threshold);

/* HDF5 type of one column: in_memory as in the row struct, else as in the file (little endian). Caller closes it. */
MO_CHECKED mo_status mo_column_type(const mo_h5_file *file, const mo_column *column, bool in_memory, hid_t *type);

/* Compound type of a row: in_memory as the row struct, else packed, little endian. The caller closes it. */
MO_CHECKED mo_status mo_table_type(const mo_h5_file *file, const mo_table *table, bool in_memory, hid_t *type);

/* Create the dataset of a table with n_rows rows and its `description`, `units` (of the columns that have any) and
 * `columns` (a line per column) attributes. */
MO_CHECKED mo_status mo_table_create(const mo_h5_file *file, const mo_table *table, const char *name, int64_t n_rows);

/* Write rows first .. first+n_rows-1. Independent, as mo_h5_write. */
MO_CHECKED mo_status mo_table_write(const mo_h5_file *file, const mo_table *table, const char *name, int64_t first,
                                    int64_t n_rows, const void *rows);

/* --- reader.c --- */
/* mo_results_read without the child process that tries it first, for callers that have one of their own. */
MO_CHECKED mo_status mo_results_read_unguarded(mo_results_file *read, const char *path);

/* Replace features and summary by those of another threshold, without its perplexity, which is the same. MO_INVALID if
 * the file has none. */
MO_CHECKED mo_status mo_part_read(mo_results_file *read, const mo_h5_file *file, double threshold);

/* MO_INVALID unless an open dataset is a table with these columns; others may be there, too. */
MO_CHECKED mo_status mo_table_check(const mo_h5_file *file, hid_t dataset, const mo_table *table, const char *name);

/* Columns that older files lack, before n_rows rows are read: NaN, or -1. */
void mo_table_forget_later(const mo_table *table, void *rows, int64_t n_rows);

/* Number of elements of an open dataset, which must have the given rank. */
MO_CHECKED mo_status mo_h5_count(const mo_h5_file *file, hid_t dataset, const char *name, int rank, int64_t *n);

#endif
