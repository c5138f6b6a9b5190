#include "pipeline/input_network.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What rank 0 sends ahead. */
typedef struct {
  int64_t bytes;
  int32_t status;
  char message[1024];
} notice;

static mo_status poll(void *comm) { return mo_comm_poll(comm); }

static mo_status ask(mo_input *input, mo_comm *comm, const mo_config *config,
                     mo_status (*read)(mo_input *input, const mo_config *config)) {
  mo_network *network = input->files.network;
  mo_network_set_poll(network, poll, comm);
  mo_status status = mo_network_connect(network);
  if (status == MO_OK) status = read(input, config);
  mo_network_set_poll(network, NULL, NULL);
  return status;
}

/* Also what failed: the others wait for it. */
static mo_status tell(mo_input *input, mo_comm *comm, mo_status status) {
  void *data = NULL;
  size_t bytes = 0;
  if (status == MO_STOPPED || status == MO_PEER_FAILED) return status; /* nobody waits any more */
  if (status == MO_OK && mo_comm_size(comm) > 1) status = mo_network_pack(input->files.network, &data, &bytes);
  notice head = {.bytes = (int64_t)bytes, .status = status};
  if (status != MO_OK) snprintf(head.message, sizeof head.message, "%s", mo_error_message());
  mo_status sent = mo_comm_broadcast(comm, &head, sizeof head, 0);
  if (sent == MO_OK && status == MO_OK) sent = mo_comm_broadcast(comm, data, bytes, 0);
  free(data);
  return status == MO_OK ? sent : status;
}

static mo_status listen(mo_input *input, mo_comm *comm) {
  notice head;
  MO_TRY(mo_comm_broadcast(comm, &head, sizeof head, 0));
  if (head.status != MO_OK) return MO_FAIL((mo_status)head.status, "%s", head.message);
  void *data = mo_alloc((size_t)head.bytes, 1);
  if (!data) return MO_FAILED;
  mo_status status = mo_comm_broadcast(comm, data, (size_t)head.bytes, 0);
  if (status == MO_OK) status = mo_network_unpack(input->files.network, data, (size_t)head.bytes);
  free(data);
  return status;
}

mo_status mo_input_read_network(mo_input *input, mo_comm *comm, const mo_config *config,
                                mo_status (*read)(mo_input *input, const mo_config *config)) {
  if (mo_comm_rank(comm) == 0) return tell(input, comm, ask(input, comm, config, read));
  MO_TRY(listen(input, comm));
  return read(input, config);
}

/* --- what is told of it --- */

char *mo_input_config_text(const mo_input *input, const mo_config *config) {
  const char *text = config->text, *path = config->model.path;
  const char *commit = input->files.network ? mo_network_commit(input->files.network) : "";
  const char *place = commit[0] ? strstr(text, path) : NULL; /* model is the first section */
  if (!place) return mo_strdup(text);
  char *name = mo_network_name(path);
  size_t size = strlen(text) + (name ? strlen(name) : 0) + strlen(commit) + 10;
  char *pinned = name ? mo_alloc(size, 1) : NULL;
  if (pinned) snprintf(pinned, size, "%.*shf://%s@%s%s", (int)(place - text), text, name, commit, place + strlen(path));
  free(name);
  return pinned;
}

void mo_input_note_commit(const mo_input *input, const mo_config *config) {
  const char *commit = input->files.network ? mo_network_commit(input->files.network) : "";
  if (commit[0] && !strstr(config->model.path, commit))
    fprintf(stderr, "moe-outliers: note: %s is commit %s\n", config->model.path, commit);
}

mo_status mo_input_note_cache(const mo_input *input, mo_comm *comm) {
  const char *trouble = input->files.network ? mo_network_cache_trouble(input->files.network) : NULL;
  int64_t first = trouble ? mo_comm_rank(comm) : mo_comm_size(comm);
  if (!input->files.network) return MO_OK;
  MO_TRY(mo_comm_allreduce(comm, &first, 1, MO_MIN_I64));
  if (first == mo_comm_rank(comm)) fprintf(stderr, "moe-outliers: note: %s\n", trouble);
  return MO_OK;
}
