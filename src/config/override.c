/* Overrides: -s section.key=value. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config_internal.h"

static void trim(char **begin, char *end) {
  while (end > *begin && isspace((unsigned char)end[-1])) end--;
  *end = '\0';
  while (isspace((unsigned char)**begin)) ++*begin;
}

/* Value text in libconfig's own syntax. */
static mo_status take_literal(const mo_key *key, mo_key_value *value, const char *literal, const char *place) {
  MO_TRY(mo_config_check_numbers(literal, place, false));
  size_t size = strlen(literal) + 16;
  char *text = mo_alloc(size, 1);
  if (!text) return MO_FAILED;
  /* Lists may come without their brackets. */
  bool bare_list = (key->type == MO_KEY_LAYERS || key->type == MO_KEY_NUMBERS) && isdigit((unsigned char)literal[0]);
  snprintf(text, size, bare_list ? "v = ( %s )" : "v = %s", literal);
  mo_status status;
  config_t tree;
  config_init(&tree);
  int parsed = config_read_string(&tree, text);
  const config_setting_t *root = config_root_setting(&tree);
  if (parsed == CONFIG_TRUE && config_setting_length(root) == 1) {
    status = mo_key_take_setting(key, value, config_setting_get_elem(root, 0), place);
  } else {
    char hint[256];
    mo_key_wanted(key, hint, sizeof hint);
    status = MO_FAIL(MO_INVALID, "%s.%s cannot be read (%s): give %s", key->section, key->name, place, hint);
  }
  config_destroy(&tree);
  free(text);
  return status;
}

static mo_status take_value(const mo_key *key, mo_key_value *value, const char *text, const char *place) {
  size_t n = strlen(text);
  bool quoted = n >= 2 && text[0] == '"' && text[n - 1] == '"';
  bool bare_word = key->type == MO_KEY_STRING || key->type == MO_KEY_CHOICE ||
                   (key->type == MO_KEY_LAYERS && isalpha((unsigned char)text[0]));
  return bare_word && !quoted ? mo_key_take_text(key, value, text, place) : take_literal(key, value, text, place);
}

static mo_status read_copy(mo_key_value *values, char *copy, const char *place) {
  char hint[512];
  char *equals = strchr(copy, '='), *dot = strchr(copy, '.');
  if (!equals || !dot || dot > equals)
    return MO_FAIL(MO_INVALID, "wrong override (%s): write -s section.key=value", place);
  char *section = copy, *name = dot + 1, *text = equals + 1;
  trim(&section, dot);
  trim(&name, equals);
  trim(&text, text + strlen(text));
  for (const char *c = text; *c; c++) /* a line break would let a value say more than a value */
    if (iscntrl((unsigned char)*c))
      return MO_FAIL(MO_INVALID, "control character in an override (%s): give plain text", place);
  int row = mo_key_find(section, name);
  if (row >= 0) return take_value(&mo_keys[row], &values[row], text, place);
  if (!mo_key_is_section(section)) {
    mo_key_hint(NULL, section, hint, sizeof hint);
    return MO_FAIL(MO_INVALID, "unknown section \"%s\" (%s): %s", section, place, hint);
  }
  mo_key_hint(section, name, hint, sizeof hint);
  return MO_FAIL(MO_INVALID, "unknown key \"%s\" in section \"%s\" (%s): %s", name, section, place, hint);
}

mo_status mo_config_read_override(mo_key_value *values, const char *override) {
  char place[MO_PLACE_SIZE];
  snprintf(place, sizeof place, "-s %s", override);
  char *copy = mo_strdup(override);
  if (!copy) return MO_FAILED;
  mo_status status = read_copy(values, copy, place);
  free(copy);
  return status;
}
