#include "pod/http_wait.h"

#include <ctype.h>
#include <curl/curl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

double pod_retry_after(const char *value, time_t now) {
  while (isblank((unsigned char)*value)) value++;
  size_t digits = strspn(value, "0123456789");
  if (digits > 0 && digits < 10 && value[digits + strspn(value + digits, " \t.0123456789")] == '\0')
    return strtod(value, NULL);
  time_t date = curl_getdate(value, NULL);
  if (date == (time_t)-1) return -1;
  return date > now ? (double)(date - now) : 0;
}

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
  double seconds = 0.25;
  while (attempt-- > 0 && seconds < 30) seconds *= 2;
  if (seconds > 30) seconds = 30;
  return seconds * (0.5 + 0.5 * (double)rand_r(random) / RAND_MAX);
}
