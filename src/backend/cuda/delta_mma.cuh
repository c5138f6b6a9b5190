/* What the two kernels of the delta rule on tensor cores share; formulas as in delta_rule.cu, k_dim 128, v_dim a
 * multiple of 64. attention_mma.cuh has the instructions that attention uses too.
 *
 * Rows of q, k, v are bf16 numbers and enter products as they are, their norms, beta and the decay being factors of
 * rows and columns that are applied in float32 afterwards. Every other number is split into the sum of two bf16
 * numbers, which keeps 16 bits of it; products of two such numbers leave out only the product of the lower parts. Sums
 * are float32.
 *
 * A "square" is 16 x 16 numbers of a matrix X [n, k], four registers a lane, as load_matrices gives it: the left factor
 * X, or the right factor X^T, whose columns 0-7 are registers 0 and 2, and 8-15 registers 1 and 3. */
#ifndef MO_BACKEND_CUDA_DELTA_MMA_CUH
#define MO_BACKEND_CUDA_DELTA_MMA_CUH

#include "backend/cuda/attention_mma.cuh"
#include "backend/cuda/delta.cuh"

constexpr int MO_DELTA_K = 128;                                /* k_dim */
constexpr int MO_DELTA_TILE = MO_DELTA_CHUNK * MO_DELTA_K * 2; /* bytes of q or k of a chunk */
constexpr int MO_DELTA_THREADS = 128;                          /* of a block of either kernel */
constexpr int MO_DELTA_PAIRS = 10;                             /* squares on and below the diagonal of [CHUNK, CHUNK] */

/* What `relate` tells `carry` about a chunk of a value head. Squares (i, j), j <= i, in the order of square_index; high
 * parts, then low parts; a lane's four registers are one uint4. */
struct mo_delta_relation {
  uint4 solver[MO_DELTA_PAIRS][2][32]; /* T */
  uint4 scores[MO_DELTA_PAIRS][2][32]; /* P */
  float known[MO_DELTA_CHUNK];         /* exp(G) / |k| */
  float seen[MO_DELTA_CHUNK];          /* exp(G) / |q| / sqrt(k_dim) */
  float grown[MO_DELTA_CHUNK];         /* exp(G_last - G) / |k| */
  float kept[4];                       /* exp(G_last); the rest is padding */
};

struct mo_delta_job {
  mo_delta_sizes d;
  const bf16 *mixed;
  const float *beta, *decay;
  bf16 *out;
  mo_delta_relation *relations; /* [value head of the slice, chunk] */
  int64_t first, chunks;        /* first key head of the slice, of B*kh; chunks of a sequence */
};

/* Relations of all chunks of `heads` key heads from job.first on (delta_relate.cu). */
MO_CHECKED mo_status mo_cuda_delta_relate(mo_cuda *cuda, const mo_delta_job &job, int64_t heads);

/* --- instructions of sm_80 and later (PTX ISA, "movmatrix", "cp.async.wait_group") --- */

/* An 8x8 matrix of 16-bit numbers, lane l holding two of row l/4, transposed. */
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(y) : "r"(x));
  return y;
}

/* This thread's copies have arrived, save those of the last group committed. */
__device__ __forceinline__ void copy_async_wait_earlier() { asm volatile("cp.async.wait_group 1;\n" ::: "memory"); }

/* --- squares --- */

__device__ __forceinline__ constexpr int square_index(int i, int j) { return i * (i + 1) / 2 + j; }

__device__ __forceinline__ float low_half(uint32_t x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float high_half(uint32_t x) { return __uint_as_float(x & 0xffff0000u); }

/* A square of float32 numbers as the sum of two. */
struct split_square {
  uint32_t high[4], low[4];
};

__device__ __forceinline__ void split(float x, float y, uint32_t &high, uint32_t &low) {
  high = bf16_pair(x, y);
  low = bf16_pair(x - low_half(high), y - high_half(high));
}

/* c: sums of two products side by side, columns 0-7 and 8-15. */
__device__ __forceinline__ void split(const float (&c0)[4], const float (&c1)[4], split_square &x) {
  split(c0[0], c0[1], x.high[0], x.low[0]);
  split(c0[2], c0[3], x.high[1], x.low[1]);
  split(c1[0], c1[1], x.high[2], x.low[2]);
  split(c1[2], c1[3], x.high[3], x.low[3]);
}

/* c += a b^T of squares; b exact. */
__device__ __forceinline__ void multiply(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[4]) {
  multiply_add(c0, a, b[0], b[2]);
  multiply_add(c1, a, b[1], b[3]);
}

__device__ __forceinline__ void multiply(float (&c0)[4], float (&c1)[4], const split_square &a, const split_square &b) {
  multiply(c0, c1, a.high, b.high);
  multiply(c0, c1, a.high, b.low);
  multiply(c0, c1, a.low, b.high);
}

__device__ __forceinline__ uint4 as_vector(const uint32_t (&x)[4]) { return make_uint4(x[0], x[1], x[2], x[3]); }
__device__ __forceinline__ void from_vector(uint32_t (&x)[4], const uint4 &v) {
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

/* A square kept in memory as [2][32]. */
__device__ __forceinline__ void put_square(uint4 (*to)[32], const split_square &x) {
  to[0][threadIdx.x % 32] = as_vector(x.high);
  to[1][threadIdx.x % 32] = as_vector(x.low);
}
__device__ __forceinline__ void get_square(split_square &x, const uint4 (*from)[32]) {
  from_vector(x.high, from[0][threadIdx.x % 32]);
  from_vector(x.low, from[1][threadIdx.x % 32]);
}

/* Sixteen-byte pieces of a row of 256 bytes stand in an order that differs between neighbouring rows, so that the eight
 * rows of a matrix lie in different banks. */
__device__ __forceinline__ uint32_t tile_place(int row, int piece) { return row * 256 + ((piece ^ (row & 7)) << 4); }

/* q or k of n tokens of a chunk -> a tile in shared memory, zeros after them; the whole block. */
__device__ __forceinline__ void copy_tile(uint32_t tile, const bf16 *rows, int channels, int n) {
#pragma unroll
  for (int u = 0; u < MO_DELTA_CHUNK * 16 / MO_DELTA_THREADS; u++) {
    const int i = (u * MO_DELTA_THREADS + (int)threadIdx.x) / 16, piece = threadIdx.x % 16;
    copy_async(tile + tile_place(i, piece), rows + (int64_t)(i < n ? i : 0) * channels + piece * 8, i < n);
  }
}

#endif
