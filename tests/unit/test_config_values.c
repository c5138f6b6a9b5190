/* Config text to struct: defaults, types, lists, includes from files. */
#include <float.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "moe_outliers/config.h"

static const char DESIGN[] =
    "model:    { name = \"zai-org/GLM-4.5-Air\"; path = \"models/GLM-4.5-Air\"; config = \"g.json\"; };\n"
    "data:     { tokens = \"data/glm.h5\"; sequences = 12; length = 1024; skip = 3; };\n"
    "analysis: { threshold = 5.5; min_layer_fraction = 0.5; min_position_fraction = 0.125; systematic_fraction = 0.75; "
    "            bootstrap = 77; seed = 9007199254740991L; perplexity = false; };\n"
    "engine:   { device = \"cuda\"; precision = \"fp32\"; device_memory_gb = 7.25; host_memory_gb = 0.5; micro_batch = "
    "4;\n"
    "            partition = \"interleaved\"; readers = 2; threads = 3; verify = true; checkpoint_seconds = 1.5;\n"
    "            cache = \"kept\"; network_patience = 7.5; };\n"
    "output:   { path = \"results/glm.h5\"; activations = ( 7, 0, 7, 2 ); overwrite = true; mpi_io = \"off\"; };\n"
    "deployment: { gpus = 2; gpu_filter = \"H100\"; max_price = 5.0; container_disk_gb = 250; };\n";

#define MODEL_DATA "model: { path = \"m\"; }; data: { tokens = \"t\"; }; "

static void parse(mo_config *config, const char *text) {
  if (mo_config_parse(config, text, "test.cfg", NULL, NULL, 0, true) != MO_OK) fail_msg("%s", mo_error_message());
}

static void test_every_key_reaches_its_member(void **state) {
  (void)state;
  mo_config c;
  parse(&c, DESIGN);
  assert_string_equal(c.model.name, "zai-org/GLM-4.5-Air");
  assert_string_equal(c.model.path, "models/GLM-4.5-Air");
  assert_string_equal(c.model.config, "g.json");
  assert_string_equal(c.data.tokens, "data/glm.h5");
  assert_int_equal(c.data.sequences, 12);
  assert_int_equal(c.data.length, 1024);
  assert_int_equal(c.data.skip, 3);
  assert_true(c.analysis.threshold == 5.5);
  assert_true(c.analysis.min_layer_fraction == 0.5);
  assert_true(c.analysis.min_position_fraction == 0.125);
  assert_true(c.analysis.systematic_fraction == 0.75);
  assert_int_equal(c.analysis.bootstrap, 77);
  assert_true(c.analysis.seed == INT64_C(9007199254740991));
  assert_false(c.analysis.perplexity);
  assert_int_equal(c.engine.device, MO_DEVICE_CUDA);
  assert_int_equal(c.engine.precision, MO_PRECISION_FP32);
  assert_true(c.engine.device_memory_gb == 7.25);
  assert_true(c.engine.host_memory_gb == 0.5);
  assert_true(c.engine.verify);
  assert_int_equal(c.engine.micro_batch, 4);
  assert_int_equal(c.engine.partition, MO_PARTITION_INTERLEAVED);
  assert_int_equal(c.engine.readers, 2);
  assert_int_equal(c.engine.threads, 3);
  assert_true(c.engine.checkpoint_seconds == 1.5);
  assert_string_equal(c.engine.cache, "kept");
  assert_true(c.engine.network_patience == 7.5);
  assert_string_equal(c.output.path, "results/glm.h5");
  assert_true(c.output.overwrite);
  assert_int_equal(c.output.mpi_io, MO_TOGETHER_OFF);
  assert_string_equal(c.directory, ".");
  mo_config_free(&c);
}

static void test_defaults(void **state) {
  (void)state;
  mo_config c;
  parse(&c, MODEL_DATA "output: { path = \"o\"; };\n");
  assert_string_equal(c.model.name, "");
  assert_int_equal(c.data.sequences, 16);
  assert_int_equal(c.data.length, 2048);
  assert_int_equal(c.data.skip, 0);
  assert_true(c.analysis.threshold == 6.0);
  assert_true(c.analysis.min_layer_fraction == 0.25);
  assert_true(c.analysis.min_position_fraction == 0.06);
  assert_true(c.analysis.systematic_fraction == 1.0);
  assert_int_equal(c.analysis.bootstrap, 10000);
  assert_int_equal(c.analysis.seed, 0);
  assert_true(c.analysis.perplexity);
  assert_int_equal(c.engine.device, MO_DEVICE_AUTO);
  assert_int_equal(c.engine.precision, MO_PRECISION_BF16);
  assert_true(c.engine.device_memory_gb == 0.0);
  assert_true(c.engine.host_memory_gb == 0.0);
  assert_false(c.engine.verify);
  assert_int_equal(c.engine.micro_batch, 0);
  assert_int_equal(c.engine.partition, MO_PARTITION_AUTO);
  assert_int_equal(c.engine.readers, 0);
  assert_int_equal(c.engine.threads, 0);
  assert_true(c.engine.checkpoint_seconds == 30);
  assert_string_equal(c.engine.cache, "");
  assert_true(c.engine.network_patience == 600);
  assert_int_equal(c.output.n_activations, 0);
  assert_null(c.output.activations);
  assert_false(c.output.all_activations);
  assert_false(c.output.overwrite);
  assert_int_equal(c.output.mpi_io, MO_TOGETHER_AUTO);
  mo_config_free(&c);
}

/* One of them gives the other. */
static void test_thresholds(void **state) {
  (void)state;
  mo_config c;
  parse(&c, MODEL_DATA "output: { path = \"o\"; };\nanalysis: { threshold = 5.5; };\n");
  assert_int_equal(c.analysis.n_thresholds, 1);
  assert_true(c.analysis.thresholds[0] == 5.5);
  mo_config_free(&c);
  const char *const more[] = {"", "threshold = 7.5; "};
  for (int i = 0; i < 2; i++) {
    char text[256];
    snprintf(text, sizeof text,
             MODEL_DATA "output: { path = \"o\"; };\nanalysis: { %sthresholds = ( 7.5, 4, 1e3 ); };\n", more[i]);
    parse(&c, text);
    assert_int_equal(c.analysis.n_thresholds, 3);
    assert_true(c.analysis.thresholds[0] == 7.5 && c.analysis.thresholds[1] == 4 && c.analysis.thresholds[2] == 1000);
    assert_true(c.analysis.threshold == 7.5);
    mo_config_free(&c);
  }
}

static void test_activations_are_sorted_and_distinct(void **state) {
  (void)state;
  mo_config c;
  parse(&c, DESIGN);
  assert_int_equal(c.output.n_activations, 3);
  assert_int_equal(c.output.activations[0], 0);
  assert_int_equal(c.output.activations[1], 2);
  assert_int_equal(c.output.activations[2], 7);
  assert_false(c.output.all_activations);
  mo_config_free(&c);
}

static void test_activations_all_and_array(void **state) {
  (void)state;
  mo_config c;
  parse(&c, MODEL_DATA "output: { path = \"o\"; activations = \"all\"; };");
  assert_true(c.output.all_activations);
  assert_int_equal(c.output.n_activations, 0);
  mo_config_free(&c);
  parse(&c, MODEL_DATA "output: { path = \"o\"; activations = [ 5, 4 ]; };");
  assert_int_equal(c.output.n_activations, 2);
  assert_int_equal(c.output.activations[0], 4);
  mo_config_free(&c);
}

static void test_whole_number_is_accepted_for_a_float(void **state) {
  (void)state;
  mo_config c;
  parse(&c, MODEL_DATA "output: { path = \"o\"; }; analysis: { threshold = 5; };");
  assert_true(c.analysis.threshold == 5.0);
  mo_config_free(&c);
}

static void test_ends_of_ranges_are_accepted(void **state) {
  (void)state;
  mo_config c;
  parse(&c,
        "model: { path = \"m\"; }; data: { tokens = \"t\"; sequences = 1048576; length = 1; skip = 2147483647; };"
        "output: { path = \"o\"; activations = ( 0, 65535 ); };"
        "analysis: { threshold = 1e-30; min_layer_fraction = 0; min_position_fraction = 1; bootstrap = 0; };"
        "engine: { micro_batch = 1048576; readers = 256; threads = 256; device_memory_gb = 10000; host_memory_gb = "
        "10000; "
        "          device = \"check\"; };");
  assert_int_equal(c.data.sequences, 1048576);
  assert_true(c.analysis.threshold == 1e-30);
  assert_int_equal(c.engine.device, MO_DEVICE_CHECK);
  mo_config_free(&c);
}

static void test_plan_needs_only_the_model(void **state) {
  (void)state;
  mo_config c;
  assert_int_equal(mo_config_parse(&c, "model: { path = \"m\"; };", "test.cfg", NULL, NULL, 0, false), MO_OK);
  assert_string_equal(c.data.tokens, "");
  assert_string_equal(c.output.path, "");
  mo_config_free(&c);
}

static void test_failure_leaves_nothing(void **state) {
  (void)state;
  mo_config c, zero;
  memset(&zero, 0, sizeof zero);
  static const char text[] = "model: { path = \"m\"; }; engine: { micro_batch = 17; };";
  assert_int_equal(mo_config_parse(&c, text, "test.cfg", NULL, NULL, 0, false), MO_INVALID);
  assert_memory_equal(&c, &zero, sizeof c);
  mo_error_clear();
}

static void test_names(void **state) {
  (void)state;
  assert_string_equal(mo_precision_name(MO_PRECISION_BF16), "bf16");
  assert_string_equal(mo_precision_name(MO_PRECISION_FP32), "fp32");
  assert_string_equal(mo_device_choice_name(MO_DEVICE_CHECK), "check");
  assert_string_equal(mo_partition_name(MO_PARTITION_CONTIGUOUS), "contiguous");
}

static void test_help_lists_every_key_of_the_design(void **state) {
  (void)state;
  static const char *const keys[] = {"model.name",    "data.tokens",        "analysis.threshold",
                                     "engine.device", "output.activations", "deployment.gpus"};
  char *help = mo_config_help();
  assert_non_null(help);
  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) assert_non_null(strstr(help, keys[i]));
  free(help);
}

static void write_file(const char *path, const char *text) {
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fputs(text, file);
  assert_int_equal(fclose(file), 0);
}

static void test_file_and_include_relative_to_its_folder(void **state) {
  (void)state;
  char folder[] = "/tmp/mo_config_XXXXXX", main_path[64], part_path[64];
  assert_non_null(mkdtemp(folder));
  snprintf(main_path, sizeof main_path, "%s/main.cfg", folder);
  snprintf(part_path, sizeof part_path, "%s/part.cfg", folder);
  write_file(main_path, "  @include \"part.cfg\"\nmodel: { path = \"m\"; };\n");
  write_file(part_path, "data: { length = 99; };\n");
  mo_config c;
  assert_int_equal(mo_config_read(&c, main_path, NULL, 0, false), MO_OK);
  assert_int_equal(c.data.length, 99);
  assert_string_equal(c.directory, folder);
  assert_null(strstr(c.text, "@include"));
  mo_config_free(&c);
  unlink(main_path);
  unlink(part_path);
  rmdir(folder);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_key_reaches_its_member),
      cmocka_unit_test(test_defaults),
      cmocka_unit_test(test_thresholds),
      cmocka_unit_test(test_activations_are_sorted_and_distinct),
      cmocka_unit_test(test_activations_all_and_array),
      cmocka_unit_test(test_whole_number_is_accepted_for_a_float),
      cmocka_unit_test(test_ends_of_ranges_are_accepted),
      cmocka_unit_test(test_plan_needs_only_the_model),
      cmocka_unit_test(test_failure_leaves_nothing),
      cmocka_unit_test(test_names),
      cmocka_unit_test(test_help_lists_every_key_of_the_design),
      cmocka_unit_test(test_file_and_include_relative_to_its_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
