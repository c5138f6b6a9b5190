/* What tokens bring to experts and what these give them: blocks per expert over its routed rows. Integers, and maxima whose
 * ties go to the first row: no order of threads matters. Semantics: cpu_expert_statistics. */
#include <string.h>

#include "backend/cuda/pack.cuh"

enum : int {
  WARPS = 8,
  THREADS = 512,   /* of an expert's block */
  ROWS = 8,        /* of a thread, on average, before experts get more blocks */
  MOST_BLOCKS = 64, /* of an expert */
  MOST = 512       /* experts of a launch: where their rows begin is an argument */
};

typedef struct {
  int32_t at[MOST + 1];
} row_starts;

/* peaks = the largest |value| of each row; a warp per row. */
template <typename T, int W>
static __global__ void find_peaks(const T *x, int64_t rows, int64_t width, float *peaks) {
  int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= rows) return;
  float peak = 0;
#pragma unroll 4
  for (int64_t h = threadIdx.x % 32 * W; h < width; h += 32 * W) {
    float v[W];
    load<T, W>(x + row * width + h, v);
#pragma unroll
    for (int k = 0; k < W; k++) peak = fmaxf(peak, fabsf(v[k]));
  }
#pragma unroll
  for (int step = 16; step; step /= 2) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, step));
  if (threadIdx.x % 32 == 0) peaks[row] = peak;
}

template <typename T>
static mo_status launch_peaks(mo_cuda *cuda, const void *x, int64_t rows, int64_t width, float *peaks) {
  unsigned blocks = (unsigned)((rows + WARPS - 1) / WARPS);
  if (rows == 0) return MO_OK;
  if (mo_packs(cuda, x, width))
    find_peaks<T, mo_pack<T>::width><<<blocks, WARPS * 32, 0, cuda->stream>>>((const T *)x, rows, width, peaks);
  else
    find_peaks<T, 1><<<blocks, WARPS * 32, 0, cuda->stream>>>((const T *)x, rows, width, peaks);
  MO_LAUNCHED("find_peaks");
  return MO_OK;
}

mo_status cuda_row_peaks(mo_backend *backend, const void *x, int64_t rows, int64_t width, float *peaks) {
  mo_cuda *cuda = mo_cuda_of(backend);
  return cuda->bf16_run ? launch_peaks<bf16>(cuda, x, rows, width, peaks)
                        : launch_peaks<float>(cuda, x, rows, width, peaks);
}

/* Sums over rows. top: bits of the largest output, then the earlier row; 0: no row. */
typedef struct {
  unsigned long long values, tokens, top;
} row_sums;

static __device__ void add_sums(row_sums &sums, const row_sums &other) {
  sums.values += other.values;
  sums.tokens += other.tokens;
  if (other.top > sums.top) sums.top = other.top;
}

typedef struct {
  row_starts starts;
  const int32_t *rows, *row_counts; /* of routed rows; of token rows */
  const float *peaks, *shared;      /* of routed rows; of token rows, of the shared expert */
  int32_t experts, tokens;
  int32_t blocks; /* of an expert; the rest of the grid is the shared expert's */
  row_sums *out;
} sum_job;

static __global__ void __launch_bounds__(THREADS) sum_experts(sum_job job) {
  __shared__ row_sums warps[THREADS / 32];
  row_sums sums = {0, 0, 0};
  int routed = job.experts * job.blocks, block = (int)blockIdx.x;
  bool shared = block >= routed;
  int e = shared ? job.experts : block / job.blocks, part = shared ? block - routed : block % job.blocks;
  int32_t parts = shared ? (int32_t)gridDim.x - routed : job.blocks;
  int32_t first = shared ? 0 : job.starts.at[e], end = shared ? job.tokens : job.starts.at[e + 1];
  const float *peaks = shared ? job.shared : job.peaks;
  for (int32_t r = first + part * THREADS + (int32_t)threadIdx.x; r < end; r += parts * THREADS) {
    int32_t row = shared ? r : job.rows[r], n = job.row_counts[row];
    unsigned long long key = (unsigned long long)__float_as_uint(peaks[r]) << 32 | ~(uint32_t)row;
    sums.values += (unsigned long long)n;
    sums.tokens += n > 0;
    if (key > sums.top) sums.top = key;
  }
#pragma unroll
  for (int step = 16; step; step /= 2) {
    row_sums other;
    other.values = __shfl_xor_sync(~0u, sums.values, step);
    other.tokens = __shfl_xor_sync(~0u, sums.tokens, step);
    other.top = __shfl_xor_sync(~0u, sums.top, step);
    add_sums(sums, other);
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sums;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < THREADS / 32; i++) add_sums(sums, warps[i]);
  if (sums.top == 0) return;
  atomicAdd(&job.out[e].values, sums.values);
  atomicAdd(&job.out[e].tokens, sums.tokens);
  atomicMax(&job.out[e].top, sums.top);
}

static int32_t blocks_for(int64_t rows) {
  int64_t blocks = rows / (THREADS * ROWS) + 1;
  return (int32_t)(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS);
}

/* Several launches where there are many experts; the shared one is in the last. */
static mo_status launch_sums(mo_cuda *cuda, sum_job job, const int64_t *start, int64_t E) {
  const int64_t most = MOST;
  for (int64_t first = 0; first < E; first += most, job.out += most) {
    int64_t n = E - first < most ? E - first : most;
    bool shared = job.shared && first + n == E;
    for (int64_t e = 0; e <= n; e++) job.starts.at[e] = (int32_t)start[first + e];
    job.experts = (int32_t)n;
    job.blocks = blocks_for((start[first + n] - start[first]) / n);
    int32_t grid = (int32_t)n * job.blocks + (shared ? blocks_for(job.tokens) : 0);
    sum_experts<<<(unsigned)grid, THREADS, 0, cuda->stream>>>(job);
    MO_LAUNCHED("sum_experts");
  }
  return MO_OK;
}

mo_status cuda_expert_statistics(mo_backend *backend, const mo_model_spec *spec, int64_t T, const int32_t *row_counts,
                                 const mo_routing *routing, const float *peaks, const float *shared) {
  mo_cuda *cuda = mo_cuda_of(backend);
  int64_t E = spec->moe.experts, n = E + (shared != NULL);
  size_t bytes = (size_t)n * sizeof(row_sums);
  void *block;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_EXPERT_STATISTICS, bytes, &block));
  MO_TRY(mo_cuda_grow_host(cuda, (size_t)n * (sizeof(row_sums) + sizeof(mo_expert_sums)), &cuda->experts_host));
  row_sums *sums = (row_sums *)block;
  MO_CUDA(cudaMemsetAsync(sums, 0, bytes, cuda->stream));
  sum_job job = {};
  job.rows = routing->row, job.row_counts = row_counts;
  job.peaks = peaks, job.shared = shared;
  job.tokens = (int32_t)T;
  job.out = sums;
  MO_TRY(launch_sums(cuda, job, routing->start, E));
  /* On the stream itself: it is little, and on `fetch` a site's results would wait for it. */
  MO_CUDA(cudaMemcpyAsync(cuda->experts_host.memory, sums, bytes, cudaMemcpyDeviceToHost, cuda->stream));
  MO_CUDA(cudaEventRecord(cuda->summed, cuda->stream));
  cuda->n_summed = n;
  return MO_OK;
}

mo_status cuda_expert_results(mo_backend *backend, mo_expert_statistics *statistics) {
  mo_cuda *cuda = mo_cuda_of(backend);
  MO_CUDA(cudaEventSynchronize(cuda->summed));
  int64_t n = cuda->n_summed;
  const row_sums *sums = (const row_sums *)cuda->experts_host.memory;
  mo_expert_sums *experts = (mo_expert_sums *)(sums + n);
  for (int64_t e = 0; e < n; e++) {
    uint32_t peak = (uint32_t)(sums[e].top >> 32);
    experts[e].outlier_values = (int64_t)sums[e].values;
    experts[e].outlier_tokens = (int64_t)sums[e].tokens;
    memcpy(&experts[e].max_output, &peak, sizeof peak);
    experts[e].max_row = sums[e].top ? (int32_t) ~(uint32_t)sums[e].top : -1;
  }
  statistics->n = n;
  statistics->experts = experts;
  return MO_OK;
}
