/* Where the result goes, and what is missing of a checkpoint. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "moe_outliers/clock.h"
#include "moe_outliers/mpi_io.h"
#include "moe_outliers/results.h"
#include "pipeline/doctor.h"

static const char *output_path(const mo_doctor_state *d) {
  return d->job->config ? d->job->config->output.path : "moe-outliers.h5"; /* in the working directory */
}

/* --- the folder --- */

/* Rank 0 alone. */
static bool look_at_folder(mo_doctor_state *d) {
  char resume[4200];
  struct stat information;
  const char *path = output_path(d);
  bool usable = mo_results_check_path(path, true) == MO_OK;
  bool replaces = d->job->config && d->job->config->output.overwrite;
  if (usable && d->job->config && mo_results_check_path(path, replaces) == MO_OK)
    mo_doctor_say(d, MO_SAYS_OK, "output", "%s can be written", path);
  else if (usable && !d->job->config)
    mo_doctor_say(d, MO_SAYS_OK, "output", "the working directory can be written");
  else
    mo_doctor_say(d, MO_SAYS_FAULT, "output", "%s", mo_error_message());
  mo_error_clear();
  snprintf(resume, sizeof resume, "%.4096s.resume", path);
  if (usable && d->job->config && stat(resume, &information) == 0)
    mo_doctor_say(d, MO_SAYS_NOTE, "output",
                  "an interrupted run lies in %s: a run of the same config goes on from there", resume);
  return usable;
}

static void say_access(mo_doctor_state *d, const mo_mpi_io *found, double seconds) {
  mo_together together = d->job->config ? d->job->config->output.mpi_io : MO_TOGETHER_AUTO;
  if (found->state == MO_MPI_IO_NOT_SHARED)
    mo_doctor_say(d, MO_SAYS_FAULT, "MPI-IO", "the ranks do not share %s (%s): choose another output.path", d->folder,
                  found->why);
  else if (found->state == MO_MPI_IO_UNTRIED)
    mo_doctor_say(d, MO_SAYS_FAULT, "MPI-IO",
                  "nothing can be written to %s (%s): free space or choose another output.path", d->folder, found->why);
  else if (found->state != MO_MPI_IO_WORKS && together == MO_TOGETHER_ON)
    mo_doctor_say(d, MO_SAYS_FAULT, "MPI-IO", "%s: set output.mpi_io = \"auto\", the ranks then write in turns",
                  found->why);
  else if (found->state != MO_MPI_IO_WORKS)
    mo_doctor_say(d, MO_SAYS_NOTE, "MPI-IO", "%s: the ranks will write the result in turns, nothing is to be done",
                  found->why);
  else if (together == MO_TOGETHER_OFF)
    mo_doctor_say(d, MO_SAYS_OK, "MPI-IO", "not tried, as output.mpi_io is \"off\"; byte ranges of %s can be locked",
                  d->folder);
  else
    mo_doctor_say(d, MO_SAYS_OK, "MPI-IO", "%s wrote a file in %s through it and read it back; locks work (%.0f ms)",
                  d->size > 1 ? "the ranks together" : "one rank, which needs no MPI-IO,", d->folder, 1e3 * seconds);
}

mo_status mo_doctor_look_at_output(mo_doctor_state *d, bool *usable) {
  mo_mpi_io found;
  bool off = d->job->config && d->job->config->output.mpi_io == MO_TOGETHER_OFF;
  mo_doctor_step(d, "output");
  if (!(d->folder = mo_folder_of(output_path(d)))) return MO_FAILED;
  *usable = d->rank == 0 && look_at_folder(d);
  MO_TRY(mo_comm_broadcast(d->comm, usable, sizeof *usable, 0));
  if (!*usable) return MO_OK;
  mo_doctor_step(d, "MPI-IO");
  double begin = mo_seconds();
  MO_TRY(mo_mpi_io_probe(&found, d->comm, output_path(d), !off));
  say_access(d, &found, mo_seconds() - begin);
  return MO_OK;
}

/* --- room --- */

void mo_doctor_look_at_disk(mo_doctor_state *d, const mo_model_spec *spec, const mo_plan *plan, int activation_bytes) {
  struct statvfs system;
  const mo_config *config = d->job->config;
  int64_t rows = plan->n_sequences * plan->length;
  int64_t layers = config->output.all_activations ? spec->n_layers : config->output.n_activations;
  int64_t stored = layers * 2 * rows * spec->hidden * (int64_t)sizeof(float);
  /* Rows to go on from: the new ones of a micro-batch are there before the old ones go. */
  int64_t resume = (rows + plan->micro_batch * plan->length) * spec->hidden * activation_bytes;
  int64_t least = 2 * stored + resume + 4 * rows, likely = least + plan->statistics_bytes;
  if (d->rank != 0) return;
  if (statvfs(d->folder, &system) != 0) {
    mo_doctor_say(d, MO_SAYS_NOTE, "disk", "free space of %s is not told", d->folder);
    return;
  }
  double available = (double)system.f_bavail * (double)system.f_frsize;
  if (available < (double)least)
    mo_doctor_say(
        d, MO_SAYS_FAULT, "disk",
        "%.3f GB are free in %s, but stored activations (%.3f GB, twice) and what a stopped run goes on from take "
        "%.3f GB: free space or choose another output.path",
        1e-9 * available, d->folder, 1e-9 * (double)stored, 1e-9 * (double)least);
  else if (available < (double)likely)
    mo_doctor_say(
        d, MO_SAYS_NOTE, "disk",
        "%.3f GB are free in %s: enough, unless there are many outlier values (%.3f GB if every eighth feature has)",
        1e-9 * available, d->folder, 1e-9 * (double)likely);
  else
    mo_doctor_say(d, MO_SAYS_OK, "disk", "%.3f GB free in %s, %.3f GB are needed at most", 1e-9 * available, d->folder,
                  1e-9 * (double)likely);
}

/* --- shards --- */

static bool is_missing(const char *folder, const char *name) {
  char path[4096];
  struct stat information;
  return snprintf(path, sizeof path, "%s/%s", folder, name) < (int)sizeof path && stat(path, &information) != 0;
}

int64_t mo_doctor_missing_shards(const char *folder, char *text, size_t bytes, int64_t *all) {
  enum { NAMED = 8 };
  char path[4096];
  int64_t missing = 0;
  size_t used = 0;
  *all = 0;
  text[0] = '\0';
  if (snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder) >= (int)sizeof path) return 0;
  json_t *root = json_load_file(path, 0, NULL), *seen = json_object(), *value;
  const char *key, *name;
  json_object_foreach(json_object_get(root, "weight_map"), key, value) {
    name = json_string_value(value);
    if (!name || strchr(name, '/') || json_object_get(seen, name)) continue;
    (void)json_object_set_new(seen, name, json_true());
    ++*all;
    if (!is_missing(folder, name) || missing++ >= NAMED) continue;
    int n = snprintf(text + used, bytes - used, "%s%s", used ? ", " : "", name);
    if (n > 0) used += (size_t)n < bytes - used ? (size_t)n : bytes - used - 1;
  }
  if (missing > NAMED) snprintf(text + used, bytes - used, " and %lld more", (long long)(missing - NAMED));
  json_decref(seen);
  json_decref(root);
  return missing;
}
