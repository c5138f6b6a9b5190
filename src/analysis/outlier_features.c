#include <stdlib.h>

#include "analysis/internal.h"

int mo_compare_features(const void *left, const void *right) {
  int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
  return (a > b) - (a < b);
}

mo_status mo_outlier_features_share(const mo_analysis *analysis, mo_comm *comm, int32_t **features, int64_t *n) {
  int64_t found = 0;
  *features = NULL;
  *n = analysis->summary.outlier_features; /* of interest on rank 0 */
  MO_TRY(mo_comm_broadcast(comm, n, sizeof *n, 0));
  *features = mo_alloc((size_t)*n + 1, sizeof **features);
  MO_TRY(mo_comm_join(comm, *features ? MO_OK : MO_FAILED));
  for (int64_t i = 0; i < analysis->n_features; i++) /* none but on rank 0 */
    if (analysis->features[i].classification != MO_NONE) (*features)[found++] = analysis->features[i].feature;
  qsort(*features, (size_t)found, sizeof **features, mo_compare_features);
  return mo_comm_broadcast(comm, *features, (size_t)*n * sizeof **features, 0);
}
