/* cuBLAS, loaded and made on a thread of its own while the first weights are read. */
#include "backend/cuda/cuda.cuh"
#include "moe_outliers/clock.h"
#include "moe_outliers/phases.h"
#include "moe_outliers/threads.h"

mo_status mo_cuda_open_blas(cublasHandle_t *blas, cudaStream_t stream) {
  MO_TRY(mo_cublas_bind()); /* here, as expert streams may open theirs before the furnisher has come so far */
  MO_BLAS(mo_cublas.create(blas));
  MO_BLAS(
      mo_cublas.set_math_mode(*blas, (cublasMath_t)(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  MO_BLAS(mo_cublas.set_stream(*blas, stream));
  return MO_OK;
}

static mo_status furnish(mo_cuda *cuda) {
  enum { BLAS_WORKSPACE = 64 << 20 };
  MO_CUDA(cudaSetDevice(cuda->device));
  MO_TRY(mo_cuda_open_blas(&cuda->blas, cuda->stream));
  MO_CUDA(cudaMalloc(&cuda->blas_workspace, BLAS_WORKSPACE));
  MO_BLAS(mo_cublas.set_workspace(cuda->blas, cuda->blas_workspace, BLAS_WORKSPACE));
  return MO_OK;
}

static void *furnish_beside(void *argument) {
  mo_cuda *cuda = (mo_cuda *)argument;
  double begin = mo_seconds();
  cuda->furnished = furnish(cuda);
  mo_phase_took(MO_PHASE_LIBRARIES, mo_seconds() - begin);
  return NULL;
}

void mo_cuda_furnish(mo_cuda *cuda) {
  cuda->furnishing = mo_thread_start(&cuda->furnisher, furnish_beside, cuda) == 0;
  if (!cuda->furnishing) cuda->furnished = furnish(cuda);
}

void mo_cuda_finish_furnishing(mo_cuda *cuda) {
  if (cuda->furnishing) pthread_join(cuda->furnisher, NULL);
  cuda->furnishing = false;
}

mo_status mo_cuda_await_blas(mo_cuda *cuda) {
  mo_cuda_finish_furnishing(cuda);
  return cuda->furnished;
}
