/* Private to the CUDA backend: what the norms share. */
#ifndef MO_BACKEND_CUDA_NORM_CUH
#define MO_BACKEND_CUDA_NORM_CUH

#include "backend/cuda/elementwise.cuh"

/* W numbers of a vector in scratch. */
template <int W>
__device__ void load_vector(const float *w, float (&out)[W]) {
  if constexpr (W == 1) {
    out[0] = *w;
  } else {
#pragma unroll
    for (int k = 0; k < W; k += 4) {
      float4 four = *reinterpret_cast<const float4 *>(w + k);
      out[k] = four.x, out[k + 1] = four.y, out[k + 2] = four.z, out[k + 3] = four.w;
    }
  }
}

/* W values normed: scaled, rounded, times the weight; the caller rounds again where the reference does. */
template <typename T, int W>
__device__ void apply_norm(const mo_norm_spec &spec, const float *w, float (&values)[W], float scale) {
  float weights[W];
  load_vector(w, weights);
#pragma unroll
  for (int k = 0; k < W; k++) {
    float value = values[k] * scale;
    if (!spec.weight_in_float) value = rounded<T>(value);
    values[k] = value * (spec.zero_centred ? 1.0f + weights[k] : weights[k]);
  }
}

template <int W>
__device__ float sum_squares(const float (&values)[W]) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < W; k++) sum += values[k] * values[k];
  return sum;
}

#endif
