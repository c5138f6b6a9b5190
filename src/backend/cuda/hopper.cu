/* Tensor maps for copies on sm_90. */
#include "backend/cuda/hopper.cuh"

#include <cudaTypedefs.h>

/* Found at run time, so that the program also starts where there is no driver; NULL if the driver is too old. */
static PFN_cuTensorMapEncodeTiled_v12000 find_encode() {
  void *found = NULL;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  cudaError_t code =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
  cudaError_t code = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
  if (code != cudaSuccess) (void)cudaGetLastError();
  return code == cudaSuccess && result == cudaDriverEntryPointSuccess ? (PFN_cuTensorMapEncodeTiled_v12000)found : NULL;
}

mo_status mo_cuda_tensor_map(CUtensorMap *map, const void *data, int dims, const uint64_t *sizes,
                             const uint64_t *strides, const uint32_t *box, CUtensorMapL2promotion fetch) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encode();
  const uint32_t steps[] = {1, 1, 1, 1, 1};
  if (!encode)
    return MO_FAIL(MO_FAILED, "the GPU driver has no cuTensorMapEncodeTiled: update it to one for CUDA 12.4 or later");
  CUresult code =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)dims, (void *)data, sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, fetch, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS)
    return MO_FAIL(MO_FAILED, "a tensor map of %lld x %lld was refused (driver error %d): report it",
                   (long long)sizes[1], (long long)sizes[0], (int)code);
  return MO_OK;
}
