/* ssh and rsync to the pod of a run. What fails for want of a connection is tried again while the pod lives. */
#ifndef MO_POD_REMOTE_H
#define MO_POD_REMOTE_H

#include "pod/life.h"

/* A command line with each argument quoted for a shell; caller frees, NULL if out of memory. */
char *pod_quote(const char *const *arguments, int n);

/* One ssh, tried once. result->status 255: no connection. command: for the shell there; host NULL: the run's. */
typedef struct {
  const char *host, *user; /* NULL: the run's */
  int port;
} pod_place;
MO_CHECKED mo_status pod_ssh_once(pod_life *life, const pod_place *place, const char *command, const char *input,
                                  double seconds, pod_result *result);

/* bash $DIR/remote/ARGUMENTS on the pod, tried again without connection, for at most MOE_POD_REACH seconds. Its
 * output, which the caller frees; a script that fails is MO_FAILED with its last line. */
MO_CHECKED mo_status pod_script(pod_life *life, const char *input, char **output, const char *const *arguments, int n);
/* What follows "@moe-pod WORD " or "@moe-pod " if word is "", in a line of the output; NULL if there is none. */
const char *pod_mark(const char *output, const char *word);

/* rsync with these options and operands; "POD:" in front of an operand stands for the pod. vanished: files that go
 * while they are copied are no error. */
MO_CHECKED mo_status pod_rsync(pod_life *life, const char *const *arguments, int n, bool vanished);

/* Whether a path needs no quoting anywhere. */
bool pod_is_plain(const char *path);

#endif
