/* What the delta rule of bf16 runs on tensor cores needs of a chunk that does not depend on the state, for all chunks
 * at once: T = (I + A)^-1 beta and the lower triangle P of Q K^T exp(G_i - G_j); A, G as in delta_rule.cu, numbers as
 * in delta_mma.cuh. */
#include "backend/cuda/delta_mma.cuh"

namespace {

constexpr int CHUNK = MO_DELTA_CHUNK;
constexpr int DIAGONAL = 20; /* row length of a square in float32 */

/* Shared memory of a block. */
struct relate_shared {
  union {
    struct {
      unsigned char q[MO_DELTA_TILE], k[MO_DELTA_TILE];
    } tile;
    struct {
      uint4 system[6][2][32]; /* -A, squares below the diagonal: (i, j) at i (i - 1) / 2 + j */
      float diagonal[4][16][DIAGONAL], inverse[4][16][DIAGONAL]; /* A and (I + A)^-1, squares on the diagonal */
    } solve;
  };
  float of_q[CHUNK], of_k[CHUNK]; /* 1 / |q| / sqrt(k_dim), 1 / |k| */
  float beta[4][CHUNK];           /* a copy for each warp */
  mo_delta_sum sums[4][CHUNK];    /* likewise: the running sums of the decay */
};

/* A warp: rows 16 w .. 16 w + 15. products: squares (w, w), .., (w, 3) of K K^T, then (w, 0), .., (w, w) of Q K^T. */
__device__ __forceinline__ void products_of_rows(relate_shared &x, int w, float (&products)[5][2][4]) {
  const int lane = threadIdx.x % 32, row = lane / 8 % 2 * 8 + lane % 8, piece = lane / 16;
  const uint32_t q = shared_address(x.tile.q), k = shared_address(x.tile.k);
  float qq[2] = {0, 0}, kk[2] = {0, 0};
#pragma unroll
  for (int step = 0; step < MO_DELTA_K / 16; step++) {
    uint32_t of_q[4], of_k[4];
    load_matrices(of_q, q + tile_place(16 * w + row, 2 * step + piece));
    load_matrices(of_k, k + tile_place(16 * w + row, 2 * step + piece));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      qq[i % 2] += low_half(of_q[i]) * low_half(of_q[i]) + high_half(of_q[i]) * high_half(of_q[i]);
      kk[i % 2] += low_half(of_k[i]) * low_half(of_k[i]) + high_half(of_k[i]) * high_half(of_k[i]);
    }
#pragma unroll
    for (int u = 0; u < 5; u++) {
      const bool keys = u < 4 - w;
      uint32_t left[4], right[4];
      load_matrices(right, k + tile_place(16 * (keys ? w + u : u - 4 + w) + row, 2 * step + piece));
#pragma unroll
      for (int i = 0; i < 4; i++) left[i] = keys ? of_k[i] : of_q[i];
      multiply(products[u][0], products[u][1], left, right);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    for (int step = 1; step < 4; step *= 2) {
      qq[i] += __shfl_xor_sync(~0u, qq[i], step);
      kk[i] += __shfl_xor_sync(~0u, kk[i], step);
    }
    if (lane % 4 == 0) {
      x.of_q[16 * w + 8 * i + lane / 4] = 1 / (sqrtf(qq[i] + 1e-6f) * sqrtf((float)MO_DELTA_K));
      x.of_k[16 * w + 8 * i + lane / 4] = 1 / sqrtf(kk[i] + 1e-6f);
    }
  }
}

/* beta and the running sum of the decay of a value head, by each warp for itself. */
__device__ __forceinline__ void sum_decay(const mo_delta_job &job, mo_delta_sum *sums, float *betas, int64_t row, int n,
                                          int h) {
  const int lane = threadIdx.x % 32;
  mo_delta_sum sum[2];
  float beta[2], decay[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int i = lane + 32 * half;
    beta[half] = i < n ? job.beta[(row + i) * job.d.vh + h] : 0;
    decay[half] = i < n ? job.decay[(row + i) * job.d.vh + h] : 0;
  }
  mo_delta_sums(decay, sum);
  __syncwarp(); /* every lane is done with the last head's */
#pragma unroll
  for (int half = 0; half < 2; half++) {
    sums[lane + 32 * half] = sum[half];
    betas[lane + 32 * half] = beta[half];
  }
  __syncwarp();
}

/* From this warp's products: the squares (u, w) of A into shared memory, those (w, j) of P into the relation. */
__device__ __forceinline__ void put_relations(relate_shared &x, int w, const float (&products)[5][2][4],
                                              mo_delta_relation *relation) {
  const int lane = threadIdx.x % 32, g = lane / 4, p = lane % 4 * 2;
  const mo_delta_sum *sums = x.sums[w];
  const float *beta = x.beta[w];
#pragma unroll
  for (int u = 0; u < 5; u++) {
    const bool keys = u < 4 - w;
    const int square = keys ? w + u : u - 4 + w;
    float c[2][4];
#pragma unroll
    for (int e = 0; e < 8; e++) {
      const int row = 16 * w + g + e / 2 % 2 * 8, column = 16 * square + e / 4 * 8 + p + e % 2;
      float value = products[u][e / 4][e % 4] * x.of_k[column];
      if (keys) /* K K^T is symmetric: this is A at (column, row) */
        value =
            column > row ? -value * x.of_k[row] * beta[column] * __expf(mo_delta_between(sums[column], sums[row])) : 0;
      else
        value = column <= row ? value * x.of_q[row] * __expf(mo_delta_between(sums[row], sums[column])) : 0;
      c[e / 4][e % 4] = value;
    }
    if (keys && u == 0) {
#pragma unroll
      for (int e = 0; e < 8; e++) x.solve.diagonal[w][e / 4 * 8 + p + e % 2][g + e / 2 % 2 * 8] = c[e / 4][e % 4];
    } else {
      split_square both;
      split(c[0], c[1], both);
      if (keys)
        put_square(x.solve.system[square * (square - 1) / 2 + w], both);
      else
        put_square(relation->scores[square_index(w, square)], both);
    }
  }
}

/* The inverse of the square (w, w) of I + A; a lane has a column, of which two lanes have the same. */
__device__ __forceinline__ void invert_diagonal(relate_shared &x, int w) {
  const int column = threadIdx.x % 16;
  float solved[16];
#pragma unroll
  for (int i = 0; i < 16; i++) {
    float sum = i == column ? 1 : 0;
#pragma unroll
    for (int j = 0; j < i; j++) sum = fmaf(x.solve.diagonal[w][i][j], solved[j], sum);
    solved[i] = sum;
  }
  if (threadIdx.x % 32 < 16)
#pragma unroll
    for (int i = 0; i < 16; i++) x.solve.inverse[w][i][column] = solved[i];
}

/* Rows 16 w .. of (I + A)^-1, from the diagonal to the left: X_wj = (sum over j < m <= w of X_wm (-A_mj)) X_jj. */
__device__ __forceinline__ void solve_rows(const relate_shared &x, int w, mo_delta_relation *relation) {
  const int lane = threadIdx.x % 32, g = lane / 4, p = lane % 4 * 2;
  const float *beta = x.beta[w];
  split_square solved[4], both; /* solved[u] = X_{w, w - u} */
#pragma unroll
  for (int u = 0; u < 4; u++) {
    if (u > w) break;
    const int square = w - u;
    const float(*inverse)[DIAGONAL] = x.solve.inverse[square];
    float c[2][4] = {};
    if (u == 0) {
#pragma unroll
      for (int e = 0; e < 8; e++) c[e / 4][e % 4] = inverse[g + e / 2 % 2 * 8][e / 4 * 8 + p + e % 2];
    } else {
      float sum[2][4] = {};
#pragma unroll
      for (int m = 0; m < u; m++) {
        get_square(both, x.solve.system[(w - m) * (w - m - 1) / 2 + square]);
        multiply(sum[0], sum[1], solved[m], both);
      }
      split(sum[0], sum[1], solved[u]);
      float right[2][4]; /* X_jj transposed */
#pragma unroll
      for (int e = 0; e < 8; e++) right[e / 4][e % 4] = inverse[e / 4 * 8 + p + e % 2][g + e / 2 % 2 * 8];
      split(right[0], right[1], both);
      multiply(c[0], c[1], solved[u], both);
    }
    split(c[0], c[1], solved[u]);
#pragma unroll
    for (int e = 0; e < 8; e++) c[e / 4][e % 4] *= beta[16 * square + e / 4 * 8 + p + e % 2];
    split(c[0], c[1], both);
    put_square(relation->solver[square_index(w, square)], both);
  }
}

/* One block: a chunk of one key head, one value head of it after the other; a warp has 16 rows. */
__global__ void __launch_bounds__(MO_DELTA_THREADS, 4) relate(const mo_delta_job job) {
  extern __shared__ __align__(16) unsigned char relate_memory[];
  relate_shared &x = *(relate_shared *)relate_memory;
  const mo_delta_sizes &d = job.d;
  const int w = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t head = job.first + blockIdx.x, chunk = blockIdx.y, row = head / d.kh * d.S + chunk * CHUNK;
  const int key_head = (int)(head % d.kh), n = (int)min((int64_t)CHUNK, d.S - chunk * CHUNK);
  const bf16 *rows = job.mixed + row * d.channels + key_head * MO_DELTA_K;
  copy_tile(shared_address(x.tile.q), rows, d.channels, n);
  copy_tile(shared_address(x.tile.k), rows + d.keys, d.channels, n);
  copy_async_commit();
  float products[5][2][4] = {};
  copy_async_wait();
  __syncthreads();
  products_of_rows(x, w, products);
  for (int i = 0; i < d.per_key; i++) {
    mo_delta_relation *relation = job.relations + ((int64_t)blockIdx.x * d.per_key + i) * job.chunks + chunk;
    sum_decay(job, x.sums[w], x.beta[w], row, n, key_head * d.per_key + i);
    __syncthreads(); /* norms are there, the tiles or the last head's squares no longer needed */
    put_relations(x, w, products, relation);
    if (lane < 16) {
      const int t = 16 * w + lane;
      const mo_delta_sum sum = x.sums[w][t], last = x.sums[w][CHUNK - 1];
      relation->known[t] = __expf(sum.high) * x.of_k[t];
      relation->seen[t] = __expf(sum.high) * x.of_q[t];
      relation->grown[t] = __expf(mo_delta_between(last, sum)) * x.of_k[t];
      if (t < 4) relation->kept[t] = __expf(last.high);
    }
    __syncwarp();
    invert_diagonal(x, w);
    __syncthreads();
    solve_rows(x, w, relation);
  }
}

}  // namespace

mo_status mo_cuda_delta_relate(mo_cuda *cuda, const mo_delta_job &job, int64_t heads) {
  const int bytes = (int)sizeof(relate_shared);
  MO_CUDA(cudaFuncSetAttribute(relate, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const dim3 grid((unsigned)heads, (unsigned)job.chunks);
  relate<<<grid, MO_DELTA_THREADS, bytes, cuda->stream>>>(job);
  MO_LAUNCHED("delta_rule relate");
  return MO_OK;
}
