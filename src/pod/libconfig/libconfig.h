/* The part of libconfig's interface that src/config uses, for where libconfig is not installed (moe-pod built alone).
 * It reads the documented grammar as libconfig 1.5 does: groups, arrays, lists, whole numbers (decimal, hexadecimal,
 * with L), floats, booleans, strings with escapes, adjacent strings, the three kinds of comments, @include. */
#ifndef MO_POD_LIBCONFIG_H
#define MO_POD_LIBCONFIG_H

enum { CONFIG_FALSE = 0, CONFIG_TRUE = 1 };
enum { CONFIG_FORMAT_DEFAULT = 0, CONFIG_FORMAT_HEX = 1 };
enum {
  CONFIG_TYPE_NONE,
  CONFIG_TYPE_GROUP,
  CONFIG_TYPE_INT,
  CONFIG_TYPE_INT64,
  CONFIG_TYPE_FLOAT,
  CONFIG_TYPE_STRING,
  CONFIG_TYPE_BOOL,
  CONFIG_TYPE_ARRAY,
  CONFIG_TYPE_LIST
};

typedef struct config_setting config_setting_t;

typedef struct {
  config_setting_t *root;
  char *include_dir;
  char **files; /* names of included files, to which settings and the error refer */
  int n_files;
  const char *error_text, *error_file;
  int error_line;
} config_t;

void config_init(config_t *config);
void config_destroy(config_t *config);
/* Where @include looks, NULL: in the working directory. */
void config_set_include_dir(config_t *config, const char *folder);
/* CONFIG_FALSE: the text is none; then config_error_ functions tell where and why. */
int config_read_string(config_t *config, const char *text);
const char *config_error_text(const config_t *config);
const char *config_error_file(const config_t *config); /* NULL: the text itself, not an included file */
int config_error_line(const config_t *config);

config_setting_t *config_root_setting(const config_t *config);
const char *config_setting_name(const config_setting_t *setting);
int config_setting_type(const config_setting_t *setting);
int config_setting_length(const config_setting_t *setting); /* of what has no members: 0 */
config_setting_t *config_setting_get_elem(const config_setting_t *setting, unsigned index);
/* Numbers of one kind are converted to the other, other types give 0 or NULL. */
int config_setting_get_int(const config_setting_t *setting);
long long config_setting_get_int64(const config_setting_t *setting);
double config_setting_get_float(const config_setting_t *setting);
int config_setting_get_bool(const config_setting_t *setting);
const char *config_setting_get_string(const config_setting_t *setting);
short config_setting_get_format(const config_setting_t *setting);
const char *config_setting_source_file(const config_setting_t *setting);
unsigned config_setting_source_line(const config_setting_t *setting);

#endif
