/* From config text to values, through libconfig. */
#include <stdio.h>
#include <string.h>

#include "config_internal.h"

/* libconfig names included files only; the text itself is `name`. */
static void place_of(const config_setting_t *setting, const char *name, char place[MO_PLACE_SIZE]) {
  const char *file = config_setting_source_file(setting);
  snprintf(place, MO_PLACE_SIZE, "%s:%d", file ? file : name, (int)config_setting_source_line(setting));
}

static mo_status read_section(mo_key_value *values, const config_setting_t *group, const char *name) {
  const char *section = config_setting_name(group);
  char place[MO_PLACE_SIZE], hint[512];
  place_of(group, name, place);
  if (!mo_key_is_section(section)) {
    mo_key_hint(NULL, section, hint, sizeof hint);
    return MO_FAIL(MO_INVALID, "unknown section \"%s\" (%s): %s", section, place, hint);
  }
  if (config_setting_type(group) != CONFIG_TYPE_GROUP)
    return MO_FAIL(MO_INVALID, "\"%s\" is not a section (%s): write %s: { key = value; };", section, place, section);
  int n = config_setting_length(group);
  for (int i = 0; i < n; i++) {
    const config_setting_t *setting = config_setting_get_elem(group, (unsigned)i);
    const char *key = config_setting_name(setting);
    int row = mo_key_find(section, key);
    place_of(setting, name, place);
    if (row < 0) {
      mo_key_hint(section, key, hint, sizeof hint);
      return MO_FAIL(MO_INVALID, "unknown key \"%s\" in section \"%s\" (%s): %s", key, section, place, hint);
    }
    MO_TRY(mo_key_take_setting(&mo_keys[row], &values[row], setting, place));
  }
  return MO_OK;
}

static mo_status syntax_error(const config_t *tree, const char *name) {
  const char *text = config_error_text(tree), *file = config_error_file(tree);
  const char *hint = "look for a missing quote, bracket or value here or just before";
  if (!text) text = "cannot be read";
  if (strstr(text, "duplicate")) hint = "keep one of the two";
  if (strstr(text, "cannot open include")) hint = "give a path relative to the folder of the config file";
  if (strstr(text, "too deep")) hint = "look for a file that includes itself";
  if (strstr(text, "mismatched element")) hint = "give elements of one type";
  return MO_FAIL(MO_INVALID, "%s (%s:%d): %s", text, file ? file : name, config_error_line(tree), hint);
}

mo_status mo_config_read_text(mo_key_value *values, const char *text, const char *name, const char *include_dir) {
  MO_TRY(mo_config_check_source(text, name, include_dir));
  mo_status status = MO_OK;
  config_t tree;
  config_init(&tree);
  config_set_include_dir(&tree, include_dir);
  if (config_read_string(&tree, text) != CONFIG_TRUE) {
    status = syntax_error(&tree, name);
    goto done;
  }
  const config_setting_t *root = config_root_setting(&tree);
  int n = config_setting_length(root);
  for (int i = 0; i < n; i++) MO_TRY_TO(done, read_section(values, config_setting_get_elem(root, (unsigned)i), name));
done:
  config_destroy(&tree);
  return status;
}
