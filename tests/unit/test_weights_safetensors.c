/* The header parser: what it accepts, and every rule that it enforces. */
#include "test_weights_fixture.h"

static mo_status parse(const char *json, int64_t data_bytes, mo_tensor **tensors, int64_t *n) {
  return mo_safetensors_parse(json, strlen(json), data_bytes, "t.safetensors", tensors, n);
}

static void rejected(const char *json, int64_t data_bytes, const char *part) {
  mo_tensor *tensors;
  int64_t n;
  mo_status status = parse(json, data_bytes, &tensors, &n);
  assert_non_null(strstr(mo_error_message(), "t.safetensors"));
  expect_error(status, MO_INVALID, part);
  assert_null(tensors);
  assert_int_equal(n, 0);
}

/* One tensor "a" of the given fields. */
static void rejected_entry(const char *fields, int64_t data_bytes, const char *part) {
  char json[600];
  snprintf(json, sizeof json, "{\"a\":{%s}}", fields);
  rejected(json, data_bytes, part);
}

static void accepted(const char *json, int64_t data_bytes, int64_t count) {
  mo_tensor *tensors;
  int64_t n;
  expect_ok(parse(json, data_bytes, &tensors, &n));
  assert_int_equal(n, count);
  mo_tensors_free(tensors, n);
}

static void fields_are_read(void **state) {
  (void)state;
  mo_tensor *t;
  int64_t n;
  expect_ok(
      parse("{\"__metadata__\":{\"format\":\"pt\"},"
            "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[10,34]},"
            "\"a.weight\":{\"shape\":[5],\"data_offsets\":[0,10],\"dtype\":\"BF16\"}}  \n",
            34, &t, &n));
  assert_int_equal(n, 2);
  assert_string_equal(t[0].name, "a.weight");
  assert_int_equal(t[0].dtype, MO_BF16);
  assert_string_equal(t[0].dtype_name, "BF16");
  assert_int_equal(t[0].n_dims, 1);
  assert_int_equal(t[0].shape[0], 5);
  assert_int_equal(t[0].offset, 0);
  assert_int_equal(t[0].bytes, 10);
  assert_string_equal(t[1].name, "b");
  assert_int_equal(t[1].dtype, MO_F32);
  assert_int_equal(t[1].n_dims, 2);
  assert_int_equal(t[1].shape[0], 2);
  assert_int_equal(t[1].shape[1], 3);
  assert_int_equal(t[1].offset, 10);
  assert_int_equal(t[1].bytes, 24);
  mo_tensors_free(t, n);
}

static void scalars_empty_tensors_and_no_tensors(void **state) {
  (void)state;
  accepted("{}", 0, 0);
  accepted("{\"__metadata__\":{}}", 0, 0);
  accepted("{\"s\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, 1);
  accepted("{\"e\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[0,0]}}", 0, 1);
  accepted(
      "{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
      "\"e\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[4,4]},"
      "\"f\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}",
      4, 3);
  accepted("{\"d\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1, 1);
}

static void every_dtype_has_its_size(void **state) {
  (void)state;
  static const struct {
    const char *name;
    int bits;
    mo_dtype dtype;
  } all[] = {{"BOOL", 8, MO_OTHER},    {"U8", 8, MO_U8},         {"I8", 8, MO_OTHER},     {"F8_E5M2", 8, MO_OTHER},
             {"F8_E4M3", 8, MO_OTHER}, {"I16", 16, MO_OTHER},    {"U16", 16, MO_OTHER},   {"F16", 16, MO_F16},
             {"BF16", 16, MO_BF16},    {"I32", 32, MO_OTHER},    {"U32", 32, MO_OTHER},   {"F32", 32, MO_F32},
             {"F64", 64, MO_OTHER},    {"I64", 64, MO_OTHER},    {"U64", 64, MO_OTHER},   {"C64", 64, MO_OTHER},
             {"F4", 4, MO_OTHER},      {"F6_E2M3", 6, MO_OTHER}, {"F8_E8M0", 8, MO_OTHER}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    char json[200];
    int64_t bytes = 4 * all[i].bits / 8;
    snprintf(json, sizeof json, "{\"t\":{\"dtype\":\"%s\",\"shape\":[4],\"data_offsets\":[0,%d]}}", all[i].name,
             (int)bytes);
    mo_tensor *t;
    int64_t n;
    expect_ok(parse(json, bytes, &t, &n));
    assert_int_equal(t[0].dtype, all[i].dtype);
    assert_string_equal(t[0].dtype_name, all[i].name);
    if (t[0].dtype != MO_OTHER) {
      assert_int_equal(mo_dtype_size(t[0].dtype) * 8, all[i].bits);
      assert_string_equal(mo_dtype_name(t[0].dtype), all[i].name);
    }
    mo_tensors_free(t, n);
  }
  assert_int_equal(mo_dtype_size(MO_OTHER), 0);
  assert_string_equal(mo_dtype_name(MO_OTHER), "OTHER");
}

static void not_json(void **state) {
  (void)state;
  rejected("", 0, "does not start with '{'");
  rejected(" {}", 0, "does not start with '{'");
  rejected("[]", 0, "does not start with '{'");
  rejected("{", 0, "no JSON");
  rejected("{} x", 0, "no JSON");
  rejected("{\"\xff\":1}", 0, "no JSON");
  rejected("{\"a\\u0000b\":1}", 0, "no JSON");
  mo_tensor *t;
  int64_t n;
  expect_error(mo_safetensors_parse("{}\0", 3, 0, "t", &t, &n), MO_INVALID, "no JSON");
}

static void duplicate_names(void **state) {
  (void)state;
  rejected(
      "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
      "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
      2, "distinct names");
}

static void names_too_short_or_long(void **state) {
  (void)state;
  rejected("{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "name has 0 characters");
  char json[1200], name[1026];
  memset(name, 'n', 1025);
  name[1025] = '\0';
  snprintf(json, sizeof json, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name);
  rejected(json, 1, "name has 1025 characters");
  snprintf(json, sizeof json, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name + 1);
  accepted(json, 1, 1);
}

static void bad_metadata(void **state) {
  (void)state;
  rejected("{\"__metadata__\":[]}", 0, "\"__metadata__\" is no object");
  rejected("{\"__metadata__\":{\"k\":1}}", 0, "entry \"k\" is no string");
}

static void bad_entry(void **state) {
  (void)state;
  rejected("{\"a\":3}", 0, "\"a\" is no object");
  rejected_entry("", 0, "unknown dtype");
  rejected_entry("\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]", 4, "unknown dtype \"F33\"");
  rejected_entry("\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]", 4, "unknown dtype \"f32\"");
  rejected_entry("\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]", 4, "unknown dtype");
}

static void bad_shape(void **state) {
  (void)state;
  rejected_entry("\"dtype\":\"F32\",\"data_offsets\":[0,4]", 4, "no \"shape\" array");
  rejected_entry("\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]", 4, "no \"shape\" array");
  rejected_entry("\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]", 4, "entry 0 of the shape");
  rejected_entry("\"dtype\":\"F32\",\"shape\":[1,1.0],\"data_offsets\":[0,4]", 4, "entry 1 of the shape");
  rejected_entry("\"dtype\":\"F32\",\"shape\":[\"1\"],\"data_offsets\":[0,4]", 4, "entry 0 of the shape");
  rejected_entry("\"dtype\":\"F32\",\"shape\":[true],\"data_offsets\":[0,4]", 4, "entry 0 of the shape");
  rejected_entry("\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]", 1, "9 dimensions");
  rejected_entry("\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]", 4, "no JSON");
}

static void overflowing_shape(void **state) {
  (void)state;
  rejected_entry("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]", 4,
                 "shape of tensor \"a\" overflows");
  rejected_entry("\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,4]", 4,
                 "size of tensor \"a\" overflows");
  rejected_entry("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]", 2, "no whole number of bytes");
}

static void bad_offsets(void **state) {
  (void)state;
  rejected_entry("\"dtype\":\"F32\",\"shape\":[1]", 4, "\"data_offsets\"");
  rejected_entry("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]", 4, "\"data_offsets\"");
  rejected_entry("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]", 4, "\"data_offsets\"");
  rejected_entry("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]", 4, "\"data_offsets\"");
  rejected_entry("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]", 4, "\"data_offsets\"");
  rejected_entry("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0.0,4]", 4, "\"data_offsets\"");
}

static void sizes_that_disagree(void **state) {
  (void)state;
  rejected_entry("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]", 4,
                 "has 4 bytes, its shape and dtype F32 need 8");
  rejected_entry("\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,8]", 8,
                 "has 8 bytes, its shape and dtype BF16 need 4");
}

static void beyond_the_end(void **state) {
  (void)state;
  rejected_entry("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]", 7,
                 "ends at byte 8 of the data, which has 7");
}

#define PAIR(a0, a1, na, b0, b1, nb)                                            \
  "{\"a\":{\"dtype\":\"U8\",\"shape\":[" #na "],\"data_offsets\":[" #a0 "," #a1 \
  "]},"                                                                         \
  "\"b\":{\"dtype\":\"U8\",\"shape\":[" #nb "],\"data_offsets\":[" #b0 "," #b1 "]}}"

static void overlaps_holes_and_trailing_bytes(void **state) {
  (void)state;
  accepted(PAIR(0, 4, 4, 4, 8, 4), 8, 2);
  accepted(PAIR(4, 8, 4, 0, 4, 4), 8, 2);
  rejected(PAIR(0, 4, 4, 3, 8, 5), 8, "\"a\" and \"b\" overlap at byte 3");
  rejected(PAIR(0, 8, 8, 0, 8, 8), 8, "overlap at byte 0");
  rejected(PAIR(0, 8, 8, 2, 4, 2), 8, "overlap at byte 2");
  rejected(PAIR(0, 4, 4, 5, 8, 3), 8, "bytes 4 to 5 of the data, before tensor \"b\"");
  rejected(PAIR(1, 4, 3, 4, 8, 4), 8, "bytes 0 to 1 of the data, before tensor \"a\"");
  rejected(PAIR(0, 4, 4, 4, 8, 4), 9, "1 trailing bytes");
  rejected("{}", 1, "1 trailing bytes");
  rejected("{}", -1, "trailing bytes");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(fields_are_read),
      cmocka_unit_test(scalars_empty_tensors_and_no_tensors),
      cmocka_unit_test(every_dtype_has_its_size),
      cmocka_unit_test(not_json),
      cmocka_unit_test(duplicate_names),
      cmocka_unit_test(names_too_short_or_long),
      cmocka_unit_test(bad_metadata),
      cmocka_unit_test(bad_entry),
      cmocka_unit_test(bad_shape),
      cmocka_unit_test(overflowing_shape),
      cmocka_unit_test(bad_offsets),
      cmocka_unit_test(sizes_that_disagree),
      cmocka_unit_test(beyond_the_end),
      cmocka_unit_test(overlaps_holes_and_trailing_bytes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
