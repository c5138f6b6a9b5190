/* A command's arguments. */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pod/cli.h"

#define WHERE "moe-pod %s"

typedef enum { FLAG, NUMBER, COUNT, TEXT, OVERRIDE, MODELS } option_type;

/* An option; id: the letter that stands for it in pod_command.takes. */
typedef struct {
  char id;
  const char *name;
  char letter; /* 0: none */
  option_type type;
  size_t offset;     /* in pod_options */
  const char *value; /* what is to be given */
} option;

#define AT(member_) offsetof(pod_options, member_)
static const option OPTIONS[] = {
    {'s', "set", 's', OVERRIDE, 0, "section.key=value"},
    {'m', "models", 0, MODELS, 0, "numbers or names of configs, as 02 07"},
    {'p', "parallel", 0, COUNT, AT(parallel), "a number of runs from 1 to 64"},
    {'x', "max-price", 0, NUMBER, AT(max_price), "dollars per GPU and hour"},
    {'b', "budget", 0, NUMBER, AT(budget), "dollars"},
    {'h', "max-hours", 0, NUMBER, AT(max_hours), "hours"},
    {'i', "interval", 0, NUMBER, AT(interval), "seconds"},
    {'o', "output", 'o', TEXT, AT(output), "a folder"},
    {'c', "community", 0, FLAG, AT(community), NULL},
    {'l', "slurm", 0, FLAG, AT(slurm), NULL},
    {'k', "keep", 0, FLAG, AT(keep), NULL},
    {'t', "terminate-on-interrupt", 0, FLAG, AT(terminate_on_interrupt), NULL},
    {'n', "dry-run", 'n', FLAG, AT(dry_run), NULL},
    {'j', "json", 0, FLAG, AT(json), NULL},
    {'w', "watch", 'w', FLAG, AT(watch), NULL},
    {'f', "follow", 'f', FLAG, AT(follow), NULL},
    {'a', "all", 0, FLAG, AT(all), NULL},
    {'y', "yes", 'y', FLAG, AT(yes), NULL},
};
enum { N_OPTIONS = sizeof OPTIONS / sizeof OPTIONS[0] };

/* The arguments of the command line that are left. */
typedef struct {
  const pod_command *command;
  int argc, next;
  char **argv;
} argument_list;

static mo_status add_text(const char ***texts, int *n, const char *text) {
  const char **longer = mo_realloc(*texts, (size_t)*n + 1, sizeof *longer);
  if (!longer) return MO_FAILED;
  *texts = longer;
  longer[(*n)++] = text;
  return MO_OK;
}

static mo_status own(pod_arguments *arguments, char *text) {
  char **owned = text ? mo_realloc(arguments->owned, (size_t)arguments->n_owned + 1, sizeof *owned) : NULL;
  if (!owned) {
    free(text);
    return MO_FAILED;
  }
  arguments->owned = owned;
  owned[arguments->n_owned++] = text;
  return MO_OK;
}

/* --- one option --- */

static mo_status take_number(const argument_list *list, const option *o, const char *text, double *number) {
  char *end;
  *number = strtod(text, &end);
  if (end != text && !*end && *number > 0 && isfinite(*number) && *number <= 1e9) return MO_OK;
  return MO_FAIL(MO_INVALID, "--%s \"%s\" is no number above 0 (" WHERE "): give %s", o->name, text,
                 list->command->name, o->value);
}

static mo_status take_count(const argument_list *list, const option *o, const char *text, int *number) {
  char *end;
  long value = strtol(text, &end, 10);
  *number = (int)value;
  if (end != text && !*end && value >= 1 && value <= 64) return MO_OK;
  return MO_FAIL(MO_INVALID, "--%s \"%s\" is out of range or no number (" WHERE "): give %s", o->name, text,
                 list->command->name, o->value);
}

/* "02 07", also "02,07": all that follows up to the next option or what is a config file by its look. */
static mo_status take_models(pod_arguments *arguments, argument_list *list, const char *text) {
  for (;;) {
    char *copy = mo_strdup(text), *rest = NULL;
    MO_TRY(own(arguments, copy));
    for (char *part = strtok_r(copy, ",", &rest); part; part = strtok_r(NULL, ",", &rest))
      MO_TRY(add_text(&arguments->models, &arguments->n_models, part));
    if (list->next == list->argc) return MO_OK;
    text = list->argv[list->next];
    if (text[0] == '-' || strchr(text, '/') || strstr(text, ".cfg")) return MO_OK;
    list->next++;
  }
}

static mo_status take_value(pod_arguments *arguments, argument_list *list, const option *o, const char *text) {
  char *member = (char *)&arguments->options + o->offset;
  switch (o->type) {
    case FLAG:
      *(bool *)member = true;
      return MO_OK;
    case NUMBER:
      return take_number(list, o, text, (double *)member);
    case COUNT:
      return take_count(list, o, text, (int *)member);
    case TEXT:
      *(const char **)member = text;
      return MO_OK;
    case OVERRIDE:
      return add_text(&arguments->overrides, &arguments->options.n_overrides, text);
    case MODELS:
      return take_models(arguments, list, text);
  }
  return MO_OK;
}

/* The option that an argument names, of those that the command takes; *joined: the value behind '=' or the letter, else
 * NULL. */
static const option *find(const pod_command *command, const char *argument, const char **joined) {
  bool is_long = argument[1] == '-';
  size_t length = is_long ? strcspn(argument + 2, "=") : 1;
  for (int i = 0; i < N_OPTIONS; i++) {
    const option *o = OPTIONS + i;
    bool named = is_long ? strlen(o->name) == length && strncmp(o->name, argument + 2, length) == 0
                         : o->letter && o->letter == argument[1];
    if (!named || !strchr(command->takes, o->id)) continue;
    const char *rest = argument + (is_long ? 2 + length : 2);
    *joined = !*rest ? NULL : is_long ? rest + 1 : rest;
    return o;
  }
  return NULL;
}

static mo_status take_option(pod_arguments *arguments, argument_list *list, const char *argument) {
  const char *name = list->command->name, *joined = NULL;
  const option *o = find(list->command, argument, &joined);
  if (!o) return MO_FAIL(MO_INVALID, "unknown option %s (" WHERE "): see moe-pod %s --help", argument, name, name);
  if (o->type == FLAG && joined)
    return MO_FAIL(MO_INVALID, "option --%s takes no value (" WHERE "): remove \"%s\"", o->name, name, joined);
  if (o->type != FLAG && !joined) {
    if (list->next == list->argc)
      return MO_FAIL(MO_INVALID, "option %s has no value (" WHERE "): give %s", argument, name, o->value);
    joined = list->argv[list->next++];
  }
  return take_value(arguments, list, o, joined);
}

/* --- configs --- */

static bool is_numbered(const char *name) {
  size_t n = strspn(name, "0123456789"), length = strlen(name);
  return n > 0 && name[n] == '_' && length > 4 && strcmp(name + length - 4, ".cfg") == 0;
}

/* Whether configs/NAME is what --models means: by its number, or its name without .cfg. */
static bool is_meant(const char *name, const char *model) {
  size_t length = strlen(name), n = strlen(model);
  if (length < 5 || strcmp(name + length - 4, ".cfg") != 0 || n == 0 || strncmp(name, model, n) != 0) return false;
  return n == length - 4 || (strspn(model, "0123456789") == n && name[n] == '_');
}

static mo_status add_config(pod_arguments *arguments, const char *name) {
  size_t size = strlen(name) + sizeof "configs/";
  char *path = mo_alloc(size, 1);
  if (path) snprintf(path, size, "configs/%s", name);
  MO_TRY(own(arguments, path));
  return add_text(&arguments->names, &arguments->options.n_names, path);
}

/* model NULL: all numbered ones. */
static mo_status add_configs(pod_arguments *arguments, const char *command, const char *model) {
  struct dirent **entries;
  int n = scandir("configs", &entries, NULL, alphasort), found = 0;
  mo_status status = MO_OK;
  for (int i = 0; i < n; i++) {
    const char *name = entries[i]->d_name;
    bool taken = model ? is_meant(name, model) : is_numbered(name);
    if (taken && status == MO_OK) status = add_config(arguments, name);
    found += taken;
    free(entries[i]);
  }
  if (n >= 0) free(entries);
  if (status != MO_OK || found) return status;
  if (!model)
    return MO_FAIL(MO_INVALID,
                   "no configs/NN_NAME.cfg here (" WHERE "): name config files, or change to the repository", command);
  return MO_FAIL(MO_INVALID, "no config is called \"%s\" (--models, configs/): give a number as 02, or a name", model);
}

static mo_status resolve(pod_arguments *arguments, const pod_command *command) {
  for (int i = 0; i < arguments->n_models; i++) MO_TRY(add_configs(arguments, command->name, arguments->models[i]));
  bool none = arguments->options.n_names == 0;
  return none && command->names == POD_ANY_NAMES ? add_configs(arguments, command->name, NULL) : MO_OK;
}

static mo_status check_names(const pod_arguments *arguments, const pod_command *command) {
  int n = arguments->options.n_names;
  const char *name = command->name;
  if (n > 0 && command->names == POD_NO_NAMES)
    return MO_FAIL(MO_INVALID, "unexpected \"%s\" (" WHERE "): remove it", arguments->names[0], name);
  if (n > 1 && command->names == POD_ONE_NAME)
    return MO_FAIL(MO_INVALID, "second %s \"%s\" (" WHERE "): give one", command->operand, arguments->names[1], name);
  if (n == 0 && (command->names == POD_ONE_NAME || (command->names == POD_SOME_NAMES && !arguments->options.all)))
    return MO_FAIL(MO_INVALID, "no %s (" WHERE "): give one, see moe-pod %s --help", command->operand, name, name);
  return MO_OK;
}

mo_status pod_arguments_read(pod_arguments *arguments, const pod_command *command, int argc, char **argv) {
  argument_list list = {.command = command, .argc = argc, .argv = argv, .next = 1};
  bool only_names = false;
  *arguments = (pod_arguments){.options = {.parallel = 1, .interval = 10}};
  while (list.next < list.argc) {
    const char *argument = list.argv[list.next++];
    if (!only_names && (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0)) {
      arguments->help = true;
      return MO_OK;
    }
    if (!only_names && strcmp(argument, "--") == 0)
      only_names = true;
    else if (!only_names && argument[0] == '-' && argument[1])
      MO_TRY(take_option(arguments, &list, argument));
    else
      MO_TRY(add_text(&arguments->names, &arguments->options.n_names, argument));
  }
  if (command->configs) MO_TRY(resolve(arguments, command));
  MO_TRY(check_names(arguments, command));
  arguments->options.names = arguments->names;
  arguments->options.overrides = arguments->overrides;
  return MO_OK;
}

void pod_arguments_free(pod_arguments *arguments) {
  for (int i = 0; i < arguments->n_owned; i++) free(arguments->owned[i]);
  free(arguments->owned);
  free(arguments->names);
  free(arguments->overrides);
  free(arguments->models);
  *arguments = (pod_arguments){0};
}
