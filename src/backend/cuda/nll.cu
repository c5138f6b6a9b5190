/* Next-token negative log-likelihood on the GPU: logits in tiles of the vocabulary, never whole. Semantics: cpu_nll. */
#include <string.h>

#include "backend/cuda/cuda.cuh"

constexpr int64_t ROWS = 2048; /* of x in a product */
constexpr int64_t TILE = 8192; /* of the vocabulary in a product */
constexpr int THREADS = 256;
constexpr int QUADS = (int)TILE / THREADS / 4; /* groups of four logits of a thread */

/* What the tiles so far say of each row. */
typedef struct {
  double *sum;   /* of exp(logit - top) */
  float *top;    /* largest logit */
  float *target; /* logit of the next token */
  float *nll;    /* [B, S-1], and after it ... */
  float *best;   /* ... [B, S-1] probability of the likeliest token */
  int32_t *ids;  /* [B, S] */
} nll_state;

/* Combine over the block; every thread gets the result. room: a number per warp. */
static __device__ float block_max(float x, float *room) {
#pragma unroll
  for (int step = 16; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  x = room[0];
#pragma unroll
  for (int i = 1; i < THREADS / 32; i++) x = fmaxf(x, room[i]);
  return x;
}

static __device__ double block_sum(double x, double *room) {
#pragma unroll
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  x = room[0];
#pragma unroll
  for (int i = 1; i < THREADS / 32; i++) x += room[i];
  return x;
}

/* A sum relative to `from` made relative to `to`. */
static __device__ double rescaled(double sum, float from, float to) {
  return from == to ? sum : sum * exp((double)from - (double)to);
}

/* A block per row r0 + i: take in the logits of tokens n0 .. n0+n-1. R: type that logits are rounded to. */
template <typename R>
static __global__ void __launch_bounds__(THREADS)
    take_tile(const float *logits, int64_t ld, int64_t r0, int64_t n0, int n, int64_t S, nll_state state) {
  __shared__ float tops[THREADS / 32];
  __shared__ double sums[THREADS / 32];
  int64_t r = r0 + blockIdx.x;
  if (r % S == S - 1) return; /* no next token */
  const float *row = logits + blockIdx.x * ld;
  float x[QUADS][4], top = -INFINITY;
#pragma unroll
  for (int i = 0; i < QUADS; i++) {
    int j = (i * THREADS + (int)threadIdx.x) * 4;
    float4 quad = j < n ? *reinterpret_cast<const float4 *>(row + j) : make_float4(0, 0, 0, 0);
    x[i][0] = quad.x, x[i][1] = quad.y, x[i][2] = quad.z, x[i][3] = quad.w;
#pragma unroll
    for (int k = 0; k < 4; k++) x[i][k] = j + k < n ? rounded<R>(x[i][k]) : -INFINITY;
#pragma unroll
    for (int k = 0; k < 4; k++) top = fmaxf(top, x[i][k]);
  }
  top = block_max(top, tops);
  double sum = 0;
#pragma unroll
  for (int i = 0; i < QUADS; i++)
    sum += (double)((expf(x[i][0] - top) + expf(x[i][1] - top)) + (expf(x[i][2] - top) + expf(x[i][3] - top)));
  sum = block_sum(sum, sums);
  if (threadIdx.x != 0) return;
  int64_t next = state.ids[r + 1];
  if (next >= n0 && next < n0 + n) state.target[r] = rounded<R>(row[next - n0]);
  if (n0 == 0) {
    state.top[r] = top;
    state.sum[r] = sum;
    return;
  }
  float before = state.top[r], larger = fmaxf(before, top);
  state.sum[r] = rescaled(state.sum[r], before, larger) + rescaled(sum, top, larger);
  state.top[r] = larger;
}

static __global__ void finish_rows(int64_t B, int64_t S, nll_state state) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= B * (S - 1)) return;
  int64_t r = i / (S - 1) * S + i % (S - 1);
  state.nll[i] = (float)((double)state.top[r] + log(state.sum[r]) - (double)state.target[r]);
  state.best[i] = (float)(1 / state.sum[r]);
}

/* Rows n0 .. n0+n-1 of a matrix that is not transposed. */
static mo_weight rows_of(const mo_weight *w, int64_t n0, int64_t n) {
  mo_weight part = *w;
  int64_t bytes = w->dtype == MO_U8 ? n0 * w->cols / 2 : n0 * w->cols * (int64_t)mo_dtype_size(w->dtype);
  part.rows = n;
  part.data = (const char *)w->data + bytes;
  if (w->scales) part.scales = (const char *)w->scales + n0 * w->cols / 32;
  return part;
}

/* Device arrays in one block; the ids uploaded. */
static mo_status prepare(mo_cuda *cuda, const int32_t *ids, int64_t B, int64_t S, nll_state *state) {
  int64_t T = B * S;
  void *block;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_SMALL, (size_t)T * (sizeof(double) + 4 * sizeof(float) + sizeof(int32_t)),
                         &block));
  state->sum = (double *)block;
  state->top = (float *)(state->sum + T);
  state->target = state->top + T;
  state->nll = state->target + T;
  state->best = state->nll + B * (S - 1);
  state->ids = (int32_t *)(state->nll + 2 * T);
  MO_CUDA(cudaMemcpyAsync(state->ids, ids, (size_t)T * sizeof *ids, cudaMemcpyHostToDevice, cuda->stream));
  return MO_OK;
}

/* All rows against tokens n0 .. n0+n-1; matrix: their rows of lm_head in compute type. */
static mo_status run_tile(mo_cuda *cuda, const void *matrix, int64_t K, const void *x, int64_t T, int64_t S, int64_t n0,
                          int64_t n, int64_t ld, float *logits, const nll_state *state) {
  for (int64_t r0 = 0; r0 < T; r0 += ROWS) {
    int64_t m = T - r0 < ROWS ? T - r0 : ROWS;
    const char *rows = (const char *)x + r0 * K * cuda->base.activation_bytes;
    MO_TRY(mo_cuda_gemm_float(cuda, cuda->stream, rows, matrix, m, n, K, logits, ld));
    if (cuda->bf16_run)
      take_tile<bf16><<<(unsigned)m, THREADS, 0, cuda->stream>>>(logits, ld, r0, n0, (int)n, S, *state);
    else
      take_tile<float><<<(unsigned)m, THREADS, 0, cuda->stream>>>(logits, ld, r0, n0, (int)n, S, *state);
    MO_LAUNCHED("take_tile");
  }
  return MO_OK;
}

static mo_status run_tiles(mo_cuda *cuda, const mo_weight *lm_head, const void *x, int64_t T, int64_t S,
                           const nll_state *state) {
  int64_t V = lm_head->rows, K = lm_head->cols, widest = V < TILE ? V : TILE, ld = (widest + 3) / 4 * 4;
  size_t number = (size_t)cuda->base.activation_bytes;
  void *logits, *room = NULL;
  const void *whole = NULL;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_LOGITS, (size_t)((T < ROWS ? T : ROWS) * ld) * sizeof(float), &logits));
  if (mo_cuda_converts(cuda, lm_head))
    MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_WEIGHT, (size_t)((lm_head->transposed ? V : widest) * K) * number, &room));
  if (lm_head->transposed) MO_TRY(mo_cuda_matrix(cuda, lm_head, cuda->stream, room, &whole));
  for (int64_t n0 = 0; n0 < V; n0 += TILE) {
    int64_t n = V - n0 < TILE ? V - n0 : TILE;
    const void *matrix = (const char *)whole + (size_t)(n0 * K) * number;
    if (!whole) {
      mo_weight part = rows_of(lm_head, n0, n);
      MO_TRY(mo_cuda_matrix(cuda, &part, cuda->stream, room, &matrix));
    }
    MO_TRY(run_tile(cuda, matrix, K, x, T, S, n0, n, ld, (float *)logits, state));
  }
  return MO_OK;
}

mo_status cuda_nll(mo_backend *backend, const mo_weight *lm_head, const void *x, const int32_t *ids, int64_t B,
                   int64_t S, float *nll, float *top) {
  mo_cuda *cuda = mo_cuda_of(backend);
  size_t one = (size_t)(B * (S - 1)) * sizeof(float), bytes = top ? 2 * one : one;
  nll_state state;
  void *host;
  if (S < 2 || B < 1) return MO_OK;
  MO_TRY(mo_cuda_host(cuda, bytes, &host));
  MO_TRY(prepare(cuda, ids, B, S, &state));
  MO_TRY(run_tiles(cuda, lm_head, x, B * S, S, &state));
  finish_rows<<<(unsigned)((B * (S - 1) + THREADS - 1) / THREADS), THREADS, 0, cuda->stream>>>(B, S, state);
  MO_LAUNCHED("finish_rows");
  MO_CUDA(cudaMemcpyAsync(host, state.nll, bytes, cudaMemcpyDeviceToHost, cuda->stream));
  MO_CUDA(cudaStreamSynchronize(cuda->stream));
  memcpy(nll, host, one);
  if (top) memcpy(top, (const char *)host + one, one);
  return MO_OK;
}
