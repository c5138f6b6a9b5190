/* cuBLAS and NCCL, bound when a GPU is first used. Linked in the usual way they take every start of the program 80 ms and 200 MB,
 * of commands that compute nothing too, and it would not start at all where they are not installed. Types and constants are those
 * of the libraries' own headers. */
#ifndef MO_BACKEND_CUDA_LIBRARIES_H
#define MO_BACKEND_CUDA_LIBRARIES_H

#include <cublas_v2.h>
#ifdef MO_HAVE_NCCL
#include <nccl.h>
#endif

#ifdef __cplusplus
extern "C" {
#define MO_FUNCTION(name) decltype(name) *
#else
#define MO_FUNCTION(name) __typeof__(name) *
#endif

#include "moe_outliers/status.h"

typedef struct {
  MO_FUNCTION(cublasCreate) create;
  MO_FUNCTION(cublasDestroy) destroy;
  MO_FUNCTION(cublasSetMathMode) set_math_mode;
  MO_FUNCTION(cublasSetStream) set_stream;
  MO_FUNCTION(cublasSetWorkspace) set_workspace;
  MO_FUNCTION(cublasGetStatusString) status_string;
  /* Spelled out, because the header overloads it in C++. */
  cublasStatus_t (*gemm_ex)(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType a_type, int lda, const void *b,
                            cudaDataType b_type, int ldb, const void *beta, void *c, cudaDataType c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algorithm);
} mo_cublas_functions;

extern mo_cublas_functions mo_cublas;
/* Loads the library, if it isn't yet. It must have succeeded before mo_cublas is used. Thread-safe. A library that is missing or too
 * old: MO_FAILED with the loader's words. */
MO_CHECKED mo_status mo_cublas_bind(void);

#ifdef MO_HAVE_NCCL
typedef struct {
  MO_FUNCTION(ncclGetVersion) version;
  MO_FUNCTION(ncclGetErrorString) error_string;
  MO_FUNCTION(ncclGetLastError) last_error;
  MO_FUNCTION(ncclGetUniqueId) unique_id;
  MO_FUNCTION(ncclCommInitRankConfig) open;
  MO_FUNCTION(ncclCommGetAsyncError) async_error;
  MO_FUNCTION(ncclCommFinalize) finalize;
  MO_FUNCTION(ncclCommDestroy) destroy;
  MO_FUNCTION(ncclSend) send;
  MO_FUNCTION(ncclRecv) receive;
} mo_nccl_functions;

extern mo_nccl_functions mo_nccl;
/* As mo_cublas_bind. */
MO_CHECKED mo_status mo_nccl_bind(void);
#endif

#ifdef __cplusplus
}
#endif

#endif
