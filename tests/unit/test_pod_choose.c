/* The choice of GPUs: against the plan command, and condition by condition. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "moe_outliers/plan.h"
#include "pod/pod.h"

#define SECURE .secure = true, .available = 3
static const pod_gpu_type TYPES[] = {
    {"NVIDIA GeForce RTX 4090", "RTX 4090", 24, SECURE, .community = true, .price_secure = 0.69,
     .price_community = 0.34, .most_secure = 8, .most_community = 4, .data_centers = {"EU-RO-1", "US-KS-2"},
     .n_data_centers = 2},
    {"NVIDIA RTX A4000", "RTX A4000", 16, SECURE, .price_secure = 0.25, .most_secure = 8},
    {"NVIDIA A40", "A40", 48, SECURE, .price_secure = 0.40, .most_secure = 10, .data_centers = {"US-KS-2"},
     .n_data_centers = 1},
    {"NVIDIA H100 80GB HBM3", "H100 SXM", 80, SECURE, .price_secure = 2.99, .most_secure = 8},
    {"NVIDIA H100 PCIe", "H100 PCIe", 80, .secure = true, .price_secure = 2.39, .most_secure = 8, .available = 0},
    {"NVIDIA Future X1", "X1", 192, SECURE, .price_secure = 9.99, .most_secure = 4},
};
enum { N_TYPES = sizeof TYPES / sizeof TYPES[0] };

#define ANY "deployment.gpu_filter=", "deployment.min_vram_gb=0", "deployment.max_price=0"

static pod_need read_need(const char *config, const char *const *overrides, int n) {
  pod_need need;
  if (pod_need_read(&need, config, overrides, n) != MO_OK) fail_msg("%s", mo_error_message());
  return need;
}

static pod_choice *choose_for(const char *config, const char *const *overrides, int n, const pod_limits *limits,
                              int *n_choices) {
  pod_choice *choices;
  pod_need need = read_need(config, overrides, n);
  if (pod_choose(&need, TYPES, N_TYPES, limits, &choices, n_choices) != MO_OK) fail_msg("%s", mo_error_message());
  pod_need_free(&need);
  return choices;
}

/* For the demo, which is planned in no time. */
static pod_choice *choose(const char *const *overrides, int n, const pod_limits *limits, int *n_choices) {
  return choose_for("configs/demo.cfg", overrides, n, limits, n_choices);
}

static void expect_none(const char *const *overrides, int n, const pod_limits *limits, const char *text) {
  pod_choice *choices;
  int n_choices;
  pod_need need = read_need("configs/03_qwen3_30b.cfg", overrides, n);
  assert_int_equal(pod_choose(&need, TYPES, N_TYPES, limits, &choices, &n_choices), MO_INVALID);
  if (!strstr(mo_error_message(), text)) fail_msg("got \"%s\", not \"%s\"", mo_error_message(), text);
  mo_error_clear();
  pod_need_free(&need);
}

/* --- the need --- */

static void test_need(void **state) {
  (void)state;
  pod_need need = read_need("configs/03_qwen3_30b.cfg", NULL, 0);
  assert_string_equal(need.key, "03_qwen3_30b");
  assert_true(need.weight_bytes > 61000000000 && need.weight_bytes < 61100000000);
  assert_int_equal(need.disk_gb, 90); /* deployment.container_disk_gb */
  assert_false(need.synthetic);
  assert_string_equal(pod_image(&need), "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404");
  pod_need_free(&need);

  const char *const small[] = {"deployment.container_disk_gb=10", "deployment.image=mine:1"};
  need = read_need("configs/03_qwen3_30b.cfg", small, 2);
  assert_int_equal(need.disk_gb, 77); /* the weights and what lies beside them */
  assert_string_equal(pod_image(&need), "mine:1");
  pod_need_free(&need);

  const char *const random[] = {"model.path=synthetic:0", "deployment.container_disk_gb=0"};
  need = read_need("configs/03_qwen3_30b.cfg", random, 2);
  assert_true(need.synthetic);
  assert_int_equal(need.disk_gb, 15);
  pod_need_free(&need);

  const char *const cloud[] = {"deployment.cloud_type=private"};
  assert_int_equal(pod_need_read(&need, "configs/03_qwen3_30b.cfg", cloud, 1), MO_INVALID);
  assert_string_equal(mo_error_message(),
                      "deployment.cloud_type is \"private\" (configs/03_qwen3_30b.cfg): give secure, community or all");
  mo_error_clear();
  assert_int_equal(pod_need_read(&need, "configs/none.cfg", NULL, 0), MO_INVALID);
  mo_error_clear();
}

/* --- the expected minutes and dollars --- */

/* What `moe-outliers plan` says of as many GPUs of that memory, in seconds. */
static double planned(const char *gpu, int gpus, double vram) {
  char filter[200], *text = NULL;
  size_t size;
  snprintf(filter, sizeof filter, "deployment.gpu_filter=%s", gpu);
  const char *const overrides[] = {filter};
  mo_config config;
  const mo_plan_options options = {.n_ranks = gpus, .vram_gb = vram, .json = true};
  assert_int_equal(mo_config_read(&config, "configs/03_qwen3_30b.cfg", overrides, 1, false), MO_OK);
  FILE *out = open_memstream(&text, &size);
  assert_int_equal(mo_plan_command(&config, &options, out), MO_OK);
  fclose(out);
  json_t *plan = json_loads(text, 0, NULL);
  double seconds = json_number_value(json_object_get(json_object_get(plan, "time"), "seconds"));
  json_decref(plan);
  free(text);
  mo_config_free(&config);
  return seconds;
}

static void test_as_the_plan_says(void **state) {
  (void)state;
  const char *const any[] = {ANY, "deployment.gpus=2", "deployment.min_vram_gb=40"};
  const pod_limits limits = {0};
  int n;
  pod_choice *choices = choose_for("configs/03_qwen3_30b.cfg", any, 5, &limits, &n);
  assert_int_equal(n, 8);
  for (int i = 0; i < n; i++) {
    const pod_choice *c = choices + i;
    assert_true(fabs(c->minutes - c->setup - c->download - c->run - c->fetch) < 1e-9);
    assert_true(fabs(c->dollars - c->price * c->minutes / 60) < 1e-9);
    assert_true(fabs(c->download - 61.064 / 0.3 / 60) < 0.01);
    if (strcmp(c->name, "X1") == 0) continue; /* the plan knows no such GPU */
    double seconds = planned(c->name, c->gpus, c->memory_gb);
    if (fabs(60 * c->run - seconds) > 1e-6 * seconds)
      fail_msg("%d %s: %g s, not %g", c->gpus, c->name, 60 * c->run, seconds);
  }
  free(choices);
}

/* A type that nobody knows is not taken for a fast one. */
static void test_unknown_gpu(void **state) {
  (void)state;
  const char *const unknown[] = {"deployment.gpu_filter=X1", "deployment.max_price=0"},
                    *const known[] = {"deployment.gpu_filter=H100", "deployment.max_price=0"};
  const pod_limits limits = {0};
  int n;
  pod_choice *slow = choose_for("configs/03_qwen3_30b.cfg", unknown, 2, &limits, &n),
             *fast = choose_for("configs/03_qwen3_30b.cfg", known, 2, &limits, &n);
  assert_true(slow[0].run > fast[0].run);
  free(slow);
  free(fast);
}

/* --- order and conditions --- */

static void test_order(void **state) {
  (void)state;
  const char *const any[] = {ANY, "deployment.gpus=2"};
  const pod_limits limits = {0};
  int n, i = 1;
  pod_choice *choices = choose(any, 4, &limits, &n);
  assert_int_equal(n, 12);
  assert_string_equal(choices[0].name, "RTX A4000");
  for (; i < n && choices[i].available != 0 && choices[i].gpus == 2; i++)
    assert_true(choices[i].dollars >= choices[i - 1].dollars);
  assert_int_equal(i, 5); /* two of each with stock; then one of each; those without stock last */
  for (i++; i < n && choices[i].available != 0; i++)
    assert_true(choices[i].gpus == 1 && choices[i].dollars >= choices[i - 1].dollars);
  assert_int_equal(i, 10);
  assert_string_equal(choices[10].name, "H100 PCIe");
  assert_int_equal(choices[10].gpus, 2);
  assert_int_equal(choices[11].gpus, 1);
  free(choices);
}

static void test_conditions(void **state) {
  (void)state;
  int n;
  const pod_limits none = {0}, cheap = {.max_price = 0.4}, community = {.community = true};
  const char *const filter[] = {ANY, "deployment.gpu_filter=rtx 4090", "deployment.gpus=1"};
  pod_choice *choices = choose(filter, 5, &none, &n);
  assert_int_equal(n, 1);
  assert_string_equal(choices[0].gpu, "NVIDIA GeForce RTX 4090");
  assert_false(choices[0].community);
  assert_true(choices[0].price == 0.69);
  assert_int_equal(choices[0].n_data_centers, 2);
  free(choices);

  choices = choose(filter, 5, &community, &n);
  assert_int_equal(n, 2);
  assert_true(choices[0].community && choices[0].price == 0.34 && !choices[1].community);
  free(choices);

  const char *const vram[] = {ANY, "deployment.min_vram_gb=48", "deployment.gpus=1"};
  choices = choose(vram, 5, &none, &n);
  for (int i = 0; i < n; i++) assert_true(choices[i].memory_gb >= 48);
  assert_int_equal(n, 4);
  free(choices);

  const char *const price[] = {ANY, "deployment.max_price=0.8", "deployment.gpus=2"}; /* of all GPUs together */
  choices = choose(price, 5, &none, &n);
  for (int i = 0; i < n; i++) assert_true(choices[i].price <= 0.8);
  assert_string_equal(choices[0].name, "RTX A4000");
  assert_int_equal(n, 5);
  free(choices);
  choices = choose(price, 5, &cheap, &n); /* of one; takes the other's place */
  assert_int_equal(n, 4);
  free(choices);

  const char *const place[] = {ANY, "deployment.data_center=ks", "deployment.gpus=1"};
  choices = choose(place, 5, &none, &n);
  assert_int_equal(n, 2);
  assert_int_equal(choices[0].n_data_centers, 1);
  assert_string_equal(choices[0].data_centers[0], "US-KS-2");
  free(choices);
}

static void test_clusters(void **state) {
  (void)state;
  const char *const sixteen[] = {ANY, "deployment.gpus=16"}, *const nine[] = {ANY, "deployment.gpus=9"};
  const pod_limits limits = {0};
  int n;
  pod_choice *choices = choose(sixteen, 4, &limits, &n);
  assert_string_equal(choices[0].name, "RTX A4000");
  assert_true(choices[0].pods == 2 && choices[0].gpus == 8 && fabs(choices[0].price - 16 * 0.25) < 1e-9);
  for (int i = 0; i < n; i++) {
    bool small = strcmp(choices[i].name, "X1") == 0; /* 4 GPUs of a pod at most */
    if (choices[i].pods > 1) assert_true(choices[i].pods == (small ? 4 : 2) && choices[i].gpus == (small ? 4 : 8));
  }
  free(choices);
  choices = choose(nine, 4, &limits, &n);
  assert_string_equal(choices[0].name,
                      "A40"); /* which has nine in one machine; three times three of others would cost less */
  assert_int_equal(choices[0].pods, 1);
  assert_string_equal(choices[1].name, "RTX A4000");
  assert_true(choices[1].pods == 3 && choices[1].gpus == 3 && choices[1].dollars < choices[0].dollars);
  free(choices);
}

static void test_none(void **state) {
  (void)state;
  const pod_limits none = {0}, cheap = {.max_price = 0.1};
  const char *const filter[] = {"deployment.gpu_filter=Z9"}, *const memory[] = {ANY, "engine.device_memory_gb=500"},
                    *const place[] = {"deployment.data_center=MARS"}, *const vram[] = {"deployment.min_vram_gb=30"};
  expect_none(NULL, 0, &cheap,
              "6 above the price (configs/03_qwen3_30b.cfg): with --max-price 0.69, 1 x RTX 4090 at $0.69 per hour "
              "would do (secure cloud)");
  expect_none(filter, 1, &none, "6 not of deployment.gpu_filter");
  expect_none(filter, 1, &none, "with -s deployment.gpu_filter=\"A40\", 1 x A40 at $0.40 per hour would do");
  expect_none(memory, 4, &none, "6 too small for the plan (configs/03_qwen3_30b.cfg): GPUs of at least 500.000 GB");
  expect_none(place, 1, &none, "not in deployment.data_center");
  expect_none(place, 1, &none, "with another deployment.data_center than MARS, 1 x RTX 4090");
  expect_none(vram, 1, &none, "below deployment.min_vram_gb");
  const char *const sequences[] = {ANY, "data.sequences=4000", "deployment.gpu_filter=A4000"};
  expect_none(sequences, 5, &none, "too small for the plan (configs/03_qwen3_30b.cfg): GPUs of at least 370.");
}

int main(void) {
  const char *source = getenv("SOURCE_DIR");
  if (!source || chdir(source) != 0) return 77;
  unsetenv("MOE_POD_IMAGE");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_need),  cmocka_unit_test(test_as_the_plan_says), cmocka_unit_test(test_unknown_gpu),
      cmocka_unit_test(test_order), cmocka_unit_test(test_conditions),       cmocka_unit_test(test_clusters),
      cmocka_unit_test(test_none),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
