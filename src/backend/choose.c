/* Which backend a config's engine.device names. */
#include "moe_outliers/backend.h"

mo_status mo_backend_choose(mo_device_choice device, const mo_backend_table **table) {
  switch (device) {
    case MO_DEVICE_AUTO:
    case MO_DEVICE_CPU:
      *table = &mo_backend_cpu;
      return MO_OK;
    case MO_DEVICE_CHECK:
      *table = &mo_backend_check;
      return MO_OK;
    case MO_DEVICE_CUDA:
      break;
  }
  return MO_FAIL(MO_INVALID, "this program was built without the cuda backend (engine.device): set engine.device to \"cpu\" or "
                 "\"auto\"");
}
