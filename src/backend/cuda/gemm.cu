/* Matrix products through cuBLAS, and linear on top of them. */
#include "backend/cuda/cuda.cuh"

static cublasHandle_t handle_of(const mo_cuda *cuda, cudaStream_t stream) {
  for (int i = 0; i < MO_CUDA_EXPERT_STREAMS; i++)
    if (stream == cuda->experts[i]) return cuda->expert_blas[i];
  return cuda->blas;
}

/* Column-major view: y^T [N, M] = w [N, K] x^T + kept * y^T. */
static mo_status gemm(mo_cuda *cuda, cudaStream_t stream, const void *x, const void *w, int64_t M, int64_t N, int64_t K,
                      float kept, void *y, cudaDataType_t y_type, int64_t ldy) {
  const float one = 1;
  cudaDataType_t type = cuda->bf16_run ? CUDA_R_16BF : CUDA_R_32F;
  cublasComputeType_t compute = cuda->bf16_run ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC;
  if (M == 0 || N == 0) return MO_OK;
  MO_TRY(mo_cuda_await_blas(cuda));
  MO_BLAS(mo_cublas.gemm_ex(handle_of(cuda, stream), CUBLAS_OP_T, CUBLAS_OP_N, (int)N, (int)M, (int)K, &one, w, type, (int)K,
                       x, type, (int)K, &kept, y, y_type, (int)ldy, compute, CUBLAS_GEMM_DEFAULT));
  return MO_OK;
}

mo_status mo_cuda_gemm(mo_cuda *cuda, cudaStream_t stream, const void *x, const void *w, int64_t M, int64_t N,
                       int64_t K, void *y, int64_t ldy) {
  return gemm(cuda, stream, x, w, M, N, K, 0, y, cuda->bf16_run ? CUDA_R_16BF : CUDA_R_32F, ldy);
}

mo_status mo_cuda_gemm_float(mo_cuda *cuda, cudaStream_t stream, const void *x, const void *w, int64_t M, int64_t N,
                             int64_t K, float *y, int64_t ldy) {
  return gemm(cuda, stream, x, w, M, N, K, 0, y, CUDA_R_32F, ldy);
}

/* y [M, N] = sums + bias (NULL: none), rounded; ADD: y += that. */
template <typename T, bool ADD>
__global__ void add_bias(const float *sums, const float *bias, int64_t M, int64_t N, T *y) {
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < M * N; i += (int64_t)gridDim.x * blockDim.x) {
    float value = rounded<T>(bias ? sums[i] + bias[i % N] : sums[i]);
    y[i] = from_float<T>(ADD ? to_float(y[i]) + value : value);
  }
}

/* Slices of rows go through float32: with a bias, because cuBLAS may round a bf16 product before it adds what is there; a few
 * rows that are added, because without the rounding between, their error has too few others to average out with. */
template <typename T, bool ADD>
static mo_status sliced_product(mo_cuda *cuda, const void *x, const void *matrix, const mo_weight *bias, int64_t M,
                                int64_t N, int64_t K, void *y) {
  int64_t most = MO_CUDA_BIASED_VALUES / N > 1 ? MO_CUDA_BIASED_VALUES / N : 1;
  void *vector = NULL, *sums;
  if (most > M) most = M;
  if (bias && bias->data) {
    MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_VECTOR, (size_t)N * sizeof(float), &vector));
    MO_TRY(mo_cuda_vector(cuda, bias, 0, N, false, cuda->stream, (float *)vector));
  }
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_LOGITS, (size_t)(most * N) * sizeof(float), &sums));
  for (int64_t row = 0; row < M; row += most) {
    int64_t m = M - row < most ? M - row : most;
    MO_TRY(mo_cuda_gemm_float(cuda, cuda->stream, (const T *)x + row * K, matrix, m, N, K, (float *)sums, N));
    add_bias<T, ADD><<<cuda->multiprocessors * 16, 256, 0, cuda->stream>>>((const float *)sums, (const float *)vector,
                                                                           m, N, (T *)y + row * N);
    MO_LAUNCHED("add_bias");
  }
  return MO_OK;
}

template <bool ADD>
static mo_status product(mo_cuda *cuda, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M, void *y) {
  void *room = NULL;
  const void *matrix;
  if (M == 0) return MO_OK;
  if (mo_cuda_converts(cuda, w))
    MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_WEIGHT, (size_t)(w->rows * w->cols) * (size_t)cuda->base.activation_bytes,
                           &room));
  MO_TRY(mo_cuda_matrix(cuda, w, cuda->stream, room, &matrix));
  if ((bias && bias->data) || (ADD && cuda->bf16_run && M <= MO_CUDA_FEW_ROWS)) {
    if (cuda->bf16_run) return sliced_product<bf16, ADD>(cuda, x, matrix, bias, M, w->rows, w->cols, y);
    return sliced_product<float, ADD>(cuda, x, matrix, bias, M, w->rows, w->cols, y);
  }
  return gemm(cuda, cuda->stream, x, matrix, M, w->rows, w->cols, ADD ? 1 : 0, y,
              cuda->bf16_run ? CUDA_R_16BF : CUDA_R_32F, w->rows);
}

mo_status cuda_linear(mo_backend *backend, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M,
                      void *y) {
  return product<false>(mo_cuda_of(backend), w, bias, x, M, y);
}

mo_status cuda_linear_add(mo_backend *backend, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M,
                          void *y) {
  return product<true>(mo_cuda_of(backend), w, bias, x, M, y);
}
