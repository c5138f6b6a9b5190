/* libconfig 1.5 reads whole numbers without an L at their end through a 32-bit int and drops the upper bits: 4294967297
 * becomes 1 without a word, and nothing in its tree tells. So the text itself is searched for such numbers first. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "config_internal.h"

/* End of the comment or string that begins at c, or c. */
static const char *skip_quiet(const char *c) {
  if (*c == '"') {
    for (c++; *c && *c != '"'; c++)
      if (*c == '\\' && c[1]) c++;
    return *c ? c + 1 : c;
  }
  if (*c == '#' || (*c == '/' && c[1] == '/')) return c + strcspn(c, "\n");
  if (*c == '/' && c[1] == '*') {
    const char *end = strstr(c + 2, "*/");
    return end ? end + 2 : c + strlen(c);
  }
  return c;
}

static size_t digits(const char *c) { return strspn(c, "0123456789"); }

/* Length of the exponent at c, 0 if there is none. */
static size_t exponent(const char *c) {
  if (*c != 'e' && *c != 'E') return 0;
  size_t sign = c[1] == '-' || c[1] == '+';
  size_t n = digits(c + 1 + sign);
  return n ? 1 + sign + n : 0;
}

/* Is a whole number of these n digits beyond 32 bits? */
static bool is_large(const char *c, size_t n) {
  while (n > 1 && *c == '0') {
    c++;
    n--;
  }
  return n > 10 || (n == 10 && strncmp(c, "2147483647", 10) > 0);
}

/* End of the number that begins at c with a digit. *large: it is whole, beyond 32 bits, and has no L. */
static const char *skip_number(const char *c, bool *large) {
  size_t n = digits(c);
  const char *end = c + n;
  *large = false;
  if (*end == '.') {
    end += 1 + digits(end + 1);
    return end + exponent(end);
  }
  if (exponent(end)) return end + exponent(end);
  if (n == 1 && *c == '0' && (*end == 'x' || *end == 'X')) return end + 1 + strspn(end + 1, "0123456789abcdefABCDEF");
  *large = *end != 'L' && is_large(c, n);
  return end;
}

static const char *next_token(const char *c, bool *large) {
  const char *end = skip_quiet(c);
  if (end != c) return end;
  if (isdigit((unsigned char)*c)) return skip_number(c, large);
  if (*c == '.') return c + 1 + digits(c + 1); /* a fraction without a whole part */
  if (isalpha((unsigned char)*c) || *c == '*')
    while (isalnum((unsigned char)*c) || *c == '*' || *c == '-' || *c == '_') c++;
  else
    c++;
  return c;
}

static int line_of(const char *text, const char *at) {
  int line = 1;
  for (; text < at; text++) line += *text == '\n';
  return line;
}

mo_status mo_config_check_numbers(const char *text, const char *name, bool with_line) {
  for (const char *c = text; *c;) {
    bool large = false;
    const char *end = next_token(c, &large);
    if (large) {
      char line[16] = "";
      int n = (int)(end - c > 40 ? 40 : end - c);
      if (with_line) snprintf(line, sizeof line, ":%d", line_of(text, c));
      return MO_FAIL(MO_INVALID, "whole number beyond 2147483647 without an L at its end (%s%s): write %.*sL", name,
                     line, n, c);
    }
    c = end;
  }
  return MO_OK;
}
