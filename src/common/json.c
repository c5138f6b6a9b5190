#include "common/json.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

#define REPLACEMENT 0xFFFD /* for a byte that is no part of a character */

/* The character at *at, which is not at the end; *at moves behind it, or behind one byte that is wrong. */
static uint32_t next_character(const unsigned char **at) {
  const unsigned char *c = *at;
  size_t length = mo_utf8_length(c);
  *at = c + (length ? length : 1);
  if (length == 0) return REPLACEMENT;
  if (length == 1) return *c;
  uint32_t character = *c & (0x7Fu >> length);
  for (size_t i = 1; i < length; i++) character = character << 6 | (c[i] & 0x3F);
  return character;
}

static void put_character(FILE *out, uint32_t character) {
  static const char escaped[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
  const char *place = character < 0x80 ? strchr(escaped, (int)character) : NULL;
  if (place) {
    fprintf(out, "\\%c", letters[place - escaped]);
  } else if (character >= 0x10000) {
    uint32_t rest = character - 0x10000;
    fprintf(out, "\\u%04x\\u%04x", 0xD800u | rest >> 10, 0xDC00u | (rest & 0x3FF));
  } else if (character < 0x20 || character > 0x7E) {
    fprintf(out, "\\u%04x", character);
  } else {
    fputc((int)character, out);
  }
}

void mo_json_put_text(FILE *out, const char *text) {
  fputc('"', out);
  for (const unsigned char *at = (const unsigned char *)text; *at;) put_character(out, next_character(&at));
  fputc('"', out);
}

void mo_json_put_real(FILE *out, double value) {
  if (!isfinite(value)) {
    fputs(isnan(value) ? "null" : value > 0 ? "1e999" : "-1e999", out);
    return;
  }
  char text[40];
  for (int digits = 15; digits <= 17; digits++) { /* 15 of them print what has fewer as short as it is */
    snprintf(text, sizeof text, "%.*g", digits, value);
    if (strtod(text, NULL) == value) break;
  }
  fprintf(out, "%s%s", text, strpbrk(text, ".e") ? "" : ".0");
}
