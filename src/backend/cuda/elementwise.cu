/* Row-wise and element-wise operations of the CUDA backend. Rounding points as in cpu/elementwise.c. */
#include "backend/cuda/cuda.cuh"
#include "backend/cuda/pack.cuh"

enum { THREADS = 256 };

static unsigned grid_for(const mo_cuda *cuda, int64_t n) {
  int64_t blocks = (n + THREADS - 1) / THREADS, most = (int64_t)cuda->multiprocessors * 16;
  return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

#define GRID_STRIDE(i, n) \
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < (n); i += (int64_t)gridDim.x * blockDim.x)

template <typename T>
__global__ void embed(const float *numbers, const bf16 *narrow, const int32_t *ids, int64_t T_rows, int64_t H, T *out) {
  GRID_STRIDE(i, T_rows * H) {
    int64_t place = ids[i / H] * H + i % H;
    out[i] = narrow ? from_float<T>(to_float(narrow[place])) : from_float<T>(numbers[place]);
  }
}

/* Tables that are neither bf16 nor float32 are read number by number through mo_cuda_matrix's conversion. */
mo_status cuda_embed(mo_backend *backend, const mo_weight *table, const int32_t *ids, int64_t T, void *out) {
  mo_cuda *cuda = mo_cuda_of(backend);
  void *device_ids, *room = NULL;
  const void *matrix = table->data;
  mo_dtype dtype = table->dtype;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_SMALL, (size_t)T * sizeof *ids, &device_ids));
  MO_CUDA(cudaMemcpyAsync(device_ids, ids, (size_t)T * sizeof *ids, cudaMemcpyHostToDevice, cuda->stream));
  if (dtype != MO_BF16 && dtype != MO_F32) {
    MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_WEIGHT,
                           (size_t)(table->rows * table->cols) * (size_t)cuda->base.activation_bytes, &room));
    MO_TRY(mo_cuda_matrix(cuda, table, cuda->stream, room, &matrix));
    dtype = cuda->bf16_run ? MO_BF16 : MO_F32;
  }
  const float *numbers = dtype == MO_F32 ? (const float *)matrix : NULL;
  const bf16 *narrow = dtype == MO_BF16 ? (const bf16 *)matrix : NULL;
  unsigned grid = grid_for(cuda, T * table->cols);
  if (cuda->bf16_run)
    embed<<<grid, THREADS, 0, cuda->stream>>>(numbers, narrow, (const int32_t *)device_ids, T, table->cols,
                                              (bf16 *)out);
  else
    embed<<<grid, THREADS, 0, cuda->stream>>>(numbers, narrow, (const int32_t *)device_ids, T, table->cols,
                                              (float *)out);
  MO_LAUNCHED("embed");
  return MO_OK;
}

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

/* Write W normed values: scaled, rounded, times the weight, rounded again where the reference does. */
template <typename T, int W>
__device__ void write_normed(const mo_norm_spec &spec, const float *w, float (&values)[W], float scale, T *out) {
#pragma unroll
  for (int k = 0; k < W; k++) {
    float value = values[k] * scale;
    if (!spec.weight_in_float) value = rounded<T>(value);
    values[k] = value * (spec.zero_centred ? 1.0f + w[k] : w[k]);
  }
  store<T, W>(out, values);
}

template <int W>
__device__ float sum_squares(const float (&values)[W]) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < W; k++) sum += values[k] * values[k];
  return sum;
}

/* Rows of up to HELD * THREADS * W values: a block per row, the row read once and held in registers; wider ones read twice. */
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
    if (i < width) write_normed<T, W>(spec, w + i, held[h], scale, out + blockIdx.x * width + i);
  }
  for (int64_t i = (int64_t)(HELD * THREADS + threadIdx.x) * W; i < width; i += THREADS * W) {
    float values[W];
    load<T, W>(row + i, values);
    write_normed<T, W>(spec, w + i, values, scale, out + blockIdx.x * width + i);
  }
}

/* Rows of up to 32 * W values: `lanes` neighbouring lanes of a warp per row, lanes a power of two. */
template <typename T, int W>
__global__ void norm_narrow(mo_norm_spec spec, const float *w, const T *x, int64_t rows, int64_t width, int lanes,
                            T *out) {
  int64_t row = (blockIdx.x * (int64_t)THREADS + threadIdx.x) / lanes;
  int64_t i = (int64_t)(threadIdx.x % lanes) * W;
  bool inside = row < rows && i < width;
  float values[W] = {};
  if (inside) load<T, W>(x + row * width + i, values);
  float sum = sum_squares(values);
  for (int offset = lanes / 2; offset; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  float scale = 1.0f / sqrtf(sum / (float)width + spec.eps);
  if (inside) write_normed<T, W>(spec, w + i, values, scale, out + row * width + i);
}

template <typename T, int W>
static mo_status launch_norm(mo_cuda *cuda, const mo_norm_spec *spec, const float *w, const void *x, int64_t rows,
                             int64_t width, void *out) {
  if (width <= 32 * W) {
    int lanes = 1;
    while (lanes * W < width) lanes *= 2;
    unsigned grid = (unsigned)((rows * lanes + THREADS - 1) / THREADS);
    norm_narrow<T, W><<<grid, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, rows, width, lanes, (T *)out);
  } else {
    norm_wide<T, W><<<(unsigned)rows, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, width, (T *)out);
  }
  MO_LAUNCHED("norm");
  return MO_OK;
}

/* Call f<T, W>(cuda, ...) with the run's type and W = 16 bytes' worth of it where `packs`, else 1. */
#define BY_TYPE_AND_WIDTH(f, packs, ...)                                                      \
  (cuda->bf16_run ? ((packs) ? f<bf16, 8>(cuda, __VA_ARGS__) : f<bf16, 1>(cuda, __VA_ARGS__)) \
                  : ((packs) ? f<float, 4>(cuda, __VA_ARGS__) : f<float, 1>(cuda, __VA_ARGS__)))

mo_status cuda_norm(mo_backend *backend, const mo_norm_spec *spec, const mo_weight *weight, const void *x, int64_t rows,
                    int64_t width, void *out) {
  mo_cuda *cuda = mo_cuda_of(backend);
  void *w;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_VECTOR, (size_t)width * sizeof(float), &w));
  MO_TRY(mo_cuda_vector(cuda, weight, 0, width, false, cuda->stream, (float *)w));
  return BY_TYPE_AND_WIDTH(launch_norm, mo_packs(cuda, x, width) && mo_packs(cuda, out, width), spec, (const float *)w,
                           x, rows, width, out);
}

template <typename T>
__global__ void clamp(T *x, int64_t count, float limit) {
  GRID_STRIDE(i, count) {
    float value = to_float(x[i]);
    if (value > limit) x[i] = from_float<T>(limit);
    if (value < -limit) x[i] = from_float<T>(-limit);
  }
}

mo_status cuda_clamp(mo_backend *backend, void *x, int64_t count, float limit) {
  mo_cuda *cuda = mo_cuda_of(backend);
  if (cuda->bf16_run)
    clamp<<<grid_for(cuda, count), THREADS, 0, cuda->stream>>>((bf16 *)x, count, limit);
  else
    clamp<<<grid_for(cuda, count), THREADS, 0, cuda->stream>>>((float *)x, count, limit);
  MO_LAUNCHED("clamp");
  return MO_OK;
}

/* cos and sin of every position [S, half], in the activations' precision. */
template <typename T>
__global__ void rope_tables(const float *inv_freq, int64_t S, int64_t half, float factor, float *cosines,
                            float *sines) {
  GRID_STRIDE(i, S * half) {
    float angle = inv_freq[i % half] * (float)(i / half);
    cosines[i] = rounded<T>(cosf(angle) * factor);
    sines[i] = rounded<T>(sinf(angle) * factor);
  }
}

/* W pairs (j, j + half) of a head at a time. */
template <typename T, int W>
__global__ void rope(const float *cosines, const float *sines, T *x, int64_t packs, int64_t S, int64_t heads, int64_t D,
                     int64_t half) {
  GRID_STRIDE(i, packs) {
    int64_t per_head = half / W, j = i % per_head * W, head = i / per_head,
            s = head / heads % S; /* head: of all rows */
    T *v = x + head * D + j;
    float a[W], b[W];
    load<T, W>(v, a);
    load<T, W>(v + half, b);
#pragma unroll
    for (int k = 0; k < W; k++) {
      float c = cosines[s * half + j + k], n = sines[s * half + j + k], first = a[k];
      a[k] = rounded<T>(first * c) - rounded<T>(b[k] * n);
      b[k] = rounded<T>(b[k] * c) + rounded<T>(first * n);
    }
    store<T, W>(v, a);
    store<T, W>(v + half, b);
  }
}

template <typename T, int W>
static mo_status rotate(mo_cuda *cuda, const mo_model_spec *spec, void *x, int64_t rows, int64_t S, int64_t heads) {
  int64_t half = spec->rope.dim / 2, packs = rows * heads * (half / W);
  void *block;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_VECTOR, (size_t)((2 * S + 1) * half) * sizeof(float), &block));
  float *cosines = (float *)block, *sines = cosines + S * half, *inv_freq = sines + S * half;
  MO_CUDA(cudaMemcpyAsync(inv_freq, spec->rope.inv_freq, (size_t)half * sizeof(float), cudaMemcpyHostToDevice,
                          cuda->stream));
  rope_tables<T>
      <<<grid_for(cuda, S * half), THREADS, 0, cuda->stream>>>(inv_freq, S, half, spec->rope.factor, cosines, sines);
  MO_LAUNCHED("rope_tables");
  rope<T, W><<<grid_for(cuda, packs), THREADS, 0, cuda->stream>>>(cosines, sines, (T *)x, packs, S, heads,
                                                                  spec->attention.head_dim, half);
  MO_LAUNCHED("rope");
  return MO_OK;
}

mo_status cuda_rope(mo_backend *backend, const mo_model_spec *spec, void *x, int64_t T, int64_t S, int64_t heads) {
  mo_cuda *cuda = mo_cuda_of(backend);
  bool packs = mo_packs(cuda, x, spec->attention.head_dim) && mo_packs(cuda, x, spec->rope.dim / 2);
  return BY_TYPE_AND_WIDTH(rotate, packs, spec, x, T, S, heads);
}

template <typename T, int W>
__global__ void add(T *x, const T *y, int64_t packs) {
  GRID_STRIDE(i, packs) {
    float a[W], b[W];
    load<T, W>(x + i * W, a);
    load<T, W>(y + i * W, b);
#pragma unroll
    for (int k = 0; k < W; k++) a[k] += b[k];
    store<T, W>(x + i * W, a);
  }
}

template <typename T, int W>
static mo_status launch_add(mo_cuda *cuda, void *x, const void *y, int64_t count) {
  add<T, W><<<grid_for(cuda, count / W), THREADS, 0, cuda->stream>>>((T *)x, (const T *)y, count / W);
  MO_LAUNCHED("add");
  return MO_OK;
}

mo_status cuda_add(mo_backend *backend, void *x, const void *y, int64_t count) {
  mo_cuda *cuda = mo_cuda_of(backend);
  return BY_TYPE_AND_WIDTH(launch_add, mo_packs(cuda, x, count) && mo_packs(cuda, y, count), x, y, count);
}

template <typename T, int W>
__global__ void glu(const T *gate, const T *up, int64_t packs, T *out) {
  GRID_STRIDE(i, packs) {
    float g[W], u[W];
    load<T, W>(gate + i * W, g);
    load<T, W>(up + i * W, u);
#pragma unroll
    for (int k = 0; k < W; k++) g[k] = rounded<T>(g[k] / (1.0f + expf(-g[k]))) * u[k];
    store<T, W>(out + i * W, g);
  }
}

template <typename T, int W>
static mo_status launch_glu(mo_cuda *cuda, const void *gate, const void *up, int64_t count, void *out) {
  glu<T, W>
      <<<grid_for(cuda, count / W), THREADS, 0, cuda->stream>>>((const T *)gate, (const T *)up, count / W, (T *)out);
  MO_LAUNCHED("glu");
  return MO_OK;
}

mo_status cuda_glu(mo_backend *backend, const void *gate, const void *up, int64_t count, void *out) {
  mo_cuda *cuda = mo_cuda_of(backend);
  bool packs = mo_packs(cuda, gate, count) && mo_packs(cuda, up, count) && mo_packs(cuda, out, count);
  return BY_TYPE_AND_WIDTH(launch_glu, packs, gate, up, count, out);
}

template <typename T>
__global__ void split(const T *x, int64_t rows, int64_t a, int64_t b, T *left, T *right) {
  GRID_STRIDE(i, rows * (a + b)) {
    int64_t r = i / (a + b), c = i % (a + b);
    if (c < a)
      left[r * a + c] = x[i];
    else
      right[r * b + c - a] = x[i];
  }
}

mo_status cuda_split(mo_backend *backend, const void *x, int64_t rows, int64_t a, int64_t b, void *left, void *right) {
  mo_cuda *cuda = mo_cuda_of(backend);
  if (cuda->bf16_run)
    split<<<grid_for(cuda, rows * (a + b)), THREADS, 0, cuda->stream>>>((const bf16 *)x, rows, a, b, (bf16 *)left,
                                                                        (bf16 *)right);
  else
    split<<<grid_for(cuda, rows * (a + b)), THREADS, 0, cuda->stream>>>((const float *)x, rows, a, b, (float *)left,
                                                                        (float *)right);
  MO_LAUNCHED("split");
  return MO_OK;
}

template <typename T, int W>
__global__ void sigmoid_gate(T *x, const T *gate, int64_t packs, int64_t width, bool broadcast) {
  GRID_STRIDE(i, packs) {
    float values[W], g[W];
    load<T, W>(x + i * W, values);
    if (broadcast) { /* a pack lies within one row */
      float one = to_float(gate[i * W / width]);
#pragma unroll
      for (int k = 0; k < W; k++) g[k] = one;
    } else {
      load<T, W>(gate + i * W, g);
    }
#pragma unroll
    for (int k = 0; k < W; k++) values[k] *= rounded<T>(1.0f / (1.0f + expf(-g[k])));
    store<T, W>(x + i * W, values);
  }
}

template <typename T, int W>
static mo_status launch_gate(mo_cuda *cuda, void *x, const void *gate, int64_t rows, int64_t width, bool broadcast) {
  int64_t packs = rows * width / W;
  sigmoid_gate<T, W>
      <<<grid_for(cuda, packs), THREADS, 0, cuda->stream>>>((T *)x, (const T *)gate, packs, width, broadcast);
  MO_LAUNCHED("sigmoid_gate");
  return MO_OK;
}

mo_status cuda_sigmoid_gate(mo_backend *backend, void *x, const void *gate, int64_t rows, int64_t width,
                            int64_t gate_width) {
  mo_cuda *cuda = mo_cuda_of(backend);
  bool broadcast = gate_width == 1, packs = mo_packs(cuda, x, width) && (broadcast || mo_packs(cuda, gate, width));
  return BY_TYPE_AND_WIDTH(launch_gate, packs, x, gate, rows, width, broadcast);
}
