/* Private to the room: random weights, for checkpoints that are written (synth.c) and for those that are none (checkpoint.c).
 * A value is a function of seed, tensor name and place in the tensor, the same on every machine. */
#ifndef MO_WEIGHTS_GENERATE_H
#define MO_WEIGHTS_GENERATE_H

#include "moe_outliers/model.h"
#include "moe_outliers/weights.h"

typedef struct {
  mo_tensor_need need;
  mo_dtype dtype; /* MO_U8 for MXFP4 */
  int64_t bytes;
  uint64_t key;
  float mean, width; /* values are uniform in mean +- width / 2 */
  float spike_shift; /* spikes: one value x in 97 is (x + spike_shift) * 12 instead */
  bool spikes;
} mo_random_tensor;

/* All tensors of a model, stage by stage, tied embeddings once; dtype of numbers: MO_F32, MO_BF16 or MO_F16. *tensors is
 * malloc'ed, caller frees. Fewer layers give the same first tensors; MO_BF16 and MO_F16 are MO_F32's values rounded. */
MO_CHECKED mo_status mo_random_tensors(const mo_model_spec *spec, mo_dtype dtype, uint64_t seed,
                                       mo_random_tensor **tensors, int64_t *n_tensors);

/* Bytes offset .. offset+bytes-1 of a tensor, within its size. Any cut into pieces gives the same bytes. Thread-safe. */
void mo_random_fill(const mo_random_tensor *tensor, int64_t offset, int64_t bytes, void *out);

#endif
