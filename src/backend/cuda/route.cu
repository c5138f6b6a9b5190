/* Routing on the GPU: router logits, a warp's choice of experts per token, and a stable counting sort of the routed rows.
 * Semantics and rounding points: cpu_route. */
#include <string.h>

#include "backend/cuda/cuda.cuh"

enum : int {
  WARPS = 8,     /* tokens of a block */
  CHUNK = 1024,  /* routed rows that one block counts and places */
  WIDEST = 1024, /* experts whose keys fit a warp's registers */
  ALL = -1       /* mask of a whole warp */
};

/* --- choice --- */

typedef struct {
  int64_t T;
  int E, K, groups, top_groups;
  mo_router_kind router;
  bool renormalise, round_logits, round_weights;
  float scale;
  float *logits;           /* [T, E] of the product; completed in place */
  const float *bias;       /* [E] or NULL */
  const float *correction; /* [E] or NULL */
  uint32_t *work;          /* [T, 2E]; NULL where keys fit registers and groups are not limited */
  int32_t *expert;         /* [T, K] */
  float *weight;           /* [T, K] */
} route_job;

/* Sorts as the float does: -0 as 0, NaN as -inf. Never 0, which marks what is taken. */
static __device__ uint32_t key_of(float x) {
  if (x != x) x = -INFINITY;
  uint32_t bits = x == 0.0f ? 0u : __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* 32 bits for each of n things of a warp, thing i*32 + lane in slot i of the lane: first a float, then its key. */
template <int N>
struct register_slots {
  uint32_t slot[N];
  __device__ register_slots(uint32_t *, int, int) {
#pragma unroll
    for (int i = 0; i < N; i++) slot[i] = 0;
  }
  __device__ constexpr int count() const { return N; }
  __device__ uint32_t get(int i) const { return slot[i]; }
  __device__ void put(int i, uint32_t bits) { slot[i] = bits; }
  __device__ void clear(int taken) { /* without indexing registers */
#pragma unroll
    for (int i = 0; i < N; i++)
      if (i == taken) slot[i] = 0;
  }
};

/* The same in memory, for any n. */
struct memory_slots {
  uint32_t *slot;
  int n, lane;
  __device__ memory_slots(uint32_t *memory, int count, int which) : slot(memory), n(count), lane(which) {}
  __device__ int count() const { return (n + 31) / 32; }
  __device__ uint32_t get(int i) const { return i * 32 + lane < n ? slot[i * 32 + lane] : 0; }
  __device__ void put(int i, uint32_t bits) {
    if (i * 32 + lane < n) slot[i * 32 + lane] = bits;
  }
  __device__ void clear(int taken) { put(taken, 0); }
};

template <int N>
struct slots_for {
  typedef register_slots<N> type;
};
template <>
struct slots_for<0> {
  typedef memory_slots type;
};

/* Repeatedly takes the largest key of a warp, the lower index among equals. */
template <typename Slots>
struct chooser {
  Slots &slots;
  int lane;
  uint32_t key, index; /* this lane's largest */
  __device__ chooser(Slots &of, int which) : slots(of), lane(which) { look(); }
  __device__ void look() {
    key = 0;
    index = (uint32_t)lane;
#pragma unroll
    for (int i = 0; i < slots.count(); i++) {
      uint32_t k = slots.get(i);
      if (k > key) {
        key = k;
        index = (uint32_t)(i * 32 + lane);
      }
    }
  }
  __device__ int take() {
    uint32_t top = __reduce_max_sync((unsigned)ALL, key);
    uint32_t winner = __reduce_min_sync((unsigned)ALL, key == top ? index : ~0u);
    if ((int)(winner % 32) == lane) {
      slots.clear((int)(winner / 32));
      look();
    }
    return (int)winner;
  }
};

static __device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* The token's logits into the slots, with the bias and the rounding that the product still lacks. */
template <typename Slots>
static __device__ void complete_logits(const route_job &job, float *logits, int lane, Slots &slots) {
#pragma unroll
  for (int i = 0; i < slots.count(); i++) {
    int e = i * 32 + lane;
    if (e >= job.E) continue;
    float x = logits[e];
    if (job.bias) x = __fadd_rn(x, job.bias[e]);
    if (job.round_logits) x = rounded<bf16>(x);
    logits[e] = x;
    slots.put(i, __float_as_uint(x));
  }
  __syncwarp();
}

/* Largest logit and sum of exp(logit - largest). */
template <typename Slots>
static __device__ void softmax_terms(const route_job &job, int lane, const Slots &slots, float &top, double &sum) {
  top = -INFINITY;
  sum = 0;
#pragma unroll
  for (int i = 0; i < slots.count(); i++)
    if (i * 32 + lane < job.E) top = fmaxf(top, __uint_as_float(slots.get(i)));
#pragma unroll
  for (int step = 16; step; step /= 2) top = fmaxf(top, __shfl_xor_sync((unsigned)ALL, top, step));
#pragma unroll
  for (int i = 0; i < slots.count(); i++)
    if (i * 32 + lane < job.E) sum += expf(__uint_as_float(slots.get(i)) - top);
#pragma unroll
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync((unsigned)ALL, sum, step);
}

/* glm4_moe: -inf for the choice scores of experts outside the best groups; a group's score is the sum of its two largest. */
template <typename Slots>
static __device__ void keep_groups(const route_job &job, uint32_t *work, int lane, Slots &slots) {
  uint32_t *choice = work, *group = work + job.E;
  int size = job.E / job.groups;
#pragma unroll
  for (int i = 0; i < slots.count(); i++)
    if (i * 32 + lane < job.E) choice[i * 32 + lane] = slots.get(i);
  __syncwarp();
  for (int g = lane; g < job.groups; g += 32) {
    float first = -INFINITY, second = -INFINITY;
    for (int e = g * size; e < (g + 1) * size; e++) {
      float x = __uint_as_float(choice[e]);
      second = x > first ? first : x > second ? x : second;
      first = x > first ? x : first;
    }
    group[g] = key_of(first + second);
  }
  __syncwarp();
  memory_slots keys(group, job.groups, lane);
  chooser<memory_slots> best(keys, lane);
  for (int round = 0; round < job.top_groups; round++) best.take();
  __syncwarp();
#pragma unroll
  for (int i = 0; i < slots.count(); i++) { /* a group that was not taken still has its key */
    int e = i * 32 + lane;
    if (e < job.E && group[e / size] != 0) slots.put(i, __float_as_uint(-INFINITY));
  }
}

/* Replace the logits in the slots by the scores that decide. */
template <typename Slots>
static __device__ void choice_scores(const route_job &job, uint32_t *work, int lane, float top, double sum,
                                     Slots &slots) {
  if (job.router == MO_ROUTER_TOPK_SOFTMAX) return;
#pragma unroll
  for (int i = 0; i < slots.count(); i++) {
    int e = i * 32 + lane;
    if (e >= job.E) continue;
    float x = __uint_as_float(slots.get(i));
    if (job.router == MO_ROUTER_SOFTMAX_TOPK)
      x = (float)((double)expf(x - top) / sum);
    else
      x = sigmoid(x) + (job.correction ? job.correction[e] : 0.0f);
    slots.put(i, __float_as_uint(x));
  }
  if (job.router == MO_ROUTER_SIGMOID && job.groups > job.top_groups) keep_groups(job, work, lane, slots);
}

/* Weights of the chosen experts from their logits; sums run over the K places in order. */
static __device__ void weigh(const route_job &job, const float *logits, const int32_t *expert, int lane, float top,
                             double sum, float *weight) {
  for (int j = lane; j < job.K; j += 32) {
    float x = logits[expert[j]];
    if (job.router == MO_ROUTER_SOFTMAX_TOPK) x = (float)((double)expf(x - top) / sum);
    if (job.router == MO_ROUTER_SIGMOID) x = sigmoid(x);
    weight[j] = x;
  }
  __syncwarp();
  float total = job.router == MO_ROUTER_SIGMOID ? 1e-20f : 0.0f, highest = weight[0];
  double exponentials = 0;
  if (job.router == MO_ROUTER_TOPK_SOFTMAX)
    for (int j = 0; j < job.K; j++) exponentials += expf(weight[j] - highest);
  else
    for (int j = 0; j < job.K; j++) total += weight[j];
  __syncwarp();
  for (int j = lane; j < job.K; j += 32) {
    float x = weight[j];
    if (job.router == MO_ROUTER_TOPK_SOFTMAX)
      x = (float)((double)expf(x - highest) / exponentials);
    else if (job.renormalise)
      x /= total;
    if (job.router == MO_ROUTER_SIGMOID) x *= job.scale;
    weight[j] = job.round_weights ? rounded<bf16>(x) : x;
  }
}

/* A warp per token. N: slots of a lane, 0 for keys in memory. */
template <int N>
static __global__ void __launch_bounds__(WARPS * 32) choose(route_job job) {
  int64_t t = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
  int lane = (int)threadIdx.x % 32;
  if (t >= job.T) return;
  float *logits = job.logits + t * job.E;
  uint32_t *work = job.work ? job.work + t * 2 * job.E : NULL;
  int32_t *expert = job.expert + t * job.K;
  typename slots_for<N>::type slots(work, job.E, lane);
  float top = 0;
  double sum = 1;
  complete_logits(job, logits, lane, slots);
  if (job.router == MO_ROUTER_SOFTMAX_TOPK) softmax_terms(job, lane, slots, top, sum);
  choice_scores(job, work, lane, top, sum, slots);
#pragma unroll
  for (int i = 0; i < slots.count(); i++)
    if (i * 32 + lane < job.E) slots.put(i, key_of(__uint_as_float(slots.get(i))));
  chooser<typename slots_for<N>::type> best(slots, lane);
  for (int j = 0; j < job.K; j++) {
    int winner = best.take();
    if (lane == 0) expert[j] = winner;
  }
  __syncwarp();
  weigh(job, logits, expert, lane, top, sum, job.weight + t * job.K);
}

static mo_status launch_choose(mo_cuda *cuda, const route_job &job) {
  unsigned blocks = (unsigned)((job.T + WARPS - 1) / WARPS);
  if (job.E <= 32)
    choose<1><<<blocks, WARPS * 32, 0, cuda->stream>>>(job);
  else if (job.E <= 64)
    choose<2><<<blocks, WARPS * 32, 0, cuda->stream>>>(job);
  else if (job.E <= 128)
    choose<4><<<blocks, WARPS * 32, 0, cuda->stream>>>(job);
  else if (job.E <= 256)
    choose<8><<<blocks, WARPS * 32, 0, cuda->stream>>>(job);
  else if (job.E <= 512)
    choose<16><<<blocks, WARPS * 32, 0, cuda->stream>>>(job);
  else if (job.E <= WIDEST)
    choose<32><<<blocks, WARPS * 32, 0, cuda->stream>>>(job);
  else
    choose<0><<<blocks, WARPS * 32, 0, cuda->stream>>>(job);
  MO_LAUNCHED("choose");
  return MO_OK;
}

/* --- grouping by expert --- */

/* counts [E, chunks]: rows of each expert in each chunk. */
static __global__ void count_rows(const int32_t *expert, int64_t R, int E, int64_t chunks, int32_t *counts) {
  extern __shared__ int32_t tally[];
  for (int e = (int)threadIdx.x; e < E; e += (int)blockDim.x) tally[e] = 0;
  __syncthreads();
  int64_t begin = (int64_t)blockIdx.x * CHUNK, end = begin + CHUNK < R ? begin + CHUNK : R;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) atomicAdd(tally + expert[i], 1);
  __syncthreads();
  for (int e = (int)threadIdx.x; e < E; e += (int)blockDim.x) counts[e * chunks + blockIdx.x] = tally[e];
}

/* Exclusive sum over lanes; total: over all of them. */
template <typename T>
static __device__ T warp_exclusive(T x, int lane, T &total) {
  T inclusive = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    T before = __shfl_up_sync((unsigned)ALL, inclusive, step);
    if (lane >= step) inclusive += before;
  }
  total = __shfl_sync((unsigned)ALL, inclusive, 31);
  return inclusive - x;
}

/* A warp per expert: counts of its chunks -> rows of the expert before the chunk; totals [E]. */
static __global__ void scan_chunks(int E, int64_t chunks, int32_t *counts, int32_t *totals) {
  int e = (int)(blockIdx.x * WARPS + threadIdx.x / 32), lane = (int)threadIdx.x % 32;
  if (e >= E) return;
  int32_t *row = counts + e * chunks, before = 0;
  for (int64_t c0 = 0; c0 < chunks; c0 += 32) {
    int64_t c = c0 + lane;
    int32_t total, place = warp_exclusive(c < chunks ? row[c] : 0, lane, total);
    if (c < chunks) row[c] = before + place;
    before += total;
  }
  if (lane == 0) totals[e] = before;
}

/* One warp: start [E + 1] from totals. */
static __global__ void scan_experts(int E, const int32_t *totals, int64_t *start) {
  int lane = (int)threadIdx.x;
  int64_t before = 0;
#pragma unroll 4
  for (int e0 = 0; e0 < E; e0 += 32) {
    int e = e0 + lane;
    int64_t total, place = warp_exclusive((int64_t)(e < E ? totals[e] : 0), lane, total);
    if (e < E) start[e] = before + place;
    before += total;
  }
  if (lane == 0) start[E] = before;
}

/* A warp per chunk, 32 rows at a time in order: stable. */
static __global__ void place_rows(const int32_t *expert, int64_t R, int E, int K, int64_t chunks, const int32_t *counts,
                                  const int64_t *start, int32_t *row, int32_t *place) {
  extern __shared__ int32_t cursor[];
  int lane = (int)threadIdx.x;
  for (int e = lane; e < E; e += 32) cursor[e] = (int32_t)start[e] + counts[e * chunks + blockIdx.x];
  __syncwarp();
  int64_t begin = (int64_t)blockIdx.x * CHUNK, end = begin + CHUNK < R ? begin + CHUNK : R;
  for (int64_t i0 = begin; i0 < end; i0 += 32) {
    int64_t i = i0 + lane;
    int32_t e = i < end ? expert[i] : -1;
    unsigned peers = __match_any_sync((unsigned)ALL, e);
    int rank = __popc(peers & ((1u << lane) - 1u)), base = e >= 0 ? cursor[e] : 0;
    __syncwarp();
    if (e >= 0 && rank == 0) cursor[e] = base + __popc(peers);
    __syncwarp();
    if (e < 0) continue;
    place[i] = base + rank;
    row[base + rank] = (int32_t)(i / K);
  }
}

static mo_status group_rows(mo_cuda *cuda, int64_t T, int64_t E, int64_t K, mo_routing *routing) {
  int64_t R = T * K, chunks = (R + CHUNK - 1) / CHUNK;
  size_t tally = (size_t)E * sizeof(int32_t), start_bytes = (size_t)(E + 1) * sizeof(int64_t);
  void *block, *host;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_SMALL, start_bytes + (size_t)(chunks + 1) * tally, &block));
  MO_TRY(mo_cuda_host(cuda, start_bytes, &host));
  int64_t *start = (int64_t *)block;
  int32_t *totals = (int32_t *)(start + E + 1), *counts = totals + E;
  if (tally > 48u << 10) {
    MO_CUDA(cudaFuncSetAttribute(count_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)tally));
    MO_CUDA(cudaFuncSetAttribute(place_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)tally));
  }
  count_rows<<<(unsigned)chunks, 256, tally, cuda->stream>>>(routing->expert, R, (int)E, chunks, counts);
  MO_LAUNCHED("count_rows");
  scan_chunks<<<(unsigned)((E + WARPS - 1) / WARPS), WARPS * 32, 0, cuda->stream>>>((int)E, chunks, counts, totals);
  MO_LAUNCHED("scan_chunks");
  scan_experts<<<1, 32, 0, cuda->stream>>>((int)E, totals, start);
  MO_LAUNCHED("scan_experts");
  place_rows<<<(unsigned)chunks, 32, tally, cuda->stream>>>(routing->expert, R, (int)E, (int)K, chunks, counts, start,
                                                            routing->row, routing->place);
  MO_LAUNCHED("place_rows");
  MO_CUDA(cudaMemcpyAsync(host, start, start_bytes, cudaMemcpyDeviceToHost, cuda->stream));
  MO_CUDA(cudaStreamSynchronize(cuda->stream));
  memcpy(routing->start, host, start_bytes);
  return MO_OK;
}

/* --- the operation --- */

static route_job describe(const mo_cuda *cuda, const mo_model_spec *spec, int64_t T, const mo_routing *routing) {
  route_job job = {};
  job.T = T;
  job.E = (int)spec->moe.experts;
  job.K = (int)spec->moe.top_k;
  job.groups = (int)spec->moe.groups;
  job.top_groups = (int)spec->moe.top_groups;
  job.router = spec->moe.router;
  job.renormalise = spec->moe.renormalise;
  job.round_logits = cuda->bf16_run && !spec->moe.router_float;
  job.round_weights = cuda->bf16_run && spec->moe.weights_bf16;
  job.scale = spec->moe.routed_scale;
  job.expert = routing->expert;
  job.weight = routing->weight;
  return job;
}

/* Product of the router into job->logits, its bias and the correction beside it. */
static mo_status router_logits(mo_cuda *cuda, const mo_model_spec *spec, const mo_stage_weights *weights, const void *x,
                               route_job *job) {
  const mo_weight *router = &weights->one[MO_ROUTER], *bias = &weights->one[MO_ROUTER_BIAS];
  size_t numbers = (size_t)(job->T * job->E);
  bool work = job->E > WIDEST || (job->router == MO_ROUTER_SIGMOID && job->groups > job->top_groups);
  void *logits, *vectors, *room = NULL;
  const void *matrix;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_LOGITS, numbers * (work ? 3 : 1) * sizeof(float), &logits));
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_VECTOR, (size_t)(2 * job->E) * sizeof(float), &vectors));
  if (mo_cuda_converts(cuda, router))
    MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_WEIGHT,
                           (size_t)(router->rows * router->cols) * (size_t)cuda->base.activation_bytes, &room));
  job->logits = (float *)logits;
  if (work) job->work = (uint32_t *)logits + numbers;
  if (bias->data) {
    MO_TRY(mo_cuda_vector(cuda, bias, 0, job->E, false, cuda->stream, (float *)vectors));
    job->bias = (const float *)vectors;
  }
  if (spec->moe.correction) {
    MO_TRY(mo_cuda_vector(cuda, &weights->one[MO_ROUTER_CORRECTION], 0, job->E, true, cuda->stream,
                          (float *)vectors + job->E));
    job->correction = (const float *)vectors + job->E;
  }
  MO_TRY(mo_cuda_matrix(cuda, router, cuda->stream, room, &matrix));
  return mo_cuda_gemm_float(cuda, cuda->stream, x, matrix, job->T, job->E, router->cols, job->logits, job->E);
}

mo_status cuda_route(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights, const void *x,
                     int64_t T, mo_routing *routing) {
  mo_cuda *cuda = mo_cuda_of(backend);
  if (T == 0) {
    memset(routing->start, 0, (size_t)(spec->moe.experts + 1) * sizeof *routing->start);
    return MO_OK;
  }
  route_job job = describe(cuda, spec, T, routing);
  MO_TRY(router_logits(cuda, spec, weights, x, &job));
  MO_TRY(launch_choose(cuda, job));
  return group_rows(cuda, T, spec->moe.experts, spec->moe.top_k, routing);
}
