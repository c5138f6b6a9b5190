/* Private to the CUDA backend: the experts of a micro-batch as two grouped products on Hopper's tensor cores. In
 * builds with MO_HAVE_HOPPER. */
#ifndef MO_BACKEND_CUDA_EXPERTS_HOPPER_CUH
#define MO_BACKEND_CUDA_EXPERTS_HOPPER_CUH

#include "backend/cuda/cuda.cuh"

/* Whether mo_cuda_experts_hopper can stand in for the portable products: an sm_90 device, a bf16 run, bf16 weights
 * that lie as the file has them, separate gate and up without biases, rows of a multiple of 16 bytes, at most 512
 * experts. */
bool mo_cuda_experts_hopper_fits(const mo_cuda *cuda, const mo_model_spec *spec, const mo_stage_weights *weights,
                                 int64_t first, int64_t last);

/* cuda_experts, where it fits. */
MO_CHECKED mo_status mo_cuda_experts_hopper(mo_cuda *cuda, const mo_model_spec *spec, const mo_stage_weights *weights,
                                            const void *x, const mo_routing *routing, int64_t first, int64_t last,
                                            void *out);

#endif
