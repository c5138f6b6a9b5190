/* Rotary frequencies: default, linear, llama3 and yarn, against formulas of this file's own. */
#include "test_model_fixture.h"

/* head_dim 64 */
static const char base[] =
    "{\"model_type\":\"llama\",\"hidden_size\":128,\"num_hidden_layers\":1,\"num_attention_heads\":2,"
    "\"intermediate_size\":8,\"vocab_size\":9,\"rope_theta\":150000,\"max_position_embeddings\":131072}";

/* The spec of `base` with the given rope_scaling (NULL: none). */
static mo_model_spec scaled(const char *scaling) {
  char *text = with(base, "rope_scaling", scaling);
  mo_model_spec spec = parsed(text);
  free(text);
  return spec;
}

static double plain_frequency(double theta, int64_t dim, int64_t j) {
  return exp(-2.0 * (double)j / (double)dim * log(theta));
}

static void expect_frequency(const mo_model_spec *spec, int64_t j, double want) {
  double got = spec->rope.inv_freq[j];
  if (!(fabs(got - want) <= 5e-7 * want)) fail_msg("frequency %d is %.9g, expected %.9g", (int)j, got, want);
}

static void default_frequencies(void **state) {
  (void)state;
  static const char *const none[] = {NULL, "null", "{\"rope_type\":\"default\"}", "{\"type\":\"default\"}", "{}"};
  for (int i = 0; i < 5; i++) {
    mo_model_spec spec = scaled(none[i]);
    assert_int_equal(spec.rope.dim, 64);
    assert_true(spec.rope.factor == 1);
    for (int64_t j = 0; j < 32; j++) expect_frequency(&spec, j, plain_frequency(150000, 64, j));
    mo_model_free(&spec);
  }
}

/* rope_theta where the key is absent. */
static void default_theta(void **state) {
  (void)state;
  static const struct {
    const char *json;
    double theta;
  } cases[] = {{llama, 1e4},   {qwen3, 1e4},      {qwen3_moe, 1e4}, {olmoe, 1e4},
               {mixtral, 1e6}, {qwen3_next, 1e4}, {glm4_moe, 1e4}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char *text = with(cases[i].json, "rope_theta", NULL);
    mo_model_spec spec = parsed(text);
    for (int64_t j = 0; j < spec.rope.dim / 2; j++)
      expect_frequency(&spec, j, plain_frequency(cases[i].theta, spec.rope.dim, j));
    mo_model_free(&spec);
    free(text);
  }
}

static void partial_rotation(void **state) {
  (void)state;
  static const struct {
    const char *json, *factor;
    int64_t dim;
  } cases[] = {
      {glm4_moe, "0.5", 8}, {glm4_moe, "1.0", 16}, {glm4_moe, NULL, 8}, {qwen3_next, "0.25", 4}, {qwen3_next, NULL, 4}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char *text = with(cases[i].json, "partial_rotary_factor", cases[i].factor);
    mo_model_spec spec = parsed(text);
    assert_int_equal(spec.rope.dim, cases[i].dim);
    for (int64_t j = 0; j < spec.rope.dim / 2; j++)
      expect_frequency(&spec, j, plain_frequency(cases[i].json == glm4_moe ? 1e6 : 1e7, spec.rope.dim, j));
    mo_model_free(&spec);
    free(text);
  }
}

/* Inside rope_parameters, as newer configs have it. */
static void partial_rotation_in_rope_parameters(void **state) {
  (void)state;
  char *text = edit(with(qwen3_next, "partial_rotary_factor", NULL), "rope_theta", NULL);
  text = edit(text, "rope_parameters",
              "{\"rope_type\":\"default\",\"rope_theta\":10000000.0,\"partial_rotary_factor\":0.25}");
  expect_same(text, qwen3_next);
  free(text);
}

static void linear_frequencies(void **state) {
  (void)state;
  mo_model_spec spec = scaled("{\"rope_type\":\"linear\",\"factor\":2.5}");
  assert_true(spec.rope.factor == 1);
  for (int64_t j = 0; j < 32; j++) expect_frequency(&spec, j, plain_frequency(150000, 64, j) / 2.5);
  mo_model_free(&spec);
}

/* Wavelengths shorter than original / high are kept, longer than original / low are stretched by the factor; between,
 * the frequency is interpolated linearly in original / wavelength. */
static void llama3_frequencies(void **state) {
  (void)state;
  mo_model_spec spec = scaled(
      "{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.5,\"high_freq_factor\":5.0,"
      "\"original_max_position_embeddings\":8192}");
  int kept = 0, stretched = 0, between = 0;
  for (int64_t j = 0; j < 32; j++) {
    double f = plain_frequency(150000, 64, j), turns = 8192 * f / (2 * M_PI), want;
    if (turns > 5)
      kept++, want = f;
    else if (turns < 1.5)
      stretched++, want = f / 8;
    else
      between++, want = f / 8 + (f - f / 8) * (turns - 1.5) / 3.5;
    expect_frequency(&spec, j, want);
  }
  assert_true(kept && stretched && between);
  assert_true(spec.rope.factor == 1);
  mo_model_free(&spec);
}

/* Where a frequency makes `turns` turns over `original` positions, in units of dimensions; by bisection. */
static double dimension_of(double turns, double original, double theta, double dim) {
  double low = -1000, high = 1000;
  for (int i = 0; i < 200; i++) {
    double middle = (low + high) / 2;
    if (original * pow(theta, -2 * middle / dim) / (2 * M_PI) > turns)
      low = middle;
    else
      high = middle;
  }
  return (low + high) / 2;
}

static void expect_yarn(const char *scaling, double factor, double original, bool truncate) {
  mo_model_spec spec = scaled(scaling);
  double low = dimension_of(32, original, 150000, 64), high = dimension_of(1, original, 150000, 64);
  if (truncate) low = floor(low), high = ceil(high);
  for (int64_t j = 0; j < 32; j++) {
    double f = plain_frequency(150000, 64, j), share = ((double)j - low) / (high - low);
    share = share < 0 ? 0 : share > 1 ? 1 : share;
    expect_frequency(&spec, j, f * (1 - share) + f / factor * share);
  }
  assert_true(fabs((double)spec.rope.factor - (0.1 * log(factor) + 1)) < 1e-6);
  mo_model_free(&spec);
}

static void yarn_frequencies(void **state) {
  (void)state;
  expect_yarn("{\"rope_type\":\"yarn\",\"factor\":32.0,\"original_max_position_embeddings\":4096,\"truncate\":false}",
              32, 4096, false);
  expect_yarn("{\"rope_type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":32768}", 4, 32768, true);
  expect_yarn("{\"rope_type\":\"yarn\",\"factor\":4.0}", 4, 131072,
              true); /* original length: max_position_embeddings */
}

/* Computed by hand from the definition (Peng et al. 2023): gpt_oss. */
static void yarn_of_gpt_oss(void **state) {
  (void)state;
  mo_model_spec spec = scaled(
      "{\"rope_type\":\"yarn\",\"factor\":32.0,\"beta_fast\":32.0,\"beta_slow\":1.0,"
      "\"original_max_position_embeddings\":4096,\"truncate\":false}");
  static const struct {
    int j;
    double frequency;
  } known[] = {{8, 0.0508132748}, {9, 0.0317056962}, {12, 0.00679495949}, {17, 1.29318701e-4}, {18, 3.83088124e-5}};
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) expect_frequency(&spec, known[i].j, known[i].frequency);
  assert_true(fabs((double)spec.rope.factor - 1.3465736) < 1e-6);
  mo_model_free(&spec);
}

/* gpt_oss scales by yarn although its config does not say so. */
static void yarn_by_default(void **state) {
  (void)state;
  char *silent = edit(with(gpt_oss, "rope_scaling", NULL), "rope_theta", NULL);
  expect_same(silent, gpt_oss);
  free(silent);
}

static void yarn_attention_factors(void **state) {
  (void)state;
  static const struct {
    const char *keys;
    double factor;
  } cases[] = {
      {"\"attention_factor\":0.75", 0.75},
      {"\"mscale\":0.707,\"mscale_all_dim\":0.707", 1},
      {"\"mscale\":1.0,\"mscale_all_dim\":0.5", (0.1 * 1.3862943611 + 1) / (0.05 * 1.3862943611 + 1)},
      {"\"mscale\":2.0", 0.1 * 1.3862943611 + 1},
      {"\"attention_factor\":null", 0.1 * 1.3862943611 + 1},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char scaling[200];
    snprintf(scaling, sizeof scaling, "{\"rope_type\":\"yarn\",\"factor\":4.0,%s}", cases[i].keys);
    mo_model_spec spec = scaled(scaling);
    assert_true(fabs((double)spec.rope.factor - cases[i].factor) < 1e-6);
    mo_model_free(&spec);
  }
}

static void scalings_that_make_no_sense(void **state) {
  (void)state;
  static const struct {
    const char *scaling, *part, *other;
  } cases[] = {
      {"3", "rope_scaling", "not an object"},
      {"[]", "rope_scaling", "not an object"},
      {"{\"rope_type\":3}", "rope_type", "not a string"},
      {"{\"rope_type\":\"longrope\",\"factor\":2}", "longrope", "default, linear, llama3, yarn"},
      {"{\"rope_type\":\"dynamic\",\"factor\":2}", "dynamic", "not supported"},
      {"{\"rope_type\":\"linear\",\"factor\":0}", "factor", "expected"},
      {"{\"rope_type\":\"linear\",\"factor\":-2}", "factor", "expected"},
      {"{\"rope_type\":\"linear\",\"factor\":\"2\"}", "factor", "not a number"},
      {"{\"rope_type\":\"linear\",\"factor\":1e300}", "factor", "expected"},
      {"{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":1}", "high_freq_factor",
       "low_freq_factor"},
      {"{\"rope_type\":\"linear\"}", "factor", "is missing"},
      {"{\"rope_type\":\"yarn\",\"beta_fast\":32}", "factor", "is missing"},
      {"{\"rope_type\":\"llama3\",\"factor\":8}", "low_freq_factor", "is missing"},
      {"{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1}", "high_freq_factor", "is missing"},
      {"{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":0}", "low_freq_factor", "expected"},
      {"{\"rope_type\":\"llama3\",\"factor\":8,\"original_max_position_embeddings\":0}",
       "original_max_position_embeddings", "expected"},
      {"{\"rope_type\":\"yarn\",\"factor\":8,\"beta_fast\":-1}", "beta_fast", "expected"},
      {"{\"rope_type\":\"yarn\",\"factor\":8,\"beta_slow\":\"1\"}", "beta_slow", "not a number"},
      {"{\"rope_type\":\"yarn\",\"factor\":8,\"truncate\":1}", "truncate", "not true or false"},
      {"{\"rope_type\":\"yarn\",\"factor\":8,\"attention_factor\":-1}", "attention_factor", "expected"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char *text = with(base, "rope_scaling", cases[i].scaling);
    expect_refused(text, cases[i].part, cases[i].other);
    free(text);
  }
}

/* Whatever is accepted has finite, positive, falling frequencies. */
static void frequencies_are_always_usable(void **state) {
  (void)state;
  static const char *const scalings[] = {
      "{\"rope_type\":\"yarn\",\"factor\":32.0,\"beta_fast\":1.0,\"beta_slow\":1.0}",
      "{\"rope_type\":\"yarn\",\"factor\":1000000.0,\"original_max_position_embeddings\":1}",
      "{\"rope_type\":\"yarn\",\"factor\":0.001,\"original_max_position_embeddings\":1000000000000}",
      "{\"rope_type\":\"yarn\",\"factor\":8.0,\"beta_fast\":0.001,\"beta_slow\":1000}",
      "{\"rope_type\":\"llama3\",\"factor\":1000000.0,\"low_freq_factor\":0.001,\"high_freq_factor\":1000000}",
      "{\"rope_type\":\"linear\",\"factor\":1000000.0}",
  };
  for (size_t i = 0; i < sizeof scalings / sizeof scalings[0]; i++) {
    mo_model_spec spec = scaled(scalings[i]);
    for (int64_t j = 0; j < 32; j++) {
      double f = spec.rope.inv_freq[j];
      if (!(f > 0 && isfinite(f))) fail_msg("frequency %d is %g with %s", (int)j, f, scalings[i]);
    }
    assert_true(isfinite(spec.rope.factor) && spec.rope.factor > 0);
    mo_model_free(&spec);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(default_frequencies),
      cmocka_unit_test(default_theta),
      cmocka_unit_test(partial_rotation),
      cmocka_unit_test(partial_rotation_in_rope_parameters),
      cmocka_unit_test(linear_frequencies),
      cmocka_unit_test(llama3_frequencies),
      cmocka_unit_test(yarn_frequencies),
      cmocka_unit_test(yarn_of_gpt_oss),
      cmocka_unit_test(yarn_by_default),
      cmocka_unit_test(yarn_attention_factors),
      cmocka_unit_test(scalings_that_make_no_sense),
      cmocka_unit_test(frequencies_are_always_usable),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
