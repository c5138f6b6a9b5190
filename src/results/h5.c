#include "results/h5.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* One H5Dwrite or H5Dread moves at most this many bytes: several MPI-IO versions count bytes in an int. */
#ifndef MO_H5_PIECE_BYTES
#define MO_H5_PIECE_BYTES ((size_t)1 << 30)
#endif

/* Type conversion (struct with padding -> packed row) works in pieces of this size, each a write of its own. */
#define CONVERSION_BYTES ((size_t)8 << 20)
#define LEAST_CONVERSION_BYTES ((size_t)64 << 10)

#define MAX_RANK 8

/* HDF5 tidies up at exit and, if MPI is initialised when HDF5 first starts, also inside MPI_Finalize: both close every
 * file still open, which is collective and flushes. A file that was given up after an error is left open on purpose
 * (mo_results_discard), so this tidying up would hang or crash a run that only wants to report its error and end.
 * Starting HDF5 before main, so before MPI_Init, without its exit handler, switches both off; every file that is
 * finished is closed explicitly. */
__attribute__((constructor)) static void start_hdf5(void) {
  if (H5dont_atexit() >= 0) (void)H5open();
}

mo_status mo_h5_setup(void) {
  /* The error stack is walked by mo_h5_fail; HDF5's own printing of it would break the one-line rule. */
  if (H5open() < 0 || H5Eset_auto2(H5E_DEFAULT, NULL, NULL) < 0)
    return MO_FAIL(MO_FAILED, "HDF5 does not start (HDF5 library): check its installation");
  return MO_OK;
}

/* Take the first, innermost entry of the error stack. */
static herr_t take_text(unsigned n, const H5E_error2_t *error, void *data) {
  if (n == 0 && error->desc) snprintf(data, 256, "%s", error->desc);
  return 0;
}

mo_status mo_h5_fail(const mo_h5_file *file, const char *what, const char *name) {
  char text[256] = "";
  if (H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_text, text) < 0 || text[0] == '\0')
    snprintf(text, sizeof text, "no further text");
  /* The POSIX driver's text is long (time, descriptor, addresses); the errno text in it is what helps. */
  static const char marker[] = "error message = '";
  const char *shown = text;
  char *quoted = strstr(text, marker);
  if (quoted) {
    shown = quoted + sizeof marker - 1;
    char *end = strchr(shown, '\'');
    if (end) *end = '\0';
  }
  return MO_FAIL(file->code, "cannot %s %s (%s; HDF5: %s): %s", what, name, file->path, shown, file->remedy);
}

mo_status mo_h5_close(const mo_h5_file *file, mo_status status, hid_t id) {
  if (id < 0 || H5Idec_ref(id) >= 0 || status != MO_OK) return status;
  return mo_h5_fail(file, "close", "an object");
}

/* Locking fails on many parallel file systems, and nothing here needs it. Without a sieve buffer a write is over when its call
 * returns, and its failure is its own. */
static hid_t serial_access(void) {
  hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  if (access < 0 || (H5Pset_file_locking(access, false, true) >= 0 && H5Pset_sieve_buf_size(access, 0) >= 0))
    return access;
  (void)H5Pclose(access);
  return H5I_INVALID_HID;
}

mo_status mo_h5_open(mo_h5_file *file, unsigned flags) {
  struct stat information;
  mo_status status = MO_OK;
  file->id = H5I_INVALID_HID;
  if (stat(file->path, &information) != 0)
    return MO_FAIL(file->code, "cannot open file (%s: %s): %s", file->path, strerror(errno), file->remedy);
  if (!S_ISREG(information.st_mode)) /* opening a pipe would wait for ever */
    return MO_FAIL(file->code, "not a plain file (%s): %s", file->path, file->remedy);
  hid_t access = serial_access();
  if (access < 0 || (file->id = H5Fopen(file->path, flags, access)) < 0) status = mo_h5_fail(file, "open", "file");
  return mo_h5_close(file, status, access);
}

mo_status mo_h5_create(mo_h5_file *file) {
  mo_status status = MO_OK;
  hid_t creation = H5Pcreate(H5P_FILE_CREATE), access = serial_access();
  file->id = H5I_INVALID_HID;
  if (creation < 0 || access < 0 || H5Pset_obj_track_times(creation, false) < 0 ||
      (file->id = H5Fcreate(file->path, H5F_ACC_TRUNC, creation, access)) < 0)
    status = mo_h5_fail(file, "create", "file");
  status = mo_h5_close(file, status, access);
  return mo_h5_close(file, status, creation);
}

mo_status mo_h5_finish(mo_h5_file *file, mo_status status) {
  if (file->id < 0) return status;
  if (status == MO_OK && H5Fflush(file->id, H5F_SCOPE_GLOBAL) < 0) status = mo_h5_fail(file, "write", "file");
  if (status == MO_OK && H5Fclose(file->id) < 0) status = mo_h5_fail(file, "close", "file");
  file->id = H5I_INVALID_HID;
  return status;
}

mo_status mo_h5_text_type(const mo_h5_file *file, hid_t *type) {
  *type = H5Tcopy(H5T_C_S1);
  if (*type >= 0 && H5Tset_size(*type, H5T_VARIABLE) >= 0 && H5Tset_cset(*type, H5T_CSET_UTF8) >= 0) return MO_OK;
  mo_status status = mo_h5_fail(file, "create", "the string type");
  status = mo_h5_close(file, status, *type);
  *type = H5I_INVALID_HID;
  return status;
}

static mo_status put(const mo_h5_file *file, hid_t object, const char *name, hid_t file_type, hid_t memory_type,
                     const void *value) {
  mo_status status = MO_OK;
  hid_t attribute = H5I_INVALID_HID, space = H5Screate(H5S_SCALAR);
  if (space < 0 || (attribute = H5Acreate2(object, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT)) < 0 ||
      H5Awrite(attribute, memory_type, value) < 0)
    status = mo_h5_fail(file, "write attribute", name);
  status = mo_h5_close(file, status, attribute);
  return mo_h5_close(file, status, space);
}

mo_status mo_h5_put_text(const mo_h5_file *file, hid_t object, const char *name, const char *value) {
  hid_t type;
  MO_TRY(mo_h5_text_type(file, &type));
  mo_status status = put(file, object, name, type, type, &value);
  return mo_h5_close(file, status, type);
}

mo_status mo_h5_put_i32(const mo_h5_file *file, hid_t object, const char *name, int32_t value) {
  return put(file, object, name, H5T_STD_I32LE, H5T_NATIVE_INT32, &value);
}

mo_status mo_h5_put_i64(const mo_h5_file *file, hid_t object, const char *name, int64_t value) {
  return put(file, object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

mo_status mo_h5_put_f64(const mo_h5_file *file, hid_t object, const char *name, double value) {
  return put(file, object, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

mo_status mo_h5_group(const mo_h5_file *file, const char *name, const char *description) {
  mo_status status = MO_OK;
  hid_t group = H5Gcreate2(file->id, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  if (group < 0) return mo_h5_fail(file, "create group", name);
  status = mo_h5_put_text(file, group, "description", description);
  return mo_h5_close(file, status, group);
}

static hid_t dataset_properties(void) {
  hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  /* No fill values: everything is written; and no time of change, so that writing data leaves metadata as it is. */
  if (creation < 0 ||
      (H5Pset_layout(creation, H5D_CONTIGUOUS) >= 0 && H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY) >= 0 &&
       H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER) >= 0 && H5Pset_obj_track_times(creation, false) >= 0))
    return creation;
  (void)H5Pclose(creation);
  return H5I_INVALID_HID;
}

mo_status mo_h5_dataset(const mo_h5_file *file, const char *name, hid_t type, int rank, const hsize_t *dims,
                        const mo_h5_text *texts, int n_texts) {
  mo_status status = MO_OK;
  hid_t creation = dataset_properties(), dataset = H5I_INVALID_HID;
  hid_t space = rank ? H5Screate_simple(rank, dims, NULL) : H5Screate(H5S_SCALAR);
  if (space < 0 || creation < 0 ||
      (dataset = H5Dcreate2(file->id, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT)) < 0)
    status = mo_h5_fail(file, "create dataset", name);
  for (int i = 0; i < n_texts && status == MO_OK; i++)
    if (texts[i].value) status = mo_h5_put_text(file, dataset, texts[i].name, texts[i].value);
  status = mo_h5_close(file, status, dataset);
  status = mo_h5_close(file, status, creation);
  return mo_h5_close(file, status, space);
}

typedef struct {
  hid_t dataset, type, space, memory, transfer;
  int rank;
  hsize_t start[MAX_RANK], count[MAX_RANK];
} mo_box;

static int write_box(mo_box *box, size_t element, const char *data) {
  hsize_t elements = 1;
  int split = -1;
  for (int d = 0; d < box->rank; d++) {
    elements *= box->count[d];
    if (split < 0 && box->count[d] > 1) split = d;
  }
  if (elements > MO_H5_PIECE_BYTES / element && split >= 0) {
    /* All dimensions before `split` have extent 1, so both halves stay dense in memory. */
    hsize_t n = box->count[split], first = box->start[split], half = n / 2;
    box->count[split] = half;
    int bad = write_box(box, element, data);
    box->start[split] = first + half;
    box->count[split] = n - half;
    if (!bad) bad = write_box(box, element, data + elements / n * half * element);
    box->start[split] = first;
    box->count[split] = n;
    return bad;
  }
  return H5Sset_extent_simple(box->memory, 1, &elements, NULL) < 0 ||
         H5Sselect_hyperslab(box->space, H5S_SELECT_SET, box->start, NULL, box->count, NULL) < 0 ||
         H5Dwrite(box->dataset, box->type, box->memory, box->space, box->transfer, data) < 0;
}

/* HDF5 clears as much for every write: not more than the write fills. */
static size_t conversion_bytes(size_t element, int rank, const hsize_t *count) {
  size_t bytes = element;
  for (int d = 0; d < rank && bytes < CONVERSION_BYTES; d++)
    bytes = count[d] < CONVERSION_BYTES / bytes ? bytes * (size_t)count[d] : CONVERSION_BYTES;
  return bytes < LEAST_CONVERSION_BYTES ? LEAST_CONVERSION_BYTES : bytes;
}

mo_status mo_h5_write(const mo_h5_file *file, const char *name, hid_t type, int rank, const hsize_t *start,
                      const hsize_t *count, const void *data) {
  mo_box box = {.type = type,
                .rank = rank,
                .dataset = H5I_INVALID_HID,
                .space = H5I_INVALID_HID,
                .memory = H5I_INVALID_HID,
                .transfer = H5I_INVALID_HID};
  mo_status status = MO_OK;
  size_t element = H5Tget_size(type);
  if (rank > MAX_RANK) return MO_FAIL(MO_FAILED, "dataset %s has rank %d (%s): report this", name, rank, file->path);
  for (int d = 0; d < rank; d++) {
    if (count[d] == 0) return MO_OK;
    box.start[d] = start[d];
    box.count[d] = count[d];
  }
  /* The default transfer mode of the MPI driver is independent. */
  if (element == 0 || (box.dataset = H5Dopen2(file->id, name, H5P_DEFAULT)) < 0 ||
      (box.transfer = H5Pcreate(H5P_DATASET_XFER)) < 0 ||
      H5Pset_buffer(box.transfer, conversion_bytes(element, rank, box.count), NULL, NULL) < 0 ||
      (rank == 0 && H5Dwrite(box.dataset, type, H5S_ALL, H5S_ALL, box.transfer, data) < 0) ||
      (rank > 0 && ((box.space = H5Dget_space(box.dataset)) < 0 || (box.memory = H5Screate(H5S_SIMPLE)) < 0 ||
                    write_box(&box, element, data))))
    status = mo_h5_fail(file, "write", name);
  status = mo_h5_close(file, status, box.memory);
  status = mo_h5_close(file, status, box.space);
  status = mo_h5_close(file, status, box.transfer);
  return mo_h5_close(file, status, box.dataset);
}

/* Open a scalar attribute of one of the type classes a, b. */
static mo_status open_attribute(const mo_h5_file *file, hid_t object, const char *name, H5T_class_t a, H5T_class_t b,
                                hid_t *attribute, hid_t *type) {
  mo_status status = MO_OK;
  hid_t space = H5I_INVALID_HID;
  *type = H5I_INVALID_HID;
  *attribute = H5Aopen(object, name, H5P_DEFAULT);
  if (*attribute < 0 || (*type = H5Aget_type(*attribute)) < 0 || (space = H5Aget_space(*attribute)) < 0) {
    status = mo_h5_fail(file, "read attribute", name);
  } else if (H5Sget_simple_extent_npoints(space) != 1 || (H5Tget_class(*type) != a && H5Tget_class(*type) != b)) {
    status = MO_FAIL(file->code, "attribute %s has the wrong type or shape (%s): %s", name, file->path, file->remedy);
  }
  status = mo_h5_close(file, status, space);
  if (status == MO_OK) return MO_OK;
  status = mo_h5_close(file, status, *type);
  return mo_h5_close(file, status, *attribute);
}

static mo_status get_number(const mo_h5_file *file, hid_t object, const char *name, bool integer, hid_t memory_type,
                            void *value) {
  hid_t attribute, type;
  MO_TRY(open_attribute(file, object, name, H5T_INTEGER, integer ? H5T_INTEGER : H5T_FLOAT, &attribute, &type));
  mo_status status = MO_OK;
  if (H5Aread(attribute, memory_type, value) < 0) status = mo_h5_fail(file, "read attribute", name);
  status = mo_h5_close(file, status, type);
  return mo_h5_close(file, status, attribute);
}

mo_status mo_h5_get_i64(const mo_h5_file *file, hid_t object, const char *name, int64_t *value) {
  return get_number(file, object, name, true, H5T_NATIVE_INT64, value);
}

mo_status mo_h5_get_f64(const mo_h5_file *file, hid_t object, const char *name, double *value) {
  return get_number(file, object, name, false, H5T_NATIVE_DOUBLE, value);
}

static mo_status read_text(const mo_h5_file *file, hid_t attribute, hid_t type, const char *name, char **value) {
  if (H5Tis_variable_str(type) > 0) {
    char *text = NULL;
    if (H5Aread(attribute, type, &text) < 0) return mo_h5_fail(file, "read attribute", name);
    *value = mo_strdup(text ? text : "");
    if (text && H5free_memory(text) < 0) {
      free(*value);
      *value = NULL;
      return mo_h5_fail(file, "read attribute", name);
    }
    return *value ? MO_OK : MO_FAILED;
  }
  size_t size = H5Tget_size(type);
  char *text = mo_alloc(size + 1, 1);
  if (!text) return MO_FAILED;
  if (H5Aread(attribute, type, text) < 0) {
    free(text);
    return mo_h5_fail(file, "read attribute", name);
  }
  if (H5Tget_strpad(type) == H5T_STR_SPACEPAD)
    for (size_t n = size; n > 0 && text[n - 1] == ' '; n--) text[n - 1] = '\0';
  *value = text;
  return MO_OK;
}

mo_status mo_h5_get_text(const mo_h5_file *file, hid_t object, const char *name, const char *fallback, char **value) {
  hid_t attribute, type;
  *value = NULL;
  if (fallback) {
    htri_t exists = H5Aexists(object, name);
    if (exists < 0) return mo_h5_fail(file, "read attribute", name);
    if (!exists) return (*value = mo_strdup(fallback)) ? MO_OK : MO_FAILED;
  }
  MO_TRY(open_attribute(file, object, name, H5T_STRING, H5T_STRING, &attribute, &type));
  mo_status status = read_text(file, attribute, type, name, value);
  status = mo_h5_close(file, status, type);
  status = mo_h5_close(file, status, attribute);
  if (status != MO_OK) {
    free(*value);
    *value = NULL;
  }
  return status;
}
