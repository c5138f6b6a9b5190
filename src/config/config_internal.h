/* Inside src/config: the table of keys and the values read for them.
 *
 * Flow: file text -> (includes.c, numbers.c) checked for what libconfig gets wrong -> (read.c, override.c) libconfig
 * tree -> one mo_key_value per row of the table, type and range checked where the place (file:line) is known ->
 * (config.c) struct, (text.c) text. */
#ifndef MO_CONFIG_INTERNAL_H
#define MO_CONFIG_INTERNAL_H

#include <libconfig.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe_outliers/config.h"

#define MO_CONFIG_MAX_BYTES (1 << 20) /* of a config file */
#define MO_CONFIG_MAX_KEYS 64         /* rows of the table, checked at compile time */
#define MO_PLACE_SIZE 1024            /* text of a place, "configs/demo.cfg:7" or "-s data.skip=1" */

typedef enum {
  MO_KEY_INT,
  MO_KEY_FLOAT,
  MO_KEY_BOOL,
  MO_KEY_STRING,
  MO_KEY_CHOICE,
  MO_KEY_LAYERS,
  MO_KEY_NUMBERS
} mo_key_type;

enum {
  MO_KEY_REQUIRED = 1, /* by every command; the string may not be empty */
  MO_KEY_FOR_RUN = 2,  /* by `run`; the string may not be empty */
  MO_KEY_OPEN_MIN = 4, /* the value must be above min, not equal to it */
  MO_KEY_FOR_POD = 8,  /* of moe-pod alone: in the config as run only if given */
};

typedef struct {
  const char *section, *name;
  mo_key_type type;
  size_t offset;              /* of the member in mo_config */
  double min, max;            /* of numbers, and of each number of MO_KEY_LAYERS and MO_KEY_NUMBERS */
  double number;              /* default of numbers (0 or 1 for MO_KEY_BOOL, index for MO_KEY_CHOICE) */
  const char *text;           /* default of MO_KEY_STRING; NULL: none */
  const char *const *choices; /* MO_KEY_CHOICE: names in enum order, NULL at the end */
  unsigned flags;
  const char *help;
} mo_key;

/* The value of one key; which member holds it follows from the key's type. */
typedef struct {
  bool given;      /* in the file or an override; else the default */
  int64_t integer; /* MO_KEY_INT, MO_KEY_BOOL, MO_KEY_CHOICE (index), MO_KEY_LAYERS (1 = "all") */
  double real;     /* MO_KEY_FLOAT */
  char *text;      /* MO_KEY_STRING, owned; NULL: none */
  int64_t *layers; /* MO_KEY_LAYERS, owned, sorted, distinct; NULL if empty */
  int64_t n_layers;
  double *numbers; /* MO_KEY_NUMBERS, owned, distinct as floats, at most MO_MOST_THRESHOLDS; NULL if not given */
  int64_t n_numbers;
} mo_key_value;

/* --- keys.c --- */
extern const mo_key mo_keys[];
extern const int mo_n_keys;
/* Row of section.name, -1 if there is none. */
int mo_key_find(const char *section, const char *name);
bool mo_key_is_section(const char *section);
/* The last part of an error line about an unknown section (section NULL) or key: `did you mean "..."?`, or all that are
 * known. hint: [size]. */
void mo_key_hint(const char *section, const char *unknown, char *hint, size_t size);

/* --- value.c --- */
MO_CHECKED mo_status mo_key_values_default(mo_key_value values[MO_CONFIG_MAX_KEYS]);
void mo_key_values_free(mo_key_value values[MO_CONFIG_MAX_KEYS]);
/* Check the type and range of a setting and take it; place: of the setting, for errors. */
MO_CHECKED mo_status mo_key_take_setting(const mo_key *key, mo_key_value *value, const config_setting_t *setting,
                                         const char *place);
/* As mo_key_take_setting for a string without its quotes. */
MO_CHECKED mo_status mo_key_take_text(const mo_key *key, mo_key_value *value, const char *text, const char *place);

/* What to give for a key, e.g. "a whole number from 1 to 1048576". text: [size]. */
void mo_key_wanted(const mo_key *key, char *text, size_t size);

/* --- read.c --- */
/* Values of a config text. name: of the text in places. include_dir: of @include. */
MO_CHECKED mo_status mo_config_read_text(mo_key_value *values, const char *text, const char *name,
                                         const char *include_dir);
/* --- override.c --- */
/* Value of one override text "section.key=value". */
MO_CHECKED mo_status mo_config_read_override(mo_key_value *values, const char *override);

/* --- includes.c --- */
/* Whole text of a config file, a regular file of at most MO_CONFIG_MAX_BYTES without zero bytes. Caller frees. */
MO_CHECKED mo_status mo_config_load(char **text, const char *path);
/* For a text and all that it includes: mo_config_check_numbers, and refuse includes at which libconfig's scanner would
 * end the process (a folder), print, or never finish. */
MO_CHECKED mo_status mo_config_check_source(const char *text, const char *name, const char *include_dir);

/* --- numbers.c --- */
/* Refuse whole numbers that libconfig 1.5 would cut to 32 bits. name: place in the error; with_line: and the line. */
MO_CHECKED mo_status mo_config_check_numbers(const char *text, const char *name, bool with_line);

/* --- text.c --- */
/* libconfig text that reads back as exactly these values. Caller frees. */
MO_CHECKED mo_status mo_config_write_text(char **text, const mo_key_value *values);

#endif
