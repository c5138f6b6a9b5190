/* The ledger's file: runs as JSON. */
#ifndef MO_POD_LEDGER_JSON_H
#define MO_POD_LEDGER_JSON_H

#include "pod/pod.h"

const char *pod_step_name(pod_step step);

/* A new object; NULL: out of memory, or a text that is no UTF-8. */
json_t *pod_run_to_json(const pod_run *run);
/* False: something is missing or of another type. run->overrides is borrowed from `object`. */
bool pod_run_from_json(const json_t *object, pod_run *run);

/* Replaces what is no UTF-8, as half of a character is, by '?', in place: other programs' words go into the ledger and
 * into JSON. */
void pod_clean(char *text);

#endif
