#include "results/table_cursor.h"

#include <stdio.h>
#include <stdlib.h>

#define SLICE_ROWS 512

/* HDF5 would take 1 MB for the conversion of a row, and clear it for every read. */
#define CONVERSION_BYTES ((size_t)64 << 10)

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

mo_status mo_table_cursor_open(mo_table_cursor *cursor, const mo_h5_file *file, const mo_table *table,
                               const char *name) {
  *cursor = (mo_table_cursor){.file = file, .table = table, .dataset = H5I_INVALID_HID, .type = H5I_INVALID_HID};
  snprintf(cursor->name, sizeof cursor->name, "%s", name);
  mo_status status = MO_OK;
  if ((cursor->dataset = H5Dopen2(file->id, name, H5P_DEFAULT)) < 0) status = mo_h5_fail(file, "open dataset", name);
  if (status == MO_OK) status = mo_table_check(file, cursor->dataset, table, name);
  if (status == MO_OK) status = mo_h5_count(file, cursor->dataset, name, 1, &cursor->n_rows);
  if (status == MO_OK) status = mo_table_type(file, table, true, &cursor->type);
  if (status == MO_OK) {
    cursor->slice = mo_alloc((size_t)smaller(cursor->n_rows, SLICE_ROWS), table->row_bytes);
    if (!cursor->slice) status = MO_FAILED;
  }
  return status == MO_OK ? MO_OK : mo_table_cursor_close(cursor, status);
}

/* Fill the slice from row `next` on. */
static mo_status read_slice(mo_table_cursor *cursor) {
  const hsize_t start = (hsize_t)cursor->next, count = (hsize_t)smaller(cursor->n_rows - cursor->next, SLICE_ROWS);
  mo_status status = MO_OK;
  hid_t memory = H5Screate_simple(1, &count, NULL), space = H5Dget_space(cursor->dataset);
  hid_t transfer = H5Pcreate(H5P_DATASET_XFER);
  cursor->n = 0;
  mo_table_forget_later(cursor->table, cursor->slice, (int64_t)count);
  if (memory < 0 || space < 0 || transfer < 0 || H5Pset_buffer(transfer, CONVERSION_BYTES, NULL, NULL) < 0 ||
      H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &count, NULL) < 0 ||
      H5Dread(cursor->dataset, cursor->type, memory, space, transfer, cursor->slice) < 0)
    status = mo_h5_fail(cursor->file, "read", cursor->name);
  status = mo_h5_close(cursor->file, status, transfer);
  status = mo_h5_close(cursor->file, status, space);
  status = mo_h5_close(cursor->file, status, memory);
  if (status != MO_OK) return status;
  cursor->first = cursor->next;
  cursor->n = (int64_t)count;
  return MO_OK;
}

mo_status mo_table_cursor_peek(mo_table_cursor *cursor, const void **row) {
  *row = NULL;
  if (cursor->next >= cursor->n_rows) return MO_OK;
  if (cursor->next < cursor->first || cursor->next >= cursor->first + cursor->n) MO_TRY(read_slice(cursor));
  *row = cursor->slice + (size_t)(cursor->next - cursor->first) * cursor->table->row_bytes;
  return MO_OK;
}

mo_status mo_table_cursor_close(mo_table_cursor *cursor, mo_status status) {
  if (!cursor->file) return status;
  status = mo_h5_close(cursor->file, status, cursor->type);
  status = mo_h5_close(cursor->file, status, cursor->dataset);
  free(cursor->slice);
  *cursor = (mo_table_cursor){0};
  return status;
}
