/* moe-pod sweep [CONFIG...] */
#include "pod/sweep.h"

mo_status pod_command_sweep(const pod_settings *settings, const pod_options *options) {
  return options->dry_run ? pod_sweep_dry(settings, options) : pod_sweep(settings, options);
}
