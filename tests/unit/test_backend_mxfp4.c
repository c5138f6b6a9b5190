/* MXFP4: every code under every scale decodes to the very bits that transformers makes of it (tests/references/mxfp4.h5, written
 * by scripts/make_references.py). Rows are looked up rather than multiplied, so that infinities do not meet zeros.
 * backends: cpu check cuda */
#include <hdf5.h>

#include "test_backend_fixture.h"

enum { BLOCKS = 256, BLOCK = 32 };

static struct {
  uint8_t blocks[BLOCKS * BLOCK / 2], scales[BLOCKS];
  float values[2][BLOCKS * BLOCK]; /* by precision */
} reference;

static void read_dataset(hid_t file, const char *name, hid_t type, hssize_t count, void *values) {
  hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT);
  assert_true(dataset >= 0);
  hid_t space = H5Dget_space(dataset);
  assert_true(H5Sget_simple_extent_npoints(space) == count);
  assert_true(H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
  H5Sclose(space);
  H5Dclose(dataset);
}

static int read_reference(void **state) {
  (void)state;
  char path[4096];
  const char *source = getenv("SOURCE_DIR");
  snprintf(path, sizeof path, "%s/tests/references/mxfp4.h5", source ? source : ".");
  hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  if (file < 0) fail_msg("no %s: run this in the repository, or set SOURCE_DIR to it", path);
  read_dataset(file, "blocks", H5T_NATIVE_UINT8, sizeof reference.blocks, reference.blocks);
  read_dataset(file, "scales", H5T_NATIVE_UINT8, sizeof reference.scales, reference.scales);
  read_dataset(file, "float32", H5T_NATIVE_FLOAT, BLOCKS * BLOCK, reference.values[MO_PRECISION_FP32]);
  read_dataset(file, "bfloat16", H5T_NATIVE_FLOAT, BLOCKS * BLOCK, reference.values[MO_PRECISION_BF16]);
  H5Fclose(file);
  return 0;
}

static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

/* The reference's blocks as a table of rows of `cols` columns, looked up in the order of `ids` [T]. */
static void expect_rows(int64_t cols, const int32_t *ids, int64_t T) {
  mo_weight table = {
      .data = uploaded(reference.blocks, sizeof reference.blocks),
      .dtype = MO_U8,
      .rows = BLOCKS * BLOCK / cols,
      .cols = cols,
      .scales = uploaded(reference.scales, sizeof reference.scales),
  };
  void *out = activations_out(T * cols);
  ok(op->embed(be, &table, ids, T, out));
  const float *got = result(out, T * cols), *want = reference.values[bf16 ? MO_PRECISION_BF16 : MO_PRECISION_FP32];
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < cols; i++) {
      int64_t at = ids[t] * cols + i;
      if (bits_of(got[t * cols + i]) != bits_of(want[at]))
        fail_msg("scale %d, element %d: %a, expected %a", reference.scales[at / BLOCK], (int)(at % BLOCK),
                 (double)got[t * cols + i], (double)want[at]);
    }
}

static void every_code_under_every_scale(void **state) {
  (void)state;
  bool seen[2][16][BLOCKS] = {0}; /* by nibble, code, scale */
  int32_t ids[BLOCKS];
  for (int b = 0; b < BLOCKS; b++) {
    ids[b] = b;
    for (int i = 0; i < BLOCK / 2; i++) {
      uint8_t byte = reference.blocks[b * BLOCK / 2 + i];
      seen[0][byte & 15][reference.scales[b]] = seen[1][byte >> 4][reference.scales[b]] = true;
    }
  }
  for (int i = 0; i < 2 * 16 * BLOCKS; i++) assert_true((&seen[0][0][0])[i]);
  expect_rows(BLOCK, ids, BLOCKS);
}

static void each_block_has_its_own_scale(void **state) {
  int32_t ids[BLOCKS / 4];
  (void)state;
  for (int i = 0; i < BLOCKS / 4; i++) ids[i] = BLOCKS / 4 - 1 - i;
  expect_rows(4 * BLOCK, ids, BLOCKS / 4);
}

static void rows_may_repeat(void **state) {
  (void)state;
  expect_rows(BLOCK, (const int32_t[]){127, 0, 255, 127, 127}, 5);
}

int main(int argc, char **argv) {
  int skipped = choose_backend(argc, argv);
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      VARIANTS(every_code_under_every_scale),
      VARIANTS(each_block_has_its_own_scale),
      VARIANTS(rows_may_repeat),
  };
  return cmocka_run_group_tests(tests, read_reference, NULL);
}
