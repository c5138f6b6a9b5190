/* From counts to tables: the same in a run and from a file. */
#include <math.h>

#include "analysis/internal.h"

/* exp of the mean, summed in row order. */
static double perplexity_of(const float *nll, int64_t n) {
  double sum = 0;
  if (!nll || n == 0) return NAN;
  for (int64_t i = 0; i < n; i++) sum += (double)nll[i];
  return exp(sum / (double)n);
}

/* Every row of /positions stands for outlier values, which the sites must have. */
static mo_status check_cells(const mo_counts *counts) {
  for (int64_t h = 0; h < counts->shape.hidden; h++)
    for (int64_t i = counts->first[h]; i < counts->first[h + 1]; i++)
      if (counts->cells[i].occurrences < counts->cells[i].positions_hit)
        return MO_FAIL(MO_INVALID,
                       "feature %lld of sequence %d has %lld outlier values at %d positions (%s): make the file again "
                       "with moe-outliers run",
                       (long long)h, counts->cells[i].sequence, (long long)counts->cells[i].occurrences,
                       counts->cells[i].positions_hit, counts->where);
  return MO_OK;
}

mo_status mo_counts_analyse(mo_analysis *analysis, const mo_counts *counts, const float *nll) {
  const mo_analysis_shape *shape = &counts->shape;
  *analysis = (mo_analysis){.perplexity_low = NAN, .perplexity_high = NAN};
  analysis->perplexity = perplexity_of(nll, shape->n_sequences * (shape->length - 1));
  mo_status status = check_cells(counts);
  if (status == MO_OK) status = mo_tables_build(analysis, counts);
  if (status == MO_OK) status = mo_bootstrap_run(analysis, counts, nll);
  if (status != MO_OK) mo_analysis_free(analysis);
  return status;
}
