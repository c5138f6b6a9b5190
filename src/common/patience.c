#include "common/patience.h"

#include <ctype.h>
#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

double mo_retry_after(const char *value, time_t now) {
  while (isblank((unsigned char)*value)) value++;
  size_t digits = strspn(value, "0123456789");
  if (digits > 0 && digits < 10 && value[digits + strspn(value + digits, " \t.0123456789")] == '\0')
    return strtod(value, NULL);
  time_t date = curl_getdate(value, NULL);
  if (date == (time_t)-1) return -1;
  return date > now ? (double)(date - now) : 0;
}

double mo_backoff(int failures) {
  double seconds = 0.25;
  while (--failures > 0 && seconds < 30) seconds *= 2;
  return seconds < 30 ? seconds : 30;
}
