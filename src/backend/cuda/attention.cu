/* Causal attention of the CUDA backend.
 *
 * bf16 runs with a head size of 64, 128 or 256: the tiled online softmax of Dao, FlashAttention-2 (arXiv:2307.08691)
 * on tensor cores; scores stay in float32, probabilities meet v in bf16 before they are normalised. The kernel here
 * runs on every GPU; attention_hopper.cu has the one for Hopper. All else: a plain kernel with the rounding points
 * of the CPU backend. All take a query's keys in a fixed order. */
#include "backend/cuda/attention.cuh"
#include "backend/cuda/attention_mma.cuh"

namespace {

/* First element of the place's head in q and out, and in k and v. */
__device__ __forceinline__ int64_t first_query(const attention_job &job, const attention_place &place) {
  return ((int64_t)place.b * job.S * job.heads + place.h) * job.D;
}
__device__ __forceinline__ int64_t first_key(const attention_job &job, const attention_place &place) {
  return ((int64_t)place.b * job.S * job.kv_heads + place.kv_head) * job.D;
}

/* --- any head size, float or bf16 --- */

constexpr int TILE = 32; /* queries and keys of a tile; a block has 16 x 16 threads, 2 x 2 scores each */

/* Rows first .. first+TILE-1 of x [S rows, stride] as float, zeros after the last; columns D. */
template <typename T>
__device__ void load_rows(float *shared, int ld, const T *x, int64_t stride, int first, int S, int D) {
  for (int r = threadIdx.x / 32; r < TILE; r += blockDim.x / 32)
    for (int d = threadIdx.x % 32; d < D; d += 32)
      shared[r * ld + d] = first + r < S ? to_float(x[(first + r) * stride + d]) : 0;
}

/* Scaled scores of queries query, query+16 with keys key, key+16; -infinity where unseen. q, k: the thread's rows. */
template <typename T>
__device__ void scores_of(const attention_job &job, const float *q, const float *k, int ld, int query, int key,
                          float (&s)[2][2]) {
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++) s[i][j] = 0;
  for (int d = 0; d < job.D; d++) {
    float q0 = q[d], q1 = q[16 * ld + d], k0 = k[d], k1 = k[16 * ld + d];
    s[0][0] += q0 * k0;
    s[0][1] += q0 * k1;
    s[1][0] += q1 * k0;
    s[1][1] += q1 * k1;
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++) {
      int a = query + 16 * i, b = key + 16 * j;
      bool seen = b <= a && (job.window == 0 || b > a - job.window);
      s[i][j] = seen ? rounded<T>(rounded<T>(s[i][j]) * job.scale) : -INFINITY;
    }
}

template <typename T>
__device__ __forceinline__ float exponential(const attention_job &job, float x, float top) {
  return expf(job.differences ? rounded<T>(x - top) : x - top);
}

/* Of the 16 threads of a row one writes its largest probability, if it is asked for. */
__device__ __forceinline__ bool stores_top(const attention_job &job, int row) {
  return job.top && threadIdx.x % 16 == 0 && row < job.S;
}

/* Three passes over the keys: largest score, sum, output; COLUMNS of the output per thread, 16 * COLUMNS >= D. */
template <typename T, int COLUMNS>
__global__ void __launch_bounds__(256) attend_plain(const attention_job job) {
  extern __shared__ float plain_shared[];
  const int D = job.D, ld = D | 1, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float *q = plain_shared, *x = q + TILE * ld, *p = x + TILE * ld; /* p [TILE, TILE + 1] */
  const attention_place place = attention_place_of(job, blockIdx.x);
  const int first = place.query_block * TILE;
  const int64_t q_stride = (int64_t)job.heads * D, kv_stride = (int64_t)job.kv_heads * D;
  const T *keys = (const T *)job.k + first_key(job, place), *values = (const T *)job.v + first_key(job, place);
  int begin, end;
  attention_tiles_of(job, first, TILE, TILE, &begin, &end);
  load_rows(q, ld, (const T *)job.q + first_query(job, place), q_stride, first, job.S, D);

  const float sink = job.sinks ? job.sinks[place.h] : -INFINITY;
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, acc[2][COLUMNS] = {};
  for (int pass = 0; pass < 3; pass++) {
    for (int tile = begin; tile <= end; tile++) {
      float s[2][2];
      load_rows(x, ld, keys, kv_stride, tile * TILE, job.S, D);
      __syncthreads();
      scores_of<T>(job, q + ty * ld, x + tx * ld, ld, first + ty, tile * TILE + tx, s);
      __syncthreads();
      for (int i = 0; i < 2; i++) {
        if (pass == 0) top[i] = fmaxf(top[i], fmaxf(s[i][0], s[i][1]));
        if (pass == 1) sum[i] += exponential<T>(job, s[i][0], top[i]) + exponential<T>(job, s[i][1], top[i]);
        if (pass == 2)
          for (int j = 0; j < 2; j++)
            p[(ty + 16 * i) * (TILE + 1) + tx + 16 * j] = rounded<T>(exponential<T>(job, s[i][j], top[i]) * sum[i]);
      }
      if (pass < 2) continue;
      load_rows(x, ld, values, kv_stride, tile * TILE, job.S, D);
      __syncthreads();
      for (int j = 0; j < TILE; j++) {
        float p0 = p[ty * (TILE + 1) + j], p1 = p[(ty + 16) * (TILE + 1) + j];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          float v = tx + 16 * c < D ? x[j * ld + tx + 16 * c] : 0;
          acc[0][c] += p0 * v;
          acc[1][c] += p1 * v;
        }
      }
      __syncthreads();
    }
    for (int i = 0; i < 2; i++) { /* the 16 threads of a row agree */
      for (int step = 8; pass == 0 && step > 0; step /= 2) top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], step));
      if (pass == 0) {
        if (stores_top(job, first + ty + 16 * i))
          *attention_top_of(job, place.b, first + ty + 16 * i, place.h) = top[i];
        top[i] = fmaxf(top[i], sink);
      }
      for (int step = 8; pass == 1 && step > 0; step /= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], step);
      if (pass == 1) sum[i] = 1.0f / (sum[i] + (job.sinks ? exponential<T>(job, sink, top[i]) : 0));
      if (pass == 1 && stores_top(job, first + ty + 16 * i)) {
        float *best = attention_top_of(job, place.b, first + ty + 16 * i, place.h);
        *best = exponential<T>(job, *best, top[i]) * sum[i];
      }
    }
  }
  T *out = (T *)job.out + first_query(job, place);
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      int row = first + ty + 16 * i, column = tx + 16 * c;
      if (row < job.S && column < D) out[row * q_stride + column] = from_float<T>(acc[i][c]);
    }
}

/* --- bf16, head size D = 64, 128 or 256 --- */

constexpr int WARPS = 4, THREADS = 32 * WARPS;

/* A tile in shared memory has D numbers a row; the 16-byte chunk c of row r stands at c ^ (r % 8), so that
 * neither copies nor ldmatrix meet bank conflicts. Rows first .. first+N-1 of x [S rows, stride]; zeros after them. */
template <int D, int N>
__device__ __forceinline__ void copy_tile(uint32_t shared, const bf16 *x, int stride, int first, int S) {
  constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
  const int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
#pragma unroll
  for (int i = 0; i < N / STEP; i++) {
    int r = row + i * STEP;
    bool inside = first + r < S;
    const bf16 *from = x + (int64_t)(inside ? first + r : 0) * stride + chunk * 8;
    copy_async(shared + r * (D * 2) + ((chunk ^ (r & 7)) << 4), from, inside);
  }
}

/* `base` addresses chunk 0 or 1 of a row; step t goes 2t chunks on. */
__device__ __forceinline__ uint32_t chunk_pair(uint32_t base, int t) {
  return (base ^ ((t & 3) << 5)) + (t >> 2) * 128;
}

/* s [ROWS, KEYS] = q k^T of the warp's rows. */
template <int D, int M, int KEYS, int FRAGMENTS>
__device__ __forceinline__ void multiply_scores(float (&s)[M][KEYS / 8][4], const uint32_t (&held)[FRAGMENTS][M][4],
                                                uint32_t q, uint32_t k) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[m][n][e] = 0;
#pragma unroll
  for (int t = 0; t < D / 16; t++) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) {
      if (FRAGMENTS > 1) {
#pragma unroll
        for (int e = 0; e < 4; e++) a[m][e] = held[t % FRAGMENTS][m][e];
      } else {
        load_matrices(a[m], chunk_pair(q, t) + m * (16 * D * 2));
      }
    }
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
      uint32_t b[4];
      load_matrices(b, chunk_pair(k, t) + n * (16 * D * 2));
#pragma unroll
      for (int m = 0; m < M; m++) {
        multiply_add(s[m][2 * n], a[m], b[0], b[1]);
        multiply_add(s[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/* o [ROWS, D] += p v, p rounded to bf16. */
template <int D, int M, int KEYS>
__device__ __forceinline__ void multiply_values(float (&o)[M][D / 8][4], const float (&p)[M][KEYS / 8][4], uint32_t v) {
#pragma unroll
  for (int t = 0; t < KEYS / 16; t++) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int e = 0; e < 4; e++) a[m][e] = bf16_pair(p[m][2 * t + e / 2][e % 2 * 2], p[m][2 * t + e / 2][e % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      uint32_t b[4];
      load_matrices_transposed(b, chunk_pair(v, n) + t * (16 * D * 2));
#pragma unroll
      for (int m = 0; m < M; m++) {
        multiply_add(o[m][2 * n], a[m], b[0], b[1]);
        multiply_add(o[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/* Scores that query `row` + its place in the fragment does not see become -infinity; key: the first of the tile. */
template <int M, int N>
__device__ __forceinline__ void mask_scores(float (&s)[M][N][4], int row, int key, int window) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int i = row + m * 16 + lane / 4 + e / 2 * 8, before = window > 0 ? i - window : -1;
#pragma unroll
      for (int n = 0; n < N; n++) {
        int j = key + n * 8 + lane % 4 * 2 + e % 2;
        if (j > i || j <= before) s[m][n][e] = -INFINITY;
      }
    }
}

/* s becomes 2^(s * scale - top), top and sum of each row follow, o is rescaled; with TOP also best, the largest of the keys
 * alone. sum: the thread's own columns only. */
template <bool TOP, int M, int N, int COLUMNS>
__device__ __forceinline__ void online_softmax(float (&s)[M][N][4], float (&top)[M][2], float (&sum)[M][2],
                                               float (&o)[M][COLUMNS][4], float (&best)[M][2], float scale) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < N; n++) largest = fmaxf(largest, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      if (TOP) best[m][half] = fmaxf(best[m][half], largest * scale);
      float now = fmaxf(top[m][half], largest * scale);
      float base = now == -INFINITY ? 0 : now; /* no key seen yet */
      float kept = fast_exp2(top[m][half] - base), added = 0;
      top[m][half] = now;
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; e++) {
          s[m][n][e] = fast_exp2(fmaf(s[m][n][e], scale, -base));
          added += s[m][n][e];
        }
      sum[m][half] = sum[m][half] * kept + added;
#pragma unroll
      for (int n = 0; n < COLUMNS; n++) {
        o[m][n][2 * half] *= kept;
        o[m][n][2 * half + 1] *= kept;
      }
    }
}

/* o / sum to rows of out, by way of the warp's own rows of q's tile at `tile`; row: the warp's first, of S. */
template <int D, int M>
__device__ __forceinline__ void store_rows(const float (&o)[M][D / 8][4], const float (&sum)[M][2], unsigned char *tile,
                                           bf16 *out, int stride, int row, int S) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float total = sum[m][half];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      float inverse = 1.0f / total;
      int r = m * 16 + half * 8 + lane / 4;
#pragma unroll
      for (int n = 0; n < D / 8; n++)
        *(uint32_t *)(tile + r * (D * 2) + ((n ^ (r & 7)) << 4) + lane % 4 * 4) =
            bf16_pair(o[m][n][2 * half] * inverse, o[m][n][2 * half + 1] * inverse);
    }
  __syncwarp();
  for (int i = lane; i < M * 16 * (D / 8); i += 32) {
    int r = i / (D / 8), chunk = i % (D / 8);
    if (row + r < S)
      *(uint4 *)(out + (int64_t)(row + r) * stride + chunk * 8) =
          *(const uint4 *)(tile + r * (D * 2) + ((chunk ^ (r & 7)) << 4));
  }
}

/* The largest probabilities of rows row.. , of S. */
template <int M>
__device__ __forceinline__ void store_tops(const attention_job &job, const attention_place &place,
                                           const float (&best)[M][2], const float (&top)[M][2],
                                           const float (&sum)[M][2], int row) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float total = sum[m][half];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      int r = row + m * 16 + half * 8 + lane / 4;
      if (lane % 4 == 0 && r < job.S)
        *attention_top_of(job, place.b, r, place.h) = fast_exp2(best[m][half] - top[m][half]) / total;
    }
}

/* WARPS warps of 16 * M queries each; tiles of KEYS keys, the next one on its way while one is at work. HOLD: a warp
 * keeps its queries in registers instead of reading them again for each tile. BLOCKS: of a multiprocessor. TOP: job.top is
 * asked for. */
template <int D, int M, int KEYS, bool HOLD, int BLOCKS, bool TOP>
__global__ void __launch_bounds__(THREADS, BLOCKS) attend_tensor(const attention_job job) {
  extern __shared__ __align__(1024) unsigned char tensor_shared[];
  constexpr int ROWS = 16 * M, QUERIES = WARPS * ROWS, TILE_BYTES = KEYS * D * 2, FRAGMENTS = HOLD ? D / 16 : 1;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, S = job.S, window = job.window;
  const int q_stride = job.heads * D, kv_stride = job.kv_heads * D;
  const attention_place place = attention_place_of(job, blockIdx.x);
  const bf16 *k = (const bf16 *)job.k + first_key(job, place), *v = (const bf16 *)job.v + first_key(job, place);
  const int first = place.query_block * QUERIES, row = first + warp * ROWS; /* of the block, of the warp */
  const uint32_t q_tile = shared_address(tensor_shared), kv_tiles = q_tile + QUERIES * D * 2;
  /* Where ldmatrix finds the lane's row in q (and transposed v), and in k. */
  const uint32_t q_lane = (lane & 15) * (D * 2) + (((lane >> 4) ^ (lane & 7)) << 4);
  const uint32_t k_lane = ((lane & 7) + ((lane >> 4) << 3)) * (D * 2) + ((((lane >> 3) & 1) ^ (lane & 7)) << 4);
  const uint32_t q_rows = q_tile + warp * (ROWS * D * 2) + q_lane;
  int begin, end;
  attention_tiles_of(job, first, QUERIES, KEYS, &begin, &end);

  copy_tile<D, QUERIES>(q_tile, (const bf16 *)job.q + first_query(job, place), q_stride, first, S);
  copy_tile<D, KEYS>(kv_tiles, k, kv_stride, begin * KEYS, S);
  copy_tile<D, KEYS>(kv_tiles + TILE_BYTES, v, kv_stride, begin * KEYS, S);
  copy_async_commit();

  const bool sink = job.sinks != NULL;
  float o[M][D / 8][4], top[M][2], sum[M][2], best[M][2];
  uint32_t held[FRAGMENTS][M][4];
#pragma unroll
  for (int m = 0; m < M; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      top[m][half] = sink ? job.sinks[place.h] * LOG2_E : -INFINITY;
      sum[m][half] = sink && lane % 4 == 0 ? 1 : 0;
      best[m][half] = -INFINITY;
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) o[m][n][e] = 0;
  }

  for (int tile = begin; tile <= end; tile++) {
    const uint32_t stage = kv_tiles + ((tile - begin) & 1) * (2 * TILE_BYTES);
    const uint32_t other = kv_tiles + ((tile - begin + 1) & 1) * (2 * TILE_BYTES);
    const int key = tile * KEYS;
    copy_async_wait();
    __syncthreads(); /* the tile is there for all, and all are done with the one before */
    if (tile < end) {
      copy_tile<D, KEYS>(other, k, kv_stride, key + KEYS, S);
      copy_tile<D, KEYS>(other + TILE_BYTES, v, kv_stride, key + KEYS, S);
      copy_async_commit();
    }
    if (HOLD && tile == begin) {
#pragma unroll
      for (int t = 0; t < FRAGMENTS; t++)
#pragma unroll
        for (int m = 0; m < M; m++) load_matrices(held[t][m], chunk_pair(q_rows, t) + m * (16 * D * 2));
    }
    if (key >= row + ROWS || (window > 0 && key + KEYS - 1 <= row - window)) continue; /* nothing for this warp */
    float s[M][KEYS / 8][4];
    multiply_scores<D, M, KEYS>(s, held, q_rows, stage + k_lane);
    if (key + KEYS - 1 > row || (window > 0 && key < row + ROWS - window)) mask_scores(s, row, key, window);
    online_softmax<TOP>(s, top, sum, o, best, job.scale * LOG2_E);
    multiply_values<D, M, KEYS>(o, s, stage + TILE_BYTES + q_lane);
  }
  if (TOP) store_tops<M>(job, place, best, top, sum, row);
  bf16 *out = (bf16 *)job.out + first_query(job, place);
  store_rows<D, M>(o, sum, tensor_shared + warp * (ROWS * D * 2), out, q_stride, row, S);
}

/* --- host --- */

template <int D, int M, int KEYS, bool HOLD, int BLOCKS>
mo_status launch_tensor(mo_cuda *cuda, attention_job job) {
  constexpr int QUERIES = 16 * M * WARPS, BYTES = (QUERIES + 4 * KEYS) * D * 2;
  auto kernel =
      job.top ? attend_tensor<D, M, KEYS, HOLD, BLOCKS, true> : attend_tensor<D, M, KEYS, HOLD, BLOCKS, false>;
  attention_cut(&job, QUERIES, 2);
  MO_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
  kernel<<<job.pairs * job.query_blocks, THREADS, BYTES, cuda->stream>>>(job);
  MO_LAUNCHED("attention");
  return MO_OK;
}

template <typename T, int COLUMNS>
mo_status launch_plain(mo_cuda *cuda, attention_job job) {
  int bytes = (2 * TILE * (job.D | 1) + TILE * (TILE + 1)) * (int)sizeof(float);
  auto kernel = attend_plain<T, COLUMNS>;
  attention_cut(&job, TILE, (int)sizeof(T));
  MO_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<job.pairs * job.query_blocks, 256, bytes, cuda->stream>>>(job);
  MO_LAUNCHED("attention");
  return MO_OK;
}

template <typename T>
mo_status attend_any(mo_cuda *cuda, const attention_job &job) {
  if (job.D <= 64) return launch_plain<T, 4>(cuda, job);
  if (job.D <= 128) return launch_plain<T, 8>(cuda, job);
  if (job.D <= 256) return launch_plain<T, 16>(cuda, job);
  return launch_plain<T, 32>(cuda, job);
}

}  // namespace

extern "C" mo_status cuda_attention(mo_backend *backend, const mo_model_spec *spec, int64_t window,
                                    const mo_weight *sinks, const void *q, const void *k, const void *v, int64_t B,
                                    int64_t S, void *out, float *top) {
  mo_cuda *cuda = mo_cuda_of(backend);
  const int64_t heads = spec->attention.heads, D = spec->attention.head_dim;
  if (D > 512 || B * heads * ((S + TILE - 1) / TILE) > INT32_MAX)
    return MO_FAIL(
        MO_INVALID,
        "too large for attention on the GPU (%lld sequences of %lld tokens, head_dim %lld; at most 512): use "
        "a smaller engine.micro_batch or engine.device = cpu",
        (long long)B, (long long)S, (long long)D);
  void *sink = NULL;
  if (sinks && sinks->data) {
    MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_VECTOR, (size_t)heads * sizeof(float), &sink));
    MO_TRY(mo_cuda_vector(cuda, sinks, 0, heads, false, cuda->stream, (float *)sink));
  }
  attention_job job = {};
  job.q = q;
  job.k = k;
  job.v = v;
  job.sinks = (const float *)sink;
  job.out = out;
  job.top = top;
  job.S = (int)S;
  job.D = (int)D;
  job.heads = (int)heads;
  job.kv_heads = (int)spec->attention.kv_heads;
  job.window = window < S ? (int)window : 0;
  job.scale = spec->attention.scale;
  job.differences = cuda->bf16_run && spec->attention.softmax_bf16;
  job.pairs = (int)(B * heads);
#ifdef MO_HAVE_HOPPER
  if (mo_cuda_attention_hopper_fits(cuda, &job)) return mo_cuda_attention_hopper(cuda, &job);
#endif
  if (cuda->bf16_run && D == 64) return launch_tensor<64, 2, 64, false, 3>(cuda, job);
  if (cuda->bf16_run && D == 128) return launch_tensor<128, 2, 64, false, 2>(cuda, job);
  if (cuda->bf16_run && D == 256) return launch_tensor<256, 1, 32, true, 2>(cuda, job);
  return MO_BY_TYPE(cuda, attend_any, cuda, job);
}
