#include "pod/http_wait.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>

#include "common/patience.h"

/* The whole number behind ";NAME=" among the parameters from text to end; -1: none. */
static double parameter(const char *text, const char *end, char name) {
  for (; text + 3 < end; text++) {
    if (*text != ';') continue;
    const char *c = text + 1;
    while (c < end && isblank((unsigned char)*c)) c++;
    if (c + 2 < end && c[0] == name && c[1] == '=' && isdigit((unsigned char)c[2])) return strtod(c + 2, NULL);
  }
  return -1;
}

double pod_rate_limit(const char *value) {
  double longest = 0;
  while (*value) {
    const char *end = value, *behind_name = value;
    bool quoted = false;
    for (; *end && (quoted || *end != ','); end++) {
      quoted ^= *end == '"';
      if (quoted) behind_name = end + 1;
    }
    double left = parameter(behind_name, end, 'r'), seconds = parameter(behind_name, end, 't');
    if (left == 0 && seconds > longest) longest = seconds;
    value = *end ? end + 1 : end;
  }
  return longest;
}

double pod_backoff(int attempt, unsigned *random) {
  return mo_backoff(attempt + 1) * (0.5 + 0.5 * (double)rand_r(random) / RAND_MAX);
}
