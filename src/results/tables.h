/* The columns of every table of the result file, as data: names, types, units and meaning in one place, used by the
 * writer for the file's types and descriptions and by the reader. */
#ifndef MOE_OUTLIERS_RESULTS_TABLES_H
#define MOE_OUTLIERS_RESULTS_TABLES_H

#include <hdf5.h>
#include <stdbool.h>
#include <stddef.h>

#include "results/h5.h"

typedef enum {
  MO_COLUMN_I32,
  MO_COLUMN_I64,
  MO_COLUMN_F32,
  MO_COLUMN_F64,
  MO_COLUMN_SITE,          /* int32_t holding mo_site, an HDF5 enum */
  MO_COLUMN_CLASSIFICATION /* int32_t holding mo_classification, an HDF5 enum */
} mo_column_kind;

typedef struct {
  const char *name;
  mo_column_kind kind;
  size_t offset;       /* in the row struct */
  const char *units;   /* NULL if it has none */
  const char *meaning; /* one line */
} mo_column;

typedef struct {
  const char *description;
  size_t row_bytes;
  const mo_column *columns;
  int n_columns;
} mo_table;

extern const mo_table mo_table_site_rows;         /* /layers/NNN/SITE, mo_site_row */
extern const mo_table mo_table_sequence_features; /* mo_sequence_feature */
extern const mo_table mo_table_features;          /* mo_feature */
extern const mo_table mo_table_sites;             /* mo_site_summary */
extern const mo_table mo_table_timing;            /* mo_timing_row */
extern const mo_table mo_table_summary;           /* mo_summary: each column a scalar dataset of its own */

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

#endif
