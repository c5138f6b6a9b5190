#include "pod/ledger_json.h"

#include <limits.h>
#include <stddef.h>
#include <string.h>

#include "common/utf8.h"
#include "pod/remote.h"

static const char *const step_names[] = {"named",   "created", "reached",  "sent",    "built",
                                         "fetched", "started", "finished", "brought", "ended"};
enum { N_STEPS = sizeof step_names / sizeof *step_names };

const char *pod_step_name(pod_step step) {
  return (int)step >= 0 && (int)step < N_STEPS ? step_names[step] : "unknown";
}

typedef enum { TEXT, WHOLE, NUMBER, FLAG } field_kind;
typedef struct {
  const char *name;
  field_kind kind;
  size_t offset, size;
} field;

#define FIELD(kind_, name_) \
  { #name_, kind_, offsetof(pod_run, name_), sizeof(((pod_run *)0)->name_) }
static const field fields[] = {
    FIELD(TEXT, key),         FIELD(TEXT, config),   FIELD(TEXT, name),      FIELD(TEXT, id),
    FIELD(FLAG, cluster),     FIELD(TEXT, gpu),      FIELD(TEXT, host),      FIELD(TEXT, user),
    FIELD(TEXT, data_center), FIELD(WHOLE, gpus),    FIELD(WHOLE, pods),     FIELD(WHOLE, port),
    FIELD(WHOLE, attempts),   FIELD(NUMBER, price),  FIELD(NUMBER, created), FIELD(NUMBER, deadline),
    FIELD(NUMBER, spent),     FIELD(TEXT, error),    FIELD(TEXT, result),    FIELD(TEXT, remote),
    FIELD(TEXT, sha256),      FIELD(TEXT, settings), FIELD(FLAG, slurm),     FIELD(NUMBER, seen),
    FIELD(NUMBER, expected),  FIELD(FLAG, doubtful),
};
enum { N_FIELDS = sizeof fields / sizeof *fields };

static json_t *field_to_json(const pod_run *run, const field *f) {
  const char *at = (const char *)run + f->offset;
  switch (f->kind) {
    case TEXT:
      return json_string(at);
    case WHOLE:
      return json_integer(*(const int *)(const void *)at);
    case NUMBER:
      return json_real(*(const double *)(const void *)at);
    case FLAG:
      return json_boolean(*(const bool *)(const void *)at);
  }
  return NULL;
}

json_t *pod_run_to_json(const pod_run *run) {
  json_t *object = json_object();
  bool good = object != NULL;
  for (int i = 0; good && i < N_FIELDS; i++)
    good = json_object_set_new(object, fields[i].name, field_to_json(run, &fields[i])) == 0;
  good = good && json_object_set_new(object, "step", json_string(pod_step_name(run->step))) == 0;
  good = good &&
         json_object_set_new(object, "overrides", run->overrides ? json_deep_copy(run->overrides) : json_array()) == 0;
  if (good) return object;
  json_decref(object);
  return NULL;
}

static bool field_from_json(const json_t *value, const field *f, pod_run *run) {
  char *at = (char *)run + f->offset;
  switch (f->kind) {
    case TEXT:
      if (!json_is_string(value) || json_string_length(value) >= f->size) return false;
      memcpy(at, json_string_value(value), json_string_length(value) + 1);
      return true;
    case WHOLE:
      if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > INT_MAX) return false;
      *(int *)(void *)at = (int)json_integer_value(value);
      return true;
    case NUMBER:
      if (!json_is_number(value)) return false;
      *(double *)(void *)at = json_number_value(value);
      return true;
    case FLAG:
      if (!value) return f->offset == offsetof(pod_run, doubtful); /* which files of a former version lack */
      if (!json_is_boolean(value)) return false;
      *(bool *)(void *)at = json_is_true(value);
      return true;
  }
  return false;
}

static bool is_name(const char *text) { return pod_is_plain(text) && text[0] != '.' && !strchr(text, '/'); }

/* The file may have been edited. What is in it becomes parts of paths and commands, and decides when pods end. */
static bool makes_sense(const pod_run *run) {
  enum { MOST = 1024 };
  bool good = is_name(run->key) && is_name(run->name) && strncmp(run->name, POD_PREFIX, sizeof POD_PREFIX - 1) == 0;
  good = good && (!run->id[0] || is_name(run->id)) && (!run->remote[0] || pod_is_plain(run->remote));
  good = good && run->gpus <= MOST && run->pods <= MOST && run->port <= 65535;
  if (run->id[0]) good = good && run->gpus >= 1 && run->pods >= 1 && run->deadline >= run->created;
  for (size_t i = 0; i < json_array_size(run->overrides); i++)
    good = good && json_is_string(json_array_get(run->overrides, i));
  return good;
}

bool pod_run_from_json(const json_t *object, pod_run *run) {
  memset(run, 0, sizeof *run);
  for (int i = 0; i < N_FIELDS; i++)
    if (!field_from_json(json_object_get(object, fields[i].name), &fields[i], run)) return false;
  const char *step = json_string_value(json_object_get(object, "step"));
  int n = 0;
  while (step && n < N_STEPS && strcmp(step, step_names[n]) != 0) n++;
  run->step = (pod_step)n;
  run->overrides = json_object_get(object, "overrides");
  return step && n < N_STEPS && json_is_array(run->overrides) && makes_sense(run);
}

void pod_clean(char *text) {
  while (*text) {
    size_t n = mo_utf8_length((const unsigned char *)text);
    if (n == 0) *text = '?';
    text += n ? n : 1;
  }
}
