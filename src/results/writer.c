#include "results/writer.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "moe_outliers/build_info.h"
#include "pipeline/comm_mpi.h"
#include "results/h5.h"

#define REMEDY "check space, quota and health of that file system"

#define TIME_BYTES 32

static bool is_root(const mo_results *results) { return mo_comm_rank(results->comm) == 0; }

mo_status mo_results_agree(mo_results *results, mo_status status) {
  int64_t failed = status != MO_OK;
  mo_status reduced = mo_comm_allreduce(results->comm, &failed, 1, MO_MAX_I64);
  if (status != MO_OK) return status;
  if (reduced != MO_OK) return reduced;
  return failed ? MO_PEER_FAILED : MO_OK;
}

/* A collective call failed here; others may be waiting for this rank inside it, so there is nothing to agree on: tell
 * them, and return the error at once. */
static mo_status break_off(mo_results *results, const char *what) {
  mo_status status = mo_h5_fail(&results->file, what, "file");
  mo_comm_raise(results->comm);
  return status;
}

bool mo_results_in_turns(const mo_results *results) { return results->serial && mo_comm_size(results->comm) > 1; }

mo_status mo_results_open(mo_results *results) {
  if (results->serial) return mo_h5_open(&results->file, H5F_ACC_RDWR);
  MO_TRY(mo_results_agree(results, MO_OK));
  hid_t access = H5Pcreate(H5P_FILE_ACCESS); /* will hold a duplicate of the communicator: collective, too */
  if (access < 0 || H5Pset_fapl_mpio(access, mo_comm_mpi(results->comm), MPI_INFO_NULL) < 0 ||
      (results->file.id = H5Fopen(results->partial, H5F_ACC_RDWR, access)) < 0)
    return break_off(results, "open");
  return mo_results_agree(results, mo_h5_close(&results->file, MO_OK, access));
}

mo_status mo_results_close(mo_results *results) {
  if (results->serial) return mo_h5_finish(&results->file, MO_OK);
  MO_TRY(mo_results_agree(results, MO_OK));
  if (H5Fclose(results->file.id) < 0) return break_off(results, "close");
  results->file.id = H5I_INVALID_HID;
  return MO_OK;
}

static void now_utc(char text[TIME_BYTES]) {
  time_t now = time(NULL);
  struct tm parts;
  if (!gmtime_r(&now, &parts) || strftime(text, TIME_BYTES, "%Y-%m-%dT%H:%M:%SZ", &parts) == 0) text[0] = '\0';
}

/* Free the memory; the HDF5 file is closed or given up. */
static void free_results(mo_results *results) {
  free(results->path);
  free(results->partial);
  free(results->obstacle);
  free(results);
}

void mo_results_discard(mo_results *results) {
  if (!results) return;
  if (results->partial) (void)unlink(results->partial);
  /* If HDF5 has the file open, it is leaked on purpose: closing it is collective, and other ranks may be gone. The
   * process is about to end; see start_hdf5 in h5.c for why that is safe. */
  free_results(results);
}

static mo_status put_root(const mo_h5_file *file, hid_t root, const mo_results_header *header) {
  char started[TIME_BYTES];
  now_utc(started);
  const mo_h5_text texts[] = {{"format", "moe-outliers"},
                              {"program_version", MO_VERSION},
                              {"model_name", header->model_name},
                              {"architecture", header->architecture},
                              {"precision", header->precision},
                              {"device", header->device},
                              {"config", header->config},
                              {"started", started},
                              {"bootstrap_method", mo_bootstrap_method()}};
  const struct {
    const char *name;
    int64_t value;
  } numbers[] = {{"n_layers", header->n_layers},
                 {"hidden_size", header->hidden_size},
                 {"n_experts", header->n_experts},
                 {"n_sequences", header->n_sequences},
                 {"n_ranks", header->n_ranks},
                 {"sequence_length", header->sequence_length},
                 {"parameters", header->parameters},
                 {"active_parameters", header->active_parameters},
                 {"experts_per_token", header->experts_per_token},
                 {"bootstrap_draws", header->bootstrap.draws},
                 {"bootstrap_seed", header->bootstrap.seed}};
  const struct {
    const char *name;
    double value;
  } reals[] = {{"threshold", header->threshold},
               {"min_layer_fraction", header->min_layer_fraction},
               {"min_position_fraction", header->min_position_fraction},
               {"systematic_fraction", header->systematic_fraction},
               {"bootstrap_level", MO_BOOTSTRAP_LEVEL}};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    MO_TRY(mo_h5_put_text(file, root, texts[i].name, texts[i].value));
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    MO_TRY(mo_h5_put_i64(file, root, numbers[i].name, numbers[i].value));
  for (size_t i = 0; i < sizeof reals / sizeof *reals; i++)
    MO_TRY(mo_h5_put_f64(file, root, reals[i].name, reals[i].value));
  MO_TRY(mo_h5_put_i32(file, root, "format_version", MO_FORMAT_VERSION));
  if (header->dataset) MO_TRY(mo_h5_put_text(file, root, "dataset", header->dataset));
  return mo_h5_put_i32(file, root, "complete", 0);
}

static void activation_path(char *name, size_t bytes, int64_t layer, mo_site site) {
  snprintf(name, bytes, "/activations/%03lld/%s", (long long)layer, mo_site_name(site));
}

static mo_status create_activations(const mo_results *results, const int64_t *layers, int64_t n_layers) {
  static const mo_h5_text texts[] = {
      {"description",
       "Values at site ln_attn (output of input_layernorm) of this layer, [sequence, position, feature]"},
      {"description",
       "Values at site ln_mlp (output of post_attention_layernorm) of this layer, [sequence, position, feature]"}};
  const hsize_t dims[] = {(hsize_t)results->n_sequences, (hsize_t)results->length, (hsize_t)results->hidden_size};
  char name[64];
  if (n_layers == 0) return MO_OK;
  MO_TRY(mo_h5_group(&results->file, "/activations", "Values at the sites, of the layers that the config asks for"));
  for (int64_t i = 0; i < n_layers; i++) {
    snprintf(name, sizeof name, "/activations/%03lld", (long long)layers[i]);
    MO_TRY(mo_h5_group(&results->file, name, "One layer"));
    for (int site = MO_SITE_LN_ATTN; site <= MO_SITE_LN_MLP; site++) {
      activation_path(name, sizeof name, layers[i], (mo_site)site);
      MO_TRY(mo_h5_dataset(&results->file, name, H5T_IEEE_F32LE, 3, dims, &texts[site], 1));
    }
  }
  return MO_OK;
}

static mo_status write_tokens(const mo_results *results, const mo_tokens *tokens) {
  static const mo_h5_text text = {"description", "Token ids of the sequences analysed, [sequence, position]"};
  const hsize_t dims[] = {(hsize_t)tokens->n_sequences, (hsize_t)tokens->length}, start[] = {0, 0};
  MO_TRY(mo_h5_dataset(&results->file, "/tokens", H5T_STD_I32LE, 2, dims, &text, 1));
  return mo_h5_write(&results->file, "/tokens", H5T_NATIVE_INT32, 2, start, dims, tokens->ids);
}

/* Rank 0's part of mo_results_create. */
static mo_status create_file(mo_results *results, const mo_results_header *header, const mo_tokens *tokens,
                             const int64_t *activation_layers, int64_t n_activation_layers) {
  struct stat information;
  results->new_path = lstat(results->path, &information) != 0;
  MO_TRY(mo_h5_create(&results->file));
  hid_t root = H5Gopen2(results->file.id, "/", H5P_DEFAULT);
  mo_status status = root < 0 ? mo_h5_fail(&results->file, "open", "/") : put_root(&results->file, root, header);
  if (status == MO_OK) status = write_tokens(results, tokens);
  if (status == MO_OK) status = create_activations(results, activation_layers, n_activation_layers);
  status = mo_h5_close(&results->file, status, root);
  MO_TRY(mo_h5_finish(&results->file, status));
  return mo_file_reserve(results->partial);
}

static mo_status new_results(mo_results **results, const char *path, mo_comm *comm, const mo_results_header *header) {
  mo_results *made = *results = mo_alloc(1, sizeof *made);
  if (!made) return MO_FAILED;
  made->comm = comm;
  made->n_layers = header->n_layers;
  made->hidden_size = header->hidden_size;
  made->n_experts = header->n_experts;
  made->n_sequences = header->n_sequences;
  made->length = header->sequence_length;
  made->path = mo_strdup(path);
  made->partial = mo_partial_path(path);
  made->file = (mo_h5_file){.id = H5I_INVALID_HID, .path = made->partial, .code = MO_FAILED, .remedy = REMEDY};
  return made->path && made->partial ? MO_OK : MO_FAILED;
}

mo_status mo_results_create(mo_results **results, const char *path, mo_comm *comm, mo_together together,
                            const mo_results_header *header, const mo_tokens *tokens, const int64_t *activation_layers,
                            int64_t n_activation_layers) {
  mo_results *made = NULL, stand_in = {.comm = comm};
  *results = NULL;
  mo_status status = mo_h5_setup();
  if (status == MO_OK) status = new_results(&made, path, comm, header);
  status = mo_results_agree(made ? made : &stand_in, status);
  if (status == MO_OK) status = mo_results_choose_access(made, together);
  if (status == MO_OK && is_root(made))
    status = create_file(made, header, tokens, activation_layers, n_activation_layers);
  status = mo_results_agree(made ? made : &stand_in, status);
  if (status == MO_OK) made->stores = n_activation_layers > 0;
  if (status == MO_OK && made->stores && !mo_results_in_turns(made)) status = mo_results_open(made);
  if (status != MO_OK) {
    mo_results_discard(made);
    return status;
  }
  *results = made;
  return MO_OK;
}

mo_status mo_results_write_activations(mo_results *results, int64_t layer, mo_site site, int64_t first_sequence,
                                       int64_t n_sequences, const float *values) {
  char name[64];
  const hsize_t start[] = {(hsize_t)first_sequence, 0, 0};
  const hsize_t count[] = {(hsize_t)n_sequences, (hsize_t)results->length, (hsize_t)results->hidden_size};
  activation_path(name, sizeof name, layer, site);
  if (results->file.id < 0 && results->stores && mo_results_in_turns(results)) return MO_OK;
  if (results->file.id < 0)
    return MO_FAIL(MO_FAILED, "no activations were asked for (%s, %s): add the layer to output.activations",
                   results->partial, name);
  return mo_h5_write(&results->file, name, H5T_NATIVE_FLOAT, 3, start, count, values);
}

const char *mo_results_obstacle(const mo_results *results) { return results->obstacle; }

void mo_results_set_activations(mo_results *results, mo_status (*give)(void *context, mo_results *results),
                                void *context) {
  results->give = give;
  results->giver = context;
}

/* Mark the closed file as complete: a serial change by rank 0, when all else is on storage. */
static mo_status seal(const mo_results *results) {
  mo_h5_file file = results->file;
  char finished[TIME_BYTES];
  const int32_t one = 1;
  hid_t attribute = H5I_INVALID_HID;
  now_utc(finished);
  MO_TRY(mo_h5_open(&file, H5F_ACC_RDWR));
  mo_status status = mo_h5_put_text(&file, file.id, "finished", finished);
  if (status == MO_OK && H5Fflush(file.id, H5F_SCOPE_GLOBAL) < 0) status = mo_h5_fail(&file, "write", "file");
  if (status == MO_OK &&
      ((attribute = H5Aopen(file.id, "complete", H5P_DEFAULT)) < 0 || H5Awrite(attribute, H5T_NATIVE_INT32, &one) < 0))
    status = mo_h5_fail(&file, "write attribute", "complete");
  status = mo_h5_close(&file, status, attribute);
  return mo_h5_finish(&file, status);
}

mo_status mo_results_finish(mo_results *results) {
  bool kept = false;
  mo_status status = mo_results_agree(results, MO_OK);
  /* Each rank flushes what its node may still hold. */
  if (status == MO_OK) status = mo_results_agree(results, mo_file_sync(results->partial));
  if (status != MO_OK) {
    mo_results_discard(results);
    return status;
  }
  if (is_root(results)) {
    status = seal(results);
    if (status == MO_OK) status = mo_file_publish(results->partial, results->path, results->new_path, &kept);
    if (status != MO_OK && !kept) (void)unlink(results->partial);
  }
  status = mo_results_agree(results, status);
  free_results(results);
  return status;
}
