#include <string.h>

#include "moe_outliers/weights.h"

/* Every dtype of the format (huggingface/safetensors, safetensors/src/tensor.rs, enum Dtype). */
static const struct {
  const char *name;
  mo_dtype dtype;
  int bits;
} dtypes[] = {
    {"F32", MO_F32, 32},      {"BF16", MO_BF16, 16},        {"F16", MO_F16, 16},          {"U8", MO_U8, 8},
    {"BOOL", MO_OTHER, 8},    {"I8", MO_OTHER, 8},          {"I16", MO_OTHER, 16},        {"U16", MO_OTHER, 16},
    {"I32", MO_OTHER, 32},    {"U32", MO_OTHER, 32},        {"I64", MO_OTHER, 64},        {"U64", MO_OTHER, 64},
    {"F64", MO_OTHER, 64},    {"C64", MO_OTHER, 64},        {"F8_E5M2", MO_OTHER, 8},     {"F8_E4M3", MO_OTHER, 8},
    {"F8_E8M0", MO_OTHER, 8}, {"F8_E4M3FNUZ", MO_OTHER, 8}, {"F8_E5M2FNUZ", MO_OTHER, 8}, {"F6_E2M3", MO_OTHER, 6},
    {"F6_E3M2", MO_OTHER, 6}, {"F4", MO_OTHER, 4},
};

size_t mo_dtype_size(mo_dtype dtype) {
  switch (dtype) {
    case MO_F32:
      return 4;
    case MO_BF16:
    case MO_F16:
      return 2;
    case MO_U8:
      return 1;
    case MO_OTHER:
      break;
  }
  return 0;
}

const char *mo_dtype_name(mo_dtype dtype) {
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
    if (dtypes[i].dtype == dtype && dtype != MO_OTHER) return dtypes[i].name;
  return "OTHER";
}

bool mo_dtype_parse(const char *name, mo_dtype *dtype, int *bits, const char **known) {
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
    if (strcmp(dtypes[i].name, name) != 0) continue;
    *dtype = dtypes[i].dtype;
    *bits = dtypes[i].bits;
    *known = dtypes[i].name;
    return true;
  }
  return false;
}
