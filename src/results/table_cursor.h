/* A table of a result file, read from its first row to its last a slice at a time. */
#ifndef MOE_OUTLIERS_RESULTS_TABLE_CURSOR_H
#define MOE_OUTLIERS_RESULTS_TABLE_CURSOR_H

#include "results/h5.h"
#include "results/tables.h"

typedef struct {
  const mo_h5_file *file;
  const mo_table *table;
  char name[128]; /* of the dataset */
  hid_t dataset, type;
  int64_t n_rows, next; /* the row that peek answers */
  int64_t first, n;     /* rows in the slice */
  char *slice;
} mo_table_cursor;

/* Open a table with all columns that `table` names. On failure there is nothing to close. */
MO_CHECKED mo_status mo_table_cursor_open(mo_table_cursor *cursor, const mo_h5_file *file, const mo_table *table,
                                          const char *name);

/* The next row, NULL behind the last; valid until the next call. Again the same one until cursor->next is advanced, or
 * set to 0 to begin again. */
MO_CHECKED mo_status mo_table_cursor_peek(mo_table_cursor *cursor, const void **row);

/* Returns `status`, or the failure to close if that is MO_OK. A cursor of zeros is closed already. */
MO_CHECKED mo_status mo_table_cursor_close(mo_table_cursor *cursor, mo_status status);

#endif
