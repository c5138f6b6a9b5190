/* Private to the CUDA backend: W neighbouring activations at once, W = 16 bytes' worth or 1. */
#ifndef MO_BACKEND_CUDA_PACK_CUH
#define MO_BACKEND_CUDA_PACK_CUH

#include "backend/cuda/cuda.cuh"

/* Activations of type T in 16 bytes. */
template <typename T>
struct mo_pack {
  static constexpr int width = 16 / (int)sizeof(T);
};

__device__ __forceinline__ void unpack(uint4 raw, float (&out)[4], const float *) {
  out[0] = __uint_as_float(raw.x), out[1] = __uint_as_float(raw.y);
  out[2] = __uint_as_float(raw.z), out[3] = __uint_as_float(raw.w);
}
__device__ __forceinline__ void unpack(uint4 raw, float (&out)[8], const bf16 *) {
  const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    out[2 * i] = __uint_as_float(pairs[i] << 16);
    out[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
}

__device__ __forceinline__ uint4 packed(const float (&x)[4], const float *) {
  return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
}
__device__ __forceinline__ uint4 packed(const float (&x)[8], const bf16 *) {
  return make_uint4(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]), bf16_pair(x[6], x[7]));
}

/* x[0..W-1] as float32; W > 1: x is aligned to 16 bytes. */
template <typename T, int W>
__device__ __forceinline__ void load(const T *x, float (&out)[W]) {
  if constexpr (W == 1)
    out[0] = to_float(*x);
  else
    unpack(*reinterpret_cast<const uint4 *>(x), out, x);
}

/* The same back, rounded to T. */
template <typename T, int W>
__device__ __forceinline__ void store(T *x, const float (&values)[W]) {
  if constexpr (W == 1)
    *x = from_float<T>(values[0]);
  else
    *reinterpret_cast<uint4 *>(x) = packed(values, x);
}

/* Whether rows of `length` activations at x can be read 16 bytes at a time. */
static inline bool mo_packs(const mo_cuda *cuda, const void *x, int64_t length) {
  return (uintptr_t)x % 16 == 0 && length * cuda->base.activation_bytes % 16 == 0;
}

#endif
