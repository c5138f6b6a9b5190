/* moe-outliers config CONFIG [SECTION.KEY]... [--result FILE.h5] [-s section.key=value]... */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "moe_outliers/config.h"
#include "moe_outliers/results.h"

typedef struct {
  const char *config, *result;
  const char *const *keys; /* operands behind the config, in argv */
  int n_keys;
  bool help;
  mo_cli_overrides overrides;
} config_arguments;

enum { SET = 1, RESULT };
static const mo_cli_option OPTIONS[] = {{SET, "set", 's', "section.key=value"}, {RESULT, "result", 0, "a result file"}};

static mo_status parse(config_arguments *config, const char **keys, int argc, char **argv) {
  mo_cli_arguments arguments = MO_CLI_ARGUMENTS(argc, argv, OPTIONS);
  for (;;) {
    int event;
    MO_TRY(mo_cli_next(&arguments, &event));
    if (event == MO_CLI_END) break;
    if (event == MO_CLI_HELP) {
      config->help = true;
      return MO_OK;
    }
    if (event == SET)
      MO_TRY(mo_cli_overrides_add(&config->overrides, arguments.value));
    else if (event == RESULT)
      config->result = arguments.value;
    else if (!config->config)
      config->config = arguments.value;
    else
      keys[config->n_keys++] = arguments.value;
  }
  config->keys = keys;
  return mo_cli_need(&arguments, "config file", config->config);
}

/* The values of a config as run. NULL with the error recorded. */
static json_t *values_of(const char *text, const char *name, char **json) {
  if (mo_config_json(json, text, name) != MO_OK) return NULL;
  json_t *root = json_loads(*json, 0, NULL);
  if (!root) (void)MO_FAIL(MO_FAILED, "config with numbers out of range (%s): check its values", name);
  return root;
}

static const json_t *value_at(const json_t *root, const char *key) {
  const char *dot = strchr(key, '.');
  if (!dot) return NULL;
  char section[64];
  snprintf(section, sizeof section, "%.*s", (int)(dot - key), key);
  return json_object_get(json_object_get(root, section), dot + 1);
}

static mo_status print_value(const json_t *root, const char *key, const char *name) {
  const json_t *value = value_at(root, key);
  if (!value) return MO_FAIL(MO_INVALID, "no key %s (%s): see moe-outliers run --help for all keys", key, name);
  if (json_is_string(value)) {
    puts(json_string_value(value));
    return MO_OK;
  }
  char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
  if (!text) return MO_FAIL(MO_FAILED, "out of memory (config): free some memory");
  puts(text);
  free(text);
  return MO_OK;
}

/* What the numbers of a result follow from; where its files lie and how it was computed do not matter. */
static bool decides(const char *section, const char *key) {
  static const char *const others[] = {"model.name", "data.sequences", "data.length", "data.skip", "engine.precision"};
  char whole[128];
  snprintf(whole, sizeof whole, "%s.%s", section, key);
  for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
    if (strcmp(whole, others[i]) == 0) return true;
  return strcmp(section, "analysis") == 0;
}

static mo_status refuse(const char *section, const char *key, const json_t *made, const json_t *asked,
                        const char *path) {
  char *was = json_dumps(made, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
  char *wanted = json_dumps(asked, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
  mo_status status = MO_FAIL(MO_INVALID,
                             "the result was made with %s.%s = %s, not %s (%s): give another output.path, or "
                             "output.overwrite=true to make it anew",
                             section, key, was ? was : "?", wanted ? wanted : "?", path);
  free(was);
  free(wanted);
  return status;
}

/* Keys that the program has learned since the result was made are not compared. */
static mo_status compare(json_t *asked, const json_t *made, const char *path) {
  const char *section, *key;
  json_t *keys, *value;
  json_object_foreach(asked, section, keys) json_object_foreach(keys, key, value) {
    const json_t *was = json_object_get(json_object_get(made, section), key);
    if (was && decides(section, key) && !json_equal(was, value)) return refuse(section, key, was, value, path);
  }
  return MO_OK;
}

static mo_status check_result(json_t *asked, const char *path) {
  mo_results_file file;
  char *json = NULL;
  MO_TRY(mo_results_read(&file, path));
  json_t *made = values_of(file.config, path, &json);
  mo_status status = made ? compare(asked, made, path) : MO_INVALID;
  json_decref(made);
  free(json);
  mo_results_file_free(&file);
  return status;
}

static mo_status answer(const config_arguments *arguments, const mo_config *config) {
  char *json = NULL;
  json_t *root = values_of(config->text, arguments->config, &json);
  mo_status status = root ? MO_OK : MO_INVALID;
  if (status == MO_OK && arguments->result) status = check_result(root, arguments->result);
  if (status == MO_OK && !arguments->result && !arguments->n_keys) fputs(json, stdout);
  for (int i = 0; status == MO_OK && i < arguments->n_keys; i++)
    status = print_value(root, arguments->keys[i], arguments->config);
  json_decref(root);
  free(json);
  return status;
}

static mo_status read_config(const config_arguments *arguments) {
  mo_config config;
  MO_TRY(mo_config_read(&config, arguments->config, arguments->overrides.texts, arguments->overrides.n, false));
  mo_status status = answer(arguments, &config);
  mo_config_free(&config);
  return status;
}

int mo_cli_config(int argc, char **argv) {
  config_arguments config = {0};
  const char **keys = mo_alloc((size_t)argc, sizeof *keys);
  mo_status status = keys ? parse(&config, keys, argc, argv) : MO_FAILED;
  if (status == MO_OK) status = config.help ? mo_cli_print_usage("config", stdout) : read_config(&config);
  mo_cli_overrides_free(&config.overrides);
  free(keys);
  return mo_cli_finish(status);
}
