#include "pipeline/model_files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* Folders of a repository hold further copies of the weights, in other formats. */
static mo_status missing(const mo_config *config, presence found, const char *otherwise) {
  const char *path = config->model.path, *name = strchr(config->model.name, '/') ? config->model.name : "MODEL";
  return MO_FAIL(MO_INVALID, "%s (%s): fetch it, e.g. hf download %s --local-dir %s --exclude '*/*', or %s",
                 found == NO_FOLDER ? "the checkpoint is missing" : "the checkpoint has no config.json", path, name,
                 path, otherwise);
}

/* "synthetic:SEED" of a key; *synthetic is false and *seed 0 for any other text. */
static mo_status read_synthetic(const char *text, const char *key, bool *synthetic, uint64_t *seed) {
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
  MO_TRY(read_synthetic(config->model.path, "model.path", &files->synthetic, &files->seed));
  if (!files->synthetic) return MO_OK;
  if (config->model.config[0]) return use_config(config, files);
  return MO_FAIL(MO_INVALID,
                 "model.path is \"%s\" but model.config is not given (model.config): set it to a config.json",
                 config->model.path);
}

mo_status mo_model_files_for_run(const mo_config *config, mo_model_files *files) {
  MO_TRY(find_synthetic(config, files));
  if (files->synthetic) return MO_OK;
  presence found = look(config->model.path);
  return found == IS_THERE ? MO_OK : missing(config, found, "set model.path to where it is");
}

mo_status mo_model_files_for_plan(const mo_config *config, mo_model_files *files) {
  MO_TRY(find_synthetic(config, files));
  if (files->synthetic) return MO_OK;
  presence found = look(config->model.path);
  if (found == IS_THERE) return MO_OK;
  if (!config->model.config[0]) return missing(config, found, "set model.config to a config.json to plan with");
  return use_config(config, files);
}

mo_status mo_model_files_open(mo_checkpoint **checkpoint, const mo_config *config, const mo_model_files *files,
                              const mo_model_spec *spec) {
  if (!files->synthetic) return mo_checkpoint_open(checkpoint, config->model.path);
  return mo_checkpoint_open_synthetic(checkpoint, spec, spec->stored_bytes == 4 ? MO_F32 : MO_BF16, files->seed);
}

mo_status mo_model_files_tokens(mo_tokens *tokens, const mo_config *config, int64_t vocab) {
  bool synthetic;
  uint64_t seed;
  MO_TRY(read_synthetic(config->data.tokens, "data.tokens", &synthetic, &seed));
  if (synthetic)
    return mo_tokens_synthetic(tokens, seed, config->data.skip, config->data.sequences, config->data.length, vocab);
  return mo_tokens_read(tokens, config->data.tokens, config->data.skip, config->data.sequences, config->data.length,
                        vocab);
}

char *mo_model_files_dataset(const mo_config *config) {
  struct stat info;
  /* What else the path may be is told by those who read the ids. */
  if (stat(config->data.tokens, &info) != 0 || !S_ISREG(info.st_mode)) return NULL;
  return mo_tokens_dataset(config->data.tokens);
}
