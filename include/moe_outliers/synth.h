/* Random checkpoints of given shapes, for benchmarks and tests: the time and memory of a model without its weights. */
#ifndef MOE_OUTLIERS_SYNTH_H
#define MOE_OUTLIERS_SYNTH_H

#include <stdint.h>

#include "moe_outliers/status.h"

/* Told while it writes, every few milliseconds to seconds, by one thread: bytes of tensors written, and of all. */
typedef struct {
  void (*tell)(void *context, int64_t written, int64_t all); /* NULL: nobody wants to know */
  void *context;
} mo_synth_progress;

/* Write the checkpoint of a model with random weights into a folder: config.json and *.safetensors, every tensor that
 * the architecture needs, in the shapes that config.json gives.
 *
 * config_json: path of a config.json of a known architecture. directory: created if it is absent; refused if it holds a
 * checkpoint already. seed: the values are a function of seed and tensor name alone, the same on every machine, so that
 * fewer layers give the same first layers. layers: how many of the config's layers to write (and to say in the written
 * config.json), 0 = all. dtype of all tensors: 0 bf16, 1 f32, 2 f16.
 *
 * Files are written as NAME.partial and renamed when all are complete, config.json last: a folder without it is not
 * finished, and what a killed process left there is replaced.
 *
 * Local. An unreadable or unknown config, more layers than the config has, an unusable folder or one that another process
 * writes to: MO_INVALID, nothing written. A write error (disk full): MO_FAILED, and the files begun are removed. */
MO_CHECKED mo_status mo_synth(const char *config_json, const char *directory, uint64_t seed, int64_t layers, int dtype,
                              const mo_synth_progress *progress);

#endif
