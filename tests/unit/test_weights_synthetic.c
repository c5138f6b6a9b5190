/* Synthetic checkpoints: the bytes that mo_synth writes, in pieces of any size; how the values are spread. */
#include <math.h>
#include <pthread.h>

#include "moe_outliers/synth.h"
#include "test_model_fixture.h"
#include "test_weights_fixture.h"

enum { SEED = 7 };
static const mo_dtype dtypes[] = {MO_BF16, MO_F32, MO_F16}; /* the order of mo_synth's */

static mo_checkpoint *synthetic(const char *json, mo_dtype dtype, uint64_t seed) {
  mo_model_spec spec = parsed(json);
  mo_checkpoint *checkpoint;
  expect_ok(mo_checkpoint_open_synthetic(&checkpoint, &spec, dtype, seed));
  mo_model_free(&spec);
  return checkpoint;
}

static unsigned char *bytes_of(const mo_checkpoint *checkpoint, const mo_tensor *t) {
  unsigned char *bytes = malloc((size_t)t->bytes);
  assert_non_null(bytes);
  expect_ok(mo_checkpoint_read(checkpoint, t->file, t->offset, t->bytes, bytes));
  return bytes;
}

static const mo_tensor *find(const mo_checkpoint *checkpoint, const char *name) {
  const mo_tensor *t = mo_checkpoint_find(checkpoint, name);
  if (!t) fail_msg("no tensor %s", name);
  return t;
}

static void expect_same_tensors(const mo_checkpoint *a, const mo_checkpoint *b) {
  assert_int_equal(mo_checkpoint_tensor_count(a), mo_checkpoint_tensor_count(b));
  for (int64_t i = 0; i < mo_checkpoint_tensor_count(a); i++) {
    const mo_tensor *x = mo_checkpoint_tensor(a, i), *y = mo_checkpoint_tensor(b, i);
    assert_string_equal(x->name, y->name);
    assert_string_equal(x->dtype_name, y->dtype_name);
    assert_int_equal(x->dtype, y->dtype);
    assert_int_equal(x->n_dims, y->n_dims);
    assert_memory_equal(x->shape, y->shape, (size_t)x->n_dims * sizeof *x->shape);
    assert_int_equal(x->bytes, y->bytes);
    unsigned char *left = bytes_of(a, x), *right = bytes_of(b, y);
    if (memcmp(left, right, (size_t)x->bytes) != 0) fail_msg("the bytes of %s differ", x->name);
    free(left);
    free(right);
  }
}

static void expect_as_written(const char *json, int dtype) {
  char *folder = fixture_folder(), config[512], model[512];
  fixture_text(folder, "shape.json", json);
  fixture_path(config, folder, "shape.json");
  fixture_path(model, folder, "model");
  expect_ok(mo_synth(config, model, SEED, 0, dtype, &(mo_synth_progress){0}));
  mo_checkpoint *written, *made = synthetic(json, dtypes[dtype], SEED);
  expect_ok(mo_checkpoint_open(&written, model));
  expect_same_tensors(written, made);
  mo_checkpoint_close(written);
  mo_checkpoint_close(made);
  fixture_remove(folder);
}

static void as_the_written_checkpoint_of_every_architecture(void **state) {
  (void)state;
  for (int i = 0; i < N_CONFIGS; i++)
    for (int dtype = 0; dtype < 3; dtype++) expect_as_written(all_configs[i], dtype);
}

static void as_the_written_checkpoint_with_mxfp4(void **state) {
  (void)state;
  char *json = with(gpt_oss, "quantization_config", "{\"quant_method\":\"mxfp4\"}");
  expect_as_written(json, 0);
  free(json);
}

/* More elements than are made or written at once. */
static void as_the_written_checkpoint_with_large_tensors(void **state) {
  (void)state;
  char *json = with(olmoe, "vocab_size", "30011");
  expect_as_written(json, 1);
  free(json);
}

static void the_catalogue_finds_all_and_leaves_none(void **state) {
  (void)state;
  for (int i = 0; i < N_CONFIGS; i++) {
    mo_model_spec spec = parsed(all_configs[i]);
    mo_checkpoint *made = synthetic(all_configs[i], MO_BF16, SEED);
    mo_catalogue catalogue;
    expect_ok(mo_catalogue_build(&catalogue, &spec, made));
    assert_int_equal(catalogue.unused_tensors, 0);
    assert_int_equal(mo_checkpoint_ignored(made), 0);
    mo_catalogue_free(&catalogue);
    mo_checkpoint_close(made);
    mo_model_free(&spec);
  }
}

static void messages_name_the_seed(void **state) {
  (void)state;
  mo_checkpoint *made = synthetic(llama, MO_BF16, UINT64_MAX);
  assert_string_equal(mo_checkpoint_directory(made), "synthetic:18446744073709551615");
  assert_string_equal(mo_checkpoint_file(made, 1), "synthetic:18446744073709551615");
  mo_checkpoint_close(made);
}

/* --- pieces --- */

static uint64_t next_random(uint64_t *state) { /* xorshift64 (Marsaglia 2003) */
  *state ^= *state << 13;
  *state ^= *state >> 7;
  return *state ^= *state << 17;
}

typedef struct {
  const mo_checkpoint *checkpoint;
  const mo_tensor *tensor;
  const unsigned char *whole;
  uint64_t seed;
  int wrong;
} piece_reader;

/* Read ranges of random place and length, odd ones too, to odd addresses; count those that differ from the whole. */
static void *read_pieces(void *argument) {
  piece_reader *self = argument;
  int64_t bytes = self->tensor->bytes;
  unsigned char *buffer = malloc((size_t)bytes + 3);
  self->wrong = buffer ? 0 : 1;
  for (int i = 0; buffer && i < 300; i++) {
    int64_t first = (int64_t)(next_random(&self->seed) % (uint64_t)bytes);
    int64_t most = i % 2 ? bytes - first : (bytes - first < 50 ? bytes - first : 50);
    int64_t n = (int64_t)(next_random(&self->seed) % (uint64_t)(most + 1));
    unsigned char *to = buffer + 1;
    buffer[0] = to[n] = 0xa5; /* no byte beside the range is touched */
    mo_status status = mo_checkpoint_read(self->checkpoint, self->tensor->file, self->tensor->offset + first, n, to);
    self->wrong +=
        status != MO_OK || memcmp(to, self->whole + first, (size_t)n) != 0 || buffer[0] != 0xa5 || to[n] != 0xa5;
  }
  free(buffer);
  return NULL;
}

static void expect_pieces(const mo_checkpoint *made, const char *name) {
  enum { READERS = 3 };
  const mo_tensor *t = find(made, name);
  unsigned char *whole = bytes_of(made, t);
  piece_reader readers[READERS];
  pthread_t threads[READERS];
  for (int i = 0; i < READERS; i++) {
    readers[i] = (piece_reader){made, t, whole, (uint64_t)i + 1, 0};
    assert_int_equal(pthread_create(&threads[i], NULL, read_pieces, &readers[i]), 0);
  }
  for (int i = 0; i < READERS; i++) {
    assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(readers[i].wrong, 0);
  }
  free(whole);
}

static void pieces_make_the_whole_on_several_threads(void **state) {
  (void)state;
  char *json = with(olmoe, "vocab_size", "1009"),
       *packed = with(gpt_oss, "quantization_config", "{\"quant_method\":\"mxfp4\"}");
  for (int i = 0; i < 3; i++) {
    mo_checkpoint *made = synthetic(json, dtypes[i], SEED);
    expect_pieces(made, "model.embed_tokens.weight");
    expect_pieces(made, "model.layers.0.input_layernorm.weight");
    mo_checkpoint_close(made);
  }
  mo_checkpoint *made = synthetic(packed, MO_BF16, SEED);
  expect_pieces(made, "model.layers.1.mlp.experts.gate_up_proj_blocks");
  expect_pieces(made, "model.layers.1.mlp.experts.gate_up_proj_scales");
  mo_checkpoint_close(made);
  free(json);
  free(packed);
}

/* --- values --- */

static float *values_of(const char *json, uint64_t seed, const char *name, int64_t *n) {
  mo_checkpoint *made = synthetic(json, MO_F32, seed);
  const mo_tensor *t = find(made, name);
  *n = t->bytes / 4;
  float *values = (float *)bytes_of(made, t);
  mo_checkpoint_close(made);
  return values;
}

/* Correlation of two arrays whose means are 0; within 5 standard deviations of 0 if they are independent. */
static void expect_independent(const float *a, const float *b, int64_t n) {
  double ab = 0, aa = 0, bb = 0;
  for (int64_t i = 0; i < n; i++)
    ab += (double)a[i] * (double)b[i], aa += (double)a[i] * (double)a[i], bb += (double)b[i] * (double)b[i];
  double correlation = ab / sqrt(aa * bb);
  if (!(fabs(correlation) <= 5 / sqrt((double)n))) fail_msg("correlation %g of %lld values", correlation, (long long)n);
}

static void matrices_are_uniform(void **state) {
  (void)state;
  int64_t n;
  char *json = with(olmoe, "vocab_size", "10007");
  float *values = values_of(json, SEED, "lm_head.weight", &n);
  double width = sqrt(12.0 / 48), sum = 0, squares = 0; /* rows of hidden_size 48: variance 1 / 48 */
  int64_t bins[64] = {0};
  assert_int_equal(n, 10007 * 48);
  for (int64_t i = 0; i < n; i++) {
    double place = (double)values[i] / width + 0.5;
    if (!(place >= 0 && place <= 1)) fail_msg("value %g", (double)values[i]);
    bins[place < 1 ? (int)(place * 64) : 63]++;
    sum += (double)values[i];
    squares += (double)values[i] * (double)values[i];
  }
  assert_true(fabs(sum / (double)n) <= 5 * sqrt(1.0 / 48 / (double)n));
  assert_true(fabs(squares / (double)n * 48 - 1) <=
              5 * sqrt(0.8 / (double)n)); /* fourth moment of a uniform value: 9/5 */
  double chi = 0, expected = (double)n / 64;
  for (int i = 0; i < 64; i++) chi += ((double)bins[i] - expected) * ((double)bins[i] - expected) / expected;
  assert_true(fabs(chi - 63) <= 5 * sqrt(2 * 63.0));
  for (int lag = 1; lag <= 8; lag++) expect_independent(values, values + lag, n - lag);
  expect_independent(values, values + 4096, n - 4096);
  free(values);
  free(json);
}

static void seeds_and_tensors_are_independent(void **state) {
  (void)state;
  int64_t n;
  char *json = with(olmoe, "vocab_size", "1009");
  float *a = values_of(json, 1, "lm_head.weight", &n), *b = values_of(json, 2, "lm_head.weight", &n);
  float *c = values_of(json, 1, "model.embed_tokens.weight", &n);
  expect_independent(a, b, n);
  expect_independent(a, c, n);
  free(a);
  free(b);
  free(c);
  free(json);
}

/* Norms before the two sites have large values, others have not: 1 +- 0.05 * sqrt(3), times 12. */
static void norms_of_the_sites_have_spikes(void **state) {
  (void)state;
  int64_t n, spikes = 0;
  char *json = edit(with(llama, "hidden_size", "9600"), "vocab_size", "7");
  float *values = values_of(json, SEED, "model.layers.1.post_attention_layernorm.weight", &n);
  assert_int_equal(n, 9600);
  for (int64_t i = 0; i < n; i++) {
    bool spike = values[i] > 2;
    double base = (double)values[i] / (spike ? 12 : 1);
    if (!(fabs(base - 1) <= 0.0867)) fail_msg("value %g", (double)values[i]);
    spikes += spike;
  }
  assert_true(fabs((double)spikes - 9600.0 / 97) <= 5 * sqrt(9600.0 / 97));
  free(values);
  values = values_of(json, SEED, "model.norm.weight", &n);
  for (int64_t i = 0; i < n; i++) assert_true(fabs((double)values[i] - 1) <= 0.0867);
  free(values);
  free(json);
}

static double of_bf16(const unsigned char *bytes) {
  uint16_t half;
  memcpy(&half, bytes, 2);
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return (double)value;
}

static double of_f16(const unsigned char *bytes) {
  uint16_t half;
  memcpy(&half, bytes, 2);
  int exponent = half >> 10 & 31;
  double magnitude = exponent ? ldexp(1024 + (half & 1023), exponent - 25) : ldexp(half & 1023, -24);
  return half >> 15 ? -magnitude : magnitude;
}

/* The same values at every precision: to the nearest of 8 and of 11 bits. */
static void precisions_are_roundings_of_one_another(void **state) {
  (void)state;
  int64_t n;
  const char *const names[] = {"model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"};
  mo_checkpoint *bf16 = synthetic(qwen3_next, MO_BF16, SEED), *f16 = synthetic(qwen3_next, MO_F16, SEED);
  for (int k = 0; k < 2; k++) {
    float *values = values_of(qwen3_next, SEED, names[k], &n);
    unsigned char *b = bytes_of(bf16, find(bf16, names[k])), *h = bytes_of(f16, find(f16, names[k]));
    for (int64_t i = 0; i < n; i++) {
      double value = (double)values[i];
      assert_true(fabs(of_bf16(b + 2 * i) - value) <= ldexp(fabs(value), -8));
      assert_true(fabs(of_f16(h + 2 * i) - value) <= fmax(ldexp(fabs(value), -11), 0x1p-14));
    }
    free(values);
    free(b);
    free(h);
  }
  mo_checkpoint_close(bf16);
  mo_checkpoint_close(f16);
}

static void mxfp4_scales_are_small(void **state) {
  (void)state;
  char *json = with(gpt_oss, "quantization_config", "{\"quant_method\":\"mxfp4\"}");
  mo_checkpoint *made = synthetic(json, MO_BF16, SEED);
  const mo_tensor *t = find(made, "model.layers.0.mlp.experts.down_proj_scales");
  unsigned char *bytes = bytes_of(made, t);
  int64_t counts[4] = {0};
  for (int64_t i = 0; i < t->bytes; i++) {
    assert_in_range(bytes[i], 119, 122);
    counts[bytes[i] - 119]++;
  }
  for (int i = 0; i < 4; i++) assert_true(counts[i] > 0);
  free(bytes);
  mo_checkpoint_close(made);
  free(json);
}

static void fewer_layers_have_the_same_first_ones(void **state) {
  (void)state;
  char *json = with(llama, "num_hidden_layers", "2");
  mo_checkpoint *few = synthetic(json, MO_BF16, SEED), *all = synthetic(llama, MO_BF16, SEED);
  assert_true(mo_checkpoint_tensor_count(few) < mo_checkpoint_tensor_count(all));
  for (int64_t i = 0; i < mo_checkpoint_tensor_count(few); i++) {
    const mo_tensor *t = mo_checkpoint_tensor(few, i), *same = find(all, t->name);
    unsigned char *a = bytes_of(few, t), *b = bytes_of(all, same);
    assert_memory_equal(a, b, (size_t)t->bytes);
    free(a);
    free(b);
  }
  mo_checkpoint_close(few);
  mo_checkpoint_close(all);
  free(json);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(as_the_written_checkpoint_of_every_architecture),
      cmocka_unit_test(as_the_written_checkpoint_with_mxfp4),
      cmocka_unit_test(as_the_written_checkpoint_with_large_tensors),
      cmocka_unit_test(the_catalogue_finds_all_and_leaves_none),
      cmocka_unit_test(messages_name_the_seed),
      cmocka_unit_test(pieces_make_the_whole_on_several_threads),
      cmocka_unit_test(matrices_are_uniform),
      cmocka_unit_test(seeds_and_tensors_are_independent),
      cmocka_unit_test(norms_of_the_sites_have_spikes),
      cmocka_unit_test(precisions_are_roundings_of_one_another),
      cmocka_unit_test(mxfp4_scales_are_small),
      cmocka_unit_test(fewer_layers_have_the_same_first_ones),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
