#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/weights.h"

#define ALIGNMENT MO_ARENA_ALIGNMENT

static void format_shape(const int64_t *shape, int32_t n_dims, char text[static 200]) {
  size_t used = (size_t)snprintf(text, 200, "[");
  for (int32_t d = 0; d < n_dims; d++)
    used += (size_t)snprintf(text + used, 200 - used, "%s%lld", d ? ", " : "", (long long)shape[d]);
  snprintf(text + used, 200 - used, "]");
}

static mo_status check_tensor(const mo_tensor_need *need, const mo_tensor *tensor, const char *file) {
  bool same = need->n_dims == tensor->n_dims;
  for (int32_t d = 0; same && d < need->n_dims; d++) same = need->shape[d] == tensor->shape[d];
  if (!same) {
    char found[200], expected[200];
    format_shape(tensor->shape, tensor->n_dims, found);
    format_shape(need->shape, need->n_dims, expected);
    return MO_FAIL(MO_INVALID,
                   "tensor \"%s\" has shape %s, config.json implies %s (%s): use the config.json of this "
                   "checkpoint",
                   need->name, found, expected, file);
  }
  mo_dtype dtype = tensor->dtype;
  bool usable = need->mxfp4 ? dtype == MO_U8 : dtype == MO_F32 || dtype == MO_BF16 || dtype == MO_F16;
  if (!usable)
    return MO_FAIL(MO_INVALID, "tensor \"%s\" has dtype %s, needed is %s (%s): use a checkpoint that stores it so",
                   need->name, tensor->dtype_name, need->mxfp4 ? "U8 (MXFP4)" : "F32, BF16 or F16", file);
  if (tensor->bytes == 0)
    return MO_FAIL(MO_INVALID, "tensor \"%s\" is empty (%s): use the config.json of this checkpoint", need->name, file);
  return MO_OK;
}

/* The order of reading. A tensor that two roles share comes twice, in the order of the roles. */
static int by_place(const void *a, const void *b) {
  const mo_entry *x = a, *y = b;
  if (x->tensor->file != y->tensor->file) return x->tensor->file < y->tensor->file ? -1 : 1;
  if (x->tensor->offset != y->tensor->offset) return x->tensor->offset < y->tensor->offset ? -1 : 1;
  return (x->role > y->role) - (x->role < y->role);
}

static mo_status place_entries(mo_stage_catalogue *stage) {
  for (int64_t i = 0; i < stage->n_entries; i++) {
    mo_entry *entry = &stage->entries[i];
    int64_t end, bytes = entry->tensor->bytes;
    entry->arena_offset = stage->arena_bytes;
    if (__builtin_add_overflow(stage->arena_bytes, bytes, &end) || end > INT64_MAX - ALIGNMENT)
      return MO_FAIL(MO_INVALID,
                     "the tensors of one stage exceed 2^63 bytes (at \"%s\"): use the config.json of this "
                     "checkpoint",
                     entry->tensor->name);
    stage->bytes += bytes;
    stage->arena_bytes = (end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  }
  if (stage->arena_bytes < ALIGNMENT) stage->arena_bytes = ALIGNMENT;
  return MO_OK;
}

static mo_status find_entries(mo_stage_catalogue *stage, const mo_tensor_need *needs, int64_t n,
                              const mo_checkpoint *checkpoint, bool *used) {
  stage->entries = mo_alloc((size_t)n, sizeof *stage->entries);
  if (!stage->entries) return MO_FAILED;
  for (int64_t i = 0; i < n; i++) {
    const mo_tensor *tensor = mo_checkpoint_find(checkpoint, needs[i].name);
    if (!tensor)
      return MO_FAIL(MO_INVALID,
                     "tensor \"%s\" is missing (%s): config.json implies it, use the config.json of this checkpoint",
                     needs[i].name, mo_checkpoint_directory(checkpoint));
    MO_TRY(check_tensor(&needs[i], tensor, mo_checkpoint_file(checkpoint, tensor->file)));
    stage->entries[stage->n_entries++] = (mo_entry){.role = needs[i].role, .expert = needs[i].expert, .tensor = tensor};
    used[tensor - mo_checkpoint_tensor(checkpoint, 0)] = true;
  }
  if (n > 0) qsort(stage->entries, (size_t)n, sizeof *stage->entries, by_place);
  return place_entries(stage);
}

static mo_status list_unused(mo_catalogue *catalogue, const mo_checkpoint *checkpoint, const bool *used) {
  int64_t n = mo_checkpoint_tensor_count(checkpoint);
  for (int64_t i = 0; i < n; i++) catalogue->unused_tensors += !used[i];
  catalogue->unused = mo_alloc((size_t)catalogue->unused_tensors, sizeof *catalogue->unused);
  if (!catalogue->unused) return MO_FAILED;
  for (int64_t i = 0, k = 0; i < n; i++)
    if (!used[i]) catalogue->unused[k++] = mo_checkpoint_tensor(checkpoint, i);
  return MO_OK;
}

mo_status mo_catalogue_build(mo_catalogue *catalogue, const mo_model_spec *spec, const mo_checkpoint *checkpoint) {
  *catalogue = (mo_catalogue){0};
  int64_t n_tensors = mo_checkpoint_tensor_count(checkpoint), n_stages = mo_model_stages(spec);
  bool *used = mo_alloc((size_t)n_tensors, sizeof *used);
  catalogue->stages = mo_alloc((size_t)n_stages, sizeof *catalogue->stages);
  mo_status status = used && catalogue->stages ? MO_OK : MO_FAILED;
  if (status == MO_OK) catalogue->n_stages = n_stages;
  for (int64_t s = 0; status == MO_OK && s < n_stages; s++) {
    mo_tensor_need *needs = NULL;
    int64_t n = 0;
    status = mo_model_tensors(spec, s, &needs, &n);
    if (status == MO_OK) status = find_entries(&catalogue->stages[s], needs, n, checkpoint, used);
    free(needs);
  }
  if (status == MO_OK) status = list_unused(catalogue, checkpoint, used);
  free(used);
  if (status != MO_OK) mo_catalogue_free(catalogue);
  return status;
}

void mo_catalogue_free(mo_catalogue *catalogue) {
  for (int64_t s = 0; s < catalogue->n_stages; s++) free(catalogue->stages[s].entries);
  free(catalogue->stages);
  free(catalogue->unused);
  *catalogue = (mo_catalogue){0};
}
