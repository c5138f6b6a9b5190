/* Causal attention on sm_90a, bf16, head size 64, 128 or 256, after Shah et al., FlashAttention-3 (arXiv:2407.08608).
 *
 * A thread block stays on its multiprocessor and takes one block of queries after the other. One thread copies
 * queries, keys and values to shared memory, ahead of their use. Each of the other warp groups has 64 of the block's
 * queries; it issues the scores of a tile of keys and at once the product of the previous tile's probabilities with
 * the values, and computes the softmax of the former during the latter. The last product of a block of queries meets
 * the first scores of the next one in the same way. */
#include "backend/cuda/attention.cuh"
#include "backend/cuda/hopper.cuh"

namespace {

using namespace hopper;

struct attention_maps {
  CUtensorMap q, k, v;
};

/* A block of queries, from the copying thread to the others. */
struct attention_block {
  int first, begin, end; /* query, tiles of keys; end < begin: there is none, nor will there be */
  int b, h;
  float sink;
};

/* GROUPS warp groups of 64 queries; tiles of KEYS keys; STAGES of them for k and v each, and SLOTS blocks of
 * queries, in shared memory. DYNAMIC: who is free takes the next block of queries; else each takes every n-th. */
template <int D_, int GROUPS_, int KEYS_, int STAGES_, int SLOTS_, bool DYNAMIC_>
struct attention_shape {
  static constexpr int D = D_, GROUPS = GROUPS_, KEYS = KEYS_, STAGES = STAGES_, SLOTS = SLOTS_;
  static constexpr bool DYNAMIC = DYNAMIC_;
  static constexpr int ROWS = 64 * GROUPS, THREADS = 128 * (GROUPS + 1), CHUNKS = D / 64; /* chunks of 64 columns */
  static constexpr int Q_BYTES = ROWS * D * 2, KV_BYTES = KEYS * D * 2;
  static constexpr int BARRIERS_AT = SLOTS * Q_BYTES + 2 * STAGES * KV_BYTES;
  static constexpr int BLOCKS_AT = BARRIERS_AT + 8 * (2 * SLOTS + 4 * STAGES);
  static constexpr int BYTES = BLOCKS_AT + SLOTS * (int)sizeof(attention_block);
  static_assert(BYTES <= 227 * 1024, "shared memory of a block");
  static_assert(KEYS % 16 == 0, "summed dimension of wgmma");
};

/* Stage and parity of a ring of N stages. */
template <int N>
struct ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == N) stage = 0, parity ^= 1;
  }
};

/* Places in shared memory. A stage's `full` barrier ends a phase when it is filled, `empty` when all warps have read
 * it. */
template <typename T>
struct attention_room {
  uint32_t base;
  attention_block *blocks; /* [SLOTS]; filled together with q */
  __device__ __forceinline__ uint32_t q(int i) const { return base + i * T::Q_BYTES; }
  __device__ __forceinline__ uint32_t k(int i) const { return q(T::SLOTS) + i * T::KV_BYTES; }
  __device__ __forceinline__ uint32_t v(int i) const { return k(T::STAGES) + i * T::KV_BYTES; }
  __device__ __forceinline__ uint32_t q_full(int i) const { return base + T::BARRIERS_AT + 8 * i; }
  __device__ __forceinline__ uint32_t q_empty(int i) const { return q_full(T::SLOTS + i); }
  __device__ __forceinline__ uint32_t k_full(int i) const { return q_full(2 * T::SLOTS + i); }
  __device__ __forceinline__ uint32_t k_empty(int i) const { return k_full(T::STAGES + i); }
  __device__ __forceinline__ uint32_t v_full(int i) const { return k_full(2 * T::STAGES + i); }
  __device__ __forceinline__ uint32_t v_empty(int i) const { return k_full(3 * T::STAGES + i); }
};

/* --- the copying thread --- */

/* What the copying thread has done. Values are copied one tile later than keys, as they are used. */
struct attention_copies {
  int blocks = 0, tiles = 0;        /* of queries, of keys */
  int tile = 0, kv_head = 0, b = 0; /* the last one of keys */
};

/* Parity of the phase that ends when the n-th copy to a ring of N stages may begin. */
template <int N>
__device__ __forceinline__ uint32_t emptied(int n) {
  return n / N % 2 ^ 1;
}

template <typename T>
__device__ __forceinline__ void copy_keys(const attention_room<T> &room, const attention_maps &maps, int n, int tile,
                                          int kv_head, int b) {
  const int stage = n % T::STAGES;
  barrier_wait(room.k_empty(stage), emptied<T::STAGES>(n));
  barrier_expect(room.k_full(stage), T::KV_BYTES);
  copy_box(room.k(stage), &maps.k, room.k_full(stage), 0, tile * T::KEYS, kv_head * T::CHUNKS, b);
}

template <typename T>
__device__ __forceinline__ void copy_values(const attention_room<T> &room, const attention_maps &maps,
                                            const attention_copies &done) {
  const int n = done.tiles - 1, stage = n % T::STAGES;
  barrier_wait(room.v_empty(stage), emptied<T::STAGES>(n));
  barrier_expect(room.v_full(stage), T::KV_BYTES);
  copy_box(room.v(stage), &maps.v, room.v_full(stage), 0, done.tile * T::KEYS, done.kv_head * T::CHUNKS, done.b);
}

/* Queries of block `index`, their keys, and the values of all tiles but the last; before them those left of the block
 * before. */
template <typename T>
__device__ __forceinline__ void copy_block(const attention_room<T> &room, const attention_maps &maps,
                                           const attention_job &job, int index, attention_copies &done) {
  const attention_place place = attention_place_of(job, index);
  const int slot = done.blocks % T::SLOTS;
  attention_block block;
  block.first = place.query_block * T::ROWS;
  block.b = place.b;
  block.h = place.h;
  block.sink = job.sinks ? job.sinks[place.h] * LOG2_E : -INFINITY;
  attention_tiles_of(job, block.first, T::ROWS, T::KEYS, &block.begin, &block.end);
  barrier_wait(room.q_empty(slot), emptied<T::SLOTS>(done.blocks));
  room.blocks[slot] = block;
  barrier_expect(room.q_full(slot), T::Q_BYTES);
  copy_box(room.q(slot), &maps.q, room.q_full(slot), 0, block.first, place.h * T::CHUNKS, place.b);
  done.blocks++;
#pragma unroll 1 /* fits in few registers */
  for (int tile = block.end; tile >= block.begin; tile--) {
    copy_keys(room, maps, done.tiles, tile, place.kv_head, place.b);
    if (done.tiles > 0) copy_values(room, maps, done);
    done.tiles++;
    done.tile = tile;
    done.kv_head = place.kv_head;
    done.b = place.b;
  }
}

template <typename T>
__device__ void copy_blocks(const attention_room<T> &room, const attention_maps &maps, const attention_job &job,
                            int *taken) {
  const int blocks = job.pairs * job.query_blocks;
  attention_copies done;
  for (int block = blockIdx.x; block < blocks;) {
    /* Asked for now, so that the answer is there when it is needed. */
    const int next = (int)gridDim.x + (T::DYNAMIC ? atomicAdd(taken, 1) : block);
    copy_block(room, maps, job, block, done);
    block = next;
  }
  copy_values(room, maps, done);
  const int slot = done.blocks % T::SLOTS;
  barrier_wait(room.q_empty(slot), emptied<T::SLOTS>(done.blocks));
  room.blocks[slot].begin = 0;
  room.blocks[slot].end = -1;
  barrier_arrive(room.q_full(slot));
}

/* --- a warp group of queries --- */

/* s = q k^T; q: the warp group's 64 rows. */
template <typename T>
__device__ __forceinline__ void issue_scores(float (&s)[T::KEYS / 2], uint32_t q, uint32_t k) {
  const uint64_t a = operand(q), b = operand(k);
#pragma unroll
  for (int t = 0; t < T::D / 16; t++)
    product_shared<T::KEYS>(s, a + operand_step(t / 4 * T::ROWS * 128 + t % 4 * 32),
                            b + operand_step(t / 4 * T::KEYS * 128 + t % 4 * 32), t > 0);
  products_commit();
}

/* o (+)= p v. */
template <typename T>
__device__ __forceinline__ void issue_values(float (&o)[T::D / 2], const uint32_t (&p)[T::KEYS / 4], uint32_t v,
                                             bool accumulate) {
  const uint64_t b = operand(v, T::KEYS * 128);
#pragma unroll
  for (int t = 0; t < T::KEYS / 16; t++)
    product_registers<T::D>(o, &p[4 * t], b + operand_step(t * 16 * 128), accumulate || t > 0);
  products_commit();
}

/* Scores that a query doesn't see become -infinity. first: the warp group's first query; key: the tile's first. */
template <int N>
__device__ __forceinline__ void mask_scores(float (&s)[N], int first, int key, int window) {
  const int lane = threadIdx.x % 32, row = first + threadIdx.x / 32 % 4 * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    /* Of the tile's columns, counted from the lane's first, those in (oldest, newest] are seen. */
    const int newest = row + 8 * half - key - lane % 4 * 2, oldest = window > 0 ? newest - window : -N * 2;
#pragma unroll
    for (int i = 2 * half; i < N; i += 4)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int column = i / 4 * 8 + e;
        if (column > newest || column <= oldest) s[i + e] = -INFINITY;
      }
  }
}

/* s becomes 2^(s * scale - top); top and sum of both rows follow, with TOP also best, the largest of the keys alone; kept: the
 * factor for what was summed before. sum: the thread's own columns only. */
template <bool TOP, int N>
__device__ __forceinline__ void online_softmax(float (&s)[N], float (&top)[2], float (&sum)[2], float (&best)[2],
                                               float (&kept)[2], float scale) {
  float largest[2][2], added[2][2] = {}; /* two chains of dependent instructions per row */
#pragma unroll
  for (int i = 0; i < N; i++) largest[i / 2 % 2][i % 2] = i < 4 ? s[i] : fmaxf(largest[i / 2 % 2][i % 2], s[i]);
  float base[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float most = fmaxf(largest[half][0], largest[half][1]);
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    if (TOP) best[half] = fmaxf(best[half], most * scale);
    float now = fmaxf(top[half], most * scale);
    base[half] = now == -INFINITY ? 0 : now; /* no key seen yet */
    kept[half] = fast_exp2(top[half] - base[half]);
    top[half] = now;
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    s[i] = fast_exp2(fmaf(s[i], scale, -base[i / 2 % 2]));
    added[i / 2 % 2][i % 2] += s[i];
  }
#pragma unroll
  for (int half = 0; half < 2; half++) sum[half] = sum[half] * kept[half] + (added[half][0] + added[half][1]);
}

template <int N>
__device__ __forceinline__ void pack_probabilities(uint32_t (&p)[N / 2], const float (&s)[N]) {
#pragma unroll
  for (int i = 0; i < N / 2; i++) p[i] = bf16_pair(s[2 * i], s[2 * i + 1]);
}

/* Four lanes hold a 4 x 4 matrix, a row each; transposes it. */
__device__ __forceinline__ void transpose_quad(uint32_t (&x)[4]) {
#pragma unroll
  for (int step = 2; step > 0; step /= 2) {
    const bool upper = threadIdx.x & step;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & step) continue;
      uint32_t other = __shfl_xor_sync(~0u, upper ? x[i] : x[i + step], step);
      if (upper)
        x[i] = other;
      else
        x[i + step] = other;
    }
  }
}

/* o / sum to rows first.. of out; sum: the thread's own columns. */
template <typename T>
__device__ __forceinline__ void store_rows(const float (&o)[T::D / 2], const float (&sum)[2], const attention_job &job,
                                           const attention_block &block, int first) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float total = sum[half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    const float inverse = 1.0f / total;
    const int row = first + threadIdx.x / 32 % 4 * 16 + lane / 4 + 8 * half;
    bf16 *out = (bf16 *)job.out + (((int64_t)block.b * job.S + row) * job.heads + block.h) * T::D + lane % 4 * 8;
#pragma unroll
    for (int n = 0; n < T::D / 32; n++) {
      uint32_t x[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        x[i] = bf16_pair(o[16 * n + 4 * i + 2 * half] * inverse, o[16 * n + 4 * i + 2 * half + 1] * inverse);
      transpose_quad(x);
      if (row < job.S) *(uint4 *)(out + 32 * n) = make_uint4(x[0], x[1], x[2], x[3]);
    }
  }
}

/* One arrival per warp. */
__device__ __forceinline__ void release(uint32_t empty) {
  if (threadIdx.x % 32 == 0) barrier_arrive(empty);
}

/* What a warp group holds in registers: unnormalised output, scores of a tile and then their exponentials, these
 * again in bf16, and for both rows of a thread the largest score and the sum. */
template <typename T>
struct attention_rows {
  float o[T::D / 2], s[T::KEYS / 2];
  uint32_t p[T::KEYS / 4];
  float top[2], sum[2];
  float best[2]; /* largest score of the keys alone, without a sink's; if it is asked for */
};

template <typename T>
__device__ __forceinline__ void start_rows(attention_rows<T> &rows, const attention_block &block, bool sinks) {
  rows.top[0] = rows.top[1] = block.sink;
  rows.sum[0] = rows.sum[1] = sinks && threadIdx.x % 4 == 0 ? 1 : 0;
  rows.best[0] = rows.best[1] = -INFINITY;
}

/* The largest probabilities of rows first.. , when all tiles are weighed. */
template <typename T>
__device__ __forceinline__ void store_tops(const attention_rows<T> &rows, const attention_job &job,
                                           const attention_block &block, int first) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float total = rows.sum[half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    const int row = first + threadIdx.x / 32 % 4 * 16 + lane / 4 + 8 * half;
    if (lane % 4 == 0 && row < job.S)
      *attention_top_of(job, block.b, row, block.h) = fast_exp2(rows.best[half] - rows.top[half]) / total;
  }
}

/* Where a warp group is in the rings. */
template <typename T>
struct attention_reads {
  ring<T::SLOTS> slot;
  ring<T::STAGES> k, v;
};

/* Once the scores of tile `tile` of `block` are there: give their operands back, and compute the exponentials. LATER:
 * groups of products issued after them. first: the warp group's first query. */
template <int LATER, bool TOP, typename T>
__device__ __forceinline__ void weigh(const attention_room<T> &room, const attention_job &job, attention_rows<T> &rows,
                                      attention_reads<T> &at, const attention_block &block, int first, int tile,
                                      float (&kept)[2]) {
  const int key = tile * T::KEYS;
  products_wait<LATER>();
  pin(rows.s);
  release(room.k_empty(at.k.stage));
  at.k.advance();
  if (tile == block.begin) release(room.q_empty(at.slot.stage));
  if (key + T::KEYS - 1 > first || (job.window > 0 && key < first + 64 - job.window))
    mask_scores(rows.s, first, key, job.window);
  online_softmax<TOP>(rows.s, rows.top, rows.sum, rows.best, kept, job.scale * LOG2_E);
}

/* The scores of the first tile, on their own: there are no probabilities yet. */
template <bool TOP, typename T>
__device__ __forceinline__ attention_block first_tile(const attention_room<T> &room, const attention_job &job,
                                                      attention_rows<T> &rows, attention_reads<T> &at, int group) {
#pragma unroll
  for (int i = 0; i < T::D / 2; i++) rows.o[i] = 0;
#pragma unroll
  for (int i = 0; i < T::KEYS / 2; i++) rows.s[i] = 0;
  barrier_wait(room.q_full(0), 0);
  const attention_block block = room.blocks[0];
  float kept[2];
  start_rows(rows, block, job.sinks != NULL);
  barrier_wait(room.k_full(0), 0);
  pin(rows.s);
  products_begin();
  issue_scores<T>(rows.s, room.q(0) + group * 64 * 128, room.k(0));
  weigh<0, TOP>(room, job, rows, at, block, block.first + group * 64, block.end, kept);
  pack_probabilities(rows.p, rows.s);
  return block;
}

template <typename T, bool TOP>
__device__ void attend_blocks(const attention_room<T> &room, const attention_job &job, int group) {
  attention_rows<T> rows;
  attention_reads<T> at;
  attention_block block = first_tile<TOP>(room, job, rows, at, group);
  int tile = block.end;
  bool begun = false; /* rows.o has products of this block */
  for (;;) { /* rows.p: of tile `tile` of `block`; its values and the next tile's scores are the step's products */
    const bool last = tile == block.begin;
    attention_block next = block;
    if (last) {
      at.slot.advance();
      barrier_wait(room.q_full(at.slot.stage), at.slot.parity);
      next = room.blocks[at.slot.stage];
      if (next.end < next.begin) break;
    }
    tile = last ? next.end : tile - 1;
    barrier_wait(room.k_full(at.k.stage), at.k.parity);
    barrier_wait(room.v_full(at.v.stage), at.v.parity);
    pin(rows.o);
    pin(rows.p);
    pin(rows.s);
    products_begin();
    issue_scores<T>(rows.s, room.q(at.slot.stage) + group * 64 * 128, room.k(at.k.stage));
    issue_values<T>(rows.o, rows.p, room.v(at.v.stage), begun);
    const float total[2] = {rows.sum[0], rows.sum[1]};
    float kept[2];
    if (TOP && last) store_tops<T>(rows, job, block, block.first + group * 64);
    if (last) start_rows(rows, next, job.sinks != NULL);
    weigh<1, TOP>(room, job, rows, at, next, next.first + group * 64, tile, kept);
    /* A wait in each branch: a single one before them ptxas moves up, ahead of the softmax that is to fill it. */
    if (last) {
      products_wait<0>();
      pin(rows.o);
      store_rows<T>(rows.o, total, job, block, block.first + group * 64);
    } else {
      products_wait<0>();
      pin(rows.o);
#pragma unroll
      for (int i = 0; i < T::D / 2; i++) rows.o[i] *= kept[i / 2 % 2];
    }
    pin(rows.p);
    release(room.v_empty(at.v.stage));
    at.v.advance();
    pack_probabilities(rows.p, rows.s);
    begun = !last;
    block = next;
  }
  barrier_wait(room.v_full(at.v.stage), at.v.parity);
  pin(rows.o);
  pin(rows.p);
  products_begin();
  issue_values<T>(rows.o, rows.p, room.v(at.v.stage), begun);
  products_wait<0>();
  pin(rows.o);
  store_rows<T>(rows.o, rows.sum, job, block, block.first + group * 64);
  if (TOP) store_tops<T>(rows, job, block, block.first + group * 64);
}

template <typename T, bool TOP>
__global__ void __launch_bounds__(T::THREADS, 1)
    attend(const __grid_constant__ attention_maps maps, const __grid_constant__ attention_job job, int *taken) {
  extern __shared__ __align__(1024) unsigned char attention_shared[];
  attention_room<T> room;
  room.base = shared_address(attention_shared);
  room.blocks = (attention_block *)(attention_shared + T::BLOCKS_AT);
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::SLOTS; i++) {
      barrier_init(room.q_full(i), 1);
      barrier_init(room.q_empty(i), 4 * T::GROUPS);
    }
    for (int i = 0; i < T::STAGES; i++) {
      barrier_init(room.k_full(i), 1);
      barrier_init(room.k_empty(i), 4 * T::GROUPS);
      barrier_init(room.v_full(i), 1);
      barrier_init(room.v_empty(i), 4 * T::GROUPS);
    }
    barrier_init_fence();
    prefetch_map(&maps.q);
    prefetch_map(&maps.k);
    prefetch_map(&maps.v);
  }
  __syncthreads();
  /* 65536 registers: for 2 + 1 warp groups of 168 each, for 3 + 1 of 128. */
  if (threadIdx.x < 128) {
    fewer_registers<T::GROUPS == 2 ? 24 : 32>();
    if (threadIdx.x == 0) copy_blocks(room, maps, job, taken);
  } else {
    more_registers<T::GROUPS == 2 ? 240 : 160>();
    attend_blocks<T, TOP>(room, job, threadIdx.x / 128 - 1);
  }
}

/* --- host --- */

/* Map of x [B, S, heads * D] for boxes of `rows` rows of one head, each 64 columns after the other; rows past S are
 * zeros. */
mo_status make_map(CUtensorMap *map, const attention_job &job, const void *x, int heads, int rows) {
  const uint64_t row = (uint64_t)heads * job.D * 2, chunks = job.D / 64;
  const uint64_t sizes[4] = {64, (uint64_t)job.S, heads * chunks, (uint64_t)(job.pairs / job.heads)};
  const uint64_t strides[3] = {row, 128, row * job.S};
  const uint32_t box[4] = {64, (uint32_t)rows, (uint32_t)chunks, 1};
  return mo_cuda_tensor_map(map, x, 4, sizes, strides, box,
                            chunks > 1 ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

template <typename T>
mo_status launch(mo_cuda *cuda, attention_job job) {
  attention_maps maps;
  void *taken = NULL;
  MO_TRY(make_map(&maps.q, job, job.q, job.heads, T::ROWS));
  MO_TRY(make_map(&maps.k, job, job.k, job.kv_heads, T::KEYS));
  MO_TRY(make_map(&maps.v, job, job.v, job.kv_heads, T::KEYS));
  attention_cut(&job, T::ROWS, 2);
  const int blocks = job.pairs * job.query_blocks;
  const int grid = blocks < cuda->multiprocessors ? blocks : cuda->multiprocessors;
  if (T::DYNAMIC) {
    MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_SMALL, sizeof(int), &taken));
    MO_CUDA(cudaMemsetAsync(taken, 0, sizeof(int), cuda->stream));
  }
  auto kernel = job.top ? attend<T, true> : attend<T, false>;
  MO_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::BYTES));
  kernel<<<grid, T::THREADS, T::BYTES, cuda->stream>>>(maps, job, (int *)taken);
  MO_LAUNCHED("attention");
  return MO_OK;
}

bool aligned(const void *p) { return (uintptr_t)p % 16 == 0; }

/* The fastest of those measured on an H100 (docs/kernels.md). For a narrow window fewer queries share a block, since
 * scores of the keys that any of them sees are computed for all. With heads of 256 shared memory holds one block of
 * queries, and the fixed order is faster. */
using attention_64 = attention_shape<64, 3, 128, 3, 2, true>;
using attention_64_narrow = attention_shape<64, 2, 128, 4, 2, true>;
using attention_128 = attention_shape<128, 2, 128, 2, 2, true>;
using attention_256 = attention_shape<256, 2, 80, 2, 1, false>;
constexpr int NARROW = 512;

}  // namespace

bool mo_cuda_attention_hopper_fits(const mo_cuda *cuda, const attention_job *job) {
  return cuda->hopper && cuda->bf16_run && (job->D == 64 || job->D == 128 || job->D == 256) && aligned(job->q) &&
         aligned(job->k) && aligned(job->v) && aligned(job->out);
}

mo_status mo_cuda_attention_hopper(mo_cuda *cuda, const attention_job *job) {
  if (job->D == 256) return launch<attention_256>(cuda, *job);
  if (job->D == 128) return launch<attention_128>(cuda, *job);
  if (job->window > 0 && job->window <= NARROW) return launch<attention_64_narrow>(cuda, *job);
  return launch<attention_64>(cuda, *job);
}
