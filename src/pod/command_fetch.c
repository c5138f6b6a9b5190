/* moe-pod fetch KEY... [-o FOLDER]: what there is of a run now, without driving it: logs, what is saved, and the
 * result. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pod/remote.h"

/* From the pod. */
static mo_status fetch_from_pod(pod_life *life) {
  MO_TRY(pod_life_reach(life));
  MO_TRY(pod_life_settle_paths(life));
  MO_TRY(pod_life_bring_logs(life));
  if (life->run.step >= STEP_FINISHED) return pod_life_bring_result(life);
  if (life->run.step < STEP_STARTED) return MO_OK;
  char *output = NULL;
  MO_TRY(pod_script(life, NULL, &output, (const char *[]){"state.sh", life->run.key, "run", "999999999999"}, 4));
  const char *mark = pod_mark(output, "ended");
  bool done = mark && atoi(mark) == 0;
  free(output);
  if (done) {
    MO_TRY(pod_life_done(life, STEP_FINISHED));
    return pod_life_bring_result(life);
  }
  life->synced = 0;
  return pod_life_bring_journal(life);
}

/* A result that is here, to another folder. */
static mo_status copy_result(const char *from, const char *folder, FILE *say) {
  char to[POD_PATH_BYTES], *text = NULL;
  size_t bytes;
  const char *slash = strrchr(from, '/');
  MO_TRY(pod_make_folders(folder));
  MO_TRY(pod_path(to, "%s/%s", folder, slash ? slash + 1 : from));
  MO_TRY(pod_read_file(&text, &bytes, from, SIZE_MAX - 1));
  mo_status status = pod_write_durably(to, text, bytes, 0644);
  free(text);
  if (status == MO_OK && say) fprintf(say, "%s\n", to);
  return status;
}

static mo_status tell(pod_life *life) {
  const pod_run *run = &life->run;
  const char *folder = life->options->output;
  bool complete = access(run->result, F_OK) == 0;
  if (life->options->json) {
    if (complete && folder) MO_TRY(copy_result(run->result, folder, NULL));
    return pod_print_json(json_pack("{s:s, s:b, s:s, s:s, s:s, s:s}", "key", run->key, "complete", complete, "result",
                                    run->result, "folder", life->folder, "pod", run->id, "error", run->error));
  }
  if (complete && folder) return copy_result(run->result, folder, stdout);
  if (complete) return printf("%s\n", run->result) > 0 ? MO_OK : MO_FAILED;
  if (run->id[0])
    pod_life_say(life, "no result yet; logs and what is saved are in %s; the same `moe-pod run` goes on", life->folder);
  else
    return MO_FAIL(MO_FAILED, "no result and no pod (%s): %s: `moe-pod run %s` makes it", run->key,
                   run->error[0] ? run->error : "the run has not come so far", run->config);
  return MO_OK;
}

static mo_status fetch(const pod_settings *settings, const pod_options *options, pod_ledger *ledger, const char *name,
                       bool busy) {
  char key[64];
  MO_TRY(pod_find_key(ledger, name, key));
  pod_life *life = mo_alloc(1, sizeof *life);
  if (!life) return MO_FAILED;
  mo_status status = pod_life_open_key(life, settings, options, ledger, key);
  if (status == MO_OK) {
    if (!busy && life->run.id[0] && access(life->run.result, F_OK) != 0) status = fetch_from_pod(life);
    if (status == MO_OK) status = tell(life);
    if (busy && life->run.id[0]) pod_life_say(life, "another moe-pod drives this run and fetches what it makes");
    pod_life_close(life);
  }
  free(life);
  return status;
}

mo_status pod_command_fetch(const pod_settings *settings, const pod_options *options) {
  pod_ledger *ledger = NULL;
  bool busy = false;
  MO_TRY(pod_ledger_busy(settings, &busy));
  MO_TRY(pod_ledger_open(&ledger, settings, !busy));
  mo_status status = MO_OK;
  for (int i = 0; i < options->n_names && status == MO_OK; i++)
    status = fetch(settings, options, ledger, options->names[i], busy);
  pod_ledger_close(ledger);
  return status;
}
