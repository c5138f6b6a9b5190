/* The config as run, as libconfig text. Not written by libconfig: its 15 digits lose the last bits of a number. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config_internal.h"

/* Shortest decimal text that reads back as exactly this number, with the point or exponent that makes it a float. */
static void print_float(FILE *out, double number) {
  char text[40];
  for (int digits = 1; digits <= 17; digits++) {
    snprintf(text, sizeof text, "%.*g", digits, number);
    if (strtod(text, NULL) == number) break;
  }
  fprintf(out, "%s%s", text, strpbrk(text, ".e") ? "" : ".0");
}

static void print_string(FILE *out, const char *text) {
  fputc('"', out);
  for (; *text; text++) {
    if (*text == '"' || *text == '\\') fputc('\\', out);
    fputc(*text, out);
  }
  fputc('"', out);
}

static void print_layers(FILE *out, const mo_key_value *value) {
  if (value->integer) {
    fputs("\"all\"", out);
    return;
  }
  fputs("(", out);
  for (int64_t i = 0; i < value->n_layers; i++) fprintf(out, "%s%" PRId64, i ? ", " : " ", value->layers[i]);
  fputs(" )", out);
}

static void print_numbers(FILE *out, const mo_key_value *value) {
  fputs("(", out);
  for (int64_t i = 0; i < value->n_numbers; i++) {
    fputs(i ? ", " : " ", out);
    print_float(out, value->numbers[i]);
  }
  fputs(" )", out);
}

static void print_value(FILE *out, const mo_key *key, const mo_key_value *value) {
  switch (key->type) {
    case MO_KEY_INT:
      fprintf(out, value->integer > INT32_MAX ? "%" PRId64 "L" : "%" PRId64, value->integer);
      break;
    case MO_KEY_FLOAT:
      print_float(out, value->real);
      break;
    case MO_KEY_BOOL:
      fputs(value->integer ? "true" : "false", out);
      break;
    case MO_KEY_STRING:
      print_string(out, value->text);
      break;
    case MO_KEY_CHOICE:
      print_string(out, key->choices[value->integer]);
      break;
    case MO_KEY_LAYERS:
      print_layers(out, value);
      break;
    case MO_KEY_NUMBERS:
      print_numbers(out, value);
      break;
  }
}

/* Keys that nobody gave appear with their default, where they have one. */
static bool has_value(const mo_key *key, const mo_key_value *value) {
  if (key->flags & MO_KEY_FOR_POD) return value->given;
  return key->type != MO_KEY_STRING || value->text != NULL;
}

mo_status mo_config_write_text(char **text, const mo_key_value *values) {
  size_t size = 0;
  *text = NULL;
  FILE *out = open_memstream(text, &size);
  if (!out) return MO_FAIL(MO_FAILED, "out of memory (config text): free some memory");
  const char *section = "";
  for (int i = 0; i < mo_n_keys; i++) {
    const mo_key *key = &mo_keys[i];
    if (!has_value(key, &values[i])) continue;
    if (strcmp(section, key->section) != 0) {
      fprintf(out, "%s%s:\n{\n", section[0] ? "};\n" : "", key->section);
      section = key->section;
    }
    fprintf(out, "  %s = ", key->name);
    print_value(out, key, &values[i]);
    fputs(";\n", out);
  }
  fputs("};\n", out);
  if (fclose(out) == 0) return MO_OK;
  free(*text);
  *text = NULL;
  return MO_FAIL(MO_FAILED, "out of memory (config text): free some memory");
}
