/* Private to the model room: typed, bounded access to the keys of config.json; every error names key and file. A key whose
 * value is null counts as absent. */
#ifndef MO_MODEL_JSON_KEYS_H
#define MO_MODEL_JSON_KEYS_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "moe_outliers/status.h"

typedef struct {
  const json_t *object;
  const char *file; /* for messages */
} mo_json;

/* The key's value, NULL if absent or null. */
const json_t *mo_json_find(const mo_json *json, const char *key);
bool mo_json_has(const mo_json *json, const char *key);

/* An integer low..high; required, or `otherwise` where absent. */
MO_CHECKED mo_status mo_json_int(const mo_json *json, const char *key, int64_t low, int64_t high, int64_t *value);
MO_CHECKED mo_status mo_json_int_or(const mo_json *json, const char *key, int64_t low, int64_t high, int64_t otherwise,
                                    int64_t *value);
/* A finite number low..high; required, or `otherwise` where absent. */
MO_CHECKED mo_status mo_json_number(const mo_json *json, const char *key, double low, double high, double *value);
MO_CHECKED mo_status mo_json_number_or(const mo_json *json, const char *key, double low, double high, double otherwise,
                                       double *value);
MO_CHECKED mo_status mo_json_bool_or(const mo_json *json, const char *key, bool otherwise, bool *value);
/* A string; *value belongs to the JSON; NULL where absent. */
MO_CHECKED mo_status mo_json_string(const mo_json *json, const char *key, const char **value);
/* An object; child->object is NULL where absent. */
MO_CHECKED mo_status mo_json_object(const mo_json *json, const char *key, mo_json *child);

#endif
