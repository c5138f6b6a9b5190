/* The plan of a run: which rank computes which stages, in blocks; micro-batches; memory. Made from sizes alone, before any
 * weight is read; the same on every rank. */
#ifndef MOE_OUTLIERS_PLAN_H
#define MOE_OUTLIERS_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "moe_outliers/config.h"
#include "moe_outliers/model.h"
#include "moe_outliers/status.h"

/* Consecutive stages that one rank holds at the same time and runs every micro-batch through. */
typedef struct {
  int rank;
  int64_t first_stage, n_stages;
} mo_block;

typedef struct {
  int n_ranks;
  int64_t n_stages; /* L + 2, or L + 1 without perplexity (no head) */
  int64_t n_sequences, length;
  int64_t micro_batch, n_micro; /* sequences of a micro-batch; the last may be smaller */
  mo_partition_kind partition;  /* contiguous or interleaved, as chosen */
  mo_stage_cost *costs;         /* [n_stages] */
  int64_t *arena;               /* [n_stages] bytes of the stage's weights in backend memory */
  mo_block *blocks;             /* in stage order */
  int64_t n_blocks;
  int64_t *arena_bytes;         /* [n_ranks] bound of weights in memory at a time */
  int64_t *resident_bytes;      /* [n_ranks] all weights of the rank */
  int64_t activation_bytes;     /* per rank: residual stream of all sequences */
  int64_t workspace_bytes;      /* per rank: buffers of one micro-batch, estimated */
} mo_plan;

typedef struct {
  const mo_model_spec *spec;
  int64_t n_sequences, length;
  int64_t micro_batch;       /* 0: choose (a quarter of the sequences, whatever the ranks and the memory) */
  bool perplexity;
  int n_ranks;
  int activation_bytes;      /* of one value in the backend */
  mo_partition_kind partition;
  const int64_t *stage_bytes; /* [L + 2] arena bytes per stage as in the checkpoint, or NULL: from element_bytes */
  int element_bytes;
  int64_t memory_bytes;      /* per rank for everything; 0 = no bound */
  double bytes_per_second, flops_per_second; /* of a rank, for the balance of the partition */
} mo_plan_request;

/* Blocks: each rank gets consecutive stages with about the same cost (bytes to load and operations); where a rank's stages do
 * not fit in its memory they are cut into blocks that do, and weights of later blocks replace those of earlier ones. Ranks
 * beyond the number of stages get none. Memory too small for the largest stage: MO_INVALID with the smallest that works.
 * Free with mo_plan_free. */
MO_CHECKED mo_status mo_plan_make(mo_plan *plan, const mo_plan_request *request);
void mo_plan_free(mo_plan *plan);

int mo_plan_rank_of(const mo_plan *plan, int64_t stage);
int64_t mo_plan_memory(const mo_plan *plan, int rank); /* bytes: weights, activations, workspace */

/* The `plan` command: reads config.json of config->model.path, or config->model.config while that folder holds none, and prints
 * parameters, bytes, partition and memory. n_ranks 0: 1; vram_gb 0: the config's engine.device_memory_gb. */
MO_CHECKED mo_status mo_plan_command(const mo_config *config, int n_ranks, double vram_gb, bool json, FILE *out);

#endif
