/* Private to the pipeline: what a pass of the ablation does to its variants, and what it measures of them. */
#ifndef MO_PIPELINE_ABLATION_PASS_H
#define MO_PIPELINE_ABLATION_PASS_H

#include "moe_outliers/ablation.h"
#include "moe_outliers/backend.h"
#include "moe_outliers/layer.h"
#include "moe_outliers/plan.h"

/* The caller's. */
typedef struct {
  mo_backend *backend;
  const mo_model_spec *spec;
  const mo_plan *plan;
  const mo_ablation_variant *variants;  /* all */
  int64_t first_variant;                /* of the pass */
  const int32_t *followed;              /* [n_followed] features whose growth is measured in the model as it is */
  int64_t n_followed;                   /* 0: not in this pass */
  const mo_ablation_measures *measures; /* a rank fills in what it computes, the rest stays as it is */
} mo_ablation_pass_job;

typedef struct mo_ablation_pass mo_ablation_pass;

MO_CHECKED mo_status mo_ablation_pass_open(mo_ablation_pass **pass, const mo_ablation_pass_job *job);
/* NULL is allowed. */
void mo_ablation_pass_close(mo_ablation_pass *pass);

/* Before a layer: what is zeroed and followed, and where largest probabilities go. */
void mo_ablation_pass_prepare(const mo_ablation_pass *pass, int64_t micro, int64_t layer, mo_layer_observer *observer);
/* After a layer: add them up. */
MO_CHECKED mo_status mo_ablation_pass_layer(const mo_ablation_pass *pass, int64_t micro, int64_t layer);
/* Where the losses and probabilities of a micro-batch's next tokens go. */
void mo_ablation_pass_rows(const mo_ablation_pass *pass, int64_t micro, float **nll, float **top);
/* After the last task: all measures are there. Waits. */
MO_CHECKED mo_status mo_ablation_pass_finish(const mo_ablation_pass *pass);

#endif
