/* What a run begins on another thread before its ranks have met: reading what describes the weights, which are many small
 * objects of JSON. What is known of the ranks by then is what the launcher tells in the environment.
 *
 * Nothing there may read the environment: MPI_Init adds to it, and before glibc 2.41 a getenv on another thread may then
 * read freed memory. That is why the GPU, whose driver does, is not woken beside MPI_Init. */
#include "pipeline/prepare.h"

#include <stdlib.h>

#include "moe_outliers/clock.h"
#include "moe_outliers/machine.h"
#include "moe_outliers/phases.h"
#include "moe_outliers/threads.h"
#include "pipeline/input_network.h"

struct mo_preparation {
  const mo_config *config;
  pthread_t reader;
  char *dataset; /* on the rank that writes it, where the environment tells ranks */
  bool reading;
  mo_status status;
  mo_input input;
};

/* --- from the environment --- */

/* The first of the variables (the last name is NULL) that is a number; -1: none. */
static int number_of(const char *const *names) {
  for (; *names; names++) {
    const char *text = getenv(*names);
    char *end;
    long number = text ? strtol(text, &end, 10) : -1;
    if (text && end != text && !*end && number >= 0 && number < 100000) return (int)number;
  }
  return -1;
}

/* --- the input --- */

static mo_status check_layers(const mo_config *config, const mo_model_spec *spec) {
  for (int64_t i = 0; i < config->output.n_activations; i++)
    if (config->output.activations[i] >= spec->n_layers)
      return MO_FAIL(MO_INVALID, "layer %lld does not exist (output.activations): the model has layers 0 to %lld",
                     (long long)config->output.activations[i], (long long)spec->n_layers - 1);
  return MO_OK;
}

static mo_status read_model(mo_input *input, const mo_config *config) {
  MO_TRY(mo_model_files_read(&input->spec, &input->files));
  MO_TRY(check_layers(config, &input->spec));
  return mo_model_files_open(&input->checkpoint, config, &input->files, &input->spec);
}

mo_status mo_input_open(mo_input *input, mo_comm *comm, const mo_config *config) {
  MO_TRY(mo_model_files_for_run(config, &input->files));
  if (input->files.network)
    MO_TRY(mo_input_read_network(input, comm, config, read_model));
  else
    MO_TRY(read_model(input, config));
  return mo_catalogue_build(&input->catalogue, &input->spec, input->checkpoint);
}

static void *read_input(void *argument) {
  mo_preparation *p = argument;
  double begin = mo_seconds();
  p->status = mo_input_open(&p->input, NULL, p->config);
  mo_phase_took(MO_PHASE_HEADERS, mo_seconds() - begin);
  return NULL;
}

mo_status mo_preparation_input(mo_preparation *p, mo_comm *comm, mo_input *input) {
  if (mo_network_is_address(p->config->model.path)) {
    double begin = mo_seconds();
    mo_status status = mo_input_open(input, comm, p->config);
    mo_phase_took(MO_PHASE_HEADERS, mo_seconds() - begin);
    return status;
  }
  if (p->reading) pthread_join(p->reader, NULL);
  p->reading = false;
  *input = p->input;
  p->input = (mo_input){0};
  return p->status;
}

void mo_input_free(mo_input *input) {
  mo_catalogue_free(&input->catalogue);
  mo_checkpoint_close(input->checkpoint);
  mo_model_free(&input->spec);
  mo_model_files_free(&input->files);
}

const char *mo_preparation_dataset(const mo_preparation *p) { return p->dataset; }

/* --- begin and end --- */

mo_status mo_run_prepare(mo_preparation **preparation, const mo_config *config) {
  static const char *const sizes[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", NULL};
  static const char *const numbers[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", NULL};
  int ranks = number_of(sizes);
  mo_preparation *p = *preparation = mo_alloc(1, sizeof *p);
  if (!p) return MO_FAILED;
  p->config = config;
  /* Here, as it takes a process that has one thread and has not met MPI yet. */
  if (number_of(numbers) <= 0) p->dataset = mo_model_files_dataset(config);
  if (ranks > 0) (void)mo_machine_widen(ranks);                /* else these threads and MPI would share a core */
  if (mo_network_is_address(config->model.path)) return MO_OK; /* one rank asks, once they have met */
  p->reading = mo_thread_start(&p->reader, read_input, p) == 0;
  if (!p->reading) (void)read_input(p);
  return MO_OK;
}

void mo_run_settle(mo_preparation *p) {
  if (!p) return;
  if (p->reading) pthread_join(p->reader, NULL);
  mo_input_free(&p->input); /* nobody has taken it */
  free(p->dataset);
  free(p);
}
