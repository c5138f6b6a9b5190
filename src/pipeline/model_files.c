#include "pipeline/model_files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

typedef enum { IS_THERE, NO_FOLDER, NO_CONFIG } presence;

/* model.path may also name a config.json itself. Trouble other than absence is left to those who open the files. */
static presence look(const char *path) {
  struct stat info;
  char config[4096];
  if (stat(path, &info) != 0) return errno == ENOENT ? NO_FOLDER : IS_THERE;
  if (!S_ISDIR(info.st_mode)) return IS_THERE;
  if (snprintf(config, sizeof config, "%s/config.json", path) >= (int)sizeof config) return IS_THERE;
  return stat(config, &info) != 0 && errno == ENOENT ? NO_CONFIG : IS_THERE;
}

/* An address that is spelt wrong. */
static bool is_nearly_address(const char *path) {
  size_t scheme = strcspn(path, ":/");
  return path[scheme] == ':' &&
         ((scheme == 2 && strncasecmp(path, "hf", 2) == 0) || (scheme == 4 && strncasecmp(path, "http", 4) == 0) ||
          (scheme == 5 && strncasecmp(path, "https", 5) == 0));
}

static mo_status missing(const mo_config *config, presence found, const char *otherwise) {
  const char *path = config->model.path, *name = config->model.name;
  const char *what = found == NO_FOLDER ? "the checkpoint is missing" : "the checkpoint has no config.json";
  if (found == NO_FOLDER && is_nearly_address(path))
    return MO_FAIL(MO_INVALID, "%s (%s): if that is to be an address, write hf://OWNER/NAME or https://HOST/FOLDER",
                   what, path);
  if (!strchr(name, '/'))
    return MO_FAIL(MO_INVALID, "%s (%s): set model.name to its name on the hub and get it with scripts/fetch %s, or %s",
                   what, path, config->file, otherwise);
  return MO_FAIL(MO_INVALID,
                 "%s (%s): get it with scripts/fetch %s, read it from the hub with -s model.path=hf://%s, or %s", what,
                 path, config->file, name, otherwise);
}

mo_status mo_model_files_seed(const char *text, const char *key, bool *synthetic, uint64_t *seed) {
  static const char prefix[] = "synthetic:";
  *seed = 0;
  *synthetic = strncmp(text, prefix, sizeof prefix - 1) == 0;
  if (!*synthetic) return MO_OK;
  const char *digits = text + sizeof prefix - 1;
  errno = 0;
  *seed = strtoull(digits, NULL, 10);
  /* strtoull also takes blanks and signs. */
  if (digits[0] && digits[strspn(digits, "0123456789")] == '\0' && errno == 0) return MO_OK;
  return MO_FAIL(MO_INVALID,
                 "bad seed \"%.60s\" (%s): give synthetic: and a whole number from 0 to 18446744073709551615", digits,
                 key);
}

static mo_status use_config(const mo_config *config, mo_model_files *files) {
  struct stat info;
  files->config_json = config->model.config;
  if (stat(config->model.config, &info) == 0) return MO_OK;
  return MO_FAIL(MO_INVALID,
                 "model.config cannot be read: %s (%s): give a config.json, relative to the working directory",
                 strerror(errno), config->model.config);
}

/* Fills *files if the weights are synthetic. */
static mo_status find_synthetic(const mo_config *config, mo_model_files *files) {
  *files = (mo_model_files){.config_json = config->model.path};
  MO_TRY(mo_model_files_seed(config->model.path, "model.path", &files->synthetic, &files->seed));
  if (!files->synthetic) return MO_OK;
  if (config->model.config[0]) return use_config(config, files);
  return MO_FAIL(MO_INVALID,
                 "model.path is \"%s\" but model.config is not given (model.config): set it to a config.json",
                 config->model.path);
}

/* --- on the network --- */

static void note(const char *line) { fprintf(stderr, "moe-outliers: note: %s\n", line); }

static mo_status open_address(const mo_config *config, mo_model_files *files) {
  mo_network_options options = {
      .cache = config->engine.cache, .patience = config->engine.network_patience, .tell = note};
  *files = (mo_model_files){.config_json = config->model.path};
  return mo_network_open(&files->network, config->model.path, &options);
}

/* A plan asks for nothing but config.json. */
static mo_status ask_for_plan(const mo_config *config, mo_model_files *files) {
  *files = (mo_model_files){0};
  if (config->model.config[0]) return use_config(config, files);
  MO_TRY(open_address(config, files));
  return mo_network_connect(files->network);
}

mo_status mo_model_files_read(mo_model_spec *spec, const mo_model_files *files) {
  const char *text;
  char name[1200];
  size_t bytes;
  if (!files->network) return mo_model_read(spec, files->config_json);
  MO_TRY(mo_network_file(files->network, "config.json", &text, &bytes));
  if (!text)
    return MO_FAIL(MO_INVALID, "there is no config.json (%s): give the address of a model's folder",
                   mo_network_address(files->network));
  snprintf(name, sizeof name, "%.1100s/config.json", mo_network_address(files->network));
  return mo_model_parse(spec, text, bytes, name);
}

void mo_model_files_free(mo_model_files *files) {
  mo_network_close(files->network);
  files->network = NULL;
}

/* --- wherever they are --- */

mo_status mo_model_files_for_run(const mo_config *config, mo_model_files *files) {
  if (mo_network_is_address(config->model.path)) return open_address(config, files);
  MO_TRY(find_synthetic(config, files));
  if (files->synthetic) return MO_OK;
  presence found = look(config->model.path);
  return found == IS_THERE ? MO_OK : missing(config, found, "set model.path to where it is");
}

mo_status mo_model_files_for_plan(const mo_config *config, mo_model_files *files) {
  if (mo_network_is_address(config->model.path)) return ask_for_plan(config, files);
  MO_TRY(find_synthetic(config, files));
  if (files->synthetic) return MO_OK;
  presence found = look(config->model.path);
  if (found == IS_THERE) return MO_OK;
  if (!config->model.config[0]) return missing(config, found, "set model.config to a config.json to plan with");
  return use_config(config, files);
}
