/* Runs of one command, several at a time. */
#ifndef MO_POD_SWEEP_H
#define MO_POD_SWEEP_H

#include "pod/commands.h"

/* options->names: the configs. Prints what became of each to stdout. */
MO_CHECKED mo_status pod_sweep(const pod_settings *settings, const pod_options *options);
/* What the configs would be run on, and what it would cost; changes nothing. */
MO_CHECKED mo_status pod_sweep_dry(const pod_settings *settings, const pod_options *options);

#endif
