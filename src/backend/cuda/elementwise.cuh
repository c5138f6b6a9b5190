/* Private to the CUDA backend: what the row-wise and element-wise operations share. */
#ifndef MO_BACKEND_CUDA_ELEMENTWISE_CUH
#define MO_BACKEND_CUDA_ELEMENTWISE_CUH

#include "backend/cuda/pack.cuh"

enum { THREADS = 256 };

static inline unsigned grid_for(const mo_cuda *cuda, int64_t n) {
  int64_t blocks = (n + THREADS - 1) / THREADS, most = (int64_t)cuda->multiprocessors * 16;
  return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

#define GRID_STRIDE(i, n) \
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < (n); i += (int64_t)gridDim.x * blockDim.x)

/* Call f<T, W>(cuda, ...) with the run's type and W = 16 bytes' worth of it where `packs`, else 1. */
#define BY_TYPE_AND_WIDTH(f, packs, ...)                                                      \
  (cuda->bf16_run ? ((packs) ? f<bf16, 8>(cuda, __VA_ARGS__) : f<bf16, 1>(cuda, __VA_ARGS__)) \
                  : ((packs) ? f<float, 4>(cuda, __VA_ARGS__) : f<float, 1>(cuda, __VA_ARGS__)))

#endif
