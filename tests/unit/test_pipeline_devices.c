/* The choice of GPUs from what ranks say of themselves; alone and on several ranks: ranks: 3. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "moe_outliers/devices.h"

enum { MOST = 8 };
static mo_rank_device ranks[MOST];
static mo_comm *comm;

/* Rank i on `host` sees `visible` GPUs and would take the one called `id`. */
static void rank_is(int i, const char *host, int visible, int id) {
  ranks[i] = (mo_rank_device){.rank = i, .visible = visible};
  snprintf(ranks[i].host, sizeof ranks[i].host, "%s", host);
  ranks[i].id[15] = (uint8_t)id;
}

static void expect_gpus(mo_device_choice choice, int n, bool want) {
  bool gpus = !want;
  assert_int_equal(mo_devices_check(choice, ranks, n, &gpus), MO_OK);
  assert_int_equal(gpus, want);
}

static void expect_refused(mo_device_choice choice, int n, const char *const *parts) {
  bool gpus;
  mo_error_clear();
  assert_int_equal(mo_devices_check(choice, ranks, n, &gpus), MO_INVALID);
  for (; *parts; parts++)
    if (!strstr(mo_error_message(), *parts)) fail_msg("\"%s\" lacks \"%s\"", mo_error_message(), *parts);
  mo_error_clear();
}
#define REFUSED(choice, n, ...) expect_refused(choice, n, (const char *const[]){__VA_ARGS__, NULL})

static void a_gpu_for_each_rank(void **state) {
  (void)state;
  rank_is(0, "a", 2, 1); /* all GPUs of the node visible */
  rank_is(1, "a", 2, 2);
  rank_is(2, "b", 1, 3); /* one each */
  rank_is(3, "b", 1, 4);
  for (int n = 1; n <= 4; n++) {
    expect_gpus(MO_DEVICE_AUTO, n, true);
    expect_gpus(MO_DEVICE_CUDA, n, true);
  }
}

static void no_gpu_anywhere(void **state) {
  (void)state;
  for (int i = 0; i < 3; i++) rank_is(i, "a", 0, 0);
  expect_gpus(MO_DEVICE_AUTO, 3, false);
  expect_gpus(MO_DEVICE_AUTO, 1, false);
  REFUSED(MO_DEVICE_CUDA, 3, "no CUDA device is visible (engine.device): ", "\"cpu\"");
}

static void gpus_on_some_ranks_only(void **state) {
  (void)state;
  rank_is(0, "a", 1, 1);
  rank_is(1, "b", 0, 0);
  for (mo_device_choice choice = MO_DEVICE_AUTO; choice <= MO_DEVICE_CUDA; choice++)
    if (choice != MO_DEVICE_CPU) REFUSED(choice, 2, "1 of 2 ranks sees no GPU: rank 1 on b (engine.device): ");
  for (int i = 1; i < 7; i++) rank_is(i, "c", 0, 0);
  REFUSED(MO_DEVICE_AUTO, 7,
          "6 of 7 ranks see no GPU: rank 1 on c, rank 2 on c, rank 3 on c, rank 4 on c and 2 more (");
  for (int i = 1; i < 7; i++) memset(ranks[i].host, 'x', sizeof ranks[i].host - 1);
  REFUSED(MO_DEVICE_AUTO, 7, "rank 4 on xxx", "and 2 more (engine.device): start");
}

static void more_ranks_than_gpus(void **state) {
  (void)state;
  rank_is(0, "a", 2, 1);
  rank_is(1, "b", 2, 5);
  rank_is(2, "b", 2, 6);
  rank_is(3, "b", 2, 5);
  expect_gpus(MO_DEVICE_CUDA, 3, true);
  REFUSED(MO_DEVICE_CUDA, 4, "ranks 1 and 3 would share a GPU: the 3 ranks on b have 2 GPUs (engine.device): ",
          "at most 2 ranks there (on one node: mpirun -np 2)", "--gpus-per-task=1");
  rank_is(1, "a", 2, 1); /* as in two containers of one node that number their ranks apart */
  REFUSED(MO_DEVICE_AUTO, 2, "ranks 0 and 1 would share a GPU: the 2 ranks on a have 1 GPU (",
          "at most 1 rank there (");
}

/* Ids that differ in any byte differ. */
static void whole_ids_are_compared(void **state) {
  (void)state;
  for (int byte = 0; byte < 16; byte++) {
    rank_is(0, "a", 1, 0);
    rank_is(1, "a", 1, 0);
    REFUSED(MO_DEVICE_CUDA, 2, "ranks 0 and 1 would share a GPU");
    ranks[1].id[byte] = 1;
    expect_gpus(MO_DEVICE_CUDA, 2, true);
  }
}

/* All ranks of this run make the same choice. */
static void ranks_agree(void **state) {
  (void)state;
  const mo_backend_table *table = NULL;
  int device = -1;
  assert_int_equal(mo_devices_choose(comm, MO_DEVICE_CPU, &table, &device), MO_OK);
  assert_ptr_equal(table, &mo_backend_cpu);
  assert_int_equal(device, 0);
  assert_int_equal(mo_devices_choose(comm, MO_DEVICE_CHECK, &table, &device), MO_OK);
  assert_ptr_equal(table, &mo_backend_check);
  mo_status status = mo_devices_choose(comm, MO_DEVICE_AUTO, &table, &device);
  int64_t cuda = strcmp(table->name, "cuda") == 0, least = cuda, most = cuda;
  assert_int_equal(mo_comm_allreduce(comm, &least, 1, MO_MIN_I64), MO_OK);
  assert_int_equal(mo_comm_allreduce(comm, &most, 1, MO_MAX_I64), MO_OK);
  assert_int_equal(least, most);
  if (status != MO_OK) /* a machine with a GPU, but not one for each rank */
    assert_non_null(strstr(mo_error_message(), "would share a GPU"));
  mo_error_clear();
#ifndef MO_HAVE_CUDA
  assert_int_equal(status, MO_OK);
  assert_ptr_equal(table, &mo_backend_cpu);
  assert_int_equal(mo_devices_choose(comm, MO_DEVICE_CUDA, &table, &device), MO_INVALID);
  assert_non_null(strstr(mo_error_message(), "built without the cuda backend (engine.device)"));
  mo_error_clear();
#endif
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_gpu_for_each_rank),     cmocka_unit_test(no_gpu_anywhere),
      cmocka_unit_test(gpus_on_some_ranks_only), cmocka_unit_test(more_ranks_than_gpus),
      cmocka_unit_test(whole_ids_are_compared),  cmocka_unit_test(ranks_agree),
  };
  if (mo_comm_open(&comm, &argc, &argv) != MO_OK) {
    fprintf(stderr, "%s\n", mo_error_message());
    return 1;
  }
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  mo_comm_close(comm);
  return failed;
}
