/* The delta rule of the CUDA backend in float32, for every shape; formulas and rounding points as in cpu/delta.c.
 *
 * The rule over a chunk of 64 tokens, with G the running sum of the decay and S the state [k_dim, v_dim] before it:
 *   (I + A) V' = beta (v - exp(G) K S), A = strictly lower beta K K^T exp(G_i - G_j);
 *   out = exp(G) Q S + (lower Q K^T exp(G_i - G_j)) V';
 *   S <- exp(G_last) S + (K exp(G_last - G))^T V'.
 * Columns of v stay apart throughout, so a block may take any number of them without a change of the result. */
#include "backend/cuda/delta.cuh"

namespace {

constexpr int CHUNK = MO_DELTA_CHUNK;
constexpr int SQUARE = CHUNK + 4; /* row length of the CHUNK x CHUNK matrices: a multiple of 4, of 16-byte groups odd */
constexpr int MOST_K = 256;       /* k_dim */

template <typename T>
struct rule_job {
  mo_delta_sizes d;
  const T *mixed;
  const float *beta, *decay;
  T *out;
  int k_rows, k_pitch; /* k_dim rounded up to 4; row length of q and k in shared memory, of 16-byte groups odd */
  bool wide;           /* four neighbouring columns of v and out may be moved at once */
};

/* Shared memory of a block. Rows beyond the sequence's end, columns beyond k_dim and v_dim are zeros. */
template <int COLUMNS>
struct rule_shared {
  float *q, *k;               /* [CHUNK, k_pitch], normalised; k later times exp(G_last - G) */
  float *system;              /* [CHUNK, SQUARE], A transposed */
  float *attention;           /* [CHUNK, SQUARE] */
  float *state;               /* [k_rows, COLUMNS] */
  float *v;                   /* [CHUNK, COLUMNS] right side, then V' */
  mo_delta_sum *sums;         /* [CHUNK] G */
  float *beta, *grown, *left; /* [CHUNK] each: beta, exp(G), exp(G_last - G) */

  __device__ rule_shared(float *shared, int k_rows, int k_pitch) {
    q = shared;
    k = q + CHUNK * k_pitch;
    system = k + CHUNK * k_pitch;
    attention = system + CHUNK * SQUARE;
    state = attention + CHUNK * SQUARE;
    v = state + k_rows * COLUMNS;
    sums = (mo_delta_sum *)(v + CHUNK * COLUMNS);
    beta = (float *)(sums + CHUNK);
    grown = beta + CHUNK;
    left = grown + CHUNK;
  }
};

size_t rule_bytes(int k_rows, int k_pitch, int columns) {
  return (size_t)(2 * CHUNK * k_pitch + 2 * CHUNK * SQUARE + (k_rows + CHUNK) * columns + 5 * CHUNK) * sizeof(float);
}

__device__ __forceinline__ void load4(float (&x)[4], const float *from) {
  float4 four = *(const float4 *)from;
  x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
}
__device__ __forceinline__ void load4(float (&x)[4], const bf16 *from) {
  uint2 four = *(const uint2 *)from;
  x[0] = __uint_as_float(four.x << 16), x[1] = __uint_as_float(four.x & 0xffff0000u);
  x[2] = __uint_as_float(four.y << 16), x[3] = __uint_as_float(four.y & 0xffff0000u);
}
__device__ __forceinline__ void store4(float *to, const float (&x)[4]) {
  *(float4 *)to = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ __forceinline__ void store4(bf16 *to, const float (&x)[4]) {
  *(uint2 *)to = make_uint2(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]));
}

/* c [4, 4] += a b: b's row u belongs to column u of a. */
__device__ __forceinline__ void multiply(float (&c)[4][4], const float (&a)[4][4], const float (&b)[4][4]) {
#pragma unroll
  for (int u = 0; u < 4; u++)
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) c[i][j] = fmaf(a[i][u], b[u][j], c[i][j]);
}

__device__ __forceinline__ void clear(float (&c)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) c[i][j] = 0;
}

/* Rows of q and k of the chunk that begins at row `row` (n rows), each divided by its length; a warp a row. */
template <typename T, int COLUMNS>
__device__ void load_keys(const rule_job<T> &job, const rule_shared<COLUMNS> &x, int64_t row, int n, int key_head) {
  const mo_delta_sizes &d = job.d;
  const int lane = threadIdx.x % 32;
  const float scale = 1 / sqrtf((float)d.kd);
#pragma unroll 2
  for (int i = threadIdx.x / 32; i < CHUNK; i += COLUMNS / 8) {
    const T *q = job.mixed + (row + i) * d.channels + key_head * d.kd, *k = q + d.keys;
    float a[MOST_K / 32], b[MOST_K / 32], aa = 0, bb = 0;
#pragma unroll
    for (int u = 0; u < MOST_K / 32; u++) {
      bool inside = i < n && lane + 32 * u < d.kd;
      a[u] = inside ? to_float(q[lane + 32 * u]) : 0;
      b[u] = inside ? to_float(k[lane + 32 * u]) : 0;
    }
#pragma unroll
    for (int u = 0; u < MOST_K / 32; u++) {
      aa += a[u] * a[u];
      bb += b[u] * b[u];
    }
    aa = 1.0f / sqrtf(mo_warp_sum(aa) + 1e-6f);
    bb = 1.0f / sqrtf(mo_warp_sum(bb) + 1e-6f);
#pragma unroll
    for (int u = 0; u < MOST_K / 32; u++)
      if (lane + 32 * u < job.k_rows) {
        x.q[i * job.k_pitch + lane + 32 * u] = a[u] * aa * scale;
        x.k[i * job.k_pitch + lane + 32 * u] = b[u] * bb;
      }
  }
}

/* beta, the running sum of the decay and its exponentials; by the first warp. */
template <typename T, int COLUMNS>
__device__ void load_decay(const rule_job<T> &job, const rule_shared<COLUMNS> &x, int64_t row, int n, int h) {
  const int lane = threadIdx.x;
  const float *beta = job.beta + row * job.d.vh + h, *decay = job.decay + row * job.d.vh + h;
  float decays[2];
  mo_delta_sum sums[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int i = lane + 32 * half;
    x.beta[i] = i < n ? beta[(int64_t)i * job.d.vh] : 0;
    decays[half] = i < n ? decay[(int64_t)i * job.d.vh] : 0;
  }
  const mo_delta_sum last = mo_delta_sums(decays, sums);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int i = lane + 32 * half;
    x.sums[i] = sums[half];
    x.grown[i] = expf(sums[half].high);
    x.left[i] = expf(mo_delta_between(last, sums[half]));
  }
}

/* Ask for the next chunk's rows, so that loading them finds them in the L2 cache. */
template <typename T, int COLUMNS>
__device__ __forceinline__ void prefetch(const rule_job<T> &job, int64_t row, int n, int key_head, int h, int column) {
  const mo_delta_sizes &d = job.d;
  const int i = threadIdx.x % CHUNK, width = 128 / (int)sizeof(T), lines = (d.kd + width - 1) / width;
  const T *from = job.mixed + (row + i) * d.channels;
  if (i >= n) return;
  for (int u = threadIdx.x / CHUNK; u < 2 * lines; u += 4 * COLUMNS / CHUNK)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + u / lines * d.keys + key_head * d.kd + u % lines * width));
  for (int u = threadIdx.x / CHUNK; u * width < COLUMNS && column + u * width < d.vd; u += 4 * COLUMNS / CHUNK)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + 2 * d.keys + h * d.vd + column + u * width));
}

/* The lane's place in a warp's tile [16, 32] of a product, and the tile's in the whole; columns of 4 where they are
 * neighbours in memory, else lane_column and every eighth after it, rows lane_row and every fourth after it. */
struct rule_thread {
  int lane_row, lane_column, warp_row, warp_column;
};

template <int COLUMNS>
__device__ __forceinline__ rule_thread place_of_thread() {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  return {lane / 8, lane % 8, warp / (COLUMNS / 32), warp % (COLUMNS / 32)};
}

/* system and attention. Sixteen tiles [16, 32] of K K^T | Q K^T, a warp a tile; those wholly above the diagonal are
 * left out (and never read), and spread over the warps. */
template <typename T, int COLUMNS>
__device__ void relate(const rule_job<T> &job, const rule_shared<COLUMNS> &x) {
  const rule_thread me = place_of_thread<COLUMNS>();
  for (int tile = threadIdx.x / 32; tile < 16; tile += COLUMNS / 8) {
    const bool queries = tile & 2;
    const int i0 = tile / 4 * 16 + me.lane_row, j0 = (tile + tile / 4) % 2 * 32 + me.lane_column;
    if (tile / 4 < 2 && (tile + tile / 4) % 2 == 1) continue;
    const float *a = (queries ? x.q : x.k) + i0 * job.k_pitch, *b = x.k + j0 * job.k_pitch;
    float c[4][4];
    clear(c);
#pragma unroll 2
    for (int k = 0; k < job.k_rows; k += 4) {
      float ai[4][4], bj[4][4];
#pragma unroll
      for (int u = 0; u < 4; u++) {
        load4(ai[u], a + 4 * u * job.k_pitch + k);
        load4(bj[u], b + 8 * u * job.k_pitch + k);
      }
#pragma unroll
      for (int u = 0; u < 4; u++)
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int j = 0; j < 4; j++) c[i][j] = fmaf(ai[i][u], bj[j][u], c[i][j]);
    }
#pragma unroll
    for (int ii = 0; ii < 4; ii++)
#pragma unroll
      for (int jj = 0; jj < 4; jj++) {
        int i = i0 + 4 * ii, j = j0 + 8 * jj;
        float between = j <= i ? expf(mo_delta_between(x.sums[i], x.sums[j])) : 0;
        if (queries)
          x.attention[i * SQUARE + j] = c[ii][jj] * between;
        else
          x.system[j * SQUARE + i] = j < i ? c[ii][jj] * x.beta[i] * between : 0;
      }
  }
}

/* Right sides beta (v - exp(G) K S); seen = exp(G) Q S stays with the thread. */
template <typename T, int COLUMNS>
__device__ void meet_state(const rule_job<T> &job, const rule_shared<COLUMNS> &x, int64_t row, int n, int h, int column,
                           float (&seen)[4][4]) {
  const mo_delta_sizes &d = job.d;
  const rule_thread me = place_of_thread<COLUMNS>();
  const int i0 = me.warp_row * 16 + me.lane_row, c0 = me.warp_column * 32 + me.lane_column * 4;
  const T *from = job.mixed + row * d.channels + 2 * d.keys + h * d.vd + column + c0;
  float v[4][4], known[4][4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    bool inside = i0 + 4 * i < n;
    const T *values = from + (int64_t)(i0 + 4 * i) * d.channels;
#pragma unroll
    for (int j = 0; j < 4; j++) v[i][j] = 0;
    if (job.wide && inside && column + c0 < d.vd) load4(v[i], values);
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (!job.wide && inside && column + c0 + j < d.vd) v[i][j] = to_float(values[j]);
  }
  clear(known);
  clear(seen);
  const float *k_rows = x.k + i0 * job.k_pitch, *q_rows = x.q + i0 * job.k_pitch;
  for (int k = 0; k < job.k_rows; k += 4) {
    float a[4][4], s[4][4];
#pragma unroll
    for (int u = 0; u < 4; u++) {
      load4(s[u], x.state + (k + u) * COLUMNS + c0);
      load4(a[u], k_rows + 4 * u * job.k_pitch + k);
    }
    multiply(known, a, s);
#pragma unroll
    for (int u = 0; u < 4; u++) load4(a[u], q_rows + 4 * u * job.k_pitch + k);
    multiply(seen, a, s);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float beta = x.beta[i0 + 4 * i], grown = x.grown[i0 + 4 * i];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      v[i][j] = beta * (v[i][j] - grown * known[i][j]);
      seen[i][j] *= grown;
    }
    store4(x.v + (i0 + 4 * i) * COLUMNS + c0, v[i]);
  }
}

/* (I + A) V' = right sides, column c by one thread: 16 rows at a time, first the earlier rows' part, then theirs. */
template <int COLUMNS>
__device__ void solve(const rule_shared<COLUMNS> &x, int c) {
  for (int block = 0; block < CHUNK; block += 16) {
    float v[16], a[4][4];
#pragma unroll
    for (int i = 0; i < 16; i++) v[i] = x.v[(block + i) * COLUMNS + c];
#pragma unroll 4
    for (int j = 0; j < block; j++) {
      float known = x.v[j * COLUMNS + c];
#pragma unroll
      for (int u = 0; u < 4; u++) load4(a[u], x.system + j * SQUARE + block + 4 * u);
#pragma unroll
      for (int i = 0; i < 16; i++) v[i] = fmaf(-a[i / 4][i % 4], known, v[i]);
    }
#pragma unroll
    for (int j = 0; j < 16; j++) {
#pragma unroll
      for (int u = j / 4; u < 4; u++) load4(a[u], x.system + (block + j) * SQUARE + block + 4 * u);
#pragma unroll
      for (int i = j + 1; i < 16; i++) v[i] = fmaf(-a[i / 4][i % 4], v[j], v[i]);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) x.v[(block + i) * COLUMNS + c] = v[i];
  }
}

/* out = seen + attention V'. */
template <typename T, int COLUMNS>
__device__ void answer(const rule_job<T> &job, const rule_shared<COLUMNS> &x, int64_t row, int n, int h, int column,
                       float (&seen)[4][4]) {
  const mo_delta_sizes &d = job.d;
  const rule_thread me = place_of_thread<COLUMNS>();
  const int i0 = me.warp_row * 16 + me.lane_row, c0 = me.warp_column * 32 + me.lane_column * 4;
#pragma unroll 2
  for (int j = 0; j < me.warp_row * 16 + 16; j += 4) {
    float a[4][4], v[4][4];
#pragma unroll
    for (int u = 0; u < 4; u++) {
      load4(a[u], x.attention + (i0 + 4 * u) * SQUARE + j);
      load4(v[u], x.v + (j + u) * COLUMNS + c0);
    }
    multiply(seen, a, v);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (i0 + 4 * i >= n) continue;
    T *out = job.out + (row + i0 + 4 * i) * d.values + h * d.vd + column + c0;
    if (job.wide && column + c0 < d.vd) store4(out, seen[i]);
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (!job.wide && column + c0 + j < d.vd) out[j] = from_float<T>(seen[i][j]);
  }
}

/* S <- exp(G_last) S + k^T V', k already times exp(G_last - G). */
template <typename T, int COLUMNS>
__device__ void update(const rule_job<T> &job, const rule_shared<COLUMNS> &x) {
  const rule_thread me = place_of_thread<COLUMNS>();
  const int c0 = me.warp_column * 32 + me.lane_column * 4;
  const float kept = x.grown[CHUNK - 1];
  for (int k0 = me.warp_row * 16 + me.lane_row * 4; k0 < job.k_rows; k0 += CHUNK) {
    float s[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      load4(s[i], x.state + (k0 + i) * COLUMNS + c0);
#pragma unroll
      for (int j = 0; j < 4; j++) s[i][j] *= kept;
    }
#pragma unroll 4
    for (int t = 0; t < CHUNK; t++) {
      float k[4], v[4];
      load4(k, x.k + t * job.k_pitch + k0);
      load4(v, x.v + t * COLUMNS + c0);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) s[i][j] = fmaf(k[i], v[j], s[i][j]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) store4(x.state + (k0 + i) * COLUMNS + c0, s[i]);
  }
}

/* One block: COLUMNS columns of one value head of one sequence; 16 threads for 4 columns. */
template <typename T, int COLUMNS>
__global__ void __launch_bounds__(4 * COLUMNS) rule(const rule_job<T> job) {
  extern __shared__ __align__(16) float rule_memory[];
  const rule_shared<COLUMNS> x(rule_memory, job.k_rows, job.k_pitch);
  const int h = blockIdx.x % job.d.vh, key_head = h / job.d.per_key, column = blockIdx.y * COLUMNS, S = (int)job.d.S;
  const int64_t start = (int64_t)(blockIdx.x / job.d.vh) * S;
  for (int i = threadIdx.x; i < job.k_rows * COLUMNS; i += 4 * COLUMNS) x.state[i] = 0;
  for (int s = 0; s < S; s += CHUNK) {
    const int n = min(CHUNK, S - s);
    float seen[4][4];
    load_keys(job, x, start + s, n, key_head);
    if (threadIdx.x < 32) load_decay(job, x, start + s, n, h);
    __syncthreads();
    if (s + CHUNK < S) prefetch<T, COLUMNS>(job, start + s + CHUNK, min(CHUNK, S - s - CHUNK), key_head, h, column);
    relate(job, x);
    meet_state(job, x, start + s, n, h, column, seen);
    __syncthreads();
    if (threadIdx.x < COLUMNS)
      solve(x, threadIdx.x);
    else /* k is needed no more as it is */
      for (int i = threadIdx.x - COLUMNS; i < CHUNK * job.k_rows; i += 3 * COLUMNS)
        x.k[i / job.k_rows * job.k_pitch + i % job.k_rows] *= x.left[i / job.k_rows];
    __syncthreads();
    answer(job, x, start + s, n, h, column, seen);
    update(job, x);
    __syncthreads();
  }
}

template <typename T, int COLUMNS>
mo_status launch_rule(mo_cuda *cuda, const rule_job<T> &job) {
  size_t bytes = rule_bytes(job.k_rows, job.k_pitch, COLUMNS);
  MO_CUDA(cudaFuncSetAttribute(rule<T, COLUMNS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
  dim3 grid((unsigned)(job.d.B * job.d.vh), (unsigned)((job.d.vd + COLUMNS - 1) / COLUMNS));
  rule<T, COLUMNS><<<grid, 4 * COLUMNS, bytes, cuda->stream>>>(job);
  MO_LAUNCHED("delta_rule");
  return MO_OK;
}

/* The widest blocks that fit in shared memory, are not mostly empty, and leave no multiprocessor idle. */
template <typename T>
mo_status apply_rule(mo_cuda *cuda, const mo_delta_sizes &d, const void *mixed, const float *beta, const float *decay,
                     void *out) {
  rule_job<T> job = {d, (const T *)mixed, beta, decay, (T *)out, 0, 0, false};
  job.k_rows = (d.kd + 3) / 4 * 4;
  job.k_pitch = job.k_rows | 4;
  job.wide = d.vd % 4 == 0 && 2 * d.keys % 4 == 0;
  int room, columns = 128;
  MO_CUDA(cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, cuda->device));
  while (columns > 32 && (rule_bytes(job.k_rows, job.k_pitch, columns) > (size_t)room || columns / 2 >= d.vd ||
                          d.B * d.vh * ((d.vd + columns - 1) / columns) < cuda->multiprocessors))
    columns /= 2;
  if (d.kd > MOST_K || rule_bytes(job.k_rows, job.k_pitch, columns) > (size_t)room)
    return MO_FAIL(MO_INVALID, "linear_key_head_dim is too large for this GPU (%d): use engine.device = cpu", d.kd);
  if (columns == 128) return launch_rule<T, 128>(cuda, job);
  return columns == 64 ? launch_rule<T, 64>(cuda, job) : launch_rule<T, 32>(cuda, job);
}

}  // namespace

mo_status mo_cuda_delta_rule_float(mo_cuda *cuda, const mo_delta_sizes *d, const void *mixed, const float *beta,
                                   const float *decay, void *out) {
  return MO_BY_TYPE(cuda, apply_rule, cuda, *d, mixed, beta, decay, out);
}
