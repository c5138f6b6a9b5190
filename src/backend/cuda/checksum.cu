/* The checksum operation: a sum of words modulo 2^64, the same in any order. */
#include "backend/cuda/cuda.cuh"
#include "weights/word_sum.h"

enum { THREADS = 256 };

__global__ void __launch_bounds__(THREADS)
    sum_words(const uint64_t *words, int64_t n, int tail, unsigned long long *sum) {
  const int64_t stride = (int64_t)gridDim.x * THREADS;
  uint64_t mine = 0;
  for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += stride)
    mine += words[i] * mo_word_factor(i);
  if (blockIdx.x == 0 && threadIdx.x == 0) { /* the bytes behind the last whole word */
    uint64_t word = 0;
    for (int b = 0; b < tail; b++) word |= (uint64_t)((const uint8_t *)(words + n))[b] << 8 * b;
    mine += word * mo_word_factor(n);
  }
  for (int lane = 16; lane; lane /= 2) mine += __shfl_xor_sync(~0u, mine, lane);
  if (threadIdx.x % 32 == 0) atomicAdd(sum, (unsigned long long)mine);
}

extern "C" mo_status cuda_checksum(mo_backend *backend, const void *memory, size_t bytes, uint64_t *sum) {
  mo_cuda *cuda = mo_cuda_of(backend);
  int64_t n = (int64_t)(bytes / 8), blocks = (n + THREADS - 1) / THREADS, most = cuda->multiprocessors * 8;
  void *device, *host;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_SMALL, sizeof *sum, &device));
  MO_TRY(mo_cuda_host(cuda, sizeof *sum, &host));
  MO_CUDA(cudaMemsetAsync(device, 0, sizeof *sum, cuda->stream));
  blocks = blocks < 1 ? 1 : blocks < most ? blocks : most;
  sum_words<<<(unsigned)blocks, THREADS, 0, cuda->stream>>>((const uint64_t *)memory, n, (int)(bytes % 8),
                                                            (unsigned long long *)device);
  MO_LAUNCHED("sum_words");
  MO_CUDA(cudaMemcpyAsync(host, device, sizeof *sum, cudaMemcpyDeviceToHost, cuda->stream));
  MO_CUDA(cudaStreamSynchronize(cuda->stream));
  *sum = *(const uint64_t *)host;
  return MO_OK;
}
