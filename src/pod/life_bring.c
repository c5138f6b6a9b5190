/* What comes back: the journal while the run is under way, the result at its end. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pod/remote.h"

/* --- the journal --- */

/* STATE/runs/KEY/journal is a copy of OUTPUT.resume that can be continued: rows are copied before the records that
 * they need, which the program writes the other way round, and it is never half of a newer copy. A copy is made in
 * journal.next, with links to the files of the one before; then that becomes journal.old and the new one takes its
 * place. */

static bool exists(const char *path) { return access(path, F_OK) == 0; }

static mo_status remove_folder(const char *path) {
  char file[POD_PATH_BYTES];
  DIR *folder = opendir(path);
  if (!folder) return MO_OK;
  mo_status status = MO_OK;
  for (struct dirent *entry; status == MO_OK && (entry = readdir(folder));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    status = pod_path(file, "%s/%s", path, entry->d_name);
    if (status == MO_OK) unlink(file);
  }
  closedir(folder);
  rmdir(path);
  return status;
}

/* After a kill between two renames the old one is the journal. */
static mo_status mend(const pod_life *life, char now[POD_PATH_BYTES], char next[POD_PATH_BYTES],
                      char old[POD_PATH_BYTES]) {
  MO_TRY(pod_path(now, "%s/journal", life->folder));
  MO_TRY(pod_path(next, "%s/journal.next", life->folder));
  MO_TRY(pod_path(old, "%s/journal.old", life->folder));
  if (!exists(now) && exists(old)) rename(old, now);
  return remove_folder(old);
}

/* "@moe-pod" of find.sh tells only of files: the journal is there once it has its identity. */
static mo_status has_journal(pod_life *life, bool *there) {
  char path[POD_PATH_BYTES], *output = NULL;
  MO_TRY(pod_path(path, "%s.resume/identity", life->output));
  MO_TRY(pod_script(life, NULL, &output, (const char *[]){"find.sh", path}, 2));
  *there = strstr(output, "@moe-pod found 0") != NULL;
  free(output);
  return MO_OK;
}

static mo_status remote_path(const pod_life *life, char path[POD_PATH_BYTES], const char *suffix) {
  bool absolute = life->output[0] == '/';
  return pod_path(path, "POD:%s%s%s%s", absolute ? "" : life->run.remote, absolute ? "" : "/source/", life->output,
                  suffix);
}

static mo_status copy_journal(pod_life *life) {
  char now[POD_PATH_BYTES], next[POD_PATH_BYTES], old[POD_PATH_BYTES], from[POD_PATH_BYTES], to[POD_PATH_BYTES];
  MO_TRY(mend(life, now, next, old));
  MO_TRY(remove_folder(next));
  MO_TRY(pod_life_local(life, pod_make_folders(next)));
  MO_TRY(remote_path(life, from, ".resume/"));
  MO_TRY(pod_path(to, "%s/", next));
  MO_TRY(pod_rsync(life,
                   (const char *[]){"-rpt", "--link-dest=../journal", "--include=/rows-*", "--include=/site-*",
                                    "--exclude=*", from, to},
                   7, true));
  MO_TRY(pod_rsync(life,
                   (const char *[]){"-rpt", "--link-dest=../journal", "--include=/journal-*", "--include=/identity",
                                    "--exclude=*", from, to},
                   7, true));
  MO_TRY(pod_path(to, "%s/identity", next));
  if (!exists(to)) return remove_folder(next); /* the run has ended meanwhile */
  if (exists(now)) rename(now, old);
  rename(next, now);
  return remove_folder(old);
}

mo_status pod_life_bring_journal(pod_life *life) {
  double now = pod_now(), every = pod_seconds_of(POD_SYNC);
  if (now < life->synced + every || now < life->synced + 5 * life->sync_took) return MO_OK;
  bool there = false;
  MO_TRY(has_journal(life, &there));
  if (there) MO_TRY(copy_journal(life));
  life->synced = pod_now();
  life->sync_took = life->synced - now;
  return MO_OK;
}

mo_status pod_life_send_journal(pod_life *life) {
  char now[POD_PATH_BYTES], next[POD_PATH_BYTES], old[POD_PATH_BYTES], from[POD_PATH_BYTES], to[POD_PATH_BYTES];
  MO_TRY(mend(life, now, next, old));
  if (!exists(now)) return MO_OK;
  bool there = false;
  MO_TRY(has_journal(life, &there));
  if (there) return MO_OK; /* a newer one, of this pod or on its volume */
  pod_life_say(life, "sending what was saved to %s", life->run.id);
  MO_TRY(pod_path(from, "%s/", now));
  MO_TRY(remote_path(life, to, ".resume/"));
  /* identity comes last, by which the program and has_journal know that it is whole; --mkpath is too new */
  char *output = NULL, folder[POD_PATH_BYTES];
  MO_TRY(pod_path(folder, "%s.resume", life->output));
  MO_TRY(pod_script(life, NULL, &output, (const char *[]){"folder.sh", folder}, 2));
  free(output);
  MO_TRY(pod_rsync(life, (const char *[]){"-rpt", "--exclude=/identity", from, to}, 4, false));
  return pod_rsync(life, (const char *[]){"-rpt", from, to}, 3, false);
}

/* --- the result --- */

bool pod_life_has_result(const pod_life *life) {
  char hex[POD_SHA256_BYTES];
  if (!exists(life->run.result)) return false;
  if (!life->need.config.output.overwrite) return true; /* a file of that name is complete */
  bool same =
      life->run.sha256[0] && pod_sha256_file(hex, life->run.result) == MO_OK && strcmp(hex, life->run.sha256) == 0;
  mo_error_clear();
  return same;
}

/* The checksum on the pod. */
static mo_status ask_sum(pod_life *life) {
  char *output = NULL, sum[72] = "";
  long long bytes = 0;
  MO_TRY(pod_script(life, NULL, &output, (const char *[]){"sum.sh", life->output}, 2));
  const char *mark = pod_mark(output, "sum");
  bool good = mark && sscanf(mark, "%71s %lld", sum, &bytes) == 2 && strlen(sum) == 64;
  free(output);
  if (!good)
    return POD_LOST(life, "the run ended well, but its result is not on the pod (%s, %s): see %s/run.log", life->run.id,
                    life->output, life->logs);
  if (strcmp(sum, life->run.sha256) == 0) return MO_OK;
  snprintf(life->run.sha256, sizeof life->run.sha256, "%s", sum);
  return pod_life_put(life);
}

mo_status pod_life_bring_result(pod_life *life) {
  enum { MOST_TRIES = 3 };
  char from[POD_PATH_BYTES], to[POD_PATH_BYTES], hex[POD_SHA256_BYTES];
  MO_TRY(ask_sum(life));
  MO_TRY(pod_life_local(life, pod_make_folder_of(life->run.result)));
  MO_TRY(remote_path(life, from, ""));
  MO_TRY(pod_path(to, "%s.fetching", life->run.result));
  for (int tries = 1;; tries++) {
    pod_life_say(life, "fetching the result to %s", life->run.result);
    MO_TRY(pod_rsync(life, (const char *[]){"-pt", "--partial", from, to}, 4, false));
    MO_TRY(pod_life_local(life, pod_sha256_file(hex, to)));
    if (strcmp(hex, life->run.sha256) == 0) break;
    unlink(to);
    if (tries == MOST_TRIES)
      return pod_life_local(
          life, MO_FAIL(MO_FAILED, "the result came damaged %d times (%s): check this machine's disk", MOST_TRIES, to));
    MO_TRY(ask_sum(life));
  }
  MO_TRY(pod_life_local(life, pod_rename_durably(to, life->run.result)));
  MO_TRY(pod_life_bring_logs(life));
  char now[POD_PATH_BYTES], next[POD_PATH_BYTES], old[POD_PATH_BYTES];
  MO_TRY(mend(life, now, next, old));
  MO_TRY(remove_folder(next));
  return remove_folder(now);
}
