/* HDF5 1.10 crashes on some damaged files, or never ends: above all on strings of variable length, whose sizes and
 * places it takes from the file unchecked. */
#ifndef MOE_OUTLIERS_RESULTS_PROBE_H
#define MOE_OUTLIERS_RESULTS_PROBE_H

#include "moe_outliers/status.h"

/* Call `attempt(path, context)`, which reads the file and leaves nothing behind, in a child process. MO_INVALID, naming
 * `path` and telling `remedy`, if the child does not come back from it; what the attempt finds out is of no interest.
 * To be called while no other thread is at work and no file of that name is open; the attempt starts none. */
MO_CHECKED mo_status mo_probe(void (*attempt)(const char *path, void *context), void *context, const char *path,
                              const char *remedy);

#endif
