/* The folder of an interrupted run: who may use it, whether it is the same run, its names, its end. */
#include "pipeline/resume.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "moe_outliers/clock.h"
#include "moe_outliers/results.h"
#include "pipeline/journal_format.h"

enum { PATIENCE = 5 }; /* seconds for the last processes of an interrupted run to end */

static const char lock_name[] = "lock", identity_name[] = "identity";

/* --- names --- */

void mo_resume_journal_name(char name[MO_NAME_BYTES], int64_t number) {
  snprintf(name, MO_NAME_BYTES, "journal-%lld.log", (long long)number);
}

void mo_resume_blob_name(char name[MO_NAME_BYTES], const mo_blob *blob) {
  if (blob->kind == MO_BLOB_ROWS)
    snprintf(name, MO_NAME_BYTES, "rows-%d-%d", blob->micro, blob->stage);
  else
    snprintf(name, MO_NAME_BYTES, "site-%d-%d-%d", blob->micro, blob->stage, blob->index);
}

size_t mo_resume_blob_bytes(const mo_resume *resume, const mo_blob *blob) {
  const mo_resume_job *job = &resume->job;
  size_t values = (size_t)(mo_plan_batch(job->plan, blob->micro) * job->plan->length * job->spec->hidden);
  return values * (blob->kind == MO_BLOB_ROWS ? (size_t)job->backend->activation_bytes : sizeof(float));
}

bool mo_resume_is_stored(const mo_resume *resume, int64_t stage) {
  const mo_config *config = resume->job.config;
  if (stage < 1 || stage > resume->job.spec->n_layers) return false;
  for (int64_t i = 0; i < config->output.n_activations; i++)
    if (config->output.activations[i] == stage - 1) return true;
  return config->output.all_activations;
}

/* --- the folder's files --- */

typedef bool (*visitor)(mo_resume *resume, const char *name);

/* Call visit for each file but the lock, until it returns true: whether it did. */
static bool visit_files(mo_resume *resume, visitor visit) {
  bool found = false;
  int descriptor = openat(resume->folder.descriptor, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *files = descriptor >= 0 ? fdopendir(descriptor) : NULL;
  if (!files && descriptor >= 0) close(descriptor);
  for (struct dirent *entry; files && !found && (entry = readdir(files));)
    if (entry->d_name[0] != '.' && strcmp(entry->d_name, lock_name) != 0) found = visit(resume, entry->d_name);
  if (files) closedir(files);
  return found;
}

static bool remove_file(mo_resume *resume, const char *name) {
  (void)unlinkat(resume->folder.descriptor, name, 0);
  return false;
}

static bool is_written(mo_resume *resume, const char *name) {
  return strncmp(name, "journal-", 8) == 0 && mo_journal_is_written(&resume->folder, name);
}

/* Whether an interrupted run can go on from the file. */
static bool is_work(mo_resume *resume, const char *name) {
  struct stat information;
  if (strncmp(name, "journal-", 8) != 0) return false;
  return fstatat(resume->folder.descriptor, name, &information, 0) == 0 &&
         information.st_size > (off_t)sizeof(mo_journal_header);
}

static bool count_journal(mo_resume *resume, const char *name) {
  long long number;
  if (sscanf(name, "journal-%lld.log", &number) == 1 && number >= resume->first_journal)
    resume->first_journal = number + 1;
  return false;
}

/* Files that a killed process did not finish, and rows that are not needed any more. */
static bool remove_leftover(mo_resume *resume, const char *name) {
  long long micro, stage;
  bool rows = sscanf(name, "rows-%lld-%lld", &micro, &stage) == 2;
  bool needed = rows && micro >= 0 && micro < resume->job.plan->n_micro && resume->start[micro] == stage;
  if (strstr(name, ".tmp") || (rows && !needed)) return remove_file(resume, name);
  return false;
}

/* --- the lock --- */

static mo_status folder_error(const mo_resume *resume, const char *what) {
  return MO_FAIL(MO_FAILED, "cannot %s (%s: %s): check the folder", what, resume->path, strerror(errno));
}

static void let_go(mo_resume *resume) {
  if (resume->lock >= 0) close(resume->lock);
  if (resume->folder.descriptor >= 0) close(resume->folder.descriptor);
  resume->lock = resume->folder.descriptor = -1;
}

/* The run that held the lock may have removed the folder before it let go. */
static bool is_still_there(const mo_resume *resume) {
  struct stat held, there;
  if (fstat(resume->lock, &held) != 0 || fstatat(resume->folder.descriptor, lock_name, &there, 0) != 0) return false;
  if (held.st_ino != there.st_ino) return false;
  return fstat(resume->folder.descriptor, &held) == 0 && stat(resume->path, &there) == 0 && held.st_ino == there.st_ino;
}

static mo_status try_hold(mo_resume *resume, bool *held) {
  *held = false;
  if (mkdir(resume->path, 0777) != 0 && errno != EEXIST) return folder_error(resume, "create the folder");
  resume->folder.descriptor = open(resume->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (resume->folder.descriptor < 0) return errno == ENOENT ? MO_OK : folder_error(resume, "open the folder");
  resume->lock = openat(resume->folder.descriptor, lock_name, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (resume->lock < 0) return errno == ENOENT ? MO_OK : folder_error(resume, "create a file in the folder");
  *held = mo_try_lock(resume->lock, LOCK_EX) && is_still_there(resume) && !visit_files(resume, is_written);
  return MO_OK;
}

static mo_status hold_folder(mo_resume *resume) {
  bool held;
  for (double end = mo_seconds() + PATIENCE;; usleep(20000)) {
    MO_TRY(try_hold(resume, &held));
    if (held) return MO_OK;
    let_go(resume);
    if (mo_seconds() > end) break;
    MO_TRY(mo_comm_poll(resume->job.comm));
  }
  return MO_FAIL(MO_INVALID, "another run is writing this result (%s): wait for its end, or choose another output.path",
                 resume->job.config->output.path);
}

/* --- identity --- */

/* The text and a line with its checksum. */
static mo_status write_identity(const mo_resume *resume, const char *text) {
  static const char temporary[] = "identity.tmp";
  char last[40];
  const mo_folder *folder = &resume->folder;
  snprintf(last, sizeof last, "checksum %016" PRIx64 "\n", mo_checksum(text, strlen(text), 0));
  int descriptor = openat(folder->descriptor, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) return mo_folder_fail(folder, temporary, "create", errno);
  mo_status status = mo_write_all(descriptor, text, strlen(text), folder, temporary);
  if (status == MO_OK) status = mo_write_all(descriptor, last, strlen(last), folder, temporary);
  if (status == MO_OK && fsync(descriptor) != 0) status = mo_folder_fail(folder, temporary, "flush", errno);
  close(descriptor);
  if (status == MO_OK && renameat(folder->descriptor, temporary, folder->descriptor, identity_name) != 0)
    status = mo_folder_fail(folder, identity_name, "rename", errno);
  return status;
}

/* Caller frees *text; NULL if there is no file. */
static mo_status read_identity(const mo_resume *resume, char **text) {
  uint64_t checksum = 0;
  size_t got;
  struct stat information;
  *text = NULL;
  int descriptor = openat(resume->folder.descriptor, identity_name, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return errno == ENOENT ? MO_OK : mo_folder_fail(&resume->folder, identity_name, "open", errno);
  mo_status status = fstat(descriptor, &information) == 0 ? MO_OK : folder_error(resume, "read a file of the folder");
  if (status == MO_OK) *text = mo_alloc((size_t)information.st_size + 1, 1);
  if (status == MO_OK && !*text) status = MO_FAILED;
  if (status == MO_OK)
    status = mo_read_at(descriptor, *text, (size_t)information.st_size, 0, &got, &resume->folder, identity_name);
  close(descriptor);
  char *last = status == MO_OK ? strstr(*text, "\nchecksum ") : NULL;
  if (last) *++last = '\0';
  if (status == MO_OK && (!last || sscanf(last + 1, "hecksum %" SCNx64, &checksum) != 1 ||
                          checksum != mo_checksum(*text, strlen(*text), 0)))
    status = MO_FAIL(MO_INVALID, "a file of the interrupted run is damaged (%s/%s): start over with --fresh",
                     resume->path, identity_name);
  return status;
}

/* Is the interrupted run, if there is one, the same as this one? */
static mo_status check_identity(mo_resume *resume) {
  char *now = NULL, *before = NULL;
  MO_TRY(mo_identity_text(&now, &resume->job));
  resume->identity = mo_checksum(now, strlen(now), 0);
  bool fresh = resume->job.fresh || !visit_files(resume, is_work);
  if (fresh) (void)visit_files(resume, remove_file);
  mo_status status = fresh ? MO_OK : read_identity(resume, &before);
  if (status == MO_OK && before) status = mo_identity_compare(before, now, resume->path);
  if (status == MO_OK && !before) status = write_identity(resume, now);
  free(before);
  free(now);
  return status;
}

/* --- open and close --- */

/* Rank 0's part. The result may have been finished by the run that held the folder. */
static mo_status take_hold(mo_resume *resume) {
  const mo_config *config = resume->job.config;
  MO_TRY(hold_folder(resume));
  MO_TRY(mo_results_check_path(config->output.path, config->output.overwrite));
  MO_TRY(check_identity(resume));
  (void)visit_files(resume, count_journal);
  MO_TRY(mo_resume_scan(resume));
  (void)visit_files(resume, remove_leftover);
  return MO_OK;
}

/* What rank 0 found out, to all ranks. */
static mo_status share(mo_resume *resume) {
  int64_t words[3] = {(int64_t)resume->identity, resume->first_journal, resume->n_kept};
  MO_TRY(mo_comm_broadcast(resume->job.comm, words, sizeof words, 0));
  resume->identity = (uint64_t)words[0];
  resume->first_journal = words[1];
  resume->n_kept = words[2];
  return mo_comm_broadcast(resume->job.comm, resume->start, (size_t)resume->job.plan->n_micro * sizeof *resume->start,
                           0);
}

mo_status mo_resume_open(mo_resume *resume, const mo_resume_job *job) {
  static const char suffix[] = ".resume";
  *resume = (mo_resume){.job = *job, .lock = -1, .folder = {.descriptor = -1}};
  size_t bytes = strlen(job->config->output.path) + sizeof suffix;
  resume->path = mo_alloc(bytes, 1);
  resume->start = mo_alloc((size_t)job->plan->n_micro, sizeof *resume->start);
  if (!resume->path || !resume->start) return MO_FAILED;
  snprintf(resume->path, bytes, "%s%s", job->config->output.path, suffix);
  resume->folder.path = resume->path;
  if (mo_comm_rank(job->comm) == 0) MO_TRY(take_hold(resume));
  MO_TRY(share(resume));
  if (resume->folder.descriptor < 0) resume->folder.descriptor = open(resume->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (resume->folder.descriptor >= 0) return MO_OK;
  if (errno != ENOENT) return folder_error(resume, "open the folder");
  return MO_FAIL(MO_INVALID,
                 "the ranks do not share the output folder (rank %d does not see rank 0's %s): choose another "
                 "output.path",
                 mo_comm_rank(job->comm), resume->path);
}

void mo_resume_close(mo_resume *resume, bool complete) {
  if (!resume->path) return;
  if (resume->lock >= 0 && (complete || !visit_files(resume, is_work))) {
    (void)visit_files(resume, remove_file);
    (void)unlinkat(resume->folder.descriptor, lock_name, 0);
    (void)rmdir(resume->path);
  }
  let_go(resume);
  free(resume->path);
  free(resume->start);
}

/* --- the note --- */

/* The last layer that a micro-batch has passed; negative: none. */
static int64_t last_layer(const mo_resume *resume, int64_t micro) {
  int64_t last = resume->start[micro] - 2, n_layers = resume->job.spec->n_layers;
  return last < n_layers ? last : n_layers - 1;
}

/* "layers 0..4 of micro-batches 0..1, layers 0..3 of micro-batch 2" */
static void describe(const mo_resume *resume, char *text, size_t bytes) {
  const mo_plan *plan = resume->job.plan;
  size_t length = 0;
  for (int64_t first = 0, end; first < plan->n_micro && length < bytes; first = end) {
    int64_t last = last_layer(resume, first);
    for (end = first + 1; end < plan->n_micro && last_layer(resume, end) == last; end++) continue;
    if (last < 0) continue;
    int n = snprintf(text + length, bytes - length, "%slayers 0..%lld of micro-batch%s %lld", length ? ", " : "",
                     (long long)last, end - first > 1 ? "es" : "", (long long)first);
    if (n > 0) length += (size_t)n;
    if (end - first > 1 && length < bytes) {
      n = snprintf(text + length, bytes - length, "..%lld", (long long)end - 1);
      if (n > 0) length += (size_t)n;
    }
  }
  if (length >= bytes) memcpy(text + bytes - 4, "...", 4);
}

void mo_resume_note(const mo_resume *resume) {
  const mo_plan *plan = resume->job.plan;
  char done[240] = "";
  if (resume->n_damaged)
    fprintf(stderr, "moe-outliers: note: %lld damaged part%s of %s do%s not count: what was in %s is computed again\n",
            (long long)resume->n_damaged, mo_plural(resume->n_damaged), resume->path,
            resume->n_damaged == 1 ? "es" : "", resume->n_damaged == 1 ? "it" : "them");
  if (!resume->n_kept) return;
  describe(resume, done, sizeof done);
  fprintf(stderr, "moe-outliers: note: continuing from %s: %s done (%lld of %lld tasks)\n", resume->path,
          done[0] ? done : "the embedding", (long long)resume->n_kept, (long long)(plan->n_stages * plan->n_micro));
}
