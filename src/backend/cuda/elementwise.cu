/* Row-wise and element-wise operations of the CUDA backend. Rounding points as in cpu/elementwise.c. */
#include "backend/cuda/elementwise.cuh"

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

template <typename T>
__global__ void zero_features(T *x, int64_t T_rows, int64_t H, const int32_t *features, int64_t n) {
  GRID_STRIDE(i, T_rows * n) x[i / n * H + features[i % n]] = from_float<T>(0);
}

mo_status cuda_zero_features(mo_backend *backend, void *x, int64_t T, int64_t H, const int32_t *features, int64_t n) {
  mo_cuda *cuda = mo_cuda_of(backend);
  if (cuda->bf16_run)
    zero_features<<<grid_for(cuda, T * n), THREADS, 0, cuda->stream>>>((bf16 *)x, T, H, features, n);
  else
    zero_features<<<grid_for(cuda, T * n), THREADS, 0, cuda->stream>>>((float *)x, T, H, features, n);
  MO_LAUNCHED("zero_features");
  return MO_OK;
}

/* A block per row: a thread adds every THREADS-th number, then halves of the block are added to each other. */
__global__ void __launch_bounds__(THREADS) row_sums(const float *x, int64_t width, double *sums) {
  __shared__ double parts[THREADS];
  const float *row = x + blockIdx.x * width;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < width; i += THREADS) sum += (double)row[i];
  parts[threadIdx.x] = sum;
  for (int step = THREADS / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) parts[threadIdx.x] += parts[threadIdx.x + step];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = parts[0];
}

mo_status cuda_row_sums(mo_backend *backend, const float *x, int64_t rows, int64_t width, double *sums) {
  mo_cuda *cuda = mo_cuda_of(backend);
  if (rows == 0) return MO_OK;
  row_sums<<<(unsigned)rows, THREADS, 0, cuda->stream>>>(x, width, sums);
  MO_LAUNCHED("row_sums");
  return MO_OK;
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
