#include "backend/cuda/libraries.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

/* The name that a function has in its library: the headers rename some by macros. */
#define TEXT_OF(name) #name
#define NAME_OF(name) TEXT_OF(name)
#define SLOT(table, member, name) \
  { NAME_OF(name), &(table).member }

typedef struct {
  const char *name;
  void *function; /* to be set: a pointer to a function */
} slot;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The library stays loaded for good: its threads and exit handlers are in it. */
static mo_status bind(const char *library, const slot *slots, size_t n, bool *bound) {
  mo_status status = MO_OK;
  pthread_mutex_lock(&lock);
  if (!*bound) {
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    bool whole = handle != NULL;
    for (size_t i = 0; whole && i < n; i++) {
      void *function = dlsym(handle, slots[i].name);
      memcpy(slots[i].function, &function, sizeof function);
      whole = function != NULL;
    }
    if (whole)
      *bound = true;
    else
      status = MO_FAIL(
          MO_FAILED,
          "%s cannot be used (%s): install it, name its folder in LD_LIBRARY_PATH, or set engine.device to \"cpu\"",
          library, dlerror());
  }
  pthread_mutex_unlock(&lock);
  return status;
}

mo_cublas_functions mo_cublas;

mo_status mo_cublas_bind(void) {
  static bool bound;
  static const slot slots[] = {SLOT(mo_cublas, create, cublasCreate),
                               SLOT(mo_cublas, destroy, cublasDestroy),
                               SLOT(mo_cublas, set_math_mode, cublasSetMathMode),
                               SLOT(mo_cublas, set_stream, cublasSetStream),
                               SLOT(mo_cublas, set_workspace, cublasSetWorkspace),
                               SLOT(mo_cublas, status_string, cublasGetStatusString),
                               SLOT(mo_cublas, gemm_ex, cublasGemmEx)};
  return bind("libcublas.so." NAME_OF(CUBLAS_VER_MAJOR), slots, sizeof slots / sizeof *slots, &bound);
}

#ifdef MO_HAVE_NCCL
mo_nccl_functions mo_nccl;

mo_status mo_nccl_bind(void) {
  static bool bound;
  static const slot slots[] = {SLOT(mo_nccl, version, ncclGetVersion),
                               SLOT(mo_nccl, error_string, ncclGetErrorString),
                               SLOT(mo_nccl, last_error, ncclGetLastError),
                               SLOT(mo_nccl, unique_id, ncclGetUniqueId),
                               SLOT(mo_nccl, open, ncclCommInitRankConfig),
                               SLOT(mo_nccl, async_error, ncclCommGetAsyncError),
                               SLOT(mo_nccl, finalize, ncclCommFinalize),
                               SLOT(mo_nccl, destroy, ncclCommDestroy),
                               SLOT(mo_nccl, send, ncclSend),
                               SLOT(mo_nccl, receive, ncclRecv)};
  return bind("libnccl.so." NAME_OF(NCCL_MAJOR), slots, sizeof slots / sizeof *slots, &bound);
}
#endif
