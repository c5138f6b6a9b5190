/* What the `plan` command finds out, for itself and for moe-pod; and its forms. */
#ifndef MO_PIPELINE_PLAN_OVERVIEW_H
#define MO_PIPELINE_PLAN_OVERVIEW_H

#include "moe_outliers/plan.h"
#include "pipeline/model_files.h"

typedef struct {
  const mo_config *config;
  const mo_plan_options *options;
  mo_model_files files;
  mo_model_spec spec;
  mo_parameter_count parameters;
  mo_extra_count extras[MO_EXTRA_COUNT];
  bool cuda;
  const char *memory_from; /* where the budget comes from; NULL: there is none */
  const char *device;      /* whose rate is assumed */
  mo_plan plan;
  mo_plan_rates rates;
  mo_plan_time time;
  int64_t bytes_at_most; /* of a published checkpoint */
  double flops;
  mo_plan pass; /* of the ablation; without variants there is none */
  mo_plan_time pass_time;
  int64_t n_variants, n_passes;
} mo_plan_overview;

/* Finds what this machine's cores compute, as mo_cpu_rate. */
typedef mo_status mo_cpu_rate_finder(mo_precision precision, int threads, double *flops_per_second);

/* Fill what config and options ask for; cpu_rate: for a plan for CPUs, NULL: an assumed rate. After a failure, too, free it. */
MO_CHECKED mo_status mo_plan_overview_make(mo_plan_overview *overview, mo_cpu_rate_finder *cpu_rate);
void mo_plan_overview_free(mo_plan_overview *overview);

double mo_plan_gpu_hours(const mo_plan_overview *overview);
double mo_plan_ablation_seconds(const mo_plan_overview *overview); /* at most */
double mo_plan_most_dollars(const mo_plan_overview *overview);
/* The rank that takes the most memory. */
int mo_plan_fullest(const mo_plan *plan);
/* Why the stages are dealt so. */
void mo_plan_reason(const mo_plan *plan, char *text, size_t size);

MO_CHECKED mo_status mo_plan_print_json(const mo_plan_overview *overview, FILE *out);

#endif
