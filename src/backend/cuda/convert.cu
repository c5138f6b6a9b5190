/* Weights as stored -> compute type, on the device: dtype changes, MXFP4 (OCP Microscaling Formats 1.0), transposition. */
#include <cuda_fp16.h>

#include "backend/cuda/cuda.cuh"

enum { THREADS = 256 };

static unsigned blocks_for(int64_t n) {
  int64_t blocks = (n + THREADS - 1) / THREADS;
  return (unsigned)(blocks < 65535 * 16 ? blocks : 65535 * 16);
}

/* The magnitude of a 4-bit code: 0, 0.5, 1, 1.5, 2, 3, 4, 6. */
__device__ float code_magnitude(uint32_t code) {
  uint32_t exponent = code >> 1 & 3, half = code & 1;
  return exponent ? __uint_as_float((exponent + 126) << 23 | half << 22) : half ? 0.5f : 0.0f;
}

__device__ float stored_number(const void *data, mo_dtype dtype, const uint8_t *scales, int64_t i) {
  if (dtype == MO_BF16) return __bfloat162float(((const bf16 *)data)[i]);
  if (dtype == MO_F16) return __half2float(((const __half *)data)[i]);
  if (dtype == MO_F32) return ((const float *)data)[i];
  int code = ((const uint8_t *)data)[i / 2] >> (i % 2 ? 4 : 0) & 15;
  float magnitude = ldexpf(code_magnitude((uint32_t)code), (int)scales[i / 32] - 127);
  return code & 8 ? -magnitude : magnitude;
}

/* out[i] = number `first + i`; transposed: of the matrix [rows, cols] stored as [cols, rows]. */
template <typename T>
__global__ void convert(const void *data, mo_dtype dtype, const uint8_t *scales, bool transposed, int64_t rows,
                        int64_t cols, int64_t first, int64_t n, bool round, T *out) {
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
    int64_t place = transposed ? (first + i) % cols * rows + (first + i) / cols : first + i;
    float value = stored_number(data, dtype, scales, place);
    out[i] = from_float<T>(round ? rounded<bf16>(value) : value);
  }
}

/* 2^(scale - 128), also where that is subnormal; half the block's factor, which would overflow at scale 255. */
__device__ float half_factor(uint8_t scale) {
  return __uint_as_float(scale >= 2 ? (uint32_t)(scale - 1) << 23 : scale == 1 ? 0x00400000u : 0x00200000u);
}

/* One thread per MXFP4 block: 16 bytes in, 32 bf16 numbers out. */
__global__ void convert_mxfp4(const uint4 *blocks, const uint8_t *scales, int64_t n_blocks, uint4 *out) {
  for (int64_t b = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; b < n_blocks; b += (int64_t)gridDim.x * blockDim.x) {
    uint4 raw = blocks[b];
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    float factor = half_factor(scales[b]);
#pragma unroll
    for (int word = 0; word < 4; word++) {
      uint32_t pairs[4];
#pragma unroll
      for (int byte = 0; byte < 4; byte++) {
        uint32_t two = words[word] >> (8 * byte);
        float low = code_magnitude(two) * factor * 2.0f, high = code_magnitude(two >> 4) * factor * 2.0f;
        uint32_t low_bits = __float_as_uint(low) | (two & 8) << 28, high_bits = __float_as_uint(high) | (two >> 4 & 8)
                                                                                                            << 28;
        pairs[byte] = low_bits >> 16 | (high_bits & 0xffff0000u); /* exact: a code has two significant bits */
      }
      out[4 * b + word] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
}

bool mo_cuda_converts(const mo_cuda *cuda, const mo_weight *w) {
  mo_dtype compute = cuda->bf16_run ? MO_BF16 : MO_F32;
  return w->dtype != compute || w->transposed;
}

mo_status mo_cuda_matrix(mo_cuda *cuda, const mo_weight *w, cudaStream_t stream, void *room, const void **matrix) {
  *matrix = w->data;
  if (!mo_cuda_converts(cuda, w)) return MO_OK;
  int64_t n = w->rows * w->cols;
  const uint8_t *scales = (const uint8_t *)w->scales;
  if (cuda->bf16_run && w->dtype == MO_U8)
    convert_mxfp4<<<blocks_for(n / 32), THREADS, 0, stream>>>((const uint4 *)w->data, scales, n / 32, (uint4 *)room);
  else if (cuda->bf16_run)
    convert<bf16><<<blocks_for(n), THREADS, 0, stream>>>(w->data, w->dtype, scales, w->transposed, w->rows, w->cols, 0,
                                                         n, true, (bf16 *)room);
  else
    convert<float><<<blocks_for(n), THREADS, 0, stream>>>(w->data, w->dtype, scales, w->transposed, w->rows, w->cols, 0,
                                                          n, false, (float *)room);
  MO_LAUNCHED("convert");
  *matrix = room;
  return MO_OK;
}

mo_status mo_cuda_vector(mo_cuda *cuda, const mo_weight *w, int64_t first, int64_t n, bool exact, cudaStream_t stream,
                         float *out) {
  convert<float><<<blocks_for(n), THREADS, 0, stream>>>(w->data, w->dtype, (const uint8_t *)w->scales, false, w->rows,
                                                        w->cols, first, n, cuda->bf16_run && !exact, out);
  MO_LAUNCHED("convert");
  return MO_OK;
}
