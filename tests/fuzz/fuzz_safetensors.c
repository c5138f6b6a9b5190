/* libFuzzer target: the safetensors header parser. Input: 8 bytes little-endian = size of the data part, the rest is
 * the header's JSON. Whatever is accepted must cover the data exactly, within the limits that the rest of the program
 * trusts. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/status.h"
#include "moe_outliers/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition) {
  if (!condition) abort();
}

static void check_accepted(const mo_tensor *tensors, int64_t n, int64_t data_bytes) {
  int64_t end = 0;
  for (int64_t i = 0; i < n; i++) {
    const mo_tensor *t = &tensors[i];
    require(t->offset == end && t->bytes >= 0 && t->bytes <= data_bytes - end);
    require(t->n_dims >= 0 && t->n_dims <= MO_MAX_DIMS);
    size_t length = strlen(t->name);
    require(length > 0 && length <= 1024);
    int64_t elements = 1;
    for (int32_t d = 0; d < t->n_dims; d++) {
      require(t->shape[d] >= 0);
      require(!__builtin_mul_overflow(elements, t->shape[d], &elements));
    }
    if (t->dtype != MO_OTHER) require(elements == t->bytes / (int64_t)mo_dtype_size(t->dtype));
    end += t->bytes;
  }
  require(end == data_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 8) return 0;
  uint64_t data_bytes = 0;
  for (int i = 7; i >= 0; i--) data_bytes = data_bytes << 8 | data[i];
  mo_tensor *tensors;
  int64_t n;
  mo_status status = mo_safetensors_parse((const char *)data + 8, size - 8, (int64_t)data_bytes, "fuzz", &tensors, &n);
  if (status == MO_OK) {
    check_accepted(tensors, n, (int64_t)data_bytes);
    mo_tensors_free(tensors, n);
  } else {
    require(status == MO_INVALID && tensors == NULL && n == 0 && mo_error_message()[0] != '\0');
  }
  mo_error_clear();
  return 0;
}
