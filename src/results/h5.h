/* Checked HDF5 calls shared by the writer, the reader and the token file. Every function returns a mo_status whose
 * error line names the file and carries HDF5's own innermost text. HDF5 is used from one thread only. */
#ifndef MOE_OUTLIERS_RESULTS_H5_H
#define MOE_OUTLIERS_RESULTS_H5_H

#include <hdf5.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe_outliers/status.h"

/* An open file and what error lines call it. */
typedef struct {
  hid_t id;
  const char *path;
  mo_status code;     /* the code of errors in this file: MO_FAILED when writing, MO_INVALID when reading input */
  const char *remedy; /* what error lines tell the user to do */
} mo_h5_file;

/* To be called first in each public function that uses HDF5. */
MO_CHECKED mo_status mo_h5_setup(void);

/* Record "cannot WHAT NAME (PATH; HDF5: TEXT): REMEDY", right after the failed HDF5 call. Returns file->code. */
mo_status mo_h5_fail(const mo_h5_file *file, const char *what, const char *name);

/* Close an id of any kind if it is open (>= 0). Returns `status`, or the failure to close if that is MO_OK. */
MO_CHECKED mo_status mo_h5_close(const mo_h5_file *file, mo_status status, hid_t id);

/* Serial access (POSIX calls only). Open an existing file, flags: H5F_ACC_RDONLY or H5F_ACC_RDWR; or make a new, empty
 * one. Fills file->id. */
MO_CHECKED mo_status mo_h5_open(mo_h5_file *file, unsigned flags);
MO_CHECKED mo_status mo_h5_create(mo_h5_file *file);

/* End serial writing: flush and close. Returns `status`, or the failure if that is MO_OK. After any failure the file is
 * left open for ever: closing it would write and fail again, and HDF5 1.10 may crash then. */
MO_CHECKED mo_status mo_h5_finish(mo_h5_file *file, mo_status status);

/* UTF-8 string of variable length; the caller closes it. */
MO_CHECKED mo_status mo_h5_text_type(const mo_h5_file *file, hid_t *type);

/* Scalar attributes. */
MO_CHECKED mo_status mo_h5_put_text(const mo_h5_file *file, hid_t object, const char *name, const char *value);
MO_CHECKED mo_status mo_h5_put_i32(const mo_h5_file *file, hid_t object, const char *name, int32_t value);
MO_CHECKED mo_status mo_h5_put_i64(const mo_h5_file *file, hid_t object, const char *name, int64_t value);
MO_CHECKED mo_status mo_h5_put_f64(const mo_h5_file *file, hid_t object, const char *name, double value);

/* Read a scalar attribute: of any integer or floating point type, or any string type. *value of get_text is malloc'ed;
 * `fallback` (may be NULL: then absence is an error) is copied if there is no such attribute. */
MO_CHECKED mo_status mo_h5_get_text(const mo_h5_file *file, hid_t object, const char *name, const char *fallback,
                                    char **value);
MO_CHECKED mo_status mo_h5_get_i64(const mo_h5_file *file, hid_t object, const char *name, int64_t *value);
MO_CHECKED mo_status mo_h5_get_f64(const mo_h5_file *file, hid_t object, const char *name, double *value);

/* Group with a description attribute; its parent must exist. */
MO_CHECKED mo_status mo_h5_group(const mo_h5_file *file, const char *name, const char *description);

/* Text attributes of a dataset: name, value; a NULL value leaves it out. */
typedef struct {
  const char *name, *value;
} mo_h5_text;

/* Contiguous dataset, storage allocated, contents undefined until written. */
MO_CHECKED mo_status mo_h5_dataset(const mo_h5_file *file, const char *name, hid_t type, int rank, const hsize_t *dims,
                                   const mo_h5_text *texts, int n_texts);

/* Write the box start, count (both [rank]) of a dataset from dense row-major `data` of memory type `type`; rank 0 is a
 * scalar. An empty box writes nothing. On a file opened in parallel: independent, one rank alone may call it. */
MO_CHECKED mo_status mo_h5_write(const mo_h5_file *file, const char *name, hid_t type, int rank, const hsize_t *start,
                                 const hsize_t *count, const void *data);

#endif
