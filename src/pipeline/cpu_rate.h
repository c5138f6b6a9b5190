/* Private to the pipeline: what this machine's cores compute. */
#ifndef MO_PIPELINE_CPU_RATE_H
#define MO_PIPELINE_CPU_RATE_H

#include "moe_outliers/config.h"
#include "moe_outliers/status.h"

/* Sustained operations per second of the CPU backend in a model, from a product like a layer's that takes 50 ms. */
MO_CHECKED mo_status mo_cpu_rate(mo_precision precision, int threads, double *flops_per_second);

#endif
