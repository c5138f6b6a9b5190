/* Experts on the GPU: gathered rows, products of different experts side by side on several streams, and the weighted sum of
 * their outputs. Semantics and rounding points: cpu_experts, cpu_combine. */
#include "backend/cuda/experts_hopper.cuh"
#include "backend/cuda/pack.cuh"

enum : int {
  WARPS = 8,        /* rows that a block handles at a time */
  CHUNK_ROWS = 4096 /* experts with few rows share a stream's turn, its gather and its activation up to this many */
};
static const int64_t scratch_bytes =
    3000000000; /* for the rows of all streams; fewer streams run where chunks are large */

/* --- kernels: a warp per row --- */

/* out [m] = rows row[0..m-1] of x; V: the unit of copying, `units` of them in a row. */
template <typename V>
static __global__ void gather(const V *x, const int32_t *row, int64_t m, int64_t units, V *out) {
  int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
  if (r >= m) return;
  const V *from = x + row[r] * units;
  V *to = out + r * units;
#pragma unroll 4
  for (int64_t i = threadIdx.x % 32; i < units; i += 32) to[i] = from[i];
}

/* a [m, F] = silu(gate) * up of gate_up [m, 2F], gate first. */
template <typename T, int W>
static __global__ void silu_rows(const T *gate_up, int64_t m, int64_t F, T *a) {
  int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
  if (r >= m) return;
  for (int64_t j = threadIdx.x % 32 * W; j < F; j += 32 * W) {
    float g[W], u[W];
    load<T, W>(gate_up + r * 2 * F + j, g);
    load<T, W>(gate_up + r * 2 * F + F + j, u);
#pragma unroll
    for (int k = 0; k < W; k++) g[k] = rounded<T>(g[k] / (1.0f + expf(-g[k]))) * u[k];
    store<T, W>(a + r * F + j, g);
  }
}

/* gpt_oss: (up + 1) * gate * sigmoid(alpha gate) with clamped gate and up, every step rounded. */
template <typename T>
static __device__ float clamped_glu(float g, float u, float limit, float alpha) {
  g = g > limit ? limit : g;
  u = u > limit ? limit : u < -limit ? -limit : u;
  float sigmoid = rounded<T>(1.0f / (1.0f + expf(-rounded<T>(g * alpha))));
  float swish = rounded<T>(g * sigmoid);
  return rounded<T>(u + 1.0f) * swish;
}

/* a [m, F] of interleaved gate_up [m, 2F] (2j gate, 2j+1 up), after its bias [2F] or NULL. */
template <typename T, int W>
static __global__ void glu_rows(const T *gate_up, const float *bias, int64_t m, int64_t F, float limit, float alpha,
                                T *a) {
  int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
  if (r >= m) return;
  for (int64_t j = threadIdx.x % 32 * W; j < F; j += 32 * W) {
    float low[W], high[W], both[2 * W], out[W];
    load<T, W>(gate_up + r * 2 * F + 2 * j, low);
    load<T, W>(gate_up + r * 2 * F + 2 * j + W, high);
#pragma unroll
    for (int k = 0; k < W; k++) both[k] = low[k], both[W + k] = high[k];
#pragma unroll
    for (int k = 0; k < 2 * W; k++)
      if (bias) both[k] = rounded<T>(both[k] + bias[2 * j + k]);
#pragma unroll
    for (int k = 0; k < W; k++) out[k] = clamped_glu<T>(both[2 * k], both[2 * k + 1], limit, alpha);
    store<T, W>(a + r * F + j, out);
  }
}

/* y [m, n] += bias [n]; the product in y is rounded already. */
template <typename T, int W>
static __global__ void add_bias_rows(const float *bias, int64_t m, int64_t n, T *y) {
  int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
  if (r >= m) return;
  for (int64_t j = threadIdx.x % 32 * W; j < n; j += 32 * W) {
    float v[W];
    load<T, W>(y + r * n + j, v);
#pragma unroll
    for (int k = 0; k < W; k++) v[k] += bias[j + k];
    store<T, W>(y + r * n + j, v);
  }
}

/* Slots in shared memory: the compiler reads four at a time. */
static __host__ __device__ int padded(int K) { return (K + 3) / 4 * 4; }

/* Largest number of a warp. */
static __device__ uint32_t warp_largest(uint32_t x) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0u, x);
#else
  for (int step = 16; step; step /= 2) {
    uint32_t other = __shfl_xor_sync(~0u, x, step);
    x = other > x ? other : x;
  }
  return x;
#endif
}

/* A block per token, PACKS packs of W values per thread and round: y [T, H] = sum of weight * row over its places, by ascending
 * expert; ADD: added to what y holds. PEAKS: peaks [R] = the largest magnitude of each row, whose bits order as integers. */
template <typename T, int W, int PACKS, bool ADD, bool PEAKS>
static __global__ void combine_rows(const T *out, const int32_t *expert, const float *weight, const int32_t *place,
                                    int K, int64_t H, float *peaks, T *y) {
  extern __shared__ int32_t order[];
  float *sorted = (float *)(order + padded(K));
  uint32_t *largest = (uint32_t *)(sorted + padded(K));
  int64_t t = blockIdx.x;
  for (int j = (int)threadIdx.x; j < K; j += (int)blockDim.x) {
    int32_t e = expert[t * K + j];
    int rank = 0;
    for (int i = 0; i < K; i++) {
      int32_t other = expert[t * K + i];
      rank += other < e || (other == e && i < j);
    }
    order[rank] = place[t * K + j];
    sorted[rank] = weight[t * K + j];
    if (PEAKS) largest[rank] = 0;
  }
  __syncthreads();
  int64_t pack = (int64_t)blockDim.x * W;
  for (int64_t round = 0; round < H; round += PACKS * pack) { /* by whole warps */
    int64_t h0 = round + (int64_t)threadIdx.x * W;
    float sum[PACKS][W] = {};
#pragma unroll 4
    for (int j = 0; j < K; j++) {
      float v[PACKS][W] = {}, w = sorted[j], top = 0;
#pragma unroll
      for (int p = 0; p < PACKS; p++)
        if (h0 + p * pack < H) load<T, W>(out + order[j] * H + h0 + p * pack, v[p]);
      if constexpr (PEAKS) {
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
          for (int k = 0; k < W; k++) top = fmaxf(top, fabsf(v[p][k]));
        uint32_t of_warp = warp_largest(__float_as_uint(top));
        if (threadIdx.x % 32 == 0) atomicMax(largest + j, of_warp);
      }
#pragma unroll
      for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int k = 0; k < W; k++) sum[p][k] = rounded<T>(__fadd_rn(sum[p][k], rounded<T>(__fmul_rn(v[p][k], w))));
    }
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
      int64_t h = h0 + p * pack;
      if (h >= H) break;
      if constexpr (ADD) {
        float before[W];
        load<T, W>(y + t * H + h, before);
#pragma unroll
        for (int k = 0; k < W; k++) sum[p][k] += before[k];
      }
      store<T, W>(y + t * H + h, sum[p]);
    }
  }
  if constexpr (PEAKS) {
    __syncthreads();
    for (int j = (int)threadIdx.x; j < K; j += (int)blockDim.x) peaks[order[j]] = __uint_as_float(largest[j]);
  }
}

/* --- one micro-batch --- */

/* What the experts of an operation share. */
typedef struct {
  mo_cuda *cuda;
  const mo_model_spec *spec;
  const mo_stage_weights *weights;
  const mo_routing *routing;
  int64_t H, F, first;
  const void *x;
  char *out;
  int streams;                       /* expert streams in use */
  int64_t most;                      /* rows of the largest chunk, M */
  char *rows, *gate_up, *activation; /* per stream: [M, H], [M, 2F], [M, F] */
  char *slots;                       /* per stream: converted weights, [3FH]; NULL if none converts */
  float *biases; /* [experts, 2F] of gate_up, then [experts, H] of down; NULL if the model has none */
  int64_t n_experts;
} expert_job;

static unsigned row_blocks(int64_t m) { return (unsigned)((m + WARPS - 1) / WARPS); }

/* Place of element i of an array of activations. */
static char *at(const expert_job *job, char *base, int64_t i) { return base + i * job->cuda->base.activation_bytes; }

/* A chunk of experts on one stream: its rows in the stream's part of the scratch, and where it begins. */
typedef struct {
  cudaStream_t stream;
  char *rows, *gate_up, *activation, *slot;
  int64_t begin, m; /* first routed row, rows */
} expert_chunk;

static expert_chunk chunk_on(const expert_job *job, int turn, int64_t begin, int64_t m) {
  expert_chunk c;
  c.stream = job->cuda->experts[turn];
  c.rows = at(job, job->rows, turn * job->most * job->H);
  c.gate_up = at(job, job->gate_up, turn * job->most * 2 * job->F);
  c.activation = at(job, job->activation, turn * job->most * job->F);
  c.slot = job->slots ? at(job, job->slots, turn * 3 * job->F * job->H) : NULL;
  c.begin = begin;
  c.m = m;
  return c;
}

static mo_status gather_rows(const expert_job *job, const expert_chunk *c) {
  const int32_t *row = job->routing->row + c->begin;
  int64_t bytes = job->H * job->cuda->base.activation_bytes;
  if (mo_packs(job->cuda, job->x, job->H))
    gather<<<row_blocks(c->m), WARPS * 32, 0, c->stream>>>((const uint4 *)job->x, row, c->m, bytes / 16,
                                                           (uint4 *)c->rows);
  else
    gather<<<row_blocks(c->m), WARPS * 32, 0, c->stream>>>((const uint16_t *)job->x, row, c->m, bytes / 2,
                                                           (uint16_t *)c->rows);
  MO_LAUNCHED("gather");
  return MO_OK;
}

/* Activation of a chunk; bias: of its single expert's fused gate_up, or NULL. */
template <typename T, int W>
static mo_status launch_activation(const expert_job *job, const expert_chunk *c, const float *bias) {
  const T *gate_up = (const T *)c->gate_up;
  T *a = (T *)c->activation;
  if (job->spec->moe.fused)
    glu_rows<T, W><<<row_blocks(c->m), WARPS * 32, 0, c->stream>>>(
        gate_up, bias, c->m, job->F, job->spec->moe.glu_limit, job->spec->moe.glu_alpha, a);
  else
    silu_rows<T, W><<<row_blocks(c->m), WARPS * 32, 0, c->stream>>>(gate_up, c->m, job->F, a);
  MO_LAUNCHED("activation");
  return MO_OK;
}

template <typename T>
static mo_status activate(const expert_job *job, const expert_chunk *c, const float *bias) {
  if (mo_packs(job->cuda, c->gate_up, job->F) && mo_packs(job->cuda, c->activation, job->F))
    return launch_activation<T, mo_pack<T>::width>(job, c, bias);
  return launch_activation<T, 1>(job, c, bias);
}

template <typename T>
static mo_status add_bias(const expert_job *job, cudaStream_t stream, const float *bias, int64_t m, void *y) {
  if (mo_packs(job->cuda, y, job->H))
    add_bias_rows<T, mo_pack<T>::width><<<row_blocks(m), WARPS * 32, 0, stream>>>(bias, m, job->H, (T *)y);
  else
    add_bias_rows<T, 1><<<row_blocks(m), WARPS * 32, 0, stream>>>(bias, m, job->H, (T *)y);
  MO_LAUNCHED("add_bias_rows");
  return MO_OK;
}

static int64_t rows_of(const expert_job *job, int64_t e) { return job->routing->start[e + 1] - job->routing->start[e]; }

/* gate_up [m, 2F] of expert e; one product where both matrices lie one behind the other. */
static mo_status gate_up_product(const expert_job *job, const expert_chunk *c, int64_t e) {
  mo_cuda *cuda = job->cuda;
  int64_t H = job->H, F = job->F, m = rows_of(job, e), i = job->routing->start[e] - c->begin;
  const void *x = at(job, c->rows, i * H), *gate, *up;
  char *y = at(job, c->gate_up, i * 2 * F);
  if (job->spec->moe.fused) {
    MO_TRY(mo_cuda_matrix(cuda, job->weights->expert_gate_up + e, c->stream, c->slot, &gate));
    return mo_cuda_gemm(cuda, c->stream, x, gate, m, 2 * F, H, y, 2 * F);
  }
  MO_TRY(mo_cuda_matrix(cuda, job->weights->expert_gate + e, c->stream, c->slot, &gate));
  MO_TRY(mo_cuda_matrix(cuda, job->weights->expert_up + e, c->stream, c->slot ? at(job, c->slot, F * H) : NULL, &up));
  if ((const char *)up == (const char *)gate + F * H * cuda->base.activation_bytes)
    return mo_cuda_gemm(cuda, c->stream, x, gate, m, 2 * F, H, y, 2 * F);
  MO_TRY(mo_cuda_gemm(cuda, c->stream, x, gate, m, F, H, y, 2 * F));
  return mo_cuda_gemm(cuda, c->stream, x, up, m, F, H, at(job, y, F), 2 * F);
}

static mo_status down_product(const expert_job *job, const expert_chunk *c, int64_t e) {
  mo_cuda *cuda = job->cuda;
  int64_t H = job->H, F = job->F, m = rows_of(job, e), i = job->routing->start[e] - c->begin;
  char *y = at(job, job->out, job->routing->start[e] * H);
  const void *down;
  MO_TRY(mo_cuda_matrix(cuda, job->weights->expert_down + e, c->stream, c->slot ? at(job, c->slot, 2 * F * H) : NULL,
                        &down));
  MO_TRY(mo_cuda_gemm(cuda, c->stream, at(job, c->activation, i * F), down, m, H, F, y, H));
  if (!job->biases) return MO_OK;
  return MO_BY_TYPE(cuda, add_bias, job, c->stream, job->biases + job->n_experts * 2 * F + (e - job->first) * H, m, y);
}

/* Experts first .. last-1: gather, products, activation, products, one after the other on the chunk's stream, so that the
 * copying of one chunk overlaps the products of others. */
static mo_status run_chunk(const expert_job *job, const expert_chunk *c, int64_t first, int64_t last) {
  const float *bias = job->biases ? job->biases + (first - job->first) * 2 * job->F : NULL;
  MO_TRY(gather_rows(job, c));
  for (int64_t e = first; e < last; e++)
    if (rows_of(job, e) > 0) MO_TRY(gate_up_product(job, c, e));
  MO_TRY(MO_BY_TYPE(job->cuda, activate, job, c, bias));
  for (int64_t e = first; e < last; e++)
    if (rows_of(job, e) > 0) MO_TRY(down_product(job, c, e));
  return MO_OK;
}

/* End of the chunk that begins with expert `first`. A bias belongs to one expert, so then chunks are single experts. */
static int64_t chunk_end(const expert_job *job, int64_t first, int64_t last) {
  const int64_t *start = job->routing->start;
  int64_t most = job->spec->moe.expert_bias ? 0 : CHUNK_ROWS, end = first + 1;
  while (end < last && start[end + 1] - start[first] <= most) end++;
  return end;
}

/* Chunks of experts in turn on the streams; the operations' stream waits for all. */
static mo_status run_chunks(const expert_job *job, int64_t last) {
  const mo_cuda *cuda = job->cuda;
  const int64_t *start = job->routing->start;
  int turn = 0;
  MO_CUDA(cudaEventRecord(cuda->fork, cuda->stream));
  for (int i = 0; i < job->streams; i++) MO_CUDA(cudaStreamWaitEvent(cuda->experts[i], cuda->fork, 0));
  for (int64_t first = job->first, end; first < last; first = end) {
    end = chunk_end(job, first, last);
    if (start[end] == start[first]) continue;
    expert_chunk chunk = chunk_on(job, turn, start[first], start[end] - start[first]);
    MO_TRY(run_chunk(job, &chunk, first, end));
    turn = (turn + 1) % job->streams;
  }
  for (int i = 0; i < job->streams; i++) {
    MO_CUDA(cudaEventRecord(cuda->join[i], cuda->experts[i]));
    MO_CUDA(cudaStreamWaitEvent(cuda->stream, cuda->join[i], 0));
  }
  return MO_OK;
}

static bool any_converts(const expert_job *job, int64_t last) {
  const mo_stage_weights *w = job->weights;
  for (int64_t e = job->first; e < last; e++) {
    if (mo_cuda_converts(job->cuda, w->expert_down + e)) return true;
    if (job->spec->moe.fused
            ? mo_cuda_converts(job->cuda, w->expert_gate_up + e)
            : mo_cuda_converts(job->cuda, w->expert_gate + e) || mo_cuda_converts(job->cuda, w->expert_up + e))
      return true;
  }
  return false;
}

/* Vectors [n] of experts first .. last-1 into out [last - first, n]; those that lie one behind the other at once. */
static mo_status expert_vectors(const expert_job *job, const mo_weight *list, int64_t last, int64_t n, float *out) {
  for (int64_t e = job->first, end; e < last; e = end) {
    int64_t bytes = n * (int64_t)mo_dtype_size(list[e].dtype);
    end = e + 1;
    while (end < last && list[end].dtype == list[e].dtype &&
           (const char *)list[end].data == (const char *)list[e].data + (end - e) * bytes)
      end++;
    mo_weight together = list[e];
    together.rows = 1;
    together.cols = (end - e) * n;
    MO_TRY(
        mo_cuda_vector(job->cuda, &together, 0, together.cols, false, job->cuda->stream, out + (e - job->first) * n));
  }
  return MO_OK;
}

/* Converted weights and biases. */
static mo_status prepare(expert_job *job, int64_t last) {
  int64_t H = job->H, F = job->F, n = last - job->first;
  void *block;
  if (any_converts(job, last)) {
    size_t bytes = (size_t)(job->streams * 3 * F * H) * (size_t)job->cuda->base.activation_bytes;
    MO_TRY(mo_cuda_scratch(job->cuda, MO_SCRATCH_EXPERT_WEIGHTS, bytes, &block));
    job->slots = (char *)block;
  }
  if (!job->spec->moe.expert_bias) return MO_OK;
  MO_TRY(mo_cuda_scratch(job->cuda, MO_SCRATCH_VECTOR, (size_t)(n * (2 * F + H)) * sizeof(float), &block));
  job->biases = (float *)block;
  MO_TRY(expert_vectors(job, job->weights->expert_gate_up_bias, last, 2 * F, job->biases));
  return expert_vectors(job, job->weights->expert_down_bias, last, H, job->biases + n * 2 * F);
}

/* Scratch for the rows of each stream's chunk, and how many streams it is for. */
static mo_status reserve_rows(expert_job *job, int64_t last) {
  mo_cuda *cuda = job->cuda;
  int64_t number = cuda->base.activation_bytes;
  void *rows, *gate_up, *activation;
  for (int64_t first = job->first, end; first < last; first = end) {
    end = chunk_end(job, first, last);
    int64_t m = job->routing->start[end] - job->routing->start[first];
    job->most = m > job->most ? m : job->most;
  }
  /* Room for all rows, which does not change from layer to layer, unless that is a lot. */
  int64_t all = job->routing->start[last] - job->routing->start[job->first], row = (job->H + 3 * job->F) * number;
  int64_t room = all * row < scratch_bytes ? all : scratch_bytes / row;
  room = room < job->most ? job->most : room;
  int64_t streams = room / job->most;
  job->streams = streams > MO_CUDA_EXPERT_STREAMS ? MO_CUDA_EXPERT_STREAMS : (int)streams;
  size_t values = (size_t)room * (size_t)number;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_ROWS, values * (size_t)job->H, &rows));
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_GATE_UP, values * (size_t)(2 * job->F), &gate_up));
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_ACTIVATION, values * (size_t)job->F, &activation));
  job->rows = (char *)rows;
  job->gate_up = (char *)gate_up;
  job->activation = (char *)activation;
  return MO_OK;
}

mo_status cuda_experts(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights, const void *x,
                       const mo_routing *routing, int64_t first, int64_t last, void *out) {
  expert_job job = {};
  job.cuda = mo_cuda_of(backend);
  job.spec = spec;
  job.weights = weights;
  job.routing = routing;
  job.H = spec->hidden;
  job.F = spec->moe.width;
  job.first = first;
  job.n_experts = last - first;
  job.x = x;
  job.out = (char *)out;
  if (first >= last || routing->start[first] == routing->start[last]) return MO_OK;
#ifdef MO_HAVE_HOPPER
  if (mo_cuda_experts_hopper_fits(job.cuda, spec, weights, first, last))
    return mo_cuda_experts_hopper(job.cuda, spec, weights, x, routing, first, last, out);
#endif
  MO_TRY(mo_cuda_expert_streams(job.cuda));
  MO_TRY(reserve_rows(&job, last));
  MO_TRY(prepare(&job, last));
  return run_chunks(&job, last);
}

typedef struct {
  mo_cuda *cuda;
  const mo_model_spec *spec;
  const void *out;
  const mo_routing *routing;
  int64_t tokens;
  float *peaks;
  void *y;
} combine_job;

template <typename T, int W, bool ADD, bool PEAKS>
static mo_status launch_combine(const combine_job *job) {
  int64_t H = job->spec->hidden, K = job->spec->moe.top_k, units = (H / W + 31) / 32 * 32;
  unsigned threads = (unsigned)(units < 32 ? 32 : units > 128 ? 128 : units);
  size_t shared = (size_t)padded((int)K) * (sizeof(int32_t) + sizeof(float) + (PEAKS ? sizeof(uint32_t) : 0));
  constexpr int packs = PEAKS && W > 1 ? 2 : 1; /* fewer maxima of warps */
  combine_rows<T, W, packs, ADD, PEAKS><<<(unsigned)job->tokens, threads, shared, job->cuda->stream>>>(
      (const T *)job->out, job->routing->expert, job->routing->weight, job->routing->place, (int)K, H, job->peaks,
      (T *)job->y);
  MO_LAUNCHED("combine_rows");
  return MO_OK;
}

template <typename T, bool ADD>
static mo_status combine(const combine_job *job) {
  constexpr int W = mo_pack<T>::width;
  int64_t H = job->spec->hidden;
  if (job->tokens == 0) return MO_OK;
  bool packs = mo_packs(job->cuda, job->out, H) && mo_packs(job->cuda, job->y, H);
  if (job->peaks) return packs ? launch_combine<T, W, ADD, true>(job) : launch_combine<T, 1, ADD, true>(job);
  return packs ? launch_combine<T, W, ADD, false>(job) : launch_combine<T, 1, ADD, false>(job);
}

mo_status cuda_combine(mo_backend *backend, const mo_model_spec *spec, const void *expert_out,
                       const mo_routing *routing, int64_t T, float *peaks, void *y) {
  mo_cuda *cuda = mo_cuda_of(backend);
  combine_job job = {cuda, spec, expert_out, routing, T, peaks, y};
  return cuda->bf16_run ? combine<bf16, false>(&job) : combine<float, false>(&job);
}

mo_status cuda_combine_add(mo_backend *backend, const mo_model_spec *spec, const void *expert_out,
                           const mo_routing *routing, int64_t T, float *peaks, void *x) {
  mo_cuda *cuda = mo_cuda_of(backend);
  combine_job job = {cuda, spec, expert_out, routing, T, peaks, x};
  return cuda->bf16_run ? combine<bf16, true>(&job) : combine<float, true>(&job);
}
