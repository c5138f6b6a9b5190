#include <stdlib.h>

#include "moe_outliers/weights.h"

/* Where the views of a role's experts belong; NULL: the stage has the tensor once. */
static mo_weight **expert_views(mo_stage_weights *weights, mo_role role) {
  switch (role) {
    case MO_EXPERT_GATE:
      return &weights->expert_gate;
    case MO_EXPERT_UP:
      return &weights->expert_up;
    case MO_EXPERT_DOWN:
    case MO_EXPERTS_DOWN:
      return &weights->expert_down;
    case MO_EXPERTS_GATE_UP:
      return &weights->expert_gate_up;
    case MO_EXPERTS_GATE_UP_BIAS:
      return &weights->expert_gate_up_bias;
    case MO_EXPERTS_DOWN_BIAS:
      return &weights->expert_down_bias;
    default:
      return NULL;
  }
}

/* The first dimension as rows, the others as columns; a vector or a scalar is one row. */
static mo_weight view(const void *data, mo_dtype dtype, const int64_t *shape, int32_t n_dims) {
  mo_weight w = {.data = data, .dtype = dtype, .rows = 1, .cols = 1};
  int32_t first = n_dims >= 2 ? 1 : 0;
  if (first) w.rows = shape[0];
  for (int32_t d = first; d < n_dims; d++) w.cols *= shape[d];
  return w;
}

/* `experts` equal slices of a fused tensor [E, ...]. MXFP4 blocks [E, rows, cols/32, 16] hold two columns a byte. */
static mo_status slice_experts(const mo_entry *entry, const char *data, int64_t experts, mo_weight *views) {
  const mo_tensor *t = entry->tensor;
  if (t->n_dims < 2 || experts < 1 || t->shape[0] != experts)
    return MO_FAIL(MO_INVALID,
                   "tensor \"%s\" holds %lld experts, the model has %lld: use the config.json of this checkpoint",
                   t->name, (long long)(t->n_dims ? t->shape[0] : 0), (long long)experts);
  int64_t slice = t->bytes / experts;
  for (int64_t e = 0; e < experts; e++) {
    views[e] = view(data + e * slice, t->dtype, t->shape + 1, t->n_dims - 1);
    if (t->dtype == MO_U8) views[e].cols *= 2;
    if (t->dtype != MO_U8 && t->n_dims == 3) { /* plain fused experts are stored [E, in, out] */
      views[e].transposed = true;
      views[e].rows = t->shape[2];
      views[e].cols = t->shape[1];
    }
  }
  return MO_OK;
}

static mo_status add_entry(mo_stage_weights *weights, int64_t experts, const mo_entry *entry, const char *data) {
  const mo_tensor *t = entry->tensor;
  mo_weight **views = expert_views(weights, entry->role);
  if (!views) {
    weights->one[entry->role] = view(data, t->dtype, t->shape, t->n_dims);
    return MO_OK;
  }
  if (!*views) *views = mo_alloc((size_t)experts, sizeof **views);
  if (!*views) return MO_FAILED;
  if (entry->expert < 0) return slice_experts(entry, data, experts, *views);
  if (entry->expert >= experts)
    return MO_FAIL(MO_INVALID,
                   "tensor \"%s\" belongs to expert %d, the model has %lld: use the config.json of this checkpoint",
                   t->name, entry->expert, (long long)experts);
  (*views)[entry->expert] = view(data, t->dtype, t->shape, t->n_dims);
  return MO_OK;
}

/* Point the MXFP4 views at their rows of the scales [E, rows, cols/32]. */
static void attach_scales(const mo_weight *scales, int64_t experts, mo_weight *views) {
  if (!scales->data || !views) return;
  int64_t slice = scales->rows * scales->cols / experts;
  for (int64_t e = 0; e < experts; e++) views[e].scales = (const char *)scales->data + e * slice;
}

mo_status mo_stage_weights_build(mo_stage_weights *weights, const mo_model_spec *spec, const mo_stage_catalogue *stage,
                                 const void *base) {
  *weights = (mo_stage_weights){0};
  int64_t experts = spec->moe.experts;
  for (int64_t i = 0; i < stage->n_entries; i++) {
    const mo_entry *entry = &stage->entries[i];
    mo_status status = add_entry(weights, experts, entry, (const char *)base + entry->arena_offset);
    if (status != MO_OK) {
      mo_stage_weights_free(weights);
      return status;
    }
  }
  attach_scales(&weights->one[MO_EXPERTS_GATE_UP_SCALES], experts, weights->expert_gate_up);
  attach_scales(&weights->one[MO_EXPERTS_DOWN_SCALES], experts, weights->expert_down);
  return MO_OK;
}

void mo_stage_weights_free(mo_stage_weights *weights) {
  free(weights->expert_gate);
  free(weights->expert_up);
  free(weights->expert_down);
  free(weights->expert_gate_up);
  free(weights->expert_gate_up_bias);
  free(weights->expert_down_bias);
  *weights = (mo_stage_weights){0};
}
