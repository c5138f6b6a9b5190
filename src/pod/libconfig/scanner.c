#include "scanner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static scanner_source *source(scanner *s) { return &s->sources[s->depth]; }

/* One character onwards. */
static void advance(scanner *s) {
  scanner_source *top = source(s);
  top->line += *top->at == '\n';
  top->at++;
}

static void advance_by(scanner *s, size_t n) {
  while (n-- > 0) advance(s);
}

/* At the end of an included file: back to the one that includes it. False at the end of all. */
static bool leave(scanner *s) {
  if (s->depth == 0) return false;
  free(source(s)->owned);
  s->depth--;
  return true;
}

static token_type give_up(scanner *s, const char *why) {
  s->error = why;
  return TOKEN_ERROR;
}

static bool put(scanner *s, char c) {
  if (s->n_text + 1 >= s->room) {
    size_t room = s->room ? 2 * s->room : 64;
    char *text = realloc(s->text, room);
    if (!text) return false;
    s->text = text;
    s->room = room;
  }
  s->text[s->n_text++] = c;
  s->text[s->n_text] = '\0';
  return true;
}

/* An empty one. */
static bool begin_text(scanner *s) {
  s->n_text = 0;
  if (!put(s, '\0')) return false;
  s->n_text = 0;
  return true;
}

/* --- what is skipped --- */

static bool skip_line(scanner *s) {
  size_t n = strcspn(source(s)->at, "\n");
  if (!source(s)->at[n]) return false; /* a comment is ended by its line's end, not by that of the text */
  advance_by(s, n);
  return true;
}

static void skip_comment(scanner *s) {
  advance_by(s, 2);
  for (;;) {
    const char *at = source(s)->at;
    if (!*at && !leave(s)) return;
    if (*at == '*' && at[1] == '/') {
      advance_by(s, 2);
      return;
    }
    if (*at) advance(s);
  }
}

/* --- strings --- */

static int hex_digit(char c) {
  const char *digits = "0123456789abcdef", *found = c ? strchr(digits, c | 0x20) : NULL;
  return c >= '0' && found ? (int)(found - digits) : -1;
}

/* The character that the escape at `at` stands for; *n: its length. A backslash before anything else stands for
 * itself. */
static char escape(const char *at, size_t *n) {
  static const char letters[] = "nrtf\\\"", characters[] = "\n\r\t\f\\\"";
  const char *found = at[1] ? strchr(letters, at[1]) : NULL;
  *n = 2;
  if (found) return characters[found - letters];
  if ((at[1] == 'x' || at[1] == 'X') && hex_digit(at[2]) >= 0 && hex_digit(at[3]) >= 0) {
    *n = 4;
    return (char)(16 * hex_digit(at[2]) + hex_digit(at[3]));
  }
  *n = 1;
  return '\\';
}

/* From behind the opening quote to behind the closing one. A character zero is left out. */
static token_type scan_string(scanner *s) {
  if (!begin_text(s)) return give_up(s, "out of memory");
  for (;;) {
    const char *at = source(s)->at;
    size_t n = 1;
    char c = *at;
    if (!c && !leave(s)) return TOKEN_END;
    if (!c) continue;
    if (c == '\\') c = escape(at, &n);
    if (*at == '"') {
      advance(s);
      return TOKEN_STRING;
    }
    if (c && !put(s, c)) return give_up(s, "out of memory");
    advance_by(s, n);
  }
}

/* --- include --- */

static char *read_file(const char *path) {
  FILE *file = fopen(path, "re");
  char *text = NULL;
  size_t n = 0, room = 0, got = 1;
  while (file && got > 0) {
    if (n + 1 >= room) {
      room = room ? 2 * room : 4096;
      char *longer = realloc(text, room);
      if (!longer) break;
      text = longer;
    }
    got = fread(text + n, 1, room - n - 1, file);
    n += got;
    text[n] = '\0';
  }
  bool good = file && got == 0 && !ferror(file);
  if (file) fclose(file);
  if (!good) free(text);
  return good ? text : NULL;
}

/* Opens the file that s->text names. */
static token_type include(scanner *s) {
  size_t size = (s->include_dir ? strlen(s->include_dir) : 0) + s->n_text + 2;
  if (s->depth == SCANNER_MOST_INCLUDES) return give_up(s, "include file nesting too deep");
  char *path = malloc(size);
  if (!path) return give_up(s, "out of memory");
  snprintf(path, size, "%s%s%s", s->include_dir ? s->include_dir : "", s->include_dir ? "/" : "", s->text);
  char *text = read_file(path), *written = strdup(s->text);
  const char *name = written ? s->keep_name(s->context, written) : NULL;
  free(path);
  if (!text || !name) {
    free(text);
    return give_up(s, text ? "out of memory" : "cannot open include file");
  }
  s->sources[++s->depth] = (scanner_source){.owned = text, .begin = text, .at = text, .file = name, .line = 1};
  return TOKEN_STRING;
}

/* Length of `@include "` at the beginning of a line, 0: it is none. */
static size_t include_opening(const scanner_source *top) {
  if (top->at > top->begin && top->at[-1] != '\n') return 0;
  size_t n = strspn(top->at, " \t");
  if (strncmp(top->at + n, "@include", 8) != 0) return 0;
  n += 8;
  size_t blanks = strspn(top->at + n, " \t");
  return blanks > 0 && top->at[n + blanks] == '"' ? n + blanks + 1 : 0;
}

/* The path has no escapes but those of the backslash and the quote; a backslash before anything else is left out. */
static token_type scan_include(scanner *s, size_t opening) {
  advance_by(s, opening);
  if (!begin_text(s)) return give_up(s, "out of memory");
  for (;;) {
    const char *at = source(s)->at;
    bool escaped = *at == '\\' && (at[1] == '\\' || at[1] == '"');
    if (!*at && !leave(s)) return TOKEN_END;
    if (!*at) continue;
    if (escaped) advance(s);
    char c = *source(s)->at;
    advance(s);
    if (c == '"' && !escaped) return include(s);
    if ((c != '\\' || escaped) && !put(s, c)) return give_up(s, "out of memory");
  }
}

/* --- words and numbers --- */

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '*'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static token_type scan_word(scanner *s) {
  const char *at = source(s)->at;
  size_t n = 0;
  if (!begin_text(s)) return give_up(s, "out of memory");
  while (is_letter(at[n]) || is_digit(at[n]) || at[n] == '-' || at[n] == '_')
    if (!put(s, at[n++])) return give_up(s, "out of memory");
  advance_by(s, n);
  s->integer = strcasecmp(s->text, "true") == 0;
  return s->integer || strcasecmp(s->text, "false") == 0 ? TOKEN_BOOL : TOKEN_NAME;
}

static size_t digits(const char *at) { return strspn(at, "0123456789"); }

static size_t exponent(const char *at) {
  if (*at != 'e' && *at != 'E') return 0;
  size_t sign = at[1] == '-' || at[1] == '+', n = digits(at + 1 + sign);
  return n ? 1 + sign + n : 0;
}

/* Length of the float at `at`, 0 if there is none: with a point, or with an exponent. */
static size_t float_length(const char *at) {
  size_t n = *at == '-' || *at == '+', whole = digits(at + n);
  n += whole;
  if (at[n] == '.') {
    n += 1 + digits(at + n + 1);
    return n + exponent(at + n);
  }
  size_t power = exponent(at + n);
  return whole && power ? n + power : 0;
}

/* Length of the whole number at `at`, 0 if there is none, with its L. */
static size_t integer_length(const char *at, bool *hex, bool *large) {
  size_t n = 0;
  *large = false;
  *hex = at[0] == '0' && (at[1] == 'x' || at[1] == 'X') && hex_digit(at[2]) >= 0;
  if (*hex)
    for (n = 2; hex_digit(at[n]) >= 0;) n++;
  else if (n = *at == '-' || *at == '+', digits(at + n))
    n += digits(at + n);
  else
    return 0;
  *large = at[n] == 'L';
  return n + *large + (*large && at[n + 1] == 'L');
}

static token_type scan_number(scanner *s) {
  const char *at = source(s)->at;
  bool large;
  size_t whole = integer_length(at, &s->hex, &large), real = float_length(at);
  if (!whole && !real) {
    advance(s);
    return TOKEN_GARBAGE;
  }
  if (real > whole) {
    s->real = strtod(at, NULL);
    advance_by(s, real);
    return TOKEN_FLOAT;
  }
  s->integer = s->hex ? (long long)strtoull(at, NULL, 16) : strtoll(at, NULL, 10);
  if (!large) s->integer = (int)s->integer;
  advance_by(s, whole);
  return large ? TOKEN_INT64 : TOKEN_INT;
}

/* --- tokens --- */

static token_type scan_sign(scanner *s) {
  static const char signs[] = "=:,;{}[]()";
  static const token_type types[] = {TOKEN_EQUALS,     TOKEN_EQUALS,      TOKEN_COMMA,      TOKEN_SEMICOLON,
                                     TOKEN_OPEN_GROUP, TOKEN_CLOSE_GROUP, TOKEN_OPEN_ARRAY, TOKEN_CLOSE_ARRAY,
                                     TOKEN_OPEN_LIST,  TOKEN_CLOSE_LIST};
  const char *found = strchr(signs, *source(s)->at);
  if (!found) return scan_number(s);
  advance(s);
  return types[found - signs];
}

token_type scanner_next(scanner *s) {
  for (;;) {
    const scanner_source *top = source(s);
    const char *at = top->at;
    size_t opening = include_opening(top);
    if (!*at) {
      if (!leave(s)) return TOKEN_END;
    } else if (opening) {
      token_type type = scan_include(s, opening);
      if (type != TOKEN_STRING) return type;
    } else if (strchr(" \t\n\r\f", *at)) {
      advance(s);
    } else if (*at == '#' || (*at == '/' && at[1] == '/')) {
      if (!skip_line(s)) return TOKEN_GARBAGE;
    } else if (*at == '/' && at[1] == '*') {
      skip_comment(s);
    } else if (*at == '"') {
      advance(s);
      return scan_string(s);
    } else {
      return is_letter(*at) ? scan_word(s) : scan_sign(s);
    }
  }
}

void scanner_close(scanner *s) {
  while (leave(s)) continue;
  free(s->text);
  s->text = NULL;
}
