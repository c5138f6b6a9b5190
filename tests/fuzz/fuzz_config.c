/* Config text of any bytes: it is refused with an error line, or the text written back reads as the same config.
 * Includes lead to a folder that does not exist, so that no file is opened. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__lsan_default_suppressions(void);

/* libconfig 1.5 loses the strings it holds when it gives up on a syntax error. */
const char *__lsan_default_suppressions(void) { return "leak:libconfig.so\n"; }

static void parse_again(const char *text) {
  mo_config again;
  if (mo_config_parse(&again, text, "again", "/nonexistent", NULL, 0, false) != MO_OK) abort();
  if (strcmp(again.text, text) != 0) abort();
  mo_config_free(&again);
}

/* The first line is an override, if it starts with a '-'. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *text = malloc(size + 1);
  if (!text) return 0;
  memcpy(text, data, size);
  text[size] = '\0';
  char *line_end = text[0] == '-' ? strchr(text, '\n') : NULL;
  if (line_end) *line_end = '\0';
  const char *override = text + 1;

  mo_config config;
  mo_error_clear();
  mo_status status = mo_config_parse(&config, line_end ? line_end + 1 : text, "fuzz", "/nonexistent", &override,
                                     line_end != NULL, false);
  if (status == MO_OK) {
    parse_again(config.text);
    mo_config_free(&config);
  } else if (mo_error_message()[0] == '\0') {
    abort();
  }
  free(text);
  return 0;
}
