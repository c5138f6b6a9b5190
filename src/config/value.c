/* One value: its type and range against its row of the table. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "config_internal.h"

static void value_clear(mo_key_value *value) {
  free(value->text);
  free(value->layers);
  free(value->numbers);
  *value = (mo_key_value){0};
}

mo_status mo_key_values_default(mo_key_value values[MO_CONFIG_MAX_KEYS]) {
  memset(values, 0, MO_CONFIG_MAX_KEYS * sizeof values[0]);
  for (int i = 0; i < mo_n_keys; i++) {
    const mo_key *key = &mo_keys[i];
    values[i].integer = (int64_t)(key->type == MO_KEY_FLOAT ? 0 : key->number);
    values[i].real = key->number;
    if (key->text && !(values[i].text = mo_strdup(key->text))) {
      mo_key_values_free(values);
      return MO_FAILED;
    }
  }
  return MO_OK;
}

void mo_key_values_free(mo_key_value values[MO_CONFIG_MAX_KEYS]) {
  for (int i = 0; i < mo_n_keys; i++) value_clear(&values[i]);
}

void mo_key_wanted(const mo_key *key, char *text, size_t size) {
  const char *article = key->type == MO_KEY_INT ? "a whole number" : "a number";
  switch (key->type) {
    case MO_KEY_INT:
    case MO_KEY_FLOAT:
      if (key->flags & MO_KEY_OPEN_MIN)
        snprintf(text, size, "%s above %g", article, key->min);
      else
        snprintf(text, size, "%s from %.16g to %.16g", article, key->min, key->max);
      break;
    case MO_KEY_BOOL:
      snprintf(text, size, "true or false");
      break;
    case MO_KEY_STRING:
      snprintf(text, size, "a string in double quotes");
      break;
    case MO_KEY_LAYERS:
      snprintf(text, size, "layer numbers from 0 to %g like ( 0, 3 ), or \"all\"", key->max);
      break;
    case MO_KEY_NUMBERS:
      snprintf(text, size, "1 to %d numbers above %g like ( 4.0, 6.0 )", MO_MOST_THRESHOLDS, key->min);
      break;
    case MO_KEY_CHOICE: {
      size_t used = (size_t)snprintf(text, size, "one of ");
      for (int i = 0; key->choices[i] && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s\"%s\"", i ? ", " : "", key->choices[i]);
    }
  }
}

static const char *type_name(int type) {
  switch (type) {
    case CONFIG_TYPE_GROUP:
      return "a group";
    case CONFIG_TYPE_INT:
    case CONFIG_TYPE_INT64:
      return "a whole number";
    case CONFIG_TYPE_FLOAT:
      return "a number with a fraction";
    case CONFIG_TYPE_STRING:
      return "a string";
    case CONFIG_TYPE_BOOL:
      return "true or false";
    case CONFIG_TYPE_ARRAY:
      return "an array";
    case CONFIG_TYPE_LIST:
      return "a list";
    default:
      return "nothing";
  }
}

static mo_status wrong_type(const mo_key *key, int type, const char *place) {
  char text[256];
  mo_key_wanted(key, text, sizeof text);
  return MO_FAIL(MO_INVALID, "%s.%s is %s (%s): give %s", key->section, key->name, type_name(type), place, text);
}

static mo_status out_of_range(const mo_key *key, const char *value, const char *place) {
  char text[256];
  mo_key_wanted(key, text, sizeof text);
  return MO_FAIL(MO_INVALID, "%s.%s = %s is out of range (%s): give %s", key->section, key->name, value, place, text);
}

/* Written so that a NaN is outside. */
static bool in_range(const mo_key *key, double number) {
  bool above = key->flags & MO_KEY_OPEN_MIN ? number > key->min : number >= key->min;
  return above && number <= key->max && isfinite(number);
}

/* Number of a setting that is known to be whole. Hexadecimal is refused: libconfig may cut it to 32 bits. */
static mo_status take_integer(const mo_key *key, const config_setting_t *setting, const char *place, int64_t *integer) {
  if (config_setting_get_format(setting) == CONFIG_FORMAT_HEX)
    return MO_FAIL(MO_INVALID, "%s.%s is hexadecimal (%s): give a decimal number", key->section, key->name, place);
  *integer = config_setting_type(setting) == CONFIG_TYPE_INT ? config_setting_get_int(setting)
                                                             : (int64_t)config_setting_get_int64(setting);
  if (in_range(key, (double)*integer)) return MO_OK;
  char text[32];
  snprintf(text, sizeof text, "%" PRId64, *integer);
  return out_of_range(key, text, place);
}

static mo_status take_float(const mo_key *key, mo_key_value *value, const config_setting_t *setting,
                            const char *place) {
  value->real = config_setting_get_float(setting);
  if (in_range(key, value->real)) return MO_OK;
  char text[32];
  snprintf(text, sizeof text, "%g", value->real);
  return out_of_range(key, text, place);
}

/* The result file stores the config as UTF-8, so other bytes are refused here, where the key is known. */
static mo_status check_text(const mo_key *key, const char *text, const char *place) {
  for (const unsigned char *s = (const unsigned char *)text; *s;) {
    size_t n = mo_utf8_length(s);
    if (n == 0 || s[0] < 0x20 || s[0] == 0x7f)
      return MO_FAIL(MO_INVALID, "%s.%s has a control character or is not UTF-8 (%s): give plain UTF-8 text",
                     key->section, key->name, place);
    s += n;
  }
  if (text[0] == '\0' && (key->flags & (MO_KEY_REQUIRED | MO_KEY_FOR_RUN)))
    return MO_FAIL(MO_INVALID, "%s.%s is empty (%s): give %s", key->section, key->name, place, key->help);
  return MO_OK;
}

mo_status mo_key_take_text(const mo_key *key, mo_key_value *value, const char *text, const char *place) {
  if (key->type == MO_KEY_STRING) {
    MO_TRY(check_text(key, text, place));
    value_clear(value);
    value->text = mo_strdup(text);
    value->given = true;
    return value->text ? MO_OK : MO_FAILED;
  }
  static const char *const all[] = {"", "all", NULL}; /* MO_KEY_LAYERS: "all" is 1 */
  const char *const *choices = key->type == MO_KEY_LAYERS ? all : key->choices;
  for (int i = 0; choices[i]; i++) {
    if (strcmp(choices[i], text) != 0 || text[0] == '\0') continue;
    value_clear(value);
    value->integer = i;
    value->given = true;
    return MO_OK;
  }
  char hint[256];
  mo_key_wanted(key, hint, sizeof hint);
  return MO_FAIL(MO_INVALID, "%s.%s = \"%s\" is unknown (%s): give %s", key->section, key->name, text, place, hint);
}

static int compare_int64(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

static mo_status take_layers(const mo_key *key, mo_key_value *value, const config_setting_t *setting,
                             const char *place) {
  int n = config_setting_length(setting);
  if (n == 0) return MO_OK;
  value->layers = mo_alloc((size_t)n, sizeof value->layers[0]);
  if (!value->layers) return MO_FAILED;
  for (int i = 0; i < n; i++) {
    const config_setting_t *element = config_setting_get_elem(setting, (unsigned)i);
    int type = config_setting_type(element);
    if (type != CONFIG_TYPE_INT && type != CONFIG_TYPE_INT64) {
      char hint[256];
      mo_key_wanted(key, hint, sizeof hint);
      return MO_FAIL(MO_INVALID, "element %d of %s.%s is %s (%s): give %s", i, key->section, key->name, type_name(type),
                     place, hint);
    }
    MO_TRY(take_integer(key, element, place, &value->layers[i]));
  }
  qsort(value->layers, (size_t)n, sizeof value->layers[0], compare_int64);
  for (int i = 0; i < n; i++)
    if (i == 0 || value->layers[i] != value->layers[i - 1]) value->layers[value->n_layers++] = value->layers[i];
  return MO_OK;
}

static mo_status take_number(const mo_key *key, double *number, const config_setting_t *setting, int i,
                             const char *place) {
  int type = config_setting_type(setting);
  mo_key_value one = {0};
  if (type == CONFIG_TYPE_FLOAT) {
    MO_TRY(take_float(key, &one, setting, place));
  } else if (type == CONFIG_TYPE_INT || type == CONFIG_TYPE_INT64) {
    MO_TRY(take_integer(key, setting, place, &one.integer));
    one.real = (double)one.integer;
  } else {
    char hint[256];
    mo_key_wanted(key, hint, sizeof hint);
    return MO_FAIL(MO_INVALID, "element %d of %s.%s is %s (%s): give %s", i, key->section, key->name, type_name(type),
                   place, hint);
  }
  *number = one.real;
  return MO_OK;
}

static mo_status take_numbers(const mo_key *key, mo_key_value *value, const config_setting_t *setting,
                              const char *place) {
  int n = config_setting_length(setting);
  char hint[256];
  mo_key_wanted(key, hint, sizeof hint);
  if (n < 1 || n > MO_MOST_THRESHOLDS)
    return MO_FAIL(MO_INVALID, "%s.%s has %d elements (%s): give %s", key->section, key->name, n, place, hint);
  value->numbers = mo_alloc((size_t)n, sizeof *value->numbers);
  if (!value->numbers) return MO_FAILED;
  for (int i = 0; i < n; i++) {
    MO_TRY(take_number(key, &value->numbers[i], config_setting_get_elem(setting, (unsigned)i), i, place));
    for (int k = 0; k < i; k++)
      if ((float)value->numbers[k] == (float)value->numbers[i])
        return MO_FAIL(MO_INVALID, "%s.%s has %g twice (%s): give each number once", key->section, key->name,
                       value->numbers[i], place);
  }
  value->n_numbers = n;
  return MO_OK;
}

mo_status mo_key_take_setting(const mo_key *key, mo_key_value *value, const config_setting_t *setting,
                              const char *place) {
  int type = config_setting_type(setting);
  bool integer = type == CONFIG_TYPE_INT || type == CONFIG_TYPE_INT64;
  bool list = type == CONFIG_TYPE_LIST || type == CONFIG_TYPE_ARRAY;
  bool takes_text = key->type == MO_KEY_STRING || key->type == MO_KEY_CHOICE || key->type == MO_KEY_LAYERS;
  if (type == CONFIG_TYPE_STRING && takes_text)
    return mo_key_take_text(key, value, config_setting_get_string(setting), place);

  value_clear(value);
  value->given = true;
  if (integer && key->type == MO_KEY_INT) return take_integer(key, setting, place, &value->integer);
  if (integer && key->type == MO_KEY_FLOAT) {
    MO_TRY(take_integer(key, setting, place, &value->integer));
    value->real = (double)value->integer;
    return MO_OK;
  }
  if (type == CONFIG_TYPE_FLOAT && key->type == MO_KEY_FLOAT) return take_float(key, value, setting, place);
  if (type == CONFIG_TYPE_BOOL && key->type == MO_KEY_BOOL) {
    value->integer = config_setting_get_bool(setting) != 0;
    return MO_OK;
  }
  if (list && key->type == MO_KEY_LAYERS) return take_layers(key, value, setting, place);
  if (list && key->type == MO_KEY_NUMBERS) return take_numbers(key, value, setting, place);
  return wrong_type(key, type, place);
}
