#include "pipeline/ablation.h"

#include <stdio.h>
#include <stdlib.h>

#include "pipeline/ablation_pass.h"
#include "pipeline/engine.h"

typedef struct {
  const mo_ablation_job *job;
  mo_comm *comm;
  int32_t *outliers;
  int64_t n_outliers;
  int64_t n_followed; /* of them all, or 0 */
  mo_ablation_variant *variants;
  int64_t n_variants;
  mo_ablation_shape shape;
  uint64_t *words; /* all measures in one block */
  int64_t n_words;
  mo_ablation_measures measures;
} ablation;

/* What one pass works with. */
typedef struct {
  mo_plan plan;
  mo_ablation_pass *pass;
  mo_engine *engine;
  mo_engine_clock clock;
  mo_stage_clock *stages;
  mo_timing_row *timing;
  int64_t n_timing;
} pass_state;

static bool is_root(const ablation *a) { return mo_comm_rank(a->comm) == 0; }

/* --- what is to be measured --- */

static mo_ablation_shape shape_of(const ablation *a) {
  const mo_run_plan_job *run = &a->job->plan;
  mo_ablation_shape shape = {.n_layers = run->spec->n_layers,
                             .n_sequences = run->tokens->n_sequences,
                             .length = run->tokens->length,
                             .perplexity = run->config->analysis.perplexity,
                             .n_experts = run->spec->moe.experts};
  for (int64_t layer = 0; layer < run->spec->n_layers; layer++)
    if (run->spec->layers[layer].mixer == MO_MIXER_ATTENTION) shape.softmaxes += run->spec->attention.heads;
  return shape;
}

static mo_status prepare(ablation *a) {
  const mo_run_plan_job *run = &a->job->plan;
  a->shape = shape_of(a);
  MO_TRY(mo_ablation_choose(&a->variants, &a->n_variants, a->outliers, a->n_outliers, run->spec->hidden,
                            run->config->analysis.ablate_draws, run->config->analysis.seed));
  a->n_followed = a->shape.n_experts ? a->n_outliers : 0;
  int64_t rows = a->n_variants * a->shape.n_sequences, predictions = rows * (a->shape.length - 1);
  int64_t growth = mo_ablation_growth_cells(a->shape.n_layers, a->shape.n_experts, a->n_outliers);
  a->n_words = rows * a->shape.n_layers + growth + predictions; /* two float32 numbers a word */
  a->words = mo_alloc((size_t)a->n_words, sizeof *a->words);
  if (!a->words) return MO_FAILED;
  a->measures.attention = (double *)a->words;
  a->measures.growth = a->measures.attention + rows * a->shape.n_layers;
  a->measures.nll = (float *)(a->measures.growth + growth);
  a->measures.top = a->measures.nll + predictions;
  return MO_OK;
}

/* --- a pass --- */

/* For as many of the variants that are left as the memory holds at the same time; without what the growth takes where even
 * one does not fit with it: the run's own plan made sure of no more. */
static mo_status make_plan(mo_plan *plan, ablation *a, int64_t left) {
  mo_run_plan_job job = a->job->plan;
  mo_status status = MO_INVALID;
  job.followed = a->n_followed;
  for (job.variants = left; job.variants > 0 && status == MO_INVALID; job.variants--) {
    mo_error_clear();
    status = mo_run_plan(plan, &job);
  }
  if (status != MO_INVALID || a->n_followed == 0) return mo_comm_join(a->comm, status);
  a->n_followed = 0;
  if (is_root(a))
    fprintf(stderr, "moe-outliers: note: /growth stays empty: it does not fit in %.6g GB beside the model\n",
            1e-9 * (double)job.memory_bytes);
  return make_plan(plan, a, left);
}

static mo_status open_pass(pass_state *p, const ablation *a, int64_t first) {
  const mo_run_plan_job *run = &a->job->plan;
  mo_ablation_pass_job pass = {.backend = run->backend,
                               .spec = run->spec,
                               .plan = &p->plan,
                               .variants = a->variants,
                               .first_variant = first,
                               .followed = a->variants[1].features,
                               .n_followed = first == 0 ? a->n_followed : 0,
                               .measures = &a->measures};
  p->stages = mo_alloc((size_t)p->plan.n_stages, sizeof *p->stages);
  p->timing = mo_alloc((size_t)p->plan.n_stages, sizeof *p->timing);
  if (!p->stages || !p->timing) return MO_FAILED;
  MO_TRY(mo_ablation_pass_open(&p->pass, &pass));
  mo_engine_job job = {.comm = a->comm,
                       .config = run->config,
                       .spec = run->spec,
                       .plan = &p->plan,
                       .tokens = run->tokens,
                       .checkpoint = a->job->checkpoint,
                       .catalogue = run->catalogue,
                       .backend = run->backend,
                       .start = p->plan.start,
                       .pass = p->pass,
                       .timing = p->timing,
                       .clock = &p->clock,
                       .stages = p->stages,
                       .readers = run->readers};
  return mo_engine_open(&p->engine, &job);
}

static mo_status compute_pass(pass_state *p, const ablation *a, int64_t first) {
  MO_TRY(mo_comm_join(a->comm, open_pass(p, a, first)));
  mo_comm_heed_stop(a->comm, true);
  MO_TRY(mo_comm_join(a->comm, mo_engine_run(p->engine, NULL, &p->n_timing)));
  mo_comm_heed_stop(a->comm, false);
  return mo_comm_join(a->comm, mo_ablation_pass_finish(p->pass));
}

static pass_state in_use; /* by a reader that waits for storage when the process ends; for leak checkers */

static void close_pass(pass_state *p, const ablation *a) {
  mo_engine_close(p->engine);
  if (p->clock.stuck) {
    in_use = *p;
    *a->job->stuck = true;
    return;
  }
  mo_ablation_pass_close(p->pass);
  free(p->stages);
  free(p->timing);
  mo_plan_free(&p->plan);
}

static void note_pass(const ablation *a, int64_t first, int64_t variants) {
  int64_t n = a->n_outliers, draws = a->n_variants - 2;
  if (!is_root(a)) return;
  if (first == 0)
    fprintf(stderr, "moe-outliers: ablation: %lld outlier feature%s zeroed, and %lld draw%s of others: %lld variants\n",
            (long long)n, mo_plural(n), (long long)draws, mo_plural(draws), (long long)a->n_variants);
  if (variants < a->n_variants)
    fprintf(
        stderr,
        "moe-outliers: note: variants %lld to %lld of the ablation: more do not fit in %.6g GB at the same time, and "
        "the weights are read again for the rest\n",
        (long long)first + 1, (long long)(first + variants), 1e-9 * (double)a->job->plan.memory_bytes);
}

/* *first: the variants before it are done. */
static mo_status run_pass(ablation *a, int64_t *first) {
  pass_state p = {0};
  MO_TRY(make_plan(&p.plan, a, a->n_variants - *first));
  note_pass(a, *first, p.plan.variants);
  mo_status status = compute_pass(&p, a, *first);
  *first += p.plan.variants;
  close_pass(&p, a);
  return status;
}

/* --- all --- */

static mo_status measure(ablation *a) {
  MO_TRY(mo_comm_join(a->comm, prepare(a)));
  for (int64_t first = 0; first < a->n_variants;) MO_TRY(run_pass(a, &first));
  return mo_comm_allreduce(a->comm, a->words, (size_t)a->n_words, MO_OR_U64); /* each cell is one rank's */
}

mo_status mo_ablation_run(mo_ablation *tables, const mo_ablation_job *job) {
  ablation a = {.job = job, .comm = job->plan.comm};
  *tables = (mo_ablation){0};
  mo_status status = mo_outlier_features_share(job->analysis, a.comm, &a.outliers, &a.n_outliers);
  if (status == MO_OK && a.n_outliers == 0 && is_root(&a))
    fprintf(stderr, "moe-outliers: note: there is no outlier feature to zero: /ablation is empty\n");
  if (status == MO_OK && a.n_outliers > 0) {
    status = measure(&a);
    if (status == MO_OK && is_root(&a))
      status = mo_ablation_tables(tables, a.variants, a.n_variants, &a.measures, &a.shape);
    status = mo_comm_join(a.comm, status);
  }
  mo_ablation_variants_free(a.variants, a.n_variants);
  free(a.outliers);
  free(a.words);
  return status;
}
