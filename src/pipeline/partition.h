/* Private to the pipeline: the cut of a plan's stages into blocks, and their ranks. */
#ifndef MO_PIPELINE_PARTITION_H
#define MO_PIPELINE_PARTITION_H

#include "moe_outliers/plan.h"

/* Fill in partition, fits, blocks, arena_bytes, resident_bytes and contiguous_bytes of a plan whose costs, arena and memory are
 * known. budget: bytes of a rank for weights, at least the largest stage. */
MO_CHECKED mo_status mo_partition_choose(mo_plan *plan, const mo_plan_rates *rates, int64_t budget);

#endif
