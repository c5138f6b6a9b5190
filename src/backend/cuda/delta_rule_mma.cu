/* The delta rule of bf16 runs on tensor cores; formulas as in delta_rule.cu, numbers as in delta_mma.cuh.
 *
 * Two kernels. `relate` (delta_relate.cu) finds T and P, which do not depend on the state, for all chunks at once.
 * `carry` goes from chunk to chunk with the state S:
 *   V' = T (v - exp(G) K S);  out = exp(G) Q S + P V';  S <- exp(G_last) S + (K exp(G_last - G))^T V'.
 * A warp of it has 16 columns of v and keeps that part of the state in registers. It computes with everything
 * transposed: then the sums of one product lie in the registers just as the next product wants its left factor. */
#include "backend/cuda/delta_mma.cuh"

namespace {

constexpr int CHUNK = MO_DELTA_CHUNK;
constexpr size_t MOST_SCRATCH = (size_t)512 << 20;
constexpr int THREADS = MO_DELTA_THREADS, COLUMNS = THREADS / 2; /* columns of v of a block */

/* Shared memory of a block, in bytes from its beginning. */
constexpr int CARRY_QUERIES = 0, CARRY_KEYS = MO_DELTA_TILE; /* keys: this chunk's and the next one's */
constexpr int CARRY_RELATION = 3 * MO_DELTA_TILE, CARRY_VALUES = CARRY_RELATION + (int)sizeof(mo_delta_relation);
constexpr int SLICE = CHUNK * 32; /* bytes of a warp's columns of v */

constexpr int CARRY_BYTES = CARRY_VALUES + THREADS / 32 * SLICE;

/* A warp's 16 columns of v of n tokens; rows of 32 bytes, the halves of every second four rows swapped. */
__device__ __forceinline__ void copy_values(uint32_t slice, const bf16 *rows, int channels, int n) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int u = 0; u < 4; u++) {
    const int i = u * 16 + lane / 2, piece = lane % 2;
    copy_async(slice + i * 32 + ((piece ^ (i >> 2 & 1)) << 4), rows + (int64_t)(i < n ? i : 0) * channels + piece * 8,
               i < n);
  }
}

__device__ __forceinline__ void copy_relation(uint32_t to, const mo_delta_relation *from) {
  const int pieces = (int)sizeof(mo_delta_relation) / 16;
#pragma unroll
  for (int u = 0; u < (pieces + THREADS - 1) / THREADS; u++) {
    const int i = u * THREADS + threadIdx.x;
    if (i < pieces) copy_async(to + i * 16, (const uint4 *)from + i, true);
  }
}

/* Where a lane finds its row of the square (0, 0) of a tile, and what to xor for other squares of a row. */
struct tile_reader {
  uint32_t row, piece;
  __device__ __forceinline__ tile_reader() {
    const int lane = threadIdx.x % 32;
    row = (lane / 8 % 2 * 8 + lane % 8) * 256;
    piece = ((lane / 16) ^ (lane & 7)) << 4;
  }
  __device__ __forceinline__ uint32_t at(uint32_t tile, int i, int j) const {
    return tile + row + (piece ^ (uint32_t)(j << 5)) + i * 4096;
  }
};

/* known, seen += S^T K^T, S^T Q^T. */
__device__ __forceinline__ void meet_state(const tile_reader &me, uint32_t k, uint32_t q, const float (&state)[16][4],
                                           float (&known)[8][4], float (&seen)[8][4]) {
#pragma unroll
  for (int step = 0; step < MO_DELTA_K / 16; step++) {
    split_square s;
    split(state[2 * step], state[2 * step + 1], s);
#pragma unroll
    for (int t = 0; t < 4; t++) {
      uint32_t keys[4], queries[4];
      load_matrices(keys, me.at(k, t, step));
      load_matrices(queries, me.at(q, t, step));
      multiply(known[2 * t], known[2 * t + 1], s.high, keys);
      multiply(seen[2 * t], seen[2 * t + 1], s.high, queries);
      multiply(known[2 * t], known[2 * t + 1], s.low, keys);
      multiply(seen[2 * t], seen[2 * t + 1], s.low, queries);
    }
  }
}

/* known -> V': right sides v - factor * known, then times T^T from the last tokens to the first. */
__device__ __forceinline__ void find_values(const mo_delta_relation &relation, uint32_t slice, float (&known)[8][4]) {
  const int lane = threadIdx.x % 32, i = lane / 8 % 2 * 8 + lane % 8;
  split_square right[4];
#pragma unroll
  for (int t = 0; t < 4; t++) {
    uint32_t v[4];
    load_matrices_transposed(v, slice + (16 * t + i) * 32 + ((lane / 16 ^ (lane >> 2 & 1)) << 4));
#pragma unroll
    for (int u = 0; u < 2; u++) {
      float2 factor = *(const float2 *)&relation.known[16 * t + 8 * u + lane % 4 * 2];
      float(&c)[4] = known[2 * t + u];
      c[0] = low_half(v[u]) - factor.x * c[0];
      c[1] = high_half(v[u]) - factor.y * c[1];
      c[2] = low_half(v[u + 2]) - factor.x * c[2];
      c[3] = high_half(v[u + 2]) - factor.y * c[3];
    }
    split(known[2 * t], known[2 * t + 1], right[t]);
  }
#pragma unroll
  for (int t = 3; t >= 0; t--) {
    float c[2][4] = {};
#pragma unroll
    for (int j = 0; j <= t; j++) {
      split_square solver;
      get_square(solver, relation.solver[square_index(t, j)]);
      multiply(c[0], c[1], right[j], solver);
    }
#pragma unroll
    for (int e = 0; e < 8; e++) known[2 * t + e / 4][e % 4] = c[e / 4][e % 4];
  }
}

/* seen -> out = factor * seen + V'^T P^T; state <- kept * state + (V' * factor)^T K. */
__device__ __forceinline__ void use_values(const mo_delta_relation &relation, const tile_reader &me, uint32_t k,
                                           float (&values)[8][4], float (&seen)[8][4], float (&state)[16][4]) {
  const int p = threadIdx.x % 4 * 2;
  const float kept = relation.kept[0];
#pragma unroll
  for (int t = 0; t < 8; t++) {
    float2 factor = *(const float2 *)&relation.seen[8 * t + p];
#pragma unroll
    for (int e = 0; e < 4; e++) seen[t][e] *= e % 2 ? factor.y : factor.x;
  }
#pragma unroll
  for (int j = 0; j < 16; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) state[j][e] *= kept;
#pragma unroll
  for (int t = 0; t < 4; t++) {
    split_square v, other;
    split(values[2 * t], values[2 * t + 1], v);
#pragma unroll
    for (int i = t; i < 4; i++) {
      get_square(other, relation.scores[square_index(i, t)]);
      multiply(seen[2 * i], seen[2 * i + 1], v, other);
    }
#pragma unroll
    for (int u = 0; u < 2; u++) {
      float2 factor = *(const float2 *)&relation.grown[16 * t + 8 * u + p];
#pragma unroll
      for (int e = 0; e < 4; e++) values[2 * t + u][e] *= e % 2 ? factor.y : factor.x;
    }
    split(values[2 * t], values[2 * t + 1], v);
#pragma unroll
    for (int j = 0; j < MO_DELTA_K / 16; j++) {
      uint32_t keys[4]; /* transposed: registers 0, 1 for columns 0-7 of k_dim, 2, 3 for the others */
      load_matrices_transposed(keys, me.at(k, t, j));
      multiply_add(state[2 * j], v.high, keys[0], keys[1]);
      multiply_add(state[2 * j + 1], v.high, keys[2], keys[3]);
      multiply_add(state[2 * j], v.low, keys[0], keys[1]);
      multiply_add(state[2 * j + 1], v.low, keys[2], keys[3]);
    }
  }
}

/* The warp's columns of n tokens, turned back; eight bytes a lane, so that four lanes write the 32 bytes of a token. */
__device__ __forceinline__ void put_out(const float (&out)[8][4], bf16 *to, int values, int n) {
  const int lane = threadIdx.x % 32, odd = lane & 1;
  to += odd * 8 + (lane % 4 / 2) * 4;
#pragma unroll
  for (int t = 0; t < 8; t++) {
    uint32_t left = transposed(bf16_pair(out[t][0], out[t][1])), right = transposed(bf16_pair(out[t][2], out[t][3]));
    uint32_t other = __shfl_xor_sync(~0u, odd ? left : right, 1);
    const int token = 8 * t + lane / 4;
    if (token < n) *(uint2 *)(to + (int64_t)token * values) = odd ? make_uint2(other, right) : make_uint2(left, other);
  }
}

/* One block: COLUMNS columns of one value head of one sequence. Two blocks of four warps on a multiprocessor are faster
 * than blocks of two or of eight. */
__global__ void __launch_bounds__(THREADS, 2) carry(const mo_delta_job job) {
  extern __shared__ __align__(16) unsigned char carry_memory[];
  const mo_delta_sizes &d = job.d;
  const int w = threadIdx.x / 32, groups = d.vd / COLUMNS, S = (int)d.S;
  const int column = (int)(blockIdx.x % groups) * COLUMNS + 16 * w;
  const int64_t place = blockIdx.x / groups, head = job.first * d.per_key + place; /* of B*vh */
  const int h = (int)(head % d.vh);
  const int64_t start = head / d.vh * d.S;
  const bf16 *q_rows = job.mixed + start * d.channels + h / d.per_key * MO_DELTA_K, *k_rows = q_rows + d.keys;
  const bf16 *v_rows = job.mixed + start * d.channels + 2 * d.keys + h * d.vd + column;
  const mo_delta_relation *relations = job.relations + place * job.chunks;
  const mo_delta_relation &here = *(const mo_delta_relation *)(carry_memory + CARRY_RELATION);
  const uint32_t memory = shared_address(carry_memory), q = memory + CARRY_QUERIES;
  const uint32_t slice = memory + CARRY_VALUES + w * SLICE;
  const tile_reader me;
  float state[16][4] = {};
  copy_tile(q, q_rows, d.channels, min(CHUNK, S));
  copy_tile(memory + CARRY_KEYS, k_rows, d.channels, min(CHUNK, S));
  copy_values(slice, v_rows, d.channels, min(CHUNK, S));
  copy_async_commit();
  for (int s = 0; s < S; s += CHUNK) {
    const uint32_t k = memory + CARRY_KEYS + s / CHUNK % 2 * MO_DELTA_TILE,
                   next_k = memory + CARRY_KEYS + (s / CHUNK + 1) % 2 * MO_DELTA_TILE;
    const int n = min(CHUNK, S - s), next = s + CHUNK, after = min(CHUNK, S - next);
    copy_async_wait();
    __syncthreads(); /* this chunk's q, k, v are there, the last chunk's are needed no more */
    copy_relation(memory + CARRY_RELATION, relations + s / CHUNK);
    copy_async_commit();
    if (next < S) copy_tile(next_k, k_rows + (int64_t)next * d.channels, d.channels, after);
    copy_async_commit();
    float known[8][4] = {}, seen[8][4] = {};
    meet_state(me, k, q, state, known, seen);
    copy_async_wait_earlier();
    __syncthreads(); /* the relation is there, q needed no more */
    if (next < S) copy_tile(q, q_rows + (int64_t)next * d.channels, d.channels, after);
    find_values(here, slice, known);
    __syncwarp();
    if (next < S) copy_values(slice, v_rows + (int64_t)next * d.channels, d.channels, after);
    copy_async_commit();
    use_values(here, me, k, known, seen, state);
    put_out(seen, job.out + (start + s) * d.values + h * d.vd + column, d.values, n);
  }
}

mo_status launch_carry(mo_cuda *cuda, const mo_delta_job &job, int64_t heads) {
  MO_CUDA(cudaFuncSetAttribute(carry, cudaFuncAttributeMaxDynamicSharedMemorySize, CARRY_BYTES));
  const unsigned blocks = (unsigned)(heads * (job.d.vd / COLUMNS));
  carry<<<blocks, THREADS, CARRY_BYTES, cuda->stream>>>(job);
  MO_LAUNCHED("delta_rule carry");
  return MO_OK;
}

}  // namespace

bool mo_cuda_delta_rule_mma_fits(const mo_cuda *cuda, const mo_delta_sizes *d) {
  return cuda->bf16_run && d->kd == MO_DELTA_K && d->vd % COLUMNS == 0 && d->S <= (int64_t)CHUNK * 65535;
}

/* A slice: so many key heads that their relations take no more than MOST_SCRATCH, if not one alone takes it. */
mo_status mo_cuda_delta_rule_mma(mo_cuda *cuda, const mo_delta_sizes *d, const bf16 *mixed, const float *beta,
                                 const float *decay, bf16 *out) {
  mo_delta_job job = {*d, mixed, beta, decay, out, NULL, 0, (d->S + CHUNK - 1) / CHUNK};
  const int64_t heads = d->B * d->kh;
  const size_t bytes = (size_t)(d->per_key * job.chunks) * sizeof(mo_delta_relation);
  int64_t most = (int64_t)(MOST_SCRATCH / bytes);
  if (most < 1) most = 1;
  if (most > heads) most = heads;
  void *relations;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_ROWS, (size_t)most * bytes, &relations));
  job.relations = (mo_delta_relation *)relations;
  for (; job.first < heads; job.first += most) {
    const int64_t n = heads - job.first < most ? heads - job.first : most;
    MO_TRY(mo_cuda_delta_relate(cuda, job, n));
    MO_TRY(launch_carry(cuda, job, n * d->per_key));
  }
  return MO_OK;
}
