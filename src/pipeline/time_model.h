/* Private to the pipeline: one simulated run. */
#ifndef MO_PIPELINE_TIME_MODEL_H
#define MO_PIPELINE_TIME_MODEL_H

#include "moe_outliers/plan.h"

/* As mo_plan_predict without storage_alone and compute_alone. */
MO_CHECKED mo_status mo_plan_simulate(const mo_plan *plan, const mo_plan_rates *rates, mo_plan_time *time);

#endif
