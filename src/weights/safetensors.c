#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/weights.h"

#define MAX_NAME 1024
#define REFETCH "the file is damaged or not a safetensors file, fetch it again"

void mo_tensors_free(mo_tensor *tensors, int64_t n_tensors) {
  if (!tensors) return;
  for (int64_t i = 0; i < n_tensors; i++) free(tensors[i].name);
  free(tensors);
}

/* A count or an offset: a JSON integer (1.0 and 1e3 are none) that is not negative. */
static bool get_count(const json_t *value, int64_t *count) {
  if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
  *count = json_integer_value(value);
  return true;
}

static mo_status parse_shape(const json_t *shape, const char *name, mo_tensor *tensor, int64_t *elements) {
  if (!json_is_array(shape))
    return MO_FAIL(MO_INVALID, "tensor \"%s\" has no \"shape\" array (%s): " REFETCH, tensor->name, name);
  if (json_array_size(shape) > MO_MAX_DIMS)
    return MO_FAIL(MO_INVALID, "tensor \"%s\" has %zu dimensions (%s): at most %d are supported", tensor->name,
                   json_array_size(shape), name, MO_MAX_DIMS);
  tensor->n_dims = (int32_t)json_array_size(shape);
  *elements = 1;
  for (int32_t d = 0; d < tensor->n_dims; d++) {
    if (!get_count(json_array_get(shape, (size_t)d), &tensor->shape[d]))
      return MO_FAIL(MO_INVALID, "entry %d of the shape of tensor \"%s\" is no integer >= 0 (%s): " REFETCH, d,
                     tensor->name, name);
    if (__builtin_mul_overflow(*elements, tensor->shape[d], elements))
      return MO_FAIL(MO_INVALID, "the shape of tensor \"%s\" overflows (%s): " REFETCH, tensor->name, name);
  }
  return MO_OK;
}

static mo_status parse_offsets(const json_t *offsets, const char *name, int64_t data_bytes, mo_tensor *tensor) {
  int64_t end;
  if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
      !get_count(json_array_get(offsets, 0), &tensor->offset) || !get_count(json_array_get(offsets, 1), &end) ||
      end < tensor->offset)
    return MO_FAIL(MO_INVALID,
                   "\"data_offsets\" of tensor \"%s\" is not [begin, end] with 0 <= begin <= end (%s): " REFETCH,
                   tensor->name, name);
  if (end > data_bytes)
    return MO_FAIL(MO_INVALID,
                   "tensor \"%s\" ends at byte %lld of the data, which has %lld (%s): the file is truncated or "
                   "damaged, fetch it again",
                   tensor->name, (long long)end, (long long)data_bytes, name);
  tensor->bytes = end - tensor->offset;
  return MO_OK;
}

/* tensor->name is set on entry. */
static mo_status parse_tensor(const json_t *entry, const char *name, int64_t data_bytes, mo_tensor *tensor) {
  if (!json_is_object(entry))
    return MO_FAIL(MO_INVALID, "the entry of tensor \"%s\" is no object (%s): " REFETCH, tensor->name, name);
  const char *dtype = json_string_value(json_object_get(entry, "dtype"));
  int bits;
  if (!dtype || !mo_dtype_parse(dtype, &tensor->dtype, &bits, &tensor->dtype_name))
    return MO_FAIL(MO_INVALID, "tensor \"%s\" has unknown dtype \"%.40s\" (%s): " REFETCH, tensor->name,
                   dtype ? dtype : "", name);
  int64_t elements = 0, total_bits;
  MO_TRY(parse_shape(json_object_get(entry, "shape"), name, tensor, &elements));
  if (__builtin_mul_overflow(elements, (int64_t)bits, &total_bits) || total_bits % 8)
    return MO_FAIL(MO_INVALID, "the size of tensor \"%s\" overflows or is no whole number of bytes (%s): " REFETCH,
                   tensor->name, name);
  MO_TRY(parse_offsets(json_object_get(entry, "data_offsets"), name, data_bytes, tensor));
  if (tensor->bytes != total_bits / 8)
    return MO_FAIL(MO_INVALID, "tensor \"%s\" has %lld bytes, its shape and dtype %s need %lld (%s): " REFETCH,
                   tensor->name, (long long)tensor->bytes, dtype, (long long)(total_bits / 8), name);
  return MO_OK;
}

static mo_status check_metadata(const json_t *metadata, const char *name) {
  if (!json_is_object(metadata)) return MO_FAIL(MO_INVALID, "\"__metadata__\" is no object (%s): " REFETCH, name);
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)metadata, key, value) {
    if (!json_is_string(value))
      return MO_FAIL(MO_INVALID, "\"__metadata__\" entry \"%.100s\" is no string (%s): " REFETCH, key, name);
  }
  return MO_OK;
}

static int by_offset(const void *a, const void *b) {
  const mo_tensor *x = a, *y = b;
  if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
  if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1; /* empty ones before the one that starts there too */
  return strcmp(x->name, y->name);
}

/* Sorted tensors must follow each other without gap and end where the data ends. */
static mo_status check_cover(const mo_tensor *tensors, int64_t n, int64_t data_bytes, const char *name) {
  int64_t end = 0;
  for (int64_t i = 0; i < n; i++) {
    const mo_tensor *t = &tensors[i];
    if (t->offset < end)
      return MO_FAIL(MO_INVALID, "tensors \"%s\" and \"%s\" overlap at byte %lld of the data (%s): " REFETCH,
                     tensors[i - 1].name, t->name, (long long)t->offset, name);
    if (t->offset > end)
      return MO_FAIL(MO_INVALID,
                     "bytes %lld to %lld of the data, before tensor \"%s\", belong to no tensor (%s): " REFETCH,
                     (long long)end, (long long)t->offset, t->name, name);
    end = t->offset + t->bytes;
  }
  if (end != data_bytes)
    return MO_FAIL(MO_INVALID, "%lld trailing bytes belong to no tensor (%s): " REFETCH, (long long)(data_bytes - end),
                   name);
  return MO_OK;
}

static mo_status parse_entries(json_t *root, int64_t data_bytes, const char *name, mo_tensor *tensors, int64_t *n) {
  const char *key;
  json_t *value;
  json_object_foreach(root, key, value) {
    if (strcmp(key, "__metadata__") == 0) {
      MO_TRY(check_metadata(value, name));
      continue;
    }
    size_t length = strlen(key);
    if (length == 0 || length > MAX_NAME)
      return MO_FAIL(MO_INVALID, "a tensor name has %zu characters (%s): 1 to %d are supported", length, name,
                     MAX_NAME);
    mo_tensor *t = &tensors[(*n)++];
    t->name = mo_strdup(key);
    if (!t->name) return MO_FAILED;
    MO_TRY(parse_tensor(value, name, data_bytes, t));
  }
  return MO_OK;
}

mo_status mo_safetensors_parse(const char *json, size_t bytes, int64_t data_bytes, const char *name,
                               mo_tensor **tensors, int64_t *n_tensors) {
  *tensors = NULL;
  *n_tensors = 0;
  if (bytes == 0 || json[0] != '{')
    return MO_FAIL(MO_INVALID, "the header does not start with '{' (%s): " REFETCH, name);
  json_error_t error;
  json_t *root = json_loadb(json, bytes, JSON_REJECT_DUPLICATES, &error);
  if (!root)
    return MO_FAIL(MO_INVALID, "the header is no JSON of distinct names: %s at byte %d (%s): " REFETCH, error.text,
                   error.position, name);
  mo_status status = MO_OK;
  int64_t n = 0;
  mo_tensor *list = mo_alloc(json_object_size(root), sizeof *list);
  if (!list) status = MO_FAILED;
  if (status == MO_OK) status = parse_entries(root, data_bytes, name, list, &n);
  json_decref(root);
  if (status == MO_OK) {
    qsort(list, (size_t)n, sizeof *list, by_offset);
    status = check_cover(list, n, data_bytes, name);
  }
  if (status != MO_OK) {
    mo_tensors_free(list, n);
    return status;
  }
  *tensors = list;
  *n_tensors = n;
  return MO_OK;
}
