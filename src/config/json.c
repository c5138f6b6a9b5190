/* The config of a finished run, as JSON. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "config_internal.h"

#define MAX_DEPTH 32 /* of groups and lists; the configs of runs have 3 */
#define REMEDY "give a result file of moe-outliers run"

static bool is_group(const config_setting_t *setting) { return config_setting_type(setting) == CONFIG_TYPE_GROUP; }

static bool put_setting(FILE *out, const config_setting_t *setting, int depth);

/* A group as an object, a member per line; a list or an array on one line, unless there are groups in it. */
static bool put_aggregate(FILE *out, const config_setting_t *setting, int depth) {
  bool group = is_group(setting);
  int n = config_setting_length(setting);
  if (depth == MAX_DEPTH) return false;
  fputc(group ? '{' : '[', out);
  for (int i = 0; i < n; i++) {
    const config_setting_t *member = config_setting_get_elem(setting, (unsigned)i);
    fputs(i ? "," : "", out);
    if (group) {
      fprintf(out, "\n%*s", 2 * (depth + 1), "");
      mo_json_put_text(out, config_setting_name(member));
      fputs(": ", out);
    } else if (i) {
      fputc(' ', out);
    }
    if (!put_setting(out, member, depth + 1)) return false;
  }
  if (group && n) fprintf(out, "\n%*s", 2 * depth, "");
  fputc(group ? '}' : ']', out);
  return true;
}

static bool put_setting(FILE *out, const config_setting_t *setting, int depth) {
  switch (config_setting_type(setting)) {
    case CONFIG_TYPE_INT:
    case CONFIG_TYPE_INT64:
      fprintf(out, "%lld", config_setting_get_int64(setting));
      return true;
    case CONFIG_TYPE_FLOAT:
      mo_json_put_real(out, config_setting_get_float(setting));
      return true;
    case CONFIG_TYPE_BOOL:
      fputs(config_setting_get_bool(setting) ? "true" : "false", out);
      return true;
    case CONFIG_TYPE_STRING:
      mo_json_put_text(out, config_setting_get_string(setting));
      return true;
    default:
      return put_aggregate(out, setting, depth);
  }
}

static mo_status to_json(char **json, const config_t *tree, const char *name) {
  size_t size = 0;
  FILE *out = open_memstream(json, &size);
  if (!out) return MO_FAIL(MO_FAILED, "out of memory (config as JSON): free some memory");
  bool shallow = put_setting(out, config_root_setting(tree), 0);
  fputc('\n', out);
  bool lost = ferror(out) != 0;
  if (fclose(out) != 0 || lost) return MO_FAIL(MO_FAILED, "out of memory (config as JSON): free some memory");
  if (shallow) return MO_OK;
  return MO_FAIL(MO_INVALID, "config nested deeper than %d (%s): " REMEDY, MAX_DEPTH, name);
}

/* A config as run is complete; libconfig would open any file that a foreign one names. */
static mo_status refuse_includes(const char *text, const char *name) {
  for (const char *line = text; line; line = strchr(line, '\n')) {
    line += strspn(line, " \t\r\n");
    if (strncmp(line, "@include", 8) == 0) return MO_FAIL(MO_INVALID, "config with an @include (%s): " REMEDY, name);
  }
  return MO_OK;
}

mo_status mo_config_json(char **json, const char *text, const char *name) {
  *json = NULL;
  MO_TRY(mo_config_check_numbers(text, name, true));
  MO_TRY(refuse_includes(text, name));
  mo_status status;
  config_t tree;
  config_init(&tree);
  if (config_read_string(&tree, text) == CONFIG_TRUE)
    status = to_json(json, &tree, name);
  else
    status = MO_FAIL(MO_INVALID, "config cannot be read: %s (%s:%d): " REMEDY, config_error_text(&tree), name,
                     config_error_line(&tree));
  config_destroy(&tree);
  if (status != MO_OK) {
    free(*json);
    *json = NULL;
  }
  return status;
}
