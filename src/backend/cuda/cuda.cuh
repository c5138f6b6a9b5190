/* Private to the CUDA backend: its state, error macros, element types, and the weights in compute type that its operations
 * share. Activations are bf16 in bf16 runs and float32 in fp32 runs; kernels compute in float32 and round where backend.h
 * says. Reductions have a fixed order and there are no floating-point atomics: two runs give identical bytes. */
#ifndef MO_BACKEND_CUDA_CUH
#define MO_BACKEND_CUDA_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <pthread.h>
#include <stdint.h>

#include "backend/cuda/libraries.h"

extern "C" {
#include "moe_outliers/backend.h"
}

typedef __nv_bfloat16 bf16;

enum {
  MO_CUDA_EXPERT_STREAMS = 8,
  MO_CUDA_FEW_ROWS = 16, /* of a product that is added: rounded first, as transformers does */
  MO_CUDA_BIASED_VALUES = 8 << 20 /* of a product with a bias, in float32 at a time: about what L2 holds */
};

/* Grow-only device buffers, each for one purpose, so that an operation may hold several at once. */
typedef enum {
  MO_SCRATCH_WEIGHT,         /* a converted weight of linear */
  MO_SCRATCH_VECTOR,         /* small float vectors */
  MO_SCRATCH_ROWS,           /* gathered rows, or what the delta rule finds within chunks */
  MO_SCRATCH_GATE_UP,        /* expert gate | up */
  MO_SCRATCH_ACTIVATION,     /* expert activation */
  MO_SCRATCH_EXPERT_WEIGHTS, /* converted weights of experts */
  MO_SCRATCH_LOGITS,         /* and other products in float32 */
  MO_SCRATCH_STATISTICS,
  MO_SCRATCH_OUTLIERS,
  MO_SCRATCH_EXPERT_STATISTICS,
  MO_SCRATCH_SMALL, /* counters, tables */
  MO_SCRATCH_COUNT
} mo_scratch_use;

/* Pinned host memory, grown on demand. */
typedef struct {
  void *memory;
  size_t bytes;
} mo_cuda_pinned;

typedef struct {
  mo_backend base;
  int device, multiprocessors;
  bool bf16_run;
  bool portable;  /* MO_CUDA_PORTABLE=1 when the backend was opened: only kernels that run on every GPU */
  bool hopper;    /* an sm_90 device, and not portable: kernels on wgmma may be used */
  bool abandoned; /* after a failure work on the GPU waits for a peer: calls that wait for the GPU would not return */
  cudaStream_t stream;                          /* all operations, in order */
  cudaStream_t experts[MO_CUDA_EXPERT_STREAMS]; /* expert products side by side; forked from and joined to `stream` */
  cudaEvent_t fork, join[MO_CUDA_EXPERT_STREAMS];
  cublasHandle_t blas;
  cublasHandle_t expert_blas[MO_CUDA_EXPERT_STREAMS]; /* one per stream: a workspace serves one stream at a time */
  pthread_t furnisher;                                /* makes `blas` */
  bool furnishing;
  mo_status furnished;
  struct mo_cuda_uploads *uploads;
  void *blas_workspace;
  void *scratch[MO_SCRATCH_COUNT];
  size_t scratch_bytes[MO_SCRATCH_COUNT];
  mo_cuda_pinned host; /* results on their way to the host */
  void *outgrown[128]; /* pinned memory is freed at the end: freeing it waits for the whole GPU, and so for peers */
  int n_outgrown;
  cudaStream_t fetch; /* a site's results on their way to the host, beside operations */
  cudaEvent_t scanned;
  void *site; /* the site whose results are awaited: statistics.cu's; malloc'ed */
  mo_cuda_pinned statistics_host;
  cudaEvent_t summed; /* the results of experts are on the host */
  int64_t n_summed;   /* experts whose results are awaited */
  mo_cuda_pinned experts_host;
} mo_cuda;

static inline mo_cuda *mo_cuda_of(mo_backend *backend) { return (mo_cuda *)backend; }

static inline mo_status mo_cuda_error(cudaError_t code, const char *what, const char *file, int line) {
  return mo_error_set(MO_FAILED, file, line, "CUDA: %s (%s): check the GPU with nvidia-smi", cudaGetErrorString(code),
                      what);
}

/* Return MO_FAILED with the library's text if a CUDA runtime call fails. */
#define MO_CUDA(call)                                                                                 \
  do {                                                                                                \
    cudaError_t mo_cuda_code_ = (call);                                                               \
    if (mo_cuda_code_ != cudaSuccess) return mo_cuda_error(mo_cuda_code_, #call, __FILE__, __LINE__); \
  } while (0)
/* After every launch. */
#define MO_LAUNCHED(name)                                                                                         \
  do {                                                                                                            \
    cudaError_t mo_cuda_code_ = cudaGetLastError();                                                               \
    if (mo_cuda_code_ != cudaSuccess) return mo_cuda_error(mo_cuda_code_, "launch of " name, __FILE__, __LINE__); \
  } while (0)
#define MO_BLAS(call)                                                                                    \
  do {                                                                                                   \
    cublasStatus_t mo_blas_code_ = (call);                                                               \
    if (mo_blas_code_ != CUBLAS_STATUS_SUCCESS)                                                          \
      return mo_error_set(MO_FAILED, __FILE__, __LINE__, "cuBLAS: %s (%s): check the CUDA installation", \
                          mo_cublas.status_string(mo_blas_code_), #call);                                  \
  } while (0)

/* A handle for a stream. A product's parts along k are added in float32, not in bf16, as cuBLAS otherwise may. */
MO_CHECKED mo_status mo_cuda_open_blas(cublasHandle_t *blas, cudaStream_t stream);
/* Begin to make the handle of `stream` and its workspace. */
void mo_cuda_furnish(mo_cuda *cuda);
void mo_cuda_finish_furnishing(mo_cuda *cuda);
/* Before the handle is used; main thread. */
MO_CHECKED mo_status mo_cuda_await_blas(mo_cuda *cuda);
/* Make the streams and handles of experts if they are not there: opening them takes time and memory, and the grouped
 * products do without. */
MO_CHECKED mo_status mo_cuda_expert_streams(mo_cuda *cuda);

/* Device scratch of a purpose, at least `bytes`, contents undefined, for `stream` and what forks from it later; what was
 * there must not be in use beside `stream`. Does not wait. */
MO_CHECKED mo_status mo_cuda_scratch(mo_cuda *cuda, mo_scratch_use use, size_t bytes, void **memory);
/* Pinned host memory for results. */
MO_CHECKED mo_status mo_cuda_host(mo_cuda *cuda, size_t bytes, void **memory);
/* At least `bytes` of it, contents undefined if it grows. */
MO_CHECKED mo_status mo_cuda_grow_host(mo_cuda *cuda, size_t bytes, mo_cuda_pinned *buffer);

/* The streams and events of uploads; close also what was opened in part. */
MO_CHECKED mo_status mo_cuda_uploads_open(mo_cuda *cuda);
void mo_cuda_uploads_close(mo_cuda *cuda);

/* The weight's matrix [rows, cols] in the run's compute type (bf16 or float), in device memory: the file's own bytes where they
 * fit, else converted into `room` (device, rows*cols elements) on `stream`. Rounds to bf16 in bf16 runs. */
MO_CHECKED mo_status mo_cuda_matrix(mo_cuda *cuda, const mo_weight *w, cudaStream_t stream, void *room,
                                    const void **matrix);
/* Whether mo_cuda_matrix needs room. */
bool mo_cuda_converts(const mo_cuda *cuda, const mo_weight *w);
/* n numbers of a weight, from element `first`, as float32 on `stream` (device memory `out`); exact: without rounding to bf16. */
MO_CHECKED mo_status mo_cuda_vector(mo_cuda *cuda, const mo_weight *w, int64_t first, int64_t n, bool exact,
                                    cudaStream_t stream, float *out);

/* y [M, N] = x [M, K] w [N, K]^T in the compute type, accumulated in float32 (true float32 in fp32 runs), on `stream`;
 * ldy: row length of y. `w` in compute type. */
MO_CHECKED mo_status mo_cuda_gemm(mo_cuda *cuda, cudaStream_t stream, const void *x, const void *w, int64_t M,
                                  int64_t N, int64_t K, void *y, int64_t ldy);
/* The same with y in float32 whatever the compute type (router logits, lm_head). */
MO_CHECKED mo_status mo_cuda_gemm_float(mo_cuda *cuda, cudaStream_t stream, const void *x, const void *w, int64_t M,
                                        int64_t N, int64_t K, float *y, int64_t ldy);

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
/* Two numbers rounded to bf16, the first in the low half. */
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t *>(&pair);
}
/* Rounded to T and back: a rounding point of the reference. As half of a pair: a single number has an
 * instruction of its own on Hopper (F2F; docs/kernels.md), and one in the high half needs no shift. */
template <typename T>
__device__ __forceinline__ float rounded(float x) {
  return sizeof(T) == sizeof(bf16) ? __uint_as_float(bf16_pair(0, x)) : x;
}

/* Call f<bf16>(...) or f<float>(...) by the run's precision. */
#define MO_BY_TYPE(cuda, f, ...) ((cuda)->bf16_run ? f<bf16>(__VA_ARGS__) : f<float>(__VA_ARGS__))

/* Operations; contracts in backend.h; one file per family. */
extern "C" {
mo_status cuda_alloc_host(mo_backend *, size_t, void **);
void cuda_free_host(mo_backend *, void *);
mo_status cuda_upload(mo_backend *, void *, const void *, size_t, int64_t *);
mo_status cuda_upload_wait(mo_backend *, int64_t);
mo_status cuda_checksum(mo_backend *, const void *, size_t, uint64_t *);
mo_status cuda_embed(mo_backend *, const mo_weight *, const int32_t *, int64_t, void *);
mo_status cuda_norm(mo_backend *, const mo_norm_spec *, const mo_weight *, const void *, int64_t, int64_t, void *);
mo_status cuda_linear(mo_backend *, const mo_weight *, const mo_weight *, const void *, int64_t, void *);
mo_status cuda_linear_add(mo_backend *, const mo_weight *, const mo_weight *, const void *, int64_t, void *);
mo_status cuda_clamp(mo_backend *, void *, int64_t, float);
mo_status cuda_rope(mo_backend *, const mo_model_spec *, void *, int64_t, int64_t, int64_t);
mo_status cuda_norm_rope(mo_backend *, const mo_model_spec *, const mo_weight *, void *, int64_t, int64_t, int64_t);
mo_status cuda_attention(mo_backend *, const mo_model_spec *, int64_t, const mo_weight *, const void *, const void *,
                         const void *, int64_t, int64_t, void *, float *);
mo_status cuda_add(mo_backend *, void *, const void *, int64_t);
mo_status cuda_glu(mo_backend *, const void *, const void *, int64_t, void *);
mo_status cuda_zero_features(mo_backend *, void *, int64_t, int64_t, const int32_t *, int64_t);
mo_status cuda_take_features(mo_backend *, const void *, int64_t, int64_t, const int32_t *, int64_t, float *);
mo_status cuda_expert_growth(mo_backend *, const mo_model_spec *, const void *, const mo_routing *, int64_t, int64_t,
                             const mo_followed *, double *);
mo_status cuda_row_sums(mo_backend *, const float *, int64_t, int64_t, double *);
mo_status cuda_split(mo_backend *, const void *, int64_t, int64_t, int64_t, void *, void *);
mo_status cuda_sigmoid_gate(mo_backend *, void *, const void *, int64_t, int64_t, int64_t);
mo_status cuda_delta_conv(mo_backend *, const mo_model_spec *, const mo_stage_weights *, const void *, const void *,
                          int64_t, int64_t, void *, float *, float *);
mo_status cuda_delta_rule(mo_backend *, const mo_model_spec *, const void *, const float *, const float *, int64_t,
                          int64_t, void *);
mo_status cuda_delta_norm(mo_backend *, const mo_model_spec *, const mo_weight *, const void *, int64_t, void *);
mo_status cuda_route(mo_backend *, const mo_model_spec *, const mo_stage_weights *, const void *, int64_t,
                     mo_routing *);
mo_status cuda_experts(mo_backend *, const mo_model_spec *, const mo_stage_weights *, const void *, const mo_routing *,
                       int64_t, int64_t, void *);
mo_status cuda_combine(mo_backend *, const mo_model_spec *, const void *, const mo_routing *, int64_t, float *, void *);
mo_status cuda_combine_add(mo_backend *, const mo_model_spec *, const void *, const mo_routing *, int64_t, float *,
                           void *);
mo_status cuda_row_peaks(mo_backend *, const void *, int64_t, int64_t, float *);
mo_status cuda_expert_statistics(mo_backend *, const mo_model_spec *, int64_t, const int32_t *, const mo_routing *,
                                 const float *, const float *);
mo_status cuda_expert_results(mo_backend *, mo_expert_statistics *);
mo_status cuda_site_statistics(mo_backend *, const void *, int64_t, int64_t, int64_t, float, uint64_t *, int64_t,
                               int32_t *);
mo_status cuda_site_results(mo_backend *, mo_site_statistics *);
mo_status cuda_nll(mo_backend *, const mo_weight *, const void *, const int32_t *, int64_t, int64_t, float *, float *);
}

#endif
