/* What tokens bring to experts and what these give them: blocks per expert over its routed rows. Integers, and maxima whose
 * ties go to the first row: no order of threads matters. Semantics: cpu_expert_statistics. */
#include <string.h>

#include "backend/cuda/pack.cuh"

enum : int {
  WARPS = 8,
  THREADS = 512,   /* of an expert's block */
  ROWS = 8,        /* of a thread, on average, before experts get more blocks */
  MOST_BLOCKS = 64, /* of an expert */
  MOST = 256       /* experts of a launch: where their rows begin is an argument */
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

/* Blocks [experts, blocks of an expert]. rows: of routed rows; NULL: routed row r is token row r (the shared expert). */
static __global__ void __launch_bounds__(THREADS) sum_experts(row_starts starts, const int32_t *rows,
                                                              const int32_t *row_counts, const float *peaks,
                                                              row_sums *out) {
  __shared__ row_sums warps[THREADS / 32];
  row_sums sums = {0, 0, 0};
  int e = (int)blockIdx.x;
  for (int32_t r = starts.at[e] + (int32_t)(blockIdx.y * THREADS + threadIdx.x); r < starts.at[e + 1];
       r += (int32_t)gridDim.y * THREADS) {
    int32_t row = rows ? rows[r] : r, n = row_counts[row];
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
  atomicAdd(&out[e].values, sums.values);
  atomicAdd(&out[e].tokens, sums.tokens);
  atomicMax(&out[e].top, sums.top);
}

static mo_status launch_sums(mo_cuda *cuda, const row_starts *starts, int64_t experts, const int32_t *rows,
                             const int32_t *row_counts, const float *peaks, row_sums *out) {
  int64_t average = (starts->at[experts] - starts->at[0]) / experts, blocks = average / (THREADS * ROWS) + 1;
  dim3 grid((unsigned)experts, (unsigned)(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS));
  sum_experts<<<grid, THREADS, 0, cuda->stream>>>(*starts, rows, row_counts, peaks, out);
  MO_LAUNCHED("sum_experts");
  return MO_OK;
}

mo_status cuda_expert_statistics(mo_backend *backend, const mo_model_spec *spec, int64_t T, const int32_t *row_counts,
                                 const mo_routing *routing, const float *peaks, const float *shared) {
  mo_cuda *cuda = mo_cuda_of(backend);
  const int64_t E = spec->moe.experts, n = E + (shared != NULL), most = MOST;
  size_t bytes = (size_t)n * sizeof(row_sums);
  void *block;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_EXPERT_STATISTICS, bytes, &block));
  MO_TRY(mo_cuda_grow_host(cuda, (size_t)n * (sizeof(row_sums) + sizeof(mo_expert_sums)), &cuda->experts_host));
  row_sums *sums = (row_sums *)block;
  MO_CUDA(cudaMemsetAsync(sums, 0, bytes, cuda->stream));
  for (int64_t first = 0; first < E; first += most) {
    int64_t k = E - first < most ? E - first : most;
    row_starts starts;
    for (int64_t e = 0; e <= k; e++) starts.at[e] = (int32_t)routing->start[first + e];
    MO_TRY(launch_sums(cuda, &starts, k, routing->row, row_counts, peaks, sums + first));
  }
  row_starts all = {{0, (int32_t)T}};
  if (shared) MO_TRY(launch_sums(cuda, &all, 1, NULL, row_counts, shared, sums + E));
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
