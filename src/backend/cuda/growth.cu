/* What a layer's experts add to features of the residual stream: a warp per expert and feature. Semantics:
 * cpu_expert_growth; the order of a sequence's sum is the warp's. */
#include "backend/cuda/elementwise.cuh"

enum : int { WARPS = 8 };

template <typename T>
static __global__ void take_features(const T *x, int64_t rows, int64_t H, const int32_t *features, int64_t n,
                                     float *out) {
  GRID_STRIDE(i, rows * n) out[i] = to_float(x[i / n * H + features[i % n]]);
}

mo_status cuda_take_features(mo_backend *backend, const void *x, int64_t T, int64_t H, const int32_t *features,
                             int64_t n, float *out) {
  mo_cuda *cuda = mo_cuda_of(backend);
  if (cuda->bf16_run)
    take_features<<<grid_for(cuda, T * n), THREADS, 0, cuda->stream>>>((const bf16 *)x, T, H, features, n, out);
  else
    take_features<<<grid_for(cuda, T * n), THREADS, 0, cuda->stream>>>((const float *)x, T, H, features, n, out);
  MO_LAUNCHED("take_features");
  return MO_OK;
}

typedef struct {
  const void *out;
  const int32_t *row, *place;
  const float *weight;
  mo_followed followed;
  int64_t B, S, H, K;
  double *growth;
} growth_job;

typedef struct {
  const int64_t *start; /* [E + 1] */
  int64_t experts;
} expert_rows;

static __device__ double weight_of(const growth_job &job, int64_t r, int64_t t) {
  const int32_t *place = job.place + t * job.K;
  int64_t slot = 0;
  while (place[slot] != r) slot++;
  return (double)job.weight[t * job.K + slot];
}

static __device__ double grown(const mo_followed &f, int64_t t, int64_t i, double part) {
  return part * ((double)f.before[t * f.n + i] + (double)f.after[t * f.n + i]);
}

static __device__ double sum_of_warp(double sum) {
#pragma unroll
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return sum;
}

/* First of the rows low .. high-1, whose tokens ascend, that is of token `token` or later. */
static __device__ int64_t first_row_from(const int32_t *row, int64_t low, int64_t high, int64_t token) {
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (row[middle] < token)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

template <typename T>
static __global__ void __launch_bounds__(WARPS * 32) grow_routed(growth_job job, expert_rows rows) {
  int64_t cell = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, n = job.followed.n, e = cell / n, i = cell % n;
  int lane = (int)threadIdx.x % 32;
  if (cell >= rows.experts * n) return;
  int64_t r = rows.start[e], end = rows.start[e + 1];
  double total = job.growth[cell]; /* added to sequence by sequence, so that micro-batches in order may be of any size */
  for (int64_t b = 0; b < job.B; b++) {
    int64_t next = first_row_from(job.row, r, end, (b + 1) * job.S);
    double sum = 0;
    for (int64_t k = r + lane; k < next; k += 32) {
      int64_t t = job.row[k];
      double part = weight_of(job, k, t) * (double)to_float(((const T *)job.out)[k * job.H + job.followed.features[i]]);
      sum += grown(job.followed, t, i, part);
    }
    total += sum_of_warp(sum);
    r = next;
  }
  if (lane == 0) job.growth[cell] = total;
}

/* A warp per feature: the shared expert, which every token goes to. */
static __global__ void __launch_bounds__(32) grow_shared(growth_job job, double *growth) {
  int64_t i = blockIdx.x, n = job.followed.n;
  double total = growth[i];
  for (int64_t b = 0; b < job.B; b++) {
    double sum = 0;
    for (int64_t t = b * job.S + threadIdx.x; t < (b + 1) * job.S; t += 32)
      sum += grown(job.followed, t, i, (double)job.followed.shared[t * n + i]);
    total += sum_of_warp(sum);
  }
  if (threadIdx.x == 0) growth[i] = total;
}

mo_status cuda_expert_growth(mo_backend *backend, const mo_model_spec *spec, const void *expert_out,
                             const mo_routing *routing, int64_t B, int64_t S, const mo_followed *followed,
                             double *growth) {
  mo_cuda *cuda = mo_cuda_of(backend);
  int64_t E = spec->moe.experts, cells = E * followed->n;
  size_t bytes = (size_t)(E + 1) * sizeof(int64_t);
  void *start;
  growth_job job = {expert_out, routing->row, routing->place, routing->weight,  *followed,
                    B,          S,            spec->hidden,   spec->moe.top_k, growth};
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_EXPERT_STATISTICS, bytes, &start));
  MO_CUDA(cudaMemcpyAsync(start, routing->start, bytes, cudaMemcpyHostToDevice, cuda->stream)); /* pageable: copied now */
  expert_rows rows = {(const int64_t *)start, E};
  unsigned blocks = (unsigned)((cells + WARPS - 1) / WARPS);
  if (cuda->bf16_run)
    grow_routed<bf16><<<blocks, WARPS * 32, 0, cuda->stream>>>(job, rows);
  else
    grow_routed<float><<<blocks, WARPS * 32, 0, cuda->stream>>>(job, rows);
  MO_LAUNCHED("grow_routed");
  if (spec->moe.shared == MO_SHARED_NONE) return MO_OK;
  grow_shared<<<(unsigned)followed->n, 32, 0, cuda->stream>>>(job, growth + cells);
  MO_LAUNCHED("grow_shared");
  return MO_OK;
}
