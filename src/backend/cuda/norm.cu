/* Norms of the CUDA backend. Rounding points as in cpu/elementwise.c. */
#include "backend/cuda/norm.cuh"

/* Sum over a block of THREADS threads, the same order every time; every thread gets it. */
__device__ float block_sum(float value) {
  __shared__ float warps[THREADS / 32];
  for (int offset = 16; offset; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < THREADS / 32; i++) sum += warps[i];
  return sum;
}

/* Rows of up to HELD * THREADS * W values: a block per row, which is read once and held in registers; wider ones read twice. */
template <typename T, int W>
__global__ void norm_wide(mo_norm_spec spec, const float *w, const T *x, int64_t width, T *out) {
  enum { HELD = 4 };
  const T *row = x + blockIdx.x * width;
  float held[HELD][W], sum = 0;
  int n = 0;
  for (int64_t i = threadIdx.x * W; i < width; i += THREADS * W, n++) {
    float values[W];
    load<T, W>(row + i, values);
    sum += sum_squares(values);
#pragma unroll
    for (int h = 0; h < HELD; h++)
      if (h == n)
#pragma unroll
        for (int k = 0; k < W; k++) held[h][k] = values[k];
  }
  float scale = 1.0f / sqrtf(block_sum(sum) / (float)width + spec.eps);
#pragma unroll
  for (int h = 0; h < HELD; h++) {
    int64_t i = (int64_t)(h * THREADS + threadIdx.x) * W;
    if (i < width) {
      apply_norm<T, W>(spec, w + i, held[h], scale);
      store<T, W>(out + blockIdx.x * width + i, held[h]);
    }
  }
  for (int64_t i = (int64_t)(HELD * THREADS + threadIdx.x) * W; i < width; i += THREADS * W) {
    float values[W];
    load<T, W>(row + i, values);
    apply_norm<T, W>(spec, w + i, values, scale);
    store<T, W>(out + blockIdx.x * width + i, values);
  }
}

/* Rows of up to N packs a lane: a warp per row, which is read once, held as it came, and all at once. */
template <typename T, int N>
__global__ void norm_rows(mo_norm_spec spec, const float *w, const T *x, int64_t rows, int64_t width, T *out) {
  constexpr int W = mo_pack<T>::width;
  int64_t row = (blockIdx.x * (int64_t)THREADS + threadIdx.x) / 32;
  int lane = (int)threadIdx.x % 32;
  if (row >= rows) return;
  uint4 raw[N];
  float values[W], sum = 0;
#pragma unroll
  for (int n = 0; n < N; n++) {
    int i = (n * 32 + lane) * W;
    raw[n] = i < width ? *reinterpret_cast<const uint4 *>(x + row * width + i) : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int n = 0; n < N; n++) {
    unpack(raw[n], values, x);
    sum += sum_squares(values);
  }
  for (int offset = 16; offset; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  float scale = 1.0f / sqrtf(sum / (float)width + spec.eps);
#pragma unroll
  for (int n = 0; n < N; n++) {
    int i = (n * 32 + lane) * W;
    unpack(raw[n], values, x);
    if (i >= width) continue;
    apply_norm<T, W>(spec, w + i, values, scale);
    store<T, W>(out + row * width + i, values);
  }
}

/* Rows of up to 32 * W values: `lanes` neighbouring lanes of a warp per N rows, lanes a power of two, rows a multiple of N:
 * weights are loaded once for all. */
template <typename T, int W, int N>
__global__ void norm_narrow(mo_norm_spec spec, const float *w, const T *x, int64_t rows, int64_t width, int lanes,
                            T *out) {
  int64_t row = (blockIdx.x * (int64_t)THREADS + threadIdx.x) / lanes * N;
  int64_t i = (int64_t)(threadIdx.x % lanes) * W;
  bool inside = row < rows && i < width;
  float values[N][W] = {}, sum[N];
#pragma unroll
  for (int n = 0; n < N; n++)
    if (inside) load<T, W>(x + (row + n) * width + i, values[n]);
#pragma unroll
  for (int n = 0; n < N; n++) sum[n] = sum_squares(values[n]);
  for (int offset = lanes / 2; offset; offset /= 2)
#pragma unroll
    for (int n = 0; n < N; n++) sum[n] += __shfl_xor_sync(0xffffffffu, sum[n], offset);
#pragma unroll
  for (int n = 0; n < N; n++)
    if (inside) apply_norm<T, W>(spec, w + i, values[n], 1.0f / sqrtf(sum[n] / (float)width + spec.eps));
#pragma unroll
  for (int n = 0; n < N; n++)
    if (inside) store<T, W>(out + (row + n) * width + i, values[n]);
}

/* Rows of packs, more than 32 of them. */
template <typename T>
static void launch_norm_rows(mo_cuda *cuda, const mo_norm_spec *spec, const float *w, const void *x, int64_t rows,
                             int64_t width, void *out) {
  int64_t packs = (width / mo_pack<T>::width + 31) / 32; /* of a lane */
  unsigned grid = (unsigned)((rows * 32 + THREADS - 1) / THREADS);
  if (packs <= 4)
    norm_rows<T, 4><<<grid, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, rows, width, (T *)out);
  else if (packs <= 8)
    norm_rows<T, 8><<<grid, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, rows, width, (T *)out);
  else if (packs <= 16)
    norm_rows<T, 16><<<grid, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, rows, width, (T *)out);
  else
    norm_wide<T, mo_pack<T>::width>
        <<<(unsigned)rows, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, width, (T *)out);
}

template <typename T, int W>
static mo_status launch_norm(mo_cuda *cuda, const mo_norm_spec *spec, const float *w, const void *x, int64_t rows,
                             int64_t width, void *out) {
  if (width <= 32 * W) {
    constexpr int most = W > 1 ? 4 : 1;
    int lanes = 1;
    while (lanes * W < width) lanes *= 2;
    bool many = rows % most == 0;
    int64_t groups = many ? rows / most : rows;
    unsigned grid = (unsigned)((groups * lanes + THREADS - 1) / THREADS);
    auto kernel = many ? norm_narrow<T, W, most> : norm_narrow<T, W, 1>;
    kernel<<<grid, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, rows, width, lanes, (T *)out);
  } else if (W > 1) {
    launch_norm_rows<T>(cuda, spec, w, x, rows, width, out);
  } else {
    norm_wide<T, W><<<(unsigned)rows, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, width, (T *)out);
  }
  MO_LAUNCHED("norm");
  return MO_OK;
}

mo_status cuda_norm(mo_backend *backend, const mo_norm_spec *spec, const mo_weight *weight, const void *x, int64_t rows,
                    int64_t width, void *out) {
  mo_cuda *cuda = mo_cuda_of(backend);
  void *w;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_VECTOR, (size_t)width * sizeof(float), &w));
  MO_TRY(mo_cuda_vector(cuda, weight, 0, width, false, cuda->stream, (float *)w));
  return BY_TYPE_AND_WIDTH(launch_norm, mo_packs(cuda, x, width) && mo_packs(cuda, out, width), spec, (const float *)w,
                           x, rows, width, out);
}
