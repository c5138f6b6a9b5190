#include "pipeline/ablation_pass.h"

#include <stdlib.h>

struct mo_ablation_pass {
  mo_ablation_pass_job job;
  const mo_backend_table *op;
  int32_t **zeroed; /* [variants of the pass] backend memory, NULL: none */
  float *top;       /* backend memory [B*S, heads] of the layer under way */
  double *sums;     /* backend memory [variants of the pass, L, N] */
  mo_followed followed;
  int32_t *features; /* its [n], backend memory, as are: */
  float *rows;       /* its [3, B*S, n] */
  double *growth;    /* [L, E+1, n] */
};

static int64_t cells_of(const mo_ablation_pass *pass) {
  return pass->job.plan->variants * pass->job.spec->n_layers * pass->job.plan->n_sequences;
}

static int64_t variant_of(const mo_ablation_pass *pass, int64_t micro) {
  return pass->job.first_variant + mo_plan_variant(pass->job.plan, micro);
}

static mo_status upload_features(mo_ablation_pass *pass, const int32_t *features, int64_t n, int32_t **there) {
  mo_backend *backend = pass->job.backend;
  size_t bytes = (size_t)n * sizeof *features;
  int64_t ticket;
  if (!bytes) return MO_OK;
  MO_TRY(pass->op->alloc(backend, bytes, (void **)there));
  MO_TRY(pass->op->upload(backend, *there, features, bytes, &ticket));
  return pass->op->upload_wait(backend, ticket);
}

static int64_t growth_cells(const mo_ablation_pass *pass) {
  const mo_model_spec *spec = pass->job.spec;
  return mo_ablation_growth_cells(spec->n_layers, spec->moe.experts, pass->followed.n);
}

static mo_status open_followed(mo_ablation_pass *pass) {
  const mo_ablation_pass_job *job = &pass->job;
  int64_t rows = job->plan->micro_batch * job->plan->length, n = pass->followed.n = job->n_followed;
  if (n == 0) return MO_OK;
  size_t bytes = (size_t)growth_cells(pass) * sizeof *pass->growth;
  MO_TRY(upload_features(pass, job->followed, n, &pass->features));
  MO_TRY(pass->op->alloc(job->backend, (size_t)(3 * rows * n) * sizeof *pass->rows, (void **)&pass->rows));
  MO_TRY(pass->op->alloc(job->backend, bytes, (void **)&pass->growth));
  pass->followed.features = pass->features;
  pass->followed.before = pass->rows;
  pass->followed.after = pass->rows + rows * n;
  pass->followed.shared = pass->rows + 2 * rows * n;
  return pass->op->zero(job->backend, pass->growth, bytes);
}

static mo_status open_buffers(mo_ablation_pass *pass) {
  const mo_ablation_pass_job *job = &pass->job;
  size_t rows = (size_t)(job->plan->micro_batch * job->plan->length),
         sums = (size_t)cells_of(pass) * sizeof *pass->sums;
  size_t top = rows * (size_t)job->spec->attention.heads * sizeof *pass->top;
  pass->zeroed = mo_alloc((size_t)job->plan->variants, sizeof *pass->zeroed);
  if (!pass->zeroed) return MO_FAILED;
  for (int64_t v = 0; v < job->plan->variants; v++) {
    const mo_ablation_variant *variant = job->variants + job->first_variant + v;
    MO_TRY(upload_features(pass, variant->features, variant->n_features, &pass->zeroed[v]));
  }
  MO_TRY(open_followed(pass));
  MO_TRY(pass->op->alloc(job->backend, top, (void **)&pass->top));
  MO_TRY(pass->op->alloc(job->backend, sums, (void **)&pass->sums));
  return pass->op->zero(job->backend, pass->sums, sums);
}

mo_status mo_ablation_pass_open(mo_ablation_pass **opened, const mo_ablation_pass_job *job) {
  mo_ablation_pass *pass = *opened = mo_alloc(1, sizeof *pass);
  if (!pass) return MO_FAILED;
  pass->job = *job;
  pass->op = job->backend->table;
  mo_status status = open_buffers(pass);
  if (status == MO_OK) return MO_OK;
  mo_ablation_pass_close(pass);
  *opened = NULL;
  return status;
}

void mo_ablation_pass_close(mo_ablation_pass *pass) {
  if (!pass) return;
  mo_backend *backend = pass->job.backend;
  for (int64_t v = 0; pass->zeroed && v < pass->job.plan->variants; v++) pass->op->free(backend, pass->zeroed[v]);
  pass->op->free(backend, pass->top);
  pass->op->free(backend, pass->sums);
  pass->op->free(backend, pass->rows);
  pass->op->free(backend, pass->features);
  pass->op->free(backend, pass->growth);
  free(pass->zeroed);
  free(pass);
}

void mo_ablation_pass_prepare(const mo_ablation_pass *pass, int64_t micro, int64_t layer, mo_layer_observer *observer) {
  observer->zeroed = pass->zeroed[mo_plan_variant(pass->job.plan, micro)];
  observer->n_zeroed = pass->job.variants[variant_of(pass, micro)].n_features;
  observer->top = pass->top;
  if (pass->followed.n == 0 || pass->job.variants[variant_of(pass, micro)].kind != MO_VARIANT_INTACT) return;
  observer->followed = &pass->followed;
  observer->growth = pass->growth + layer * (pass->job.spec->moe.experts + 1) * pass->followed.n;
}

mo_status mo_ablation_pass_layer(const mo_ablation_pass *pass, int64_t micro, int64_t layer) {
  const mo_plan *plan = pass->job.plan;
  const mo_model_spec *spec = pass->job.spec;
  int64_t row = mo_plan_variant(plan, micro) * spec->n_layers + layer;
  if (spec->layers[layer].mixer != MO_MIXER_ATTENTION) return MO_OK;
  return pass->op->row_sums(pass->job.backend, pass->top, mo_plan_batch(plan, micro),
                            plan->length * spec->attention.heads,
                            pass->sums + row * plan->n_sequences + mo_plan_first_sequence(plan, micro));
}

void mo_ablation_pass_rows(const mo_ablation_pass *pass, int64_t micro, float **nll, float **top) {
  const mo_plan *plan = pass->job.plan;
  int64_t sequence = variant_of(pass, micro) * plan->n_sequences + mo_plan_first_sequence(plan, micro);
  *nll = pass->job.measures->nll + sequence * (plan->length - 1);
  *top = pass->job.measures->top + sequence * (plan->length - 1);
}

mo_status mo_ablation_pass_finish(const mo_ablation_pass *pass) {
  const mo_ablation_pass_job *job = &pass->job;
  int64_t first = job->first_variant * job->spec->n_layers * job->plan->n_sequences;
  if (pass->followed.n)
    MO_TRY(pass->op->download(job->backend, pass->growth, (size_t)growth_cells(pass) * sizeof *pass->growth,
                              job->measures->growth));
  return pass->op->download(job->backend, pass->sums, (size_t)cells_of(pass) * sizeof *pass->sums,
                            job->measures->attention + first);
}
