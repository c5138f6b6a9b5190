#include "pipeline/model_files.h"

#include <errno.h>
#include <stdio.h>
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

mo_status mo_model_files_check(const mo_config *config) {
  presence found = look(config->model.path);
  return found == IS_THERE ? MO_OK : missing(config, found, "set model.path to where it is");
}

mo_status mo_model_files_for_plan(const mo_config *config, const char **path) {
  struct stat info;
  presence found = look(config->model.path);
  *path = found == IS_THERE ? config->model.path : config->model.config;
  if (found == IS_THERE) return MO_OK;
  if (!config->model.config[0]) return missing(config, found, "set model.config to a config.json to plan with");
  if (stat(config->model.config, &info) == 0) return MO_OK;
  return MO_FAIL(MO_INVALID,
                 "model.config cannot be read: %s (%s): give a config.json, relative to the working directory",
                 strerror(errno), config->model.config);
}
