/* config.json of any bytes: it is refused with an error line, or it gives a specification that the rest of the
 * program can work with: sizes that are positive and divide each other, frequencies that are finite, tensors with
 * names and shapes whose products do not overflow. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition) {
  if (!condition) abort();
}

static void check_attention(const mo_model_spec *spec) {
  require(spec->attention.heads > 0 && spec->attention.kv_heads > 0 && spec->attention.head_dim > 0);
  require(spec->attention.heads % spec->attention.kv_heads == 0);
  require(isfinite(spec->attention.scale) && spec->attention.scale > 0 && spec->attention.clip >= 0);
  require(spec->rope.dim >= 2 && spec->rope.dim % 2 == 0 && spec->rope.dim <= spec->attention.head_dim);
  require(isfinite(spec->rope.factor));
  for (int64_t j = 0; j < spec->rope.dim / 2; j++)
    require(isfinite(spec->rope.inv_freq[j]) && spec->rope.inv_freq[j] >= 0);
}

static void check_layers(const mo_model_spec *spec) {
  for (int64_t i = 0; i < spec->n_layers; i++) {
    const mo_layer_spec *layer = spec->layers + i;
    require(layer->window >= 0);
    if (layer->mlp == MO_MLP_DENSE) require(spec->dense.width > 0);
    if (layer->mlp == MO_MLP_MOE) require(spec->moe.experts > 0 && spec->moe.width > 0);
    if (layer->mixer == MO_MIXER_DELTANET)
      require(spec->delta.k_heads > 0 && spec->delta.v_heads % spec->delta.k_heads == 0 && spec->delta.k_dim > 0 &&
              spec->delta.v_dim > 0 && spec->delta.kernel > 0);
  }
  if (!spec->moe.experts) return;
  require(spec->moe.top_k >= 1 && spec->moe.top_k <= spec->moe.experts);
  require(spec->moe.groups >= 1 && spec->moe.top_groups >= 1 && spec->moe.top_groups <= spec->moe.groups);
  require(spec->moe.experts % spec->moe.groups == 0);
  require(isfinite(spec->moe.routed_scale) && isfinite(spec->moe.glu_limit));
  if (spec->moe.shared != MO_SHARED_NONE) require(spec->moe.shared_width > 0);
}

static void check_tensors(const mo_model_spec *spec, int64_t stage) {
  mo_tensor_need *needs;
  int64_t n;
  require(mo_model_tensors(spec, stage, &needs, &n) == MO_OK && n > 0);
  for (int64_t i = 0; i < n; i++) {
    int64_t elements = 1;
    size_t length = strnlen(needs[i].name, sizeof needs[i].name);
    require(length > 0 && length < sizeof needs[i].name && !strchr(needs[i].name, '{'));
    require(needs[i].n_dims >= 1 && needs[i].n_dims <= 4);
    for (int d = 0; d < needs[i].n_dims; d++) {
      require(needs[i].shape[d] > 0);
      require(!__builtin_mul_overflow(elements, needs[i].shape[d], &elements) && elements <= INT64_MAX / 8);
    }
  }
  free(needs);
}

static void check_sums(const mo_model_spec *spec) {
  mo_parameter_count count;
  mo_extra_count extras[MO_EXTRA_COUNT];
  mo_stage_cost cost;
  require(mo_model_parameters(spec, &count) == MO_OK);
  require(count.total > 0 && count.active > 0 && count.active <= count.total && count.bytes > 0 && count.tensors > 0);
  require(count.active_no_embed > 0 && count.active_no_embed < count.active);
  require(mo_model_extras(spec, extras) == MO_OK);
  for (int i = 0; i < MO_EXTRA_COUNT; i++)
    require(extras[i].parameters >= 0 && extras[i].tensors >= 0 && extras[i].bytes >= 0);
  require(mo_model_stage_cost(spec, 1, spec->stored_bytes, 16, 2048, &cost) == MO_OK);
  require(cost.bytes > 0 && isfinite(cost.flops) && cost.flops > 0);
}

/* Counting every tensor of a large model takes too long for a fuzzer. */
static int is_small(const mo_model_spec *spec) { return spec->n_layers * (spec->moe.experts + 1) <= 2000; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  mo_model_spec spec;
  mo_error_clear();
  if (mo_model_parse(&spec, (const char *)data, size, "fuzz") != MO_OK) {
    require(mo_error_message()[0] != '\0' && !spec.layers && !spec.rope.inv_freq);
    mo_error_clear();
    return 0;
  }
  require(spec.n_layers > 0 && spec.hidden > 0 && spec.vocab > 0 && (spec.stored_bytes == 2 || spec.stored_bytes == 4));
  check_attention(&spec);
  check_layers(&spec);
  check_tensors(&spec, 0);
  check_tensors(&spec, 1 + (int64_t)(size % (size_t)spec.n_layers));
  check_tensors(&spec, spec.n_layers + 1);
  if (is_small(&spec)) check_sums(&spec);
  mo_model_free(&spec);
  return 0;
}
