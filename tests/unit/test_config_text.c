/* The text of a config as run reads back as the same config, to the last bit, without overrides. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "moe_outliers/config.h"

static void assert_same(const mo_config *a, const mo_config *b) {
  assert_string_equal(a->model.name, b->model.name);
  assert_string_equal(a->model.path, b->model.path);
  assert_string_equal(a->model.config, b->model.config);
  assert_string_equal(a->data.tokens, b->data.tokens);
  assert_int_equal(a->data.sequences, b->data.sequences);
  assert_int_equal(a->data.length, b->data.length);
  assert_int_equal(a->data.skip, b->data.skip);
  assert_memory_equal(&a->analysis.threshold, &b->analysis.threshold, sizeof(double));
  assert_int_equal(a->analysis.n_thresholds, b->analysis.n_thresholds);
  assert_memory_equal(a->analysis.thresholds, b->analysis.thresholds,
                      (size_t)a->analysis.n_thresholds * sizeof(double));
  assert_memory_equal(&a->analysis.min_layer_fraction, &b->analysis.min_layer_fraction, sizeof(double));
  assert_memory_equal(&a->analysis.min_position_fraction, &b->analysis.min_position_fraction, sizeof(double));
  assert_memory_equal(&a->analysis.systematic_fraction, &b->analysis.systematic_fraction, sizeof(double));
  assert_int_equal(a->analysis.bootstrap, b->analysis.bootstrap);
  assert_true(a->analysis.seed == b->analysis.seed);
  assert_int_equal(a->analysis.perplexity, b->analysis.perplexity);
  assert_int_equal(a->engine.device, b->engine.device);
  assert_int_equal(a->engine.precision, b->engine.precision);
  assert_memory_equal(&a->engine.device_memory_gb, &b->engine.device_memory_gb, sizeof(double));
  assert_memory_equal(&a->engine.host_memory_gb, &b->engine.host_memory_gb, sizeof(double));
  assert_int_equal(a->engine.verify, b->engine.verify);
  assert_int_equal(a->engine.micro_batch, b->engine.micro_batch);
  assert_int_equal(a->engine.partition, b->engine.partition);
  assert_int_equal(a->engine.readers, b->engine.readers);
  assert_int_equal(a->engine.threads, b->engine.threads);
  assert_true(a->engine.checkpoint_seconds == b->engine.checkpoint_seconds);
  assert_string_equal(a->engine.cache, b->engine.cache);
  assert_true(a->engine.network_patience == b->engine.network_patience);
  assert_string_equal(a->output.path, b->output.path);
  assert_int_equal(a->output.all_activations, b->output.all_activations);
  assert_int_equal(a->output.n_activations, b->output.n_activations);
  for (int64_t i = 0; i < a->output.n_activations; i++)
    assert_int_equal(a->output.activations[i], b->output.activations[i]);
  assert_int_equal(a->output.overwrite, b->output.overwrite);
  assert_int_equal(a->output.mpi_io, b->output.mpi_io);
  assert_string_equal(a->text, b->text);
}

static mo_config parsed(const char *text, const char *const *overrides, int n, bool for_run) {
  mo_config config;
  if (mo_config_parse(&config, text, "test.cfg", NULL, overrides, n, for_run) != MO_OK)
    fail_msg("%s", mo_error_message());
  return config;
}

static void check_round_trip(const char *text, const char *const *overrides, int n, bool for_run) {
  mo_config first = parsed(text, overrides, n, for_run);
  mo_config second = parsed(first.text, NULL, 0, for_run);
  assert_same(&first, &second);
  mo_config_free(&first);
  mo_config_free(&second);
}

static void test_round_trip_of_defaults(void **state) {
  (void)state;
  check_round_trip("model: { path = \"m\"; }; data: { tokens = \"t\"; }; output: { path = \"o\"; };", NULL, 0, true);
}

static void test_round_trip_of_a_plan(void **state) {
  (void)state;
  check_round_trip("model: { path = \"m\"; };", NULL, 0, false);
}

static void test_round_trip_of_overrides_and_hard_values(void **state) {
  (void)state;
  const char *const overrides[] = {"analysis.threshold=0.1000000000000000055511151231257827",
                                   "analysis.min_layer_fraction=0.30000000000000004",
                                   "analysis.min_position_fraction=2.2250738585072014e-308",
                                   "engine.device_memory_gb=1e3",
                                   "analysis.seed=9007199254740991L",
                                   "output.activations=5,3,1000",
                                   "output.path=\"quote \\\" backslash \\\\ \xe2\x82\xac\"",
                                   "engine.device=check",
                                   "engine.partition=contiguous",
                                   "output.overwrite=true",
                                   "output.mpi_io=off",
                                   "deployment.max_price=4.99",
                                   "deployment.gpu_filter=H100"};
  check_round_trip("model: { path = \"m\"; }; data: { tokens = \"t\"; };", overrides, 13, true);
}

static void test_round_trip_of_all_activations(void **state) {
  (void)state;
  const char *const overrides[] = {"output.activations=all"};
  check_round_trip("model: { path = \"m\"; };", overrides, 1, false);
}

static void test_floats_take_no_more_digits_than_needed(void **state) {
  (void)state;
  const char *const overrides[] = {"analysis.min_layer_fraction=0.1", "analysis.threshold=6"};
  mo_config config = parsed("model: { path = \"m\"; };", overrides, 2, false);
  assert_non_null(strstr(config.text, "  min_layer_fraction = 0.1;\n"));
  assert_non_null(strstr(config.text, "  threshold = 6.0;\n"));
  mo_config_free(&config);
}

static void test_text_has_overrides_defaults_and_deployment(void **state) {
  (void)state;
  const char *const overrides[] = {"data.length=7"};
  mo_config config =
      parsed("model: { path = \"m\"; }; data: { length = 8; }; deployment: { gpus = 2; };", overrides, 1, false);
  assert_non_null(strstr(config.text, "  length = 7;\n"));
  assert_non_null(strstr(config.text, "  sequences = 16;\n"));
  assert_non_null(strstr(config.text, "  gpus = 2;\n"));
  assert_null(strstr(config.text, "container_disk_gb"));
  assert_null(strstr(config.text, "tokens"));
  mo_config_free(&config);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip_of_defaults),
      cmocka_unit_test(test_round_trip_of_a_plan),
      cmocka_unit_test(test_round_trip_of_overrides_and_hard_values),
      cmocka_unit_test(test_round_trip_of_all_activations),
      cmocka_unit_test(test_floats_take_no_more_digits_than_needed),
      cmocka_unit_test(test_text_has_overrides_defaults_and_deployment),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
