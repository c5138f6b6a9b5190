/* Gated DeltaNet of the CUDA backend: what its files share. delta.cu: convolution, gates, norm; delta_rule.cu: the rule
 * in float32, any shape; delta_rule_mma.cu, delta_relate.cu: the rule of bf16 runs on tensor cores. */
#ifndef MO_BACKEND_CUDA_DELTA_CUH
#define MO_BACKEND_CUDA_DELTA_CUH

#include "backend/cuda/cuda.cuh"

constexpr int MO_DELTA_CHUNK = 64; /* tokens of the delta rule in a step */

/* Widths that follow from the spec, and how many tokens. */
typedef struct {
  int kh, vh, kd, vd, per_key;       /* heads, head sizes, value heads per key head */
  int keys, values, channels, group; /* kh*kd, vh*vd, 2*keys + values; group: qkvz columns of one key head */
  int64_t B, S;
} mo_delta_sizes;

/* Rows of q, k, v in `mixed` [B*S, channels], beta and decay [B*S, vh], out [B*S, values]: contract of delta_rule. */
MO_CHECKED mo_status mo_cuda_delta_rule_float(mo_cuda *cuda, const mo_delta_sizes *d, const void *mixed,
                                              const float *beta, const float *decay, void *out);
/* The same in bf16 runs, of shapes that mo_cuda_delta_rule_mma_fits. */
MO_CHECKED mo_status mo_cuda_delta_rule_mma(mo_cuda *cuda, const mo_delta_sizes *d, const bf16 *mixed,
                                            const float *beta, const float *decay, bf16 *out);
bool mo_cuda_delta_rule_mma_fits(const mo_cuda *cuda, const mo_delta_sizes *d);

__device__ __forceinline__ float mo_warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

/* A running sum of the decay. It grows to thousands within a chunk while differences of two sums, which become
 * exponents, may be near zero: one float32 would leave them an error of 1e-4. */
struct __align__(8) mo_delta_sum {
  float high, low;
};

__device__ __forceinline__ mo_delta_sum mo_delta_split(double sum) {
  const float high = (float)sum;
  return {high, (float)(sum - high)};
}

/* later - earlier */
__device__ __forceinline__ float mo_delta_between(const mo_delta_sum &later, const mo_delta_sum &earlier) {
  return (later.high - earlier.high) + (later.low - earlier.low);
}

/* Sums from a chunk's first token to tokens lane and lane + 32, whose decay the lane has; returns the last sum. */
__device__ __forceinline__ mo_delta_sum mo_delta_sums(const float (&decay)[2], mo_delta_sum (&sums)[2]) {
  const int lane = threadIdx.x % 32;
  double above = 0;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    double sum = decay[half];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      double before = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += before;
    }
    sum += above;
    above = __shfl_sync(~0u, sum, 31);
    sums[half] = mo_delta_split(sum);
  }
  return mo_delta_split(above);
}

#endif
