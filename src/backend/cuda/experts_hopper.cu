/* Experts as two grouped products on wgmma: act = silu(x gate^T) * (x up^T) of gathered rows, then act down^T.
 *
 * One persistent kernel each. A block is a producer warp group and two consumer warp groups; a tile is 128 rows of
 * one expert by 256 rows of weights (gate_up: 128 of gate and the same 128 of up, so that a thread holds both
 * factors of the activation). Weights come by TMA through a map per expert; the rows of x are gathered by cp.async
 * straight from the residual stream's norm, without a copy in routed order. Blocks of a cluster work on neighbouring
 * row tiles of one expert and share its weights; where only one row tile of an expert is left, each takes its own column
 * of it. Sums run over k in order: results depend on neither the grid nor the cluster. */
#include "backend/cuda/experts_hopper.cuh"

#include "backend/cuda/hopper.cuh"
#include "backend/cuda/pack.cuh"

enum : int {
  MOST_EXPERTS = 512, /* their addresses travel as a kernel parameter */
  TILE_ROWS = 128,
  TILE_WEIGHTS = 256,
  TILE_K = 64, /* 128 bytes, the width of the swizzle */
  STAGES = 4,
  CLUSTER = 2,
  THREADS = 384,
  ROW_GROUP = 8, /* row units that pass a column before the next one: about as many as columns under way, so that L2 is
                    asked for the fewest rows of either kind */
  A_BYTES = TILE_ROWS * TILE_K * 2,
  B_BYTES = TILE_WEIGHTS * TILE_K * 2,
  STAGE_BYTES = A_BYTES + B_BYTES,
  SHARED_BYTES = STAGES * STAGE_BYTES + 1024 + 2 * STAGES * 8 /* 1024: alignment of the swizzle */
};

/* Row units of experts: pairs of row tiles, one for each block of a cluster, and single ones. */
static_assert(CLUSTER == 2, "row tiles are paired");
typedef struct alignas(8) {
  int32_t pairs, singles;
} row_units;

/* What both kernels know about the experts, in device memory: entries 0 .. n. */
typedef struct {
  row_units before[MOST_EXPERTS + 1]; /* of the experts before */
  int32_t start[MOST_EXPERTS + 1];    /* first routed row */
} expert_table;

typedef struct {
  const void *gate[MOST_EXPERTS], *up[MOST_EXPERTS], *down[MOST_EXPERTS];
  CUtensorMap gate_up_map, down_map; /* of some expert; the others differ in the address */
  expert_table table;
} preparation;

typedef struct {
  const expert_table *table;
  const CUtensorMap *maps; /* gate_up: [n] gate, then [n] up; down: [n] */
  const bf16 *x;           /* gate_up: rows to gather, [., K] */
  const int32_t *row;      /* gate_up: of x, per routed row */
  bf16 *out;               /* by routed row, [., width] */
  int n;                   /* experts */
  int K, width;            /* width of a row of out */
  int columns;             /* tiles side by side */
} product_job;

/* A map with another address, by a whole warp. */
static __device__ void write_map(const CUtensorMap *model, const void *address, CUtensorMap *room, CUtensorMap *to) {
  int lane = threadIdx.x % 32;
  ((uint32_t *)room)[lane] = ((const uint32_t *)model)[lane];
  __syncwarp();
  uint32_t at = shared_address(room);
  if (lane == 0)
    asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(at), "l"(address)
                 : "memory");
  __syncwarp();
  asm volatile(
      "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%0], [%1], 128;" ::"l"(
          to),
      "r"(at)
      : "memory");
}

/* Where a tile lies: its expert, first routed row, rows left in the expert from there (none: it is not there), column of
 * tiles, and whether the cluster's blocks have the same rows and different columns. */
typedef struct {
  int expert, row, left, column;
  bool apart;
} tile;

static __device__ __forceinline__ row_units units_before(const expert_table *table, int expert) {
  int2 both = __ldg((const int2 *)table->before + expert);
  return {both.x, both.y};
}

/* Of a cluster: pairs of row tiles column by column, single ones two columns at a time. */
static __device__ __forceinline__ int tiles_of(const product_job &job, row_units units) {
  return units.pairs * job.columns + units.singles * ((job.columns + CLUSTER - 1) / CLUSTER);
}

/* Tile `index` in the order of experts; `*expert` moves forward from call to call. */
static __device__ __forceinline__ tile find_tile(const product_job &job, int index, int *expert) {
  const expert_table *table = job.table;
  int e = *expert, block = (int)hopper::cluster_block();
  while (index >= tiles_of(job, units_before(table, e + 1))) e++;
  *expert = e;
  row_units before = units_before(table, e);
  int pairs = units_before(table, e + 1).pairs - before.pairs, local = index - tiles_of(job, before);
  tile t;
  t.expert = e;
  t.apart = local >= pairs * job.columns;
  if (t.apart) {
    t.row = pairs * CLUSTER * TILE_ROWS;
    t.column = (local - pairs * job.columns) * CLUSTER + block;
  } else {
    int group = local / (ROW_GROUP * job.columns), size = min(ROW_GROUP, pairs - group * ROW_GROUP);
    int rest = local - group * ROW_GROUP * job.columns;
    t.row = ((group * ROW_GROUP + rest % size) * CLUSTER + block) * TILE_ROWS;
    t.column = rest / size;
  }
  t.row += __ldg(&table->start[e]);
  t.left = t.column < job.columns ? __ldg(&table->start[e + 1]) - t.row : 0;
  return t;
}

/* Shared memory of a block: stages of A and B, then the barriers. */
typedef struct {
  uint32_t stages, full, empty;
} ring;

static __device__ __forceinline__ uint32_t stage_a(const ring &r, int stage) { return r.stages + stage * STAGE_BYTES; }
static __device__ __forceinline__ uint32_t stage_b(const ring &r, int stage) { return stage_a(r, stage) + A_BYTES; }

/* A share of the weights of a stage, to this block or to all of the cluster. */
static __device__ __forceinline__ void load_share(uint32_t to, const CUtensorMap *map, uint32_t barrier, int k, int from,
                                                  bool to_all) {
  if (to_all)
    hopper::copy_box_to_all(to, map, barrier, k * TILE_K, from, (1 << CLUSTER) - 1);
  else
    hopper::copy_box(to, map, barrier, k * TILE_K, from);
}

/* This block's share of the weights of a stage goes to all blocks of the cluster; apart, each block loads all of its own. */
template <bool GATE_UP>
static __device__ __forceinline__ void load_weights(const product_job &job, const ring &r, int stage, const tile &t,
                                                    int k) {
  enum : int { WIDTH = GATE_UP ? TILE_WEIGHTS / 2 : TILE_WEIGHTS, SHARE = WIDTH / CLUSTER };
  const CUtensorMap *map = job.maps + t.expert;
#pragma unroll
  for (int share = 0; share < CLUSTER; share++) {
    if (!t.apart && share != (int)hopper::cluster_block()) continue;
    uint32_t to = stage_b(r, stage) + share * SHARE * TILE_K * 2, barrier = r.full + 8 * stage;
    int from = t.column * WIDTH + share * SHARE;
    load_share(to, map, barrier, k, from, !t.apart);
    if (GATE_UP) load_share(to + B_BYTES / 2, map + job.n, barrier, k, from, !t.apart);
  }
}

/* Fill stages for all tiles of this cluster. GATE_UP: by 128 threads, else by one. */
template <bool GATE_UP>
static __device__ __forceinline__ void produce(const product_job &job, const CUtensorMap *rows_map, const ring &r,
                                               int first, int n_tiles, int stride) {
  const int thread = (int)threadIdx.x, steps = (job.K + TILE_K - 1) / TILE_K;
  const uint32_t place = thread / 8 * 128 + (thread % 8 ^ thread / 8 % 8) * 16;
  int expert = 0, mapped = -1, stage = 0;
  uint32_t parity = 1;
  for (int index = first; index < n_tiles; index += stride) {
    tile t = find_tile(job, index, &expert);
    const bf16 *from[8];
    if (GATE_UP) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        int row = min(thread / 8 + 16 * i, t.left - 1); /* rows below belong to nobody: never stored */
        from[i] = job.x + (int64_t)__ldg(job.row + (t.left > 0 ? t.row + row : 0)) * job.K + thread % 8 * 8;
      }
    }
    if (thread == 0 && t.expert != mapped) {
      hopper::map_acquire(job.maps + t.expert);
      if (GATE_UP) hopper::map_acquire(job.maps + job.n + t.expert);
      mapped = t.expert;
    }
    for (int k = 0; k < steps; k++) {
      hopper::barrier_wait(r.empty + 8 * stage, parity);
      if (thread == 0) {
        hopper::barrier_expect(r.full + 8 * stage, GATE_UP ? B_BYTES : A_BYTES + B_BYTES);
        load_weights<GATE_UP>(job, r, stage, t, k);
        if (!GATE_UP) hopper::copy_box(stage_a(r, stage), rows_map, r.full + 8 * stage, k * TILE_K, t.row);
      }
      if (GATE_UP) {
        uint32_t bytes = k * TILE_K + thread % 8 * 8 < job.K ? 16 : 0;
#pragma unroll
        for (int i = 0; i < 8; i++) hopper::copy_16(stage_a(r, stage) + place + i * 2048, from[i] + k * TILE_K, bytes);
        hopper::barrier_arrive_after_copies(r.full + 8 * stage);
      }
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }
  }
}

/* Lane q of each four has word q' of column group q in v[q']: afterwards the four words of its own group in order. */
static __device__ __forceinline__ void transpose_four(uint32_t (&v)[4]) {
  bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  uint32_t a = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 1), b = __shfl_xor_sync(~0u, odd ? v[2] : v[3], 1);
  (odd ? v[0] : v[1]) = a;
  (odd ? v[2] : v[3]) = b;
  a = __shfl_xor_sync(~0u, high ? v[0] : v[2], 2), b = __shfl_xor_sync(~0u, high ? v[1] : v[3], 2);
  (high ? v[0] : v[2]) = a;
  (high ? v[1] : v[3]) = b;
}

/* silu(gate) * up with the reference's rounding; the quotient is within 2 units of the last place of float32. */
static __device__ __forceinline__ float activated(float gate, float up) {
  gate = rounded<bf16>(gate);
  return rounded<bf16>(__fdividef(gate, 1.0f + __expf(-gate))) * rounded<bf16>(up);
}

/* Round and store a warp group's 64 rows of a tile; d as product_shared leaves it. */
template <bool GATE_UP>
static __device__ __forceinline__ void store_tile(const product_job &job, const tile &t, int group,
                                                  const float (&d)[128]) {
  enum : int { WIDTH = GATE_UP ? TILE_WEIGHTS / 2 : TILE_WEIGHTS };
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32 % 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = group * 64 + warp * 16 + lane / 4 + 8 * half;
    bf16 *to = job.out + (int64_t)(t.row + row) * job.width;
#pragma unroll
    for (int j = 0; j < WIDTH / 8; j += 4) {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int place = 4 * (j + i) + 2 * half;
        v[i] = GATE_UP ? bf16_pair(activated(d[place], d[(64 + place) % 128]),
                                   activated(d[place + 1], d[(64 + place + 1) % 128]))
                       : bf16_pair(d[place], d[place + 1]);
      }
      transpose_four(v);
      int column = t.column * WIDTH + 8 * (j + lane % 4);
      if (row < t.left && column < job.width) *(uint4 *)(to + column) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

/* The stage that a consumer is at. */
typedef struct {
  int stage;
  uint32_t parity;
} position;

static __device__ __forceinline__ void advance(position *p) {
  if (++p->stage == STAGES) p->stage = 0, p->parity ^= 1;
}

/* This warp group no longer needs a stage: tell the producers of all blocks that fill it. */
static __device__ __forceinline__ void release(const ring &r, int stage) {
  if (threadIdx.x % 128 < CLUSTER) hopper::barrier_arrive_at(r.empty + 8 * stage, threadIdx.x % 128);
}

/* d = the warp group's 64 rows of a tile. */
template <bool GATE_UP>
static __device__ __forceinline__ void multiply(const ring &r, int group, int steps, position *p, float (&d)[128]) {
  int before = 0;
#if __CUDACC_VER_MAJOR__ < 13 /* whose ptxas runs products one after the other where it sees sums of no known origin */
#pragma unroll
  for (int i = 0; i < 128; i++) d[i] = 0;
#endif
  for (int k = 0; k < steps; k++) {
    hopper::barrier_wait(r.full + 8 * p->stage, p->parity);
    if (GATE_UP) hopper::proxy_fence();
    uint64_t a = hopper::operand(stage_a(r, p->stage) + group * 64 * TILE_K * 2);
    uint64_t b = hopper::operand(stage_b(r, p->stage));
    hopper::products_begin();
#pragma unroll
    for (int i = 0; i < TILE_K / 16; i++) hopper::product_shared<256>(d, a + 2 * i, b + 2 * i, k + i > 0);
    hopper::products_commit();
    hopper::products_wait<1>();
    if (k > 0) release(r, before);
    before = p->stage;
    advance(p);
  }
  hopper::products_wait<0>();
  release(r, before);
}

/* One warp group: the products of its 64 rows of all tiles of this block. */
template <bool GATE_UP>
static __device__ __forceinline__ void consume(const product_job &job, const ring &r, int first, int n_tiles,
                                               int stride) {
  const int group = (int)threadIdx.x / 128 - 1, steps = (job.K + TILE_K - 1) / TILE_K;
  int expert = 0;
  position p = {0, 0};
  float d[128];
  for (int index = first; index < n_tiles; index += stride) {
    tile t = find_tile(job, index, &expert);
    if (t.left > group * 64) {
      multiply<GATE_UP>(r, group, steps, &p, d);
      store_tile<GATE_UP>(job, t, group, d);
    } else {
      for (int k = 0; k < steps; k++, advance(&p)) {
        hopper::barrier_wait(r.full + 8 * p.stage, p.parity);
        release(r, p.stage);
      }
    }
  }
}

static __device__ __forceinline__ ring open_ring(char *memory, uint32_t arrivals) {
  ring r;
  r.stages = (shared_address(memory) + 1023) / 1024 * 1024;
  r.full = r.stages + STAGES * STAGE_BYTES;
  r.empty = r.full + 8 * STAGES;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      hopper::barrier_init(r.full + 8 * i, arrivals);
      hopper::barrier_init(r.empty + 8 * i, 2 * CLUSTER);
    }
    hopper::barrier_init_fence();
  }
  hopper::cluster_sync();
  return r;
}

static __global__ void prepare_experts(const __grid_constant__ preparation p, int n, expert_table *table,
                                       CUtensorMap *maps) {
  __shared__ alignas(128) CUtensorMap room[3];
  int e = (int)blockIdx.x, warp = (int)threadIdx.x / 32;
  if (threadIdx.x == 0) {
    table->start[e] = p.table.start[e];
    table->before[e] = p.table.before[e];
    if (e == n - 1) table->start[n] = p.table.start[n], table->before[n] = p.table.before[n];
  }
  const void *address = warp == 0 ? p.gate[e] : warp == 1 ? p.up[e] : p.down[e];
  write_map(warp < 2 ? &p.gate_up_map : &p.down_map, address, &room[warp], maps + warp * n + e);
}

template <bool GATE_UP>
static __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    expert_products(const product_job job, const __grid_constant__ CUtensorMap rows_map) {
  extern __shared__ char memory[];
  ring r = open_ring(memory, GATE_UP ? 1 + 128 : 1);
  int first = (int)blockIdx.x / CLUSTER, stride = (int)gridDim.x / CLUSTER;
  int n_tiles = tiles_of(job, units_before(job.table, job.n));
  if (threadIdx.x < 128) {
    hopper::fewer_registers<56>();
    if (GATE_UP || threadIdx.x == 0) produce<GATE_UP>(job, &rows_map, r, first, n_tiles, stride);
    __syncwarp();
  } else {
    hopper::more_registers<224>();
    consume<GATE_UP>(job, r, first, n_tiles, stride);
  }
  hopper::cluster_sync(); /* a block must stay while others write or arrive here */
}

/* --- host --- */

/* The map of a bf16 matrix [rows, cols] whose boxes are [box_rows, TILE_K]. */
static mo_status make_map(CUtensorMap *map, const void *data, int64_t rows, int64_t cols, int box_rows) {
  const uint64_t size[2] = {(uint64_t)cols, (uint64_t)rows}, stride[1] = {(uint64_t)cols * 2};
  const uint32_t box[2] = {TILE_K, (uint32_t)box_rows};
  return mo_cuda_tensor_map(map, data, 2, size, stride, box, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}

static bool is_plain(const mo_weight *w) {
  return w->dtype == MO_BF16 && !w->transposed && (uintptr_t)w->data % 16 == 0;
}

bool mo_cuda_experts_hopper_fits(const mo_cuda *cuda, const mo_model_spec *spec, const mo_stage_weights *weights,
                                 int64_t first, int64_t last) {
  if (!cuda->hopper || !cuda->bf16_run || spec->moe.fused || spec->moe.expert_bias || last - first > MOST_EXPERTS ||
      spec->hidden % 8 || spec->moe.width % 8)
    return false;
  for (int64_t e = first; e < last; e++)
    if (!is_plain(weights->expert_gate + e) || !is_plain(weights->expert_up + e) || !is_plain(weights->expert_down + e))
      return false;
  return true;
}

static mo_status fill_preparation(preparation *p, const mo_model_spec *spec, const mo_stage_weights *weights,
                                  const mo_routing *routing, int64_t first, int64_t n) {
  row_units units = {0, 0};
  for (int64_t i = 0; i < n; i++) {
    int64_t e = first + i;
    p->gate[i] = weights->expert_gate[e].data;
    p->up[i] = weights->expert_up[e].data;
    p->down[i] = weights->expert_down[e].data;
    p->table.start[i] = (int32_t)routing->start[e];
    p->table.before[i] = units;
    int64_t tiles = (routing->start[e + 1] - routing->start[e] + TILE_ROWS - 1) / TILE_ROWS;
    units.pairs += (int32_t)(tiles / CLUSTER);
    units.singles += (int32_t)(tiles % CLUSTER);
  }
  p->table.start[n] = (int32_t)routing->start[first + n];
  p->table.before[n] = units;
  int64_t H = spec->hidden, F = spec->moe.width;
  MO_TRY(make_map(&p->gate_up_map, p->gate[0], F, H, TILE_WEIGHTS / 2 / CLUSTER));
  return make_map(&p->down_map, p->down[0], H, F, TILE_WEIGHTS / CLUSTER);
}

template <bool GATE_UP>
static mo_status launch_products(const mo_cuda *cuda, const product_job *job, const CUtensorMap *rows_map) {
  MO_CUDA(cudaFuncSetAttribute(expert_products<GATE_UP>, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES));
  unsigned blocks = (unsigned)(cuda->multiprocessors / CLUSTER * CLUSTER);
  expert_products<GATE_UP><<<blocks, THREADS, SHARED_BYTES, cuda->stream>>>(*job, *rows_map);
  MO_LAUNCHED("expert_products");
  return MO_OK;
}

mo_status mo_cuda_experts_hopper(mo_cuda *cuda, const mo_model_spec *spec, const mo_stage_weights *weights,
                                 const void *x, const mo_routing *routing, int64_t first, int64_t last, void *out) {
  int64_t n = last - first, H = spec->hidden, F = spec->moe.width, R = routing->start[last];
  void *memory, *activation;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_SMALL, sizeof(expert_table) + 128 + (size_t)(3 * n) * sizeof(CUtensorMap),
                         &memory));
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_ACTIVATION, (size_t)(R * F) * sizeof(bf16), &activation));
  CUtensorMap *maps = (CUtensorMap *)memory, rows_map;
  expert_table *table = (expert_table *)(maps + 3 * n);
  preparation p = {};
  MO_TRY(fill_preparation(&p, spec, weights, routing, first, n));
  prepare_experts<<<(unsigned)n, 96, 0, cuda->stream>>>(p, (int)n, table, maps);
  MO_LAUNCHED("prepare_experts");
  MO_TRY(make_map(&rows_map, activation, R, F, TILE_ROWS));
  product_job gate_up = {table,
                         maps,
                         (const bf16 *)x,
                         routing->row,
                         (bf16 *)activation,
                         (int)n,
                         (int)H,
                         (int)F,
                         (int)((F + TILE_WEIGHTS / 2 - 1) / (TILE_WEIGHTS / 2))};
  MO_TRY(launch_products<true>(cuda, &gate_up, &rows_map));
  product_job down = {table,  maps + 2 * n, NULL,
                      NULL,   (bf16 *)out,  (int)n,
                      (int)F, (int)H,       (int)((H + TILE_WEIGHTS - 1) / TILE_WEIGHTS)};
  return launch_products<false>(cuda, &down, &rows_map);
}
