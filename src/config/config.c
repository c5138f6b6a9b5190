/* The public side: a file or text plus overrides into one mo_config. */
#include "moe_outliers/config.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "config_internal.h"

static mo_status check_required(const mo_key_value *values, const char *name, bool for_run) {
  for (int i = 0; i < mo_n_keys; i++) {
    const mo_key *key = &mo_keys[i];
    bool required = (key->flags & MO_KEY_REQUIRED) || (for_run && (key->flags & MO_KEY_FOR_RUN));
    if (!required || values[i].given) continue;
    return MO_FAIL(MO_INVALID, "missing key \"%s\" in section \"%s\" (%s): add it, or use -s %s.%s=VALUE; it is the %s",
                   key->name, key->section, name, key->section, key->name, key->help);
  }
  return MO_OK;
}

/* Move the values into the struct. */
static mo_status store(mo_config *config, mo_key_value *values) {
  for (int i = 0; i < mo_n_keys; i++) {
    const mo_key *key = &mo_keys[i];
    mo_key_value *value = &values[i];
    void *member = (char *)config + key->offset;
    switch (key->type) {
      case MO_KEY_INT:
        *(int64_t *)member = value->integer;
        break;
      case MO_KEY_FLOAT:
        *(double *)member = value->real;
        break;
      case MO_KEY_BOOL:
        *(bool *)member = value->integer != 0;
        break;
      case MO_KEY_CHOICE: {
        int choice = (int)value->integer;
        memcpy(member, &choice, sizeof choice);
        break;
      }
      case MO_KEY_STRING:
        if (!value->text && !(value->text = mo_strdup(""))) return MO_FAILED;
        *(char **)member = value->text;
        value->text = NULL;
        break;
      case MO_KEY_LAYERS: /* the only one: it has three members */
        config->output.all_activations = value->integer != 0;
        config->output.activations = value->layers;
        config->output.n_activations = value->n_layers;
        value->layers = NULL;
        break;
      case MO_KEY_NUMBERS: /* likewise */
        config->analysis.thresholds = value->numbers;
        config->analysis.n_thresholds = value->n_numbers;
        value->numbers = NULL;
        break;
    }
  }
  return MO_OK;
}

/* analysis.threshold and the first of analysis.thresholds are the same: one given is the other's default. */
static mo_status settle_thresholds(mo_key_value *values, const char *name) {
  mo_key_value *one = &values[mo_key_find("analysis", "threshold")];
  mo_key_value *all = &values[mo_key_find("analysis", "thresholds")];
  if (all->n_numbers == 0) {
    all->numbers = mo_alloc(1, sizeof *all->numbers);
    if (!all->numbers) return MO_FAILED;
    all->numbers[all->n_numbers++] = one->real;
  }
  if (one->given && one->real != all->numbers[0])
    return MO_FAIL(MO_INVALID,
                   "analysis.threshold = %g is not the first of analysis.thresholds, %g (%s): give only one of them",
                   one->real, all->numbers[0], name);
  one->real = all->numbers[0];
  return MO_OK;
}

/* What one key alone cannot tell. */
static mo_status check_together(const mo_config *config, const char *name) {
  if (config->engine.micro_batch > config->data.sequences)
    return MO_FAIL(MO_INVALID,
                   "engine.micro_batch = %" PRId64 " is above data.sequences = %" PRId64
                   " (%s): give at most that, or 0 to let the program choose",
                   config->engine.micro_batch, config->data.sequences, name);
  return MO_OK;
}

mo_status mo_config_parse(mo_config *config, const char *text, const char *name, const char *include_dir,
                          const char *const *overrides, int n_overrides, bool for_run) {
  memset(config, 0, sizeof *config);
  if (!include_dir) include_dir = ".";
  mo_key_value values[MO_CONFIG_MAX_KEYS];
  MO_TRY(mo_key_values_default(values));
  mo_status status;
  MO_TRY_TO(done, mo_config_read_text(values, text, name, include_dir));
  for (int i = 0; i < n_overrides; i++) MO_TRY_TO(done, mo_config_read_override(values, overrides[i]));
  MO_TRY_TO(done, check_required(values, name, for_run));
  MO_TRY_TO(done, settle_thresholds(values, name));
  MO_TRY_TO(done, mo_config_write_text(&config->text, values));
  MO_TRY_TO(done, store(config, values));
  config->directory = mo_strdup(include_dir);
  config->file = mo_strdup(name);
  MO_TRY_TO(done, config->directory && config->file ? MO_OK : MO_FAILED);
  status = check_together(config, name);
done:
  mo_key_values_free(values);
  if (status != MO_OK) mo_config_free(config);
  return status;
}

mo_status mo_config_read(mo_config *config, const char *path, const char *const *overrides, int n_overrides,
                         bool for_run) {
  memset(config, 0, sizeof *config);
  char *text = NULL;
  MO_TRY(mo_config_load(&text, path));
  char *folder = mo_folder_of(path);
  mo_status status = folder ? mo_config_parse(config, text, path, folder, overrides, n_overrides, for_run) : MO_FAILED;
  free(folder);
  free(text);
  return status;
}

void mo_config_free(mo_config *config) {
  free(config->model.name);
  free(config->model.path);
  free(config->model.config);
  free(config->data.tokens);
  free(config->analysis.thresholds);
  free(config->output.path);
  free(config->output.activations);
  free(config->deployment.gpu_filter);
  free(config->deployment.cloud_type);
  free(config->deployment.data_center);
  free(config->deployment.image);
  free(config->text);
  free(config->engine.cache);
  free(config->directory);
  free(config->file);
  memset(config, 0, sizeof *config);
}
