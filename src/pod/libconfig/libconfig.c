/* The language: configuration = { setting }; setting = name (= | :) value [; | ,]; value = scalar, array, list or
 * group. */
#include "libconfig.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "scanner.h"

enum { MOST_DEPTH = 1000 };

struct config_setting {
  char *name; /* NULL: of the root and of elements */
  int type;
  short format;
  long long integer;
  double real;
  char *text;
  config_setting_t **members;
  int n_members;
  const char *file;
  unsigned line;
};

typedef struct {
  config_t *config;
  scanner scanner;
  token_type token; /* the next one */
  int depth;
} parser;

static const char out_of_memory[] = "out of memory";

/* --- the tree --- */

static void free_setting(config_setting_t *setting) {
  if (!setting) return;
  for (int i = 0; i < setting->n_members; i++) free_setting(setting->members[i]);
  free(setting->members);
  free(setting->name);
  free(setting->text);
  free(setting);
}

static bool refuse(parser *p, const char *why) {
  const scanner_source *top = &p->scanner.sources[p->scanner.depth];
  if (p->config->error_text) return false; /* the first is the cause */
  p->config->error_text = why;
  p->config->error_file = top->file;
  p->config->error_line = top->line;
  return false;
}

/* A new member; name NULL: an element. NULL: out of memory. */
static config_setting_t *add_member(parser *p, config_setting_t *parent, const char *name) {
  const scanner_source *top = &p->scanner.sources[p->scanner.depth];
  int n = parent->n_members;
  if ((n & (n - 1)) == 0) { /* the room doubles */
    config_setting_t **members = realloc(parent->members, (n ? 2 * (size_t)n : 1) * sizeof *members);
    if (!members) return NULL;
    parent->members = members;
  }
  config_setting_t *setting = calloc(1, sizeof *setting);
  if (!setting) return NULL;
  if (name && !(setting->name = strdup(name))) {
    free(setting);
    return NULL;
  }
  setting->file = top->file;
  setting->line = (unsigned)top->line;
  parent->members[parent->n_members++] = setting;
  return setting;
}

static bool has_member(const config_setting_t *group, const char *name) {
  for (int i = 0; i < group->n_members; i++)
    if (strcmp(group->members[i]->name, name) == 0) return true;
  return false;
}

/* --- the grammar --- */

static bool next(parser *p) {
  p->token = scanner_next(&p->scanner);
  return p->token != TOKEN_ERROR || refuse(p, p->scanner.error);
}

static bool syntax_error(parser *p) { return refuse(p, "syntax error"); }

static bool parse_settings(parser *p, config_setting_t *group);
static bool parse_value(parser *p, config_setting_t *setting, const config_setting_t *array);

/* One or several strings, which are joined. */
static bool parse_strings(parser *p, config_setting_t *setting) {
  size_t n = 0;
  while (p->token == TOKEN_STRING) {
    char *text = realloc(setting->text, n + p->scanner.n_text + 1);
    if (!text) return refuse(p, out_of_memory);
    memcpy(text + n, p->scanner.text, p->scanner.n_text + 1);
    n += p->scanner.n_text;
    setting->text = text;
    if (!next(p)) return false;
  }
  return true;
}

/* Elements up to the closing token, which is the next one then. */
static bool parse_elements(parser *p, config_setting_t *setting, token_type close) {
  if (p->token == close) return true;
  for (;;) {
    config_setting_t *element = add_member(p, setting, NULL);
    if (!element) return refuse(p, out_of_memory);
    if (!parse_value(p, element, setting->type == CONFIG_TYPE_ARRAY ? setting : NULL)) return false;
    if (p->token != TOKEN_COMMA) return true;
    if (!next(p)) return false;
  }
}

static bool parse_aggregate(parser *p, config_setting_t *setting, int type, token_type close) {
  setting->type = type;
  if (++p->depth > MOST_DEPTH) return refuse(p, "memory exhausted");
  if (!next(p)) return false;
  if (!(type == CONFIG_TYPE_GROUP ? parse_settings(p, setting) : parse_elements(p, setting, close))) return false;
  p->depth--;
  return p->token == close ? next(p) : syntax_error(p);
}

static bool parse_scalar(parser *p, config_setting_t *setting, const config_setting_t *array) {
  static const int types[] = {[TOKEN_BOOL] = CONFIG_TYPE_BOOL,
                              [TOKEN_INT] = CONFIG_TYPE_INT,
                              [TOKEN_INT64] = CONFIG_TYPE_INT64,
                              [TOKEN_FLOAT] = CONFIG_TYPE_FLOAT,
                              [TOKEN_STRING] = CONFIG_TYPE_STRING};
  bool whole = p->token == TOKEN_INT || p->token == TOKEN_INT64;
  setting->type = types[p->token];
  setting->integer = p->scanner.integer;
  setting->real = p->scanner.real;
  if (whole && p->scanner.hex) setting->format = CONFIG_FORMAT_HEX;
  bool strings = p->token == TOKEN_STRING; /* their end shows by the token behind them */
  if (strings && !parse_strings(p, setting)) return false;
  if (array && setting->type != array->members[0]->type) return refuse(p, "mismatched element type in array");
  return strings || next(p);
}

/* array: the setting is an element of it, NULL: it is none of an array's. */
static bool parse_value(parser *p, config_setting_t *setting, const config_setting_t *array) {
  switch (p->token) {
    case TOKEN_OPEN_GROUP:
      return array ? syntax_error(p) : parse_aggregate(p, setting, CONFIG_TYPE_GROUP, TOKEN_CLOSE_GROUP);
    case TOKEN_OPEN_ARRAY:
      return array ? syntax_error(p) : parse_aggregate(p, setting, CONFIG_TYPE_ARRAY, TOKEN_CLOSE_ARRAY);
    case TOKEN_OPEN_LIST:
      return array ? syntax_error(p) : parse_aggregate(p, setting, CONFIG_TYPE_LIST, TOKEN_CLOSE_LIST);
    case TOKEN_BOOL:
    case TOKEN_INT:
    case TOKEN_INT64:
    case TOKEN_FLOAT:
    case TOKEN_STRING:
      return parse_scalar(p, setting, array);
    default:
      return syntax_error(p);
  }
}

static bool parse_settings(parser *p, config_setting_t *group) {
  while (p->token == TOKEN_NAME) {
    if (has_member(group, p->scanner.text)) return refuse(p, "duplicate setting name");
    config_setting_t *setting = add_member(p, group, p->scanner.text);
    if (!setting) return refuse(p, out_of_memory);
    if (!next(p)) return false;
    if (p->token != TOKEN_EQUALS) return syntax_error(p);
    if (!next(p) || !parse_value(p, setting, NULL)) return false;
    if ((p->token == TOKEN_SEMICOLON || p->token == TOKEN_COMMA) && !next(p)) return false;
  }
  return true;
}

/* --- the interface --- */

void config_init(config_t *config) { *config = (config_t){.root = calloc(1, sizeof(config_setting_t))}; }

void config_destroy(config_t *config) {
  free_setting(config->root);
  for (int i = 0; i < config->n_files; i++) free(config->files[i]);
  free(config->files);
  free(config->include_dir);
  *config = (config_t){0};
}

void config_set_include_dir(config_t *config, const char *folder) {
  free(config->include_dir);
  config->include_dir = folder ? strdup(folder) : NULL;
}

static const char *keep_name(void *context, char *name) {
  config_t *config = context;
  char **files = realloc(config->files, (size_t)(config->n_files + 1) * sizeof *files);
  if (!files) {
    free(name);
    return NULL;
  }
  config->files = files;
  return config->files[config->n_files++] = name;
}

int config_read_string(config_t *config, const char *text) {
  parser p = {.config = config};
  p.scanner = (scanner){.include_dir = config->include_dir, .keep_name = keep_name, .context = config};
  p.scanner.sources[0] = (scanner_source){.begin = text, .at = text, .line = 1};
  config->error_text = config->error_file = NULL;
  config->error_line = 0;
  if (!config->root) {
    config->error_text = out_of_memory;
    return CONFIG_FALSE;
  }
  config->root->type = CONFIG_TYPE_GROUP;
  bool good = next(&p) && parse_settings(&p, config->root) && (p.token == TOKEN_END || syntax_error(&p));
  scanner_close(&p.scanner);
  return good ? CONFIG_TRUE : CONFIG_FALSE;
}

const char *config_error_text(const config_t *config) { return config->error_text; }
const char *config_error_file(const config_t *config) { return config->error_file; }
int config_error_line(const config_t *config) { return config->error_line; }

config_setting_t *config_root_setting(const config_t *config) { return config->root; }
const char *config_setting_name(const config_setting_t *setting) { return setting->name; }
int config_setting_type(const config_setting_t *setting) { return setting->type; }
int config_setting_length(const config_setting_t *setting) { return setting->n_members; }

config_setting_t *config_setting_get_elem(const config_setting_t *setting, unsigned index) {
  return index < (unsigned)setting->n_members ? setting->members[index] : NULL;
}

static bool is_whole(const config_setting_t *setting) {
  return setting->type == CONFIG_TYPE_INT || setting->type == CONFIG_TYPE_INT64;
}

int config_setting_get_int(const config_setting_t *setting) {
  return setting->type == CONFIG_TYPE_INT ? (int)setting->integer : 0;
}

long long config_setting_get_int64(const config_setting_t *setting) { return is_whole(setting) ? setting->integer : 0; }

double config_setting_get_float(const config_setting_t *setting) {
  return setting->type == CONFIG_TYPE_FLOAT ? setting->real : 0;
}

int config_setting_get_bool(const config_setting_t *setting) {
  return setting->type == CONFIG_TYPE_BOOL ? (int)setting->integer : 0;
}

const char *config_setting_get_string(const config_setting_t *setting) {
  if (setting->type != CONFIG_TYPE_STRING) return NULL;
  return setting->text ? setting->text : "";
}

short config_setting_get_format(const config_setting_t *setting) { return setting->format; }
const char *config_setting_source_file(const config_setting_t *setting) { return setting->file; }
unsigned config_setting_source_line(const config_setting_t *setting) { return setting->line; }
