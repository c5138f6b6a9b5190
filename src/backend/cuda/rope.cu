/* Rotary embedding of the CUDA backend, alone and behind a norm of the heads. Rounding points as in cpu/elementwise.c: each
 * product is rounded, and their sum. */
#include "backend/cuda/norm.cuh"

/* Angles [S, half] in the activations' type, and the heads that they turn: value j of a head's first `half` with value half + j. */
template <typename T>
struct rotation {
  const T *cosines, *sines;
  uint32_t S, heads; /* heads of a token */
  int D, half;
};

/* --- angles --- */

/* cos and sin of every position [S, half]. */
template <typename T>
static __global__ void rope_tables(const float *inv_freq, int64_t S, int64_t half, float factor, T *cosines, T *sines) {
  GRID_STRIDE(i, S * half) {
    float angle = inv_freq[i % half] * (float)(i / half);
    cosines[i] = from_float<T>(cosf(angle) * factor);
    sines[i] = from_float<T>(sinf(angle) * factor);
  }
}

/* The angles in scratch; *room: `extra` numbers behind them. */
template <typename T>
static mo_status make_tables(mo_cuda *cuda, const mo_model_spec *spec, int64_t S, int64_t heads, int64_t extra,
                             rotation<T> *turn, float **room) {
  int64_t half = spec->rope.dim / 2, angles = (S * half + 7) / 8 * 8; /* packs of them are aligned */
  void *block;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_VECTOR, (size_t)(2 * angles + extra + half) * sizeof(float), &block));
  T *cosines = (T *)block, *sines = cosines + angles;
  *room = (float *)(sines + angles);
  *turn = (rotation<T>){cosines, sines, (uint32_t)S, (uint32_t)heads, (int)spec->attention.head_dim, (int)half};
  float *inv_freq = *room + extra;
  MO_CUDA(cudaMemcpyAsync(inv_freq, spec->rope.inv_freq, (size_t)half * sizeof(float), cudaMemcpyHostToDevice,
                          cuda->stream));
  rope_tables<T>
      <<<grid_for(cuda, S * half), THREADS, 0, cuda->stream>>>(inv_freq, S, half, spec->rope.factor, cosines, sines);
  MO_LAUNCHED("rope_tables");
  return MO_OK;
}

/* --- a pair --- */

template <typename T>
__device__ __forceinline__ void turn_pair(float &a, float &b, float c, float s) {
  float first = a;
  a = rounded<T>(a * c) - rounded<T>(b * s);
  b = rounded<T>(b * c) + rounded<T>(first * s);
}
/* The same on bits of two numbers each. The instructions round as float32 and then bf16 would: a product is exact in float32, and
 * a sum that isn't has no bits near the middle between two numbers of bf16. */
__device__ __forceinline__ void turn_pair(uint32_t &a, uint32_t &b, uint32_t c, uint32_t s) {
  auto as_pair = [](const uint32_t &bits) { return *reinterpret_cast<const __nv_bfloat162 *>(&bits); };
  __nv_bfloat162 x = as_pair(a), y = as_pair(b), cosine = as_pair(c), sine = as_pair(s);
  __nv_bfloat162 first = __hsub2_rn(__hmul2_rn(x, cosine), __hmul2_rn(y, sine));
  __nv_bfloat162 second = __hadd2_rn(__hmul2_rn(y, cosine), __hmul2_rn(x, sine));
  a = *reinterpret_cast<uint32_t *>(&first);
  b = *reinterpret_cast<uint32_t *>(&second);
}

/* Packs of both halves of a head. */
__device__ __forceinline__ void turn_packs(uint4 &a, uint4 &b, const uint4 &c, const uint4 &s, const bf16 *) {
  turn_pair(a.x, b.x, c.x, s.x), turn_pair(a.y, b.y, c.y, s.y);
  turn_pair(a.z, b.z, c.z, s.z), turn_pair(a.w, b.w, c.w, s.w);
}
__device__ __forceinline__ void turn_packs(uint4 &a, uint4 &b, const uint4 &c, const uint4 &s, const float *type) {
  float x[4], y[4], cosines[4], sines[4];
  unpack(a, x, type), unpack(b, y, type), unpack(c, cosines, type), unpack(s, sines, type);
#pragma unroll
  for (int k = 0; k < 4; k++) turn_pair<float>(x[k], y[k], cosines[k], sines[k]);
  a = packed(x, type), b = packed(y, type);
}

template <typename T>
__device__ __forceinline__ uint4 &pack_at(T *x) {
  return *reinterpret_cast<uint4 *>(x);
}
template <typename T>
__device__ __forceinline__ uint4 pack_at(const T *x) {
  return *reinterpret_cast<const uint4 *>(x);
}

/* --- rotation alone --- */

/* W pairs of a head at a time; x: `packs` of them. */
template <typename T, int W>
static __global__ void rope(rotation<T> turn, T *x, int64_t packs) {
  GRID_STRIDE(i, packs) {
    int64_t per_head = turn.half / W, j = i % per_head * W, head = i / per_head; /* head: of all rows */
    int64_t angle = head / turn.heads % turn.S * turn.half + j;
    T *v = x + head * turn.D + j;
    if constexpr (W > 1) {
      uint4 a = pack_at(v), b = pack_at(v + turn.half);
      turn_packs(a, b, pack_at(turn.cosines + angle), pack_at(turn.sines + angle), v);
      pack_at(v) = a;
      pack_at(v + turn.half) = b;
    } else {
      float a = to_float(v[0]), b = to_float(v[turn.half]);
      turn_pair<T>(a, b, to_float(turn.cosines[angle]), to_float(turn.sines[angle]));
      v[0] = from_float<T>(a);
      v[turn.half] = from_float<T>(b);
    }
  }
}

template <typename T, int W>
static mo_status launch_rope(mo_cuda *cuda, const mo_model_spec *spec, void *x, int64_t rows, int64_t S,
                             int64_t heads) {
  int64_t packs = rows * heads * (spec->rope.dim / 2 / W);
  rotation<T> turn;
  float *room;
  MO_TRY(make_tables(cuda, spec, S, heads, 0, &turn, &room));
  rope<T, W><<<grid_for(cuda, packs), THREADS, 0, cuda->stream>>>(turn, (T *)x, packs);
  MO_LAUNCHED("rope");
  return MO_OK;
}

mo_status cuda_rope(mo_backend *backend, const mo_model_spec *spec, void *x, int64_t T, int64_t S, int64_t heads) {
  mo_cuda *cuda = mo_cuda_of(backend);
  bool packs = mo_packs(cuda, x, spec->attention.head_dim) && mo_packs(cuda, x, spec->rope.dim / 2);
  return BY_TYPE_AND_WIDTH(launch_rope, packs, spec, x, T, S, heads);
}

/* --- norm and rotation --- */

/* A warp norms and turns `unit` of all slots; WHOLE: a token's, whose heads are normed as one row, else each is. A slot is two packs
 * of a head, `apart` values from each other, that turn together, or that don't turn. A head has 2^shift of them, at most 32, so
 * that all slots of a lane are at the same place of their heads and have the same angles. */
template <typename T, int P, bool WHOLE>
static __global__ void __launch_bounds__(THREADS)
    norm_rotate(mo_norm_spec spec, const float *w, T *x, uint32_t slots, uint32_t unit, int shift, rotation<T> turn) {
  constexpr int W = mo_pack<T>::width;
  uint32_t lane = threadIdx.x % 32, first = (blockIdx.x * (THREADS / 32) + threadIdx.x / 32) * unit;
  if (first >= slots) return;
  int at = (int)(lane & ((1u << shift) - 1)) * W;
  bool turns = at < turn.half;
  int low = turns ? at : turn.half + at, apart = turns ? turn.half : turn.D / 2 - turn.half;
  int step = (32 >> shift) * turn.D; /* from a slot of a lane to its next one */
  T *mine = x + (int64_t)((first + lane) >> shift) * turn.D + low;
  uint32_t left = unit < slots - first ? unit : slots - first; /* slots of the warp */
  uint4 a[P], b[P];
  float sum[P];
#pragma unroll
  for (int p = 0; p < P; p++) {
    bool inside = 32 * p + lane < left;
    a[p] = inside ? pack_at(mine + p * step) : make_uint4(0, 0, 0, 0);
    b[p] = inside ? pack_at(mine + p * step + apart) : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int p = 0; p < P; p++) {
    float values[W];
    unpack(a[p], values, x);
    sum[p] = sum_squares(values);
    unpack(b[p], values, x);
    sum[p] += sum_squares(values);
    if (WHOLE && p) sum[0] += sum[p];
  }
  for (int offset = WHOLE ? 16 : (1 << shift) / 2; offset; offset /= 2)
#pragma unroll
    for (int p = 0; p < (WHOLE ? 1 : P); p++) sum[p] += __shfl_xor_sync(~0u, sum[p], offset);
  /* With several slots of a lane the warp's heads are of one token. */
  uint32_t token = ((first + lane) >> shift) / turn.heads;
  int64_t angle = (int64_t)(token % turn.S) * turn.half + at;
  uint4 c = {}, s = {};
  if (turns) c = pack_at(turn.cosines + angle), s = pack_at(turn.sines + angle);
  float width = (float)(WHOLE ? turn.heads * (uint32_t)turn.D : (uint32_t)turn.D);
  w += (WHOLE ? (lane >> shift) * turn.D : 0) + low;
#pragma unroll
  for (int p = 0; p < P; p++) {
    if (32 * p + lane >= left) continue;
    const float *weights = WHOLE ? w + p * step : w;
    float values[W], scale = 1.0f / sqrtf(sum[WHOLE ? 0 : p] / width + spec.eps);
    unpack(a[p], values, x);
    apply_norm<T, W>(spec, weights, values, scale);
    a[p] = packed(values, x);
    unpack(b[p], values, x);
    apply_norm<T, W>(spec, weights + apart, values, scale);
    b[p] = packed(values, x);
    if (turns) turn_packs(a[p], b[p], c, s, x);
    pack_at(mine + p * step) = a[p];
    pack_at(mine + p * step + apart) = b[p];
  }
}

static bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

/* Whether norm_rotate can do it: slots of whole packs, as many as warps share evenly, and rows that a warp holds. */
static bool can_fuse(const mo_cuda *cuda, const mo_model_spec *spec, const void *x, int64_t heads, bool whole) {
  int64_t W = 16 / cuda->base.activation_bytes, D = spec->attention.head_dim, half = spec->rope.dim / 2;
  return mo_packs(cuda, x, D) && half % W == 0 && power_of_two(half / W) && power_of_two(D / W) && 2 * half <= D &&
         D / W <= 64 && (!whole || heads * D <= 16 * 32 * W);
}

template <typename T>
static mo_status launch_norm_rotate(mo_cuda *cuda, const mo_model_spec *spec, const mo_weight *weight, void *x,
                                    int64_t rows, int64_t S, int64_t heads) {
  bool whole = spec->attention.qk_norm == MO_QK_NORM_WHOLE;
  int64_t D = spec->attention.head_dim, of_head = D / (2 * mo_pack<T>::width), width = whole ? heads * D : D;
  rotation<T> turn;
  float *w;
  MO_TRY(make_tables(cuda, spec, S, heads, width, &turn, &w));
  MO_TRY(mo_cuda_vector(cuda, weight, 0, width, false, cuda->stream, w));
  int shift = 0;
  while (1 << shift < of_head) shift++;
  int64_t of_token = heads * of_head;
  bool many = of_token % (4 * 32) == 0;
  int64_t unit = whole ? of_token : many ? 4 * 32 : 32, units = (rows * of_token + unit - 1) / unit;
  auto kernel = whole  ? of_token <= 4 * 32 ? norm_rotate<T, 4, true> : norm_rotate<T, 8, true>
                 : many ? norm_rotate<T, 4, false>
                       : norm_rotate<T, 1, false>;
  kernel<<<(unsigned)((units * 32 + THREADS - 1) / THREADS), THREADS, 0, cuda->stream>>>(
      spec->norm, w, (T *)x, (uint32_t)(rows * of_token), (uint32_t)unit, shift, turn);
  MO_LAUNCHED("norm_rotate");
  return MO_OK;
}

mo_status cuda_norm_rope(mo_backend *backend, const mo_model_spec *spec, const mo_weight *weight, void *x, int64_t T,
                         int64_t S, int64_t heads) {
  mo_cuda *cuda = mo_cuda_of(backend);
  int64_t D = spec->attention.head_dim;
  bool whole = spec->attention.qk_norm == MO_QK_NORM_WHOLE;
  if (can_fuse(cuda, spec, x, heads, whole) && T * heads * D <= INT32_MAX)
    return MO_BY_TYPE(cuda, launch_norm_rotate, cuda, spec, weight, x, T, S, heads);
  MO_TRY(cuda_norm(backend, &spec->norm, weight, x, whole ? T : T * heads, whole ? heads * D : D, x));
  return cuda_rope(backend, spec, x, T, S, heads);
}
