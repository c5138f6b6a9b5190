/* Norms and rotary embedding of the CUDA backend. Rounding points as in cpu/elementwise.c. */
#include "backend/cuda/elementwise.cuh"

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

/* Rotary embedding of what a norm leaves in registers: rows are `heads` heads of a token, or one head; a head's packs lie in
 * neighbouring lanes, a power of two of them, and so do the packs of each half of the rotated part. */
typedef struct {
  const float *cosines, *sines; /* [S, half]; NULL: no rotation */
  int64_t S, heads;             /* heads of a token */
  int D, half;
} rotation;

/* Rotate the pack whose first value is value `i` of its row; all lanes of the warp take part. */
template <typename T, int W>
__device__ void rotate_pack(const rotation &r, int64_t token, int i, float (&values)[W]) {
  int packs = r.half / W, place = i % r.D / W, j = place % packs * W;
  float other[W];
#pragma unroll
  for (int k = 0; k < W; k++) {
    values[k] = rounded<T>(values[k]);
    other[k] = __shfl_xor_sync(0xffffffffu, values[k], packs);
  }
  if (place >= 2 * packs) return;
  float c[W], n[W];
  load_vector(r.cosines + token % r.S * r.half + j, c);
  load_vector(r.sines + token % r.S * r.half + j, n);
  float sign = place < packs ? -1.0f : 1.0f;
#pragma unroll
  for (int k = 0; k < W; k++) values[k] = rounded<T>(values[k] * c[k]) + sign * rounded<T>(other[k] * n[k]);
}

/* Rows of up to N packs a lane: a warp per row, which is read once, held as it came, and all at once. */
template <typename T, int N>
__global__ void norm_rows(mo_norm_spec spec, const float *w, const T *x, int64_t rows, int64_t width, rotation turn,
                          T *out) {
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
    if (i < width) apply_norm<T, W>(spec, w + i, values, scale);
    if (turn.cosines) rotate_pack<T, W>(turn, row / turn.heads, i, values);
    if (i < width) store<T, W>(out + row * width + i, values);
  }
}

/* Rows of up to 32 * W values: `lanes` neighbouring lanes of a warp per N rows, lanes a power of two, rows a multiple of N. Where
 * they are rotated, the N rows are of one token: weights and angles are loaded once for all. */
template <typename T, int W, int N>
__global__ void norm_narrow(mo_norm_spec spec, const float *w, const T *x, int64_t rows, int64_t width, int lanes,
                            rotation turn, T *out) {
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
  if constexpr (W > 1) {
    int64_t token = turn.cosines ? row / turn.heads : 0;
#pragma unroll
    for (int n = 0; n < N; n++)
      if (turn.cosines) rotate_pack<T, W>(turn, token, (int)i, values[n]);
  }
#pragma unroll
  for (int n = 0; n < N; n++)
    if (inside) store<T, W>(out + (row + n) * width + i, values[n]);
}

/* Rows of packs, more than 32 of them. */
template <typename T>
static void launch_norm_rows(mo_cuda *cuda, const mo_norm_spec *spec, const float *w, const void *x, int64_t rows,
                             int64_t width, const rotation &turn, void *out) {
  int64_t packs = (width / mo_pack<T>::width + 31) / 32; /* of a lane */
  unsigned grid = (unsigned)((rows * 32 + THREADS - 1) / THREADS);
  if (packs <= 4)
    norm_rows<T, 4><<<grid, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, rows, width, turn, (T *)out);
  else if (packs <= 8)
    norm_rows<T, 8><<<grid, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, rows, width, turn, (T *)out);
  else if (packs <= 16)
    norm_rows<T, 16><<<grid, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, rows, width, turn, (T *)out);
  else
    norm_wide<T, mo_pack<T>::width>
        <<<(unsigned)rows, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, width, (T *)out);
}

template <typename T, int W>
static mo_status launch_norm(mo_cuda *cuda, const mo_norm_spec *spec, const float *w, const void *x, int64_t rows,
                             int64_t width, const rotation &turn, void *out) {
  if (width <= 32 * W) {
    constexpr int most = W > 1 ? 4 : 1;
    int lanes = 1;
    while (lanes * W < width) lanes *= 2;
    bool many = rows % most == 0 && (!turn.cosines || turn.heads % most == 0);
    int64_t groups = many ? rows / most : rows;
    unsigned grid = (unsigned)((groups * lanes + THREADS - 1) / THREADS);
    auto kernel = many ? norm_narrow<T, W, most> : norm_narrow<T, W, 1>;
    kernel<<<grid, THREADS, 0, cuda->stream>>>(*spec, w, (const T *)x, rows, width, lanes, turn, (T *)out);
  } else if (W > 1) {
    launch_norm_rows<T>(cuda, spec, w, x, rows, width, turn, out);
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
                           x, rows, width, (rotation){}, out);
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

/* Tables of the rotary angles in scratch, and room for `extra` numbers behind them. */
static mo_status make_tables(mo_cuda *cuda, const mo_model_spec *spec, int64_t S, int64_t extra, float **cosines,
                             float **sines, float **room) {
  int64_t half = spec->rope.dim / 2;
  void *block;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_VECTOR, (size_t)(2 * S * half + extra + half) * sizeof(float), &block));
  *cosines = (float *)block;
  *sines = *cosines + S * half;
  *room = *sines + S * half;
  float *inv_freq = *room + extra;
  MO_CUDA(cudaMemcpyAsync(inv_freq, spec->rope.inv_freq, (size_t)half * sizeof(float), cudaMemcpyHostToDevice,
                          cuda->stream));
  unsigned grid = grid_for(cuda, S * half);
  if (cuda->bf16_run)
    rope_tables<bf16><<<grid, THREADS, 0, cuda->stream>>>(inv_freq, S, half, spec->rope.factor, *cosines, *sines);
  else
    rope_tables<float><<<grid, THREADS, 0, cuda->stream>>>(inv_freq, S, half, spec->rope.factor, *cosines, *sines);
  MO_LAUNCHED("rope_tables");
  return MO_OK;
}

template <typename T, int W>
static mo_status rotate(mo_cuda *cuda, const mo_model_spec *spec, void *x, int64_t rows, int64_t S, int64_t heads) {
  int64_t half = spec->rope.dim / 2, packs = rows * heads * (half / W);
  float *cosines, *sines, *room;
  MO_TRY(make_tables(cuda, spec, S, 0, &cosines, &sines, &room));
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

static bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

/* Whether the norm's kernels can rotate, too: heads of packs that one warp holds, and rows that one of them takes. */
static bool can_fuse(const mo_cuda *cuda, const mo_model_spec *spec, const void *x, int64_t width) {
  int64_t W = 16 / cuda->base.activation_bytes, D = spec->attention.head_dim, half = spec->rope.dim / 2;
  return mo_packs(cuda, x, D) && half % W == 0 && power_of_two(half / W) && power_of_two(D / W) && D / W <= 32 &&
         width <= 16 * 32 * W;
}

mo_status cuda_norm_rope(mo_backend *backend, const mo_model_spec *spec, const mo_weight *weight, void *x, int64_t T,
                         int64_t S, int64_t heads) {
  mo_cuda *cuda = mo_cuda_of(backend);
  int64_t D = spec->attention.head_dim;
  bool whole = spec->attention.qk_norm == MO_QK_NORM_WHOLE;
  int64_t rows = whole ? T : T * heads, width = whole ? heads * D : D;
  if (!can_fuse(cuda, spec, x, width)) {
    MO_TRY(cuda_norm(backend, &spec->norm, weight, x, rows, width, x));
    return cuda_rope(backend, spec, x, T, S, heads);
  }
  float *cosines, *sines, *w;
  MO_TRY(make_tables(cuda, spec, S, width, &cosines, &sines, &w));
  MO_TRY(mo_cuda_vector(cuda, weight, 0, width, false, cuda->stream, w));
  rotation turn = {cosines, sines, S, whole ? 1 : heads, (int)D, (int)spec->rope.dim / 2};
  return BY_TYPE_AND_WIDTH(launch_norm, true, &spec->norm, w, x, rows, width, turn, x);
}
