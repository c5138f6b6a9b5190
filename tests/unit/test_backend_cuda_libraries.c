/* cuBLAS and NCCL are found and have every function that the CUDA backend calls; loading them takes no GPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#ifdef MO_HAVE_CUDA
#include "../../src/backend/cuda/libraries.h"

static void all_set(const void *functions, size_t bytes) {
  void *const *each = functions;
  for (size_t i = 0; i < bytes / sizeof *each; i++) assert_non_null(each[i]);
}

static void cublas_is_bound(void **state) {
  (void)state;
  for (int again = 0; again < 2; again++) assert_int_equal(mo_cublas_bind(), MO_OK);
  all_set(&mo_cublas, sizeof mo_cublas);
  assert_non_null(strstr(mo_cublas.status_string(CUBLAS_STATUS_NOT_INITIALIZED), "not initialized"));
}

#ifdef MO_HAVE_NCCL
static void nccl_is_bound(void **state) {
  int version = 0;
  (void)state;
  assert_int_equal(mo_nccl_bind(), MO_OK);
  all_set(&mo_nccl, sizeof mo_nccl);
  assert_int_equal(mo_nccl.version(&version), ncclSuccess);
  assert_int_equal(version / 10000, NCCL_MAJOR);
}
#endif

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(cublas_is_bound),
#ifdef MO_HAVE_NCCL
      cmocka_unit_test(nccl_is_bound),
#endif
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
int main(void) {
  printf("skipped: built without CUDA\n");
  return 77;
}
#endif
