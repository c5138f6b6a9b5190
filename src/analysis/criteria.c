#include "analysis/internal.h"

bool mo_qualifies(const mo_criteria *criteria, int64_t sites_hit, int64_t n_sites, int64_t positions_hit,
                  int64_t n_positions) {
  return (double)sites_hit / (double)n_sites >= criteria->min_layer_fraction &&
         (double)positions_hit / (double)n_positions >= criteria->min_position_fraction;
}

mo_classification mo_classify(const mo_criteria *criteria, bool qualifies, int64_t layers_hit, int64_t n_layers) {
  if (!qualifies) return MO_NONE;
  return (double)layers_hit / (double)n_layers >= criteria->systematic_fraction ? MO_SYSTEMATIC : MO_PROBABILISTIC;
}

const char *mo_site_name(mo_site site) { return site == MO_SITE_LN_ATTN ? "ln_attn" : "ln_mlp"; }

const char *mo_classification_name(mo_classification classification) {
  switch (classification) {
    case MO_SYSTEMATIC:
      return "SYSTEMATIC";
    case MO_PROBABILISTIC:
      return "PROBABILISTIC";
    default:
      return "NONE";
  }
}
