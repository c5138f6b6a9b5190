/* The ledger: STATE/ledger.json, replaced as a whole: written beside, flushed, renamed, and the folder flushed. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pod/files.h"
#include "pod/ledger_json.h"

struct pod_ledger {
  pthread_mutex_t mutex;
  char *path;   /* of ledger.json */
  json_t *runs; /* array of objects, in the order in which they were begun */
  int lock;     /* -1: not held */
};

static mo_status lock_state(const char *folder, int *descriptor) {
  char path[POD_PATH_BYTES];
  MO_TRY(pod_path(path, "%s/lock", folder));
  int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock < 0)
    return MO_FAIL(MO_FAILED, "cannot open the lock (%s): %s: choose another folder with MOE_POD_STATE", path,
                   strerror(errno));
  if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
    int error = errno;
    close(lock);
    if (error == EWOULDBLOCK)
      return MO_FAIL(MO_INVALID,
                     "another moe-pod drives the runs of this folder (%s): wait until it has ended, or use another "
                     "MOE_POD_STATE; `moe-pod status` shows what it does",
                     folder);
    return MO_FAIL(MO_FAILED, "cannot lock (%s): %s: choose a folder of a local disk with MOE_POD_STATE", path,
                   strerror(error));
  }
  *descriptor = lock;
  return MO_OK;
}

mo_status pod_ledger_busy(const pod_settings *settings, bool *busy) {
  char path[POD_PATH_BYTES];
  *busy = false;
  MO_TRY(pod_path(path, "%s/lock", settings->state));
  int lock = open(path, O_RDONLY | O_CLOEXEC);
  if (lock < 0 && errno == ENOENT) return MO_OK;
  if (lock < 0) return MO_FAIL(MO_FAILED, "cannot open the lock (%s): %s: mend its permissions", path, strerror(errno));
  *busy = flock(lock, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  close(lock);
  return MO_OK;
}

/* All runs of the file; none if there is no file yet. A file that makes no sense is never taken for an empty one. */
static mo_status read_runs(pod_ledger *ledger) {
  json_error_t error;
  if (access(ledger->path, F_OK) != 0 && errno == ENOENT) {
    ledger->runs = json_array();
    return ledger->runs ? MO_OK : MO_FAIL(MO_FAILED, "out of memory (ledger): close other programs");
  }
  json_t *root = json_load_file(ledger->path, 0, &error);
  if (!root)
    return MO_FAIL(
        MO_FAILED,
        "the ledger cannot be read (%s): %s: `moe-pod list` shows what runs; move the file away to start anew",
        ledger->path, error.text);
  ledger->runs = json_incref(json_object_get(root, "runs"));
  bool good = json_integer_value(json_object_get(root, "version")) == 1 && json_is_array(ledger->runs);
  json_decref(root);
  pod_run run;
  for (size_t i = 0; good && i < json_array_size(ledger->runs); i++)
    good = pod_run_from_json(json_array_get(ledger->runs, i), &run);
  if (good) return MO_OK;
  return MO_FAIL(MO_FAILED,
                 "the ledger makes no sense (%s): `moe-pod list` shows what runs; move the file away to start anew",
                 ledger->path);
}

mo_status pod_ledger_open(pod_ledger **result, const pod_settings *settings, bool write) {
  char path[POD_PATH_BYTES];
  MO_TRY(pod_path(path, "%s/ledger.json", settings->state));
  if (write) MO_TRY(pod_make_folders(settings->state));
  pod_ledger *ledger = mo_alloc(1, sizeof *ledger);
  if (!ledger) return MO_FAILED;
  pthread_mutex_init(&ledger->mutex, NULL);
  ledger->lock = -1;
  ledger->path = mo_strdup(path);
  mo_status status = ledger->path ? MO_OK : MO_FAILED;
  if (status == MO_OK && write) status = lock_state(settings->state, &ledger->lock);
  if (status == MO_OK) status = read_runs(ledger);
  if (status == MO_OK)
    *result = ledger;
  else
    pod_ledger_close(ledger);
  return status;
}

void pod_ledger_close(pod_ledger *ledger) {
  if (!ledger) return;
  if (ledger->lock >= 0) close(ledger->lock);
  json_decref(ledger->runs);
  free(ledger->path);
  pthread_mutex_destroy(&ledger->mutex);
  free(ledger);
}

static mo_status write_runs(const pod_ledger *ledger, json_t *runs) {
  json_t *root = json_pack("{s:i, s:O}", "version", 1, "runs", runs);
  char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(17)) : NULL;
  json_decref(root);
  if (!text) return MO_FAIL(MO_FAILED, "out of memory (ledger): close other programs");
  mo_status status = pod_write_durably(ledger->path, text, strlen(text), 0600);
  free(text);
  return status;
}

static size_t find(const json_t *runs, const char *key) {
  size_t i = 0;
  while (i < json_array_size(runs) &&
         strcmp(json_string_value(json_object_get(json_array_get(runs, i), "key")), key) != 0)
    i++;
  return i;
}

/* Makes the runs as `change` leaves a copy of them; memory and file agree whatever fails. */
static mo_status replace(pod_ledger *ledger, const char *key, json_t *object) {
  json_t *runs = json_copy(ledger->runs);
  size_t i = runs ? find(runs, key) : 0;
  bool good = runs != NULL;
  if (good && object)
    good = i < json_array_size(runs) ? json_array_set(runs, i, object) == 0 : json_array_append(runs, object) == 0;
  else if (good && i < json_array_size(runs))
    good = json_array_remove(runs, i) == 0;
  mo_status status =
      good ? write_runs(ledger, runs) : MO_FAIL(MO_FAILED, "out of memory (ledger): close other programs");
  if (status == MO_OK) {
    json_decref(ledger->runs);
    ledger->runs = runs;
  } else {
    json_decref(runs);
  }
  return status;
}

static mo_status change(pod_ledger *ledger, const char *key, json_t *object) {
  if (ledger->lock < 0)
    return MO_FAIL(MO_FAILED, "the ledger was opened for reading (%s): open it for writing", ledger->path);
  pthread_mutex_lock(&ledger->mutex);
  mo_status status = replace(ledger, key, object);
  pthread_mutex_unlock(&ledger->mutex);
  return status;
}

mo_status pod_ledger_put(pod_ledger *ledger, const pod_run *run) {
  json_t *object = pod_run_to_json(run);
  if (!object)
    return MO_FAIL(MO_FAILED, "cannot record the run (%s): out of memory, or a path that is no UTF-8: rename it",
                   run->key);
  mo_status status = change(ledger, run->key, object);
  json_decref(object);
  return status;
}

mo_status pod_ledger_forget(pod_ledger *ledger, const char *key) { return change(ledger, key, NULL); }

bool pod_ledger_get(pod_ledger *ledger, const char *key, pod_run *run) {
  pthread_mutex_lock(&ledger->mutex);
  size_t i = find(ledger->runs, key);
  bool found = i < json_array_size(ledger->runs) && pod_run_from_json(json_array_get(ledger->runs, i), run);
  pthread_mutex_unlock(&ledger->mutex);
  return found;
}

mo_status pod_ledger_all(pod_ledger *ledger, pod_run **runs, int *n) {
  pthread_mutex_lock(&ledger->mutex);
  size_t size = json_array_size(ledger->runs);
  *runs = mo_alloc(size, sizeof **runs);
  *n = 0;
  for (size_t i = 0; *runs && i < size; i++) *n += pod_run_from_json(json_array_get(ledger->runs, i), &(*runs)[i]);
  pthread_mutex_unlock(&ledger->mutex);
  return *runs ? MO_OK : MO_FAILED;
}
