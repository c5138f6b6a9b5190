/* Arguments of a command. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

#define WHERE "moe-outliers %s"

/* The option that `argument` names, NULL if there is none. *joined: the value behind '=' or the letter, else NULL. */
static const mo_cli_option *find(const mo_cli_arguments *arguments, const char *argument, const char **joined) {
  bool is_long = argument[1] == '-';
  const char *equals = is_long ? strchr(argument, '=') : NULL;
  size_t length = equals ? (size_t)(equals - argument) - 2 : strlen(argument) - (is_long ? 2 : 1);
  for (int i = 0; i < arguments->n_options; i++) {
    const mo_cli_option *option = &arguments->options[i];
    if (is_long) {
      if (strlen(option->name) != length || strncmp(option->name, argument + 2, length) != 0) continue;
      *joined = equals ? equals + 1 : NULL;
      return option;
    }
    if (option->letter != argument[1]) continue;
    *joined = argument[2] ? argument + 2 : NULL;
    return option;
  }
  return NULL;
}

static mo_status take_option(mo_cli_arguments *arguments, const char *argument, int *event) {
  const char *command = arguments->argv[0], *joined = NULL;
  if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0) {
    *event = MO_CLI_HELP;
    return MO_OK;
  }
  const mo_cli_option *option = find(arguments, argument, &joined);
  if (!option)
    return MO_FAIL(MO_INVALID, "unknown option %s (" WHERE "): see moe-outliers %s --help", argument, command, command);
  *event = option->event;
  if (!option->value && joined)
    return MO_FAIL(MO_INVALID, "option --%s takes no value (" WHERE "): remove \"%s\"", option->name, command, joined);
  if (!option->value) return MO_OK;
  if (!joined) {
    if (arguments->next == arguments->argc)
      return MO_FAIL(MO_INVALID, "option %s has no value (" WHERE "): give %s", argument, command, option->value);
    joined = arguments->argv[arguments->next++];
  }
  arguments->value = joined;
  return MO_OK;
}

mo_status mo_cli_next(mo_cli_arguments *arguments, int *event) {
  *event = MO_CLI_END;
  if (arguments->next >= arguments->argc) return MO_OK;
  const char *argument = arguments->argv[arguments->next++];
  if (!arguments->only_operands && strcmp(argument, "--") == 0) {
    arguments->only_operands = true;
    return mo_cli_next(arguments, event);
  }
  if (!arguments->only_operands && argument[0] == '-' && argument[1]) return take_option(arguments, argument, event);
  *event = MO_CLI_OPERAND;
  arguments->value = argument;
  return MO_OK;
}

static mo_status bad_number(const mo_cli_arguments *arguments, const char *option, const char *wanted) {
  return MO_FAIL(MO_INVALID, "%s \"%s\" is out of range or no number (" WHERE "): give %s", option, arguments->value,
                 arguments->argv[0], wanted);
}

/* strtoull takes blanks, signs and bases that a plain number has not. */
static bool all_digits(const char *text) { return text[0] && text[strspn(text, "0123456789")] == '\0'; }

mo_status mo_cli_unsigned(const mo_cli_arguments *arguments, const char *option, uint64_t *number) {
  errno = 0;
  *number = strtoull(arguments->value, NULL, 10);
  if (all_digits(arguments->value) && errno == 0) return MO_OK;
  return bad_number(arguments, option, "a whole number from 0 to 18446744073709551615");
}

mo_status mo_cli_integer(const mo_cli_arguments *arguments, const char *option, int64_t min, int64_t max,
                         int64_t *number) {
  errno = 0;
  *number = strtoll(arguments->value, NULL, 10);
  if (all_digits(arguments->value) && errno == 0 && *number >= min && *number <= max) return MO_OK;
  char wanted[80];
  snprintf(wanted, sizeof wanted, "a whole number from %" PRId64 " to %" PRId64, min, max);
  return bad_number(arguments, option, wanted);
}

mo_status mo_cli_float(const mo_cli_arguments *arguments, const char *option, double max, double *number) {
  char *end;
  *number = strtod(arguments->value, &end);
  if (end != arguments->value && *end == '\0' && *number > 0 && *number <= max) return MO_OK;
  char wanted[80];
  snprintf(wanted, sizeof wanted, "a number above 0, at most %g", max);
  return bad_number(arguments, option, wanted);
}

mo_status mo_cli_only_operand(const mo_cli_arguments *arguments, const char *name, const char **operand) {
  if (*operand)
    return MO_FAIL(MO_INVALID, "second %s \"%s\" (" WHERE "): give one", name, arguments->value, arguments->argv[0]);
  *operand = arguments->value;
  return MO_OK;
}

mo_status mo_cli_need(const mo_cli_arguments *arguments, const char *name, const char *value) {
  if (value && value[0]) return MO_OK;
  return MO_FAIL(MO_INVALID, "no %s (" WHERE "): give one, see moe-outliers %s --help", name, arguments->argv[0],
                 arguments->argv[0]);
}

mo_status mo_cli_overrides_add(mo_cli_overrides *overrides, const char *text) {
  const char **texts = mo_realloc(overrides->texts, (size_t)overrides->n + 1, sizeof texts[0]);
  if (!texts) return MO_FAILED;
  overrides->texts = texts;
  overrides->texts[overrides->n++] = text;
  return MO_OK;
}

void mo_cli_overrides_free(mo_cli_overrides *overrides) {
  free(overrides->texts);
  *overrides = (mo_cli_overrides){0};
}
