/* What tokens bring to experts and what these give them: outlier values per token, then a block per expert over its routed
 * rows. Integers, and maxima whose ties go to the first row: no order of threads matters. Semantics:
 * cpu_expert_statistics. */
#include "backend/cuda/pack.cuh"

enum : int {
  WARPS = 8,
  THREADS = 512, /* of an expert */
  MOST = 256     /* experts of a launch: where their rows begin is an argument */
};

typedef struct {
  int32_t at[MOST + 1];
} row_starts;

/* Largest |value| (PEAK, to float *out) or number of |value| >= threshold (to int32_t *out) of each row; a warp per row. */
template <typename T, int W, bool PEAK>
static __global__ void scan_rows(const T *x, int64_t rows, int64_t width, float threshold, void *out) {
  int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= rows) return;
  float peak = 0;
  int count = 0;
#pragma unroll 4
  for (int64_t h = threadIdx.x % 32 * W; h < width; h += 32 * W) {
    float v[W];
    load<T, W>(x + row * width + h, v);
#pragma unroll
    for (int k = 0; k < W; k++) {
      peak = fmaxf(peak, fabsf(v[k]));
      count += fabsf(v[k]) >= threshold;
    }
  }
#pragma unroll
  for (int step = 16; step; step /= 2) {
    peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, step));
    count += __shfl_xor_sync(~0u, count, step);
  }
  if (threadIdx.x % 32 != 0) return;
  if constexpr (PEAK)
    ((float *)out)[row] = peak;
  else
    ((int32_t *)out)[row] = count;
}

template <typename T, bool PEAK>
static mo_status launch_scan(mo_cuda *cuda, const void *x, int64_t rows, int64_t width, float threshold, void *out) {
  unsigned blocks = (unsigned)((rows + WARPS - 1) / WARPS);
  if (rows == 0) return MO_OK;
  if (mo_packs(cuda, x, width))
    scan_rows<T, mo_pack<T>::width, PEAK>
        <<<blocks, WARPS * 32, 0, cuda->stream>>>((const T *)x, rows, width, threshold, out);
  else
    scan_rows<T, 1, PEAK><<<blocks, WARPS * 32, 0, cuda->stream>>>((const T *)x, rows, width, threshold, out);
  MO_LAUNCHED("scan_rows");
  return MO_OK;
}

/* Sums over a thread's rows. top: bits of the largest output, then the earlier row; 0: no row. */
typedef struct {
  unsigned long long values, tokens, top;
} row_sums;

static __device__ void add_sums(row_sums &sums, const row_sums &other) {
  sums.values += other.values;
  sums.tokens += other.tokens;
  if (other.top > sums.top) sums.top = other.top;
}

/* A block per expert. rows: of routed rows; NULL: routed row r is token row r (the shared expert). */
static __global__ void __launch_bounds__(THREADS) sum_experts(row_starts starts, const int32_t *rows,
                                                              const int32_t *outliers, const float *peaks,
                                                              mo_expert_sums *out) {
  __shared__ row_sums warps[THREADS / 32];
  row_sums sums = {0, 0, 0};
  int e = (int)blockIdx.x;
  for (int32_t r = starts.at[e] + (int32_t)threadIdx.x; r < starts.at[e + 1]; r += THREADS) {
    int32_t row = rows ? rows[r] : r, n = outliers[row];
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
  out[e].outlier_values = (int64_t)sums.values;
  out[e].outlier_tokens = (int64_t)sums.tokens;
  out[e].max_output = __uint_as_float((uint32_t)(sums.top >> 32));
  out[e].max_row = sums.top ? (int32_t) ~(uint32_t)sums.top : -1;
}

mo_status cuda_row_peaks(mo_backend *backend, const void *x, int64_t rows, int64_t width, float *peaks) {
  mo_cuda *cuda = mo_cuda_of(backend);
  return cuda->bf16_run ? launch_scan<bf16, true>(cuda, x, rows, width, 0, peaks)
                        : launch_scan<float, true>(cuda, x, rows, width, 0, peaks);
}

/* Device memory of an operation. */
typedef struct {
  int32_t *outliers;       /* [T] */
  mo_expert_sums *experts; /* [n] */
} expert_scratch;

static mo_status launch_sums(mo_cuda *cuda, const expert_scratch *scratch, int64_t E, int64_t T,
                             const mo_routing *routing, const float *peaks, const float *shared) {
  const int64_t most = MOST;
  for (int64_t first = 0; first < E; first += most) {
    int64_t n = E - first < most ? E - first : most;
    row_starts starts;
    for (int64_t e = 0; e <= n; e++) starts.at[e] = (int32_t)routing->start[first + e];
    sum_experts<<<(unsigned)n, THREADS, 0, cuda->stream>>>(starts, routing->row, scratch->outliers, peaks,
                                                           scratch->experts + first);
    MO_LAUNCHED("sum_experts");
  }
  if (!shared) return MO_OK;
  row_starts all = {{0, (int32_t)T}};
  sum_experts<<<1, THREADS, 0, cuda->stream>>>(all, NULL, scratch->outliers, shared, scratch->experts + E);
  MO_LAUNCHED("sum_experts");
  return MO_OK;
}

mo_status cuda_expert_statistics(mo_backend *backend, const mo_model_spec *spec, const void *x, int64_t T,
                                 float threshold, const mo_routing *routing, const float *peaks, const float *shared) {
  mo_cuda *cuda = mo_cuda_of(backend);
  int64_t E = spec->moe.experts, n = E + (shared != NULL);
  size_t bytes = (size_t)n * sizeof(mo_expert_sums);
  void *block;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_EXPERT_STATISTICS, bytes + (size_t)T * sizeof(int32_t), &block));
  MO_TRY(mo_cuda_grow_host(cuda, bytes, &cuda->experts_host));
  expert_scratch scratch = {(int32_t *)((char *)block + bytes), (mo_expert_sums *)block};
  if (cuda->bf16_run)
    MO_TRY((launch_scan<bf16, false>(cuda, x, T, spec->hidden, threshold, scratch.outliers)));
  else
    MO_TRY((launch_scan<float, false>(cuda, x, T, spec->hidden, threshold, scratch.outliers)));
  MO_TRY(launch_sums(cuda, &scratch, E, T, routing, peaks, shared));
  /* On the stream itself: it is little, and on `fetch` a site's results would wait for it. */
  MO_CUDA(cudaMemcpyAsync(cuda->experts_host.memory, block, bytes, cudaMemcpyDeviceToHost, cuda->stream));
  MO_CUDA(cudaEventRecord(cuda->summed, cuda->stream));
  cuda->n_summed = n;
  return MO_OK;
}

mo_status cuda_expert_results(mo_backend *backend, mo_expert_statistics *statistics) {
  mo_cuda *cuda = mo_cuda_of(backend);
  MO_CUDA(cudaEventSynchronize(cuda->summed));
  statistics->n = cuda->n_summed;
  statistics->experts = (mo_expert_sums *)cuda->experts_host.memory;
  return MO_OK;
}
