/* Stored activations of a result that the ranks write in turns: kept in the resume's folder while the run computes,
 * where they are in any case. */
#include <stdlib.h>

#include "pipeline/resume.h"

static mo_status give_site(const mo_resume *resume, mo_results *results, const mo_blob *blob, float *values) {
  const mo_plan *plan = resume->job.plan;
  char name[MO_NAME_BYTES];
  bool good;
  mo_resume_blob_name(name, blob);
  MO_TRY(mo_blob_read(&resume->folder, name, blob, values, mo_resume_blob_bytes(resume, blob), &good));
  if (!good)
    return MO_FAIL(MO_FAILED, "stored activations went bad (%s/%s): check the file system, run the same command again",
                   resume->path, name);
  return mo_results_write_activations(results, blob->stage - 1, (mo_site)blob->index,
                                      mo_plan_first_sequence(plan, blob->micro), mo_plan_batch(plan, blob->micro),
                                      values);
}

mo_status mo_resume_give_activations(void *context, mo_results *results) {
  const mo_resume *resume = context;
  const mo_plan *plan = resume->job.plan;
  mo_blob blob = {.identity = resume->identity, .kind = MO_BLOB_SITE}; /* of micro-batch 0, the largest */
  float *values = mo_alloc(mo_resume_blob_bytes(resume, &blob), 1);
  mo_status status = values ? MO_OK : MO_FAILED;
  for (blob.stage = 1; blob.stage <= resume->job.spec->n_layers; blob.stage++) {
    if (!mo_resume_is_stored(resume, blob.stage)) continue;
    if (mo_plan_rank_of(plan, blob.stage) != mo_comm_rank(resume->job.comm)) continue;
    for (blob.micro = 0; blob.micro < plan->n_micro; blob.micro++)
      for (blob.index = 0; blob.index < 2; blob.index++)
        if (status == MO_OK) status = give_site(resume, results, &blob, values);
  }
  free(values);
  return status;
}
