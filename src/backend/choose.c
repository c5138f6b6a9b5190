/* Which backend a config's engine.device names. */
#include "moe_outliers/backend.h"

mo_status mo_backend_choose(mo_device_choice device, const mo_backend_table **table) {
  *table = device == MO_DEVICE_CHECK ? &mo_backend_check : &mo_backend_cpu;
#ifdef MO_HAVE_CUDA
  if (device == MO_DEVICE_CUDA || (device == MO_DEVICE_AUTO && mo_backend_cuda_count() > 0)) *table = &mo_backend_cuda;
#else
  if (device == MO_DEVICE_CUDA)
    return MO_FAIL(MO_INVALID,
                   "this program was built without the cuda backend (engine.device): set engine.device to \"cpu\" or "
                   "\"auto\"");
#endif
  return MO_OK;
}
