/* Which backend the ranks use, and which GPU each of them takes: agreed on before any backend is opened. */
#ifndef MOE_OUTLIERS_DEVICES_H
#define MOE_OUTLIERS_DEVICES_H

#include <stdbool.h>
#include <stdint.h>

#include "moe_outliers/backend.h"
#include "moe_outliers/comm.h"

/* What a rank says of itself. */
typedef struct {
  int32_t rank;
  int32_t visible; /* GPUs that it sees */
  int32_t device;  /* ordinal, among these, of the one that it would take */
  uint8_t id[16];  /* of that GPU: its UUID, no other has it on any machine; a MIG instance has its own */
  char host[64];
} mo_rank_device;

/* The backend's table and this rank's device for engine.device. With "auto" all ranks use GPUs if every rank sees one, and the
 * CPU if none does. A rank takes the GPU with its number on the node, modulo the GPUs that it sees: so ranks may all see all
 * GPUs of a node, or each one of its own. MO_INVALID, the same line on every rank: only some see a GPU; two would share one.
 * Collective; the choice is the same on all ranks. */
MO_CHECKED mo_status mo_devices_choose(mo_comm *comm, mo_device_choice choice, const mo_backend_table **table,
                                       int *device);

/* What this rank says of itself; without a CUDA backend it sees no GPU. Local. */
MO_CHECKED mo_status mo_devices_describe(const mo_comm *comm, mo_rank_device *self);

/* The verdict on what n ranks, in order, said of themselves; choice: auto or cuda. *gpus: whether they use GPUs. */
MO_CHECKED mo_status mo_devices_check(mo_device_choice choice, const mo_rank_device *ranks, int n, bool *gpus);

#endif
