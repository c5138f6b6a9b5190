#include "model/json_keys.h"

#include <math.h>

#define FIX "check that config.json belongs to this checkpoint"

const json_t *mo_json_find(const mo_json *json, const char *key) {
  const json_t *value = json_object_get(json->object, key);
  return value && !json_is_null(value) ? value : NULL;
}

bool mo_json_has(const mo_json *json, const char *key) { return mo_json_find(json, key) != NULL; }

mo_status mo_json_int(const mo_json *json, const char *key, int64_t low, int64_t high, int64_t *value) {
  const json_t *found = mo_json_find(json, key);
  if (!found) return MO_FAIL(MO_INVALID, "key \"%s\" is missing (%s): " FIX, key, json->file);
  if (!json_is_integer(found)) return MO_FAIL(MO_INVALID, "key \"%s\" is not an integer (%s): " FIX, key, json->file);
  *value = json_integer_value(found);
  if (*value < low || *value > high)
    return MO_FAIL(MO_INVALID, "key \"%s\" is %lld, expected %lld to %lld (%s): " FIX, key, (long long)*value,
                   (long long)low, (long long)high, json->file);
  return MO_OK;
}

mo_status mo_json_int_or(const mo_json *json, const char *key, int64_t low, int64_t high, int64_t otherwise,
                         int64_t *value) {
  *value = otherwise;
  return mo_json_has(json, key) ? mo_json_int(json, key, low, high, value) : MO_OK;
}

mo_status mo_json_number(const mo_json *json, const char *key, double low, double high, double *value) {
  const json_t *found = mo_json_find(json, key);
  if (!found) return MO_FAIL(MO_INVALID, "key \"%s\" is missing (%s): " FIX, key, json->file);
  if (!json_is_number(found)) return MO_FAIL(MO_INVALID, "key \"%s\" is not a number (%s): " FIX, key, json->file);
  *value = json_number_value(found);
  if (!(*value >= low && *value <= high))
    return MO_FAIL(MO_INVALID, "key \"%s\" is %g, expected %g to %g (%s): " FIX, key, *value, low, high, json->file);
  return MO_OK;
}

mo_status mo_json_number_or(const mo_json *json, const char *key, double low, double high, double otherwise,
                            double *value) {
  *value = otherwise;
  return mo_json_has(json, key) ? mo_json_number(json, key, low, high, value) : MO_OK;
}

mo_status mo_json_bool_or(const mo_json *json, const char *key, bool otherwise, bool *value) {
  *value = otherwise;
  const json_t *found = mo_json_find(json, key);
  if (!found) return MO_OK;
  if (!json_is_boolean(found))
    return MO_FAIL(MO_INVALID, "key \"%s\" is not true or false (%s): " FIX, key, json->file);
  *value = json_is_true(found);
  return MO_OK;
}

mo_status mo_json_string(const mo_json *json, const char *key, const char **value) {
  const json_t *found = mo_json_find(json, key);
  *value = NULL;
  if (!found) return MO_OK;
  if (!json_is_string(found)) return MO_FAIL(MO_INVALID, "key \"%s\" is not a string (%s): " FIX, key, json->file);
  *value = json_string_value(found);
  return MO_OK;
}

mo_status mo_json_object(const mo_json *json, const char *key, mo_json *child) {
  const json_t *found = mo_json_find(json, key);
  *child = (mo_json){found, json->file};
  if (found && !json_is_object(found))
    return MO_FAIL(MO_INVALID, "key \"%s\" is not an object (%s): " FIX, key, json->file);
  return MO_OK;
}
