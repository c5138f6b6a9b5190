/* What the analysis takes, by shape alone: for plans, which are also made where nothing is analysed. */
#include "analysis/internal.h"
#include "moe_outliers/ablation.h"

int64_t mo_accumulator_bytes(const mo_analysis_shape *shape) {
  const int64_t row = (int64_t)sizeof(mo_site_row) * 2; /* lists double, and values are kept beside the rows */
  int64_t sites = 2 * shape->n_layers, N = shape->n_sequences;
  return sites * N * (8 + MO_N_MOMENTS * 8) + N * shape->hidden * mo_position_words(shape) * 8 +
         shape->n_layers * (shape->n_experts * 8 + mo_experts_of_layer(shape) * (int64_t)sizeof(mo_expert_total)) +
         N * shape->length * 4 + sites * N * shape->hidden / 8 * row;
}

int64_t mo_ablation_growth_cells(int64_t n_layers, int64_t n_experts, int64_t n_features) {
  return n_experts ? n_layers * (n_experts + 1) * n_features : 0;
}
