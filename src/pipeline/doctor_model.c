/* The checkpoint, the tokens, and the plan of a run on the ranks at hand. */
#include <stdlib.h>
#include <string.h>

#include "pipeline/doctor.h"
#include "pipeline/model_files.h"
#include "pipeline/prepare.h"
#include "pipeline/run_plan.h"

/* --- the checkpoint --- */

/* Like mo_checkpoint_open's, but of all shards that are missing. */
static mo_status name_missing(const mo_config *config, mo_status status) {
  char list[400];
  int64_t all, missing = mo_doctor_missing_shards(config->model.path, list, sizeof list, &all);
  if (status == MO_OK || missing < 2) return status;
  mo_error_clear();
  return MO_FAIL(MO_INVALID, "%lld of %lld shards are missing (%s): %s: get them with scripts/fetch %s",
                 (long long)missing, (long long)all, config->model.path, list, config->file);
}

/* The same shapes without the files: enough for a plan. */
static mo_status open_shapes(mo_input *input, const mo_config *config) {
  mo_input_free(input);
  *input = (mo_input){0};
  if (mo_network_is_address(config->model.path) && !config->model.config[0])
    return MO_INVALID; /* it was asked just now */
  MO_TRY(mo_model_files_for_plan(config, &input->files));
  MO_TRY(mo_model_files_read(&input->spec, &input->files));
  input->files.synthetic = true;
  MO_TRY(mo_model_files_open(&input->checkpoint, config, &input->files, &input->spec));
  return mo_catalogue_build(&input->catalogue, &input->spec, input->checkpoint);
}

/* *known: the shapes at least, on all ranks. */
static mo_status look_at_checkpoint(mo_doctor_state *d, mo_input *input, bool *known) {
  const mo_config *config = d->job->config;
  mo_config hasty = *config; /* this step has to end in time */
  if (hasty.engine.network_patience > d->job->patience / 3) hasty.engine.network_patience = d->job->patience / 3;
  mo_status status = name_missing(config, mo_input_open(input, d->comm, &hasty));
  MO_TRY(mo_doctor_ask(d, "checkpoint", status, known));
  if (*known) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < input->catalogue.n_stages; i++) bytes += input->catalogue.stages[i].bytes;
    mo_doctor_say(d, MO_SAYS_OK, "checkpoint", "%s is complete on every rank, %.3f GB of weights", config->model.path,
                  1e-9 * (double)bytes);
    return MO_OK;
  }
  int64_t failed = open_shapes(input, config) != MO_OK; /* for the same reason, or it would be told */
  mo_error_clear();
  MO_TRY(mo_comm_allreduce(d->comm, &failed, 1, MO_MAX_I64));
  *known = !failed;
  return MO_OK;
}

static mo_status look_at_tokens(mo_doctor_state *d, const mo_input *input) {
  const mo_config *config = d->job->config;
  mo_tokens tokens = {0};
  bool all;
  mo_status status = mo_model_files_tokens(&tokens, config, input->spec.vocab);
  mo_tokens_free(&tokens);
  MO_TRY(mo_doctor_ask(d, "tokens", status, &all));
  if (all)
    mo_doctor_say(d, MO_SAYS_OK, "tokens", "%s: %lld x %lld of the model's vocabulary", config->data.tokens,
                  (long long)config->data.sequences, (long long)config->data.length);
  return MO_OK;
}

/* --- the plan --- */

static mo_status open_backend(const mo_doctor_state *d, mo_backend **backend, int threads) {
  const mo_config *config = d->job->config;
  mo_device_choice choice = config->engine.device;
  const mo_rank_facts *mine = d->ranks + d->rank;
  const mo_backend_table *table;
  if (choice == MO_DEVICE_AUTO) choice = mine->device.visible > 0 ? MO_DEVICE_CUDA : MO_DEVICE_CPU;
  mo_backend_options options = {
      .precision = config->engine.precision, .threads = threads, .device = mine->device.device};
  MO_TRY(mo_backend_choose(choice, &table));
  return table->open(backend, &options);
}

/* Bytes of the host's memory that each rank takes. */
static void host_need(const mo_plan *plan, int64_t *need) {
  for (int rank = 0; rank < plan->n_ranks; rank++) {
    bool works = plan->arena_bytes[rank] > 0;
    need[rank] = plan->host_memory ? mo_plan_memory(plan, rank)
                 : works           ? plan->staging_bytes + plan->statistics_bytes
                                   : 0;
  }
}

static mo_status say_need(mo_doctor_state *d, const mo_input *input, const mo_plan *plan, int activation_bytes,
                          bool output_usable) {
  int64_t *need = mo_alloc((size_t)d->size, sizeof *need);
  if (!need) return MO_FAILED;
  int idle = mo_plan_idle_ranks(plan);
  host_need(plan, need);
  if (idle)
    mo_doctor_say(d, MO_SAYS_NOTE, "plan", "%d of %d ranks ha%s nothing to compute: the model has %lld stages", idle,
                  d->size, idle == 1 ? "s" : "ve", (long long)plan->n_stages);
  mo_doctor_look_at_memory(d, need);
  free(need);
  if (output_usable) mo_doctor_look_at_disk(d, &input->spec, plan, activation_bytes);
  return MO_OK;
}

static mo_status make_plan(mo_doctor_state *d, const mo_input *input, mo_backend *backend, int threads,
                           bool output_usable) {
  const mo_config *config = d->job->config;
  const mo_tokens tokens = {.n_sequences = config->data.sequences, .length = config->data.length};
  mo_run_plan_job job = {.comm = d->comm,
                         .config = config,
                         .spec = &input->spec,
                         .catalogue = &input->catalogue,
                         .tokens = &tokens,
                         .backend = backend,
                         .threads = threads,
                         .readers = mo_run_readers(config, d->ranks[d->rank].share)};
  mo_plan plan;
  bool all;
  mo_status status = mo_run_plan(&plan, &job), said = MO_OK;
  mo_status asked = mo_doctor_ask(d, "memory", status, &all);
  if (asked == MO_OK && all) said = say_need(d, input, &plan, backend->activation_bytes, output_usable);
  if (status == MO_OK) mo_plan_free(&plan);
  return asked == MO_OK ? said : asked;
}

static mo_status look_at_need(mo_doctor_state *d, const mo_input *input, bool output_usable) {
  const mo_config *config = d->job->config;
  int threads = mo_run_threads(config, d->ranks[d->rank].share);
  mo_backend *backend = NULL;
  bool all;
  if (d->no_device) return MO_OK;
  mo_doctor_step(d, "device");
  MO_TRY(mo_doctor_ask(d, "device", open_backend(d, &backend, threads), &all));
  mo_doctor_step(d, "memory");
  mo_status status = all ? make_plan(d, input, backend, threads, output_usable) : MO_OK;
  if (backend) backend->table->close(backend);
  return status;
}

mo_status mo_doctor_look_at_model(mo_doctor_state *d, bool output_usable) {
  mo_input input = {0};
  bool known = false;
  mo_doctor_step(d, "checkpoint");
  mo_status status = look_at_checkpoint(d, &input, &known);
  mo_doctor_step(d, "tokens");
  if (status == MO_OK && known) status = look_at_tokens(d, &input);
  if (status == MO_OK && known) status = look_at_need(d, &input, output_usable);
  mo_input_free(&input);
  return status;
}
