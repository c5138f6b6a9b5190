/* JSON over HTTPS with bounded patience. The key is sent in the Authorization header of requests to the API's own host,
 * and nowhere else: redirects are not followed, proxies are not shown it. */
#include <curl/curl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/patience.h"
#include "moe_outliers/build_info.h"
#include "moe_outliers/clock.h"
#include "pod/http_wait.h"
#include "pod/pod.h"

enum { MOST_ANSWER = 16 << 20, MOST_TEXT = 1 << 20, GARBAGE_ATTEMPTS = 4 };

struct pod_http {
  const pod_settings *settings;
  CURL *curl;
  struct curl_slist *headers, *with_body;
  const volatile bool *stop;
  double patience, timeout;
  double not_before; /* mo_seconds from which the rate limit lets us ask again */
  unsigned random;
  char error[CURL_ERROR_SIZE];
};

/* What one attempt brought. */
typedef struct {
  pod_http *http;
  CURLcode code;
  long status;
  char *text;
  size_t n, most;
  bool too_long, refused;         /* refused: something that another attempt does not mend */
  double retry_after, rate_limit; /* -1, 0: not said */
  double until;                   /* a stream is left then; 0: read to its end */
  int garbage;                    /* answers without JSON so far */
  bool is_get;                    /* Ctrl-C ends it, and it must bring JSON */
  bool cut;                       /* Ctrl-C has ended it after it was sent */
} attempt;

/* --- libcurl's callbacks --- */

static size_t take_body(char *data, size_t size, size_t n, void *context) {
  attempt *a = context;
  (void)size; /* always 1 */
  if (a->n + n > a->most) {
    a->too_long = true;
    return 0;
  }
  char *grown = realloc(a->text, a->n + n + 1);
  if (!grown) return 0;
  a->text = grown;
  memcpy(a->text + a->n, data, n);
  a->n += n;
  a->text[a->n] = '\0';
  return n;
}

static size_t take_header(char *data, size_t size, size_t n, void *context) {
  static const char retry[] = "retry-after:", limit[] = "ratelimit:";
  attempt *a = context;
  char value[512];
  (void)size;
  const char *colon = memchr(data, ':', n);
  if (!colon) return n;
  size_t length = n - (size_t)(colon + 1 - data);
  if (length >= sizeof value) return n;
  memcpy(value, colon + 1, length);
  value[length] = '\0';
  value[strcspn(value, "\r\n")] = '\0';
  if (strncasecmp(data, retry, sizeof retry - 1) == 0) a->retry_after = mo_retry_after(value, time(NULL));
  if (strncasecmp(data, limit, sizeof limit - 1) == 0) a->rate_limit = pod_rate_limit(value);
  return n;
}

static int look_up(void *context, curl_off_t down, curl_off_t all_down, curl_off_t up, curl_off_t all_up) {
  const attempt *a = context;
  (void)down, (void)all_down, (void)up, (void)all_up;
  if (a->until > 0 && mo_seconds() >= a->until) return 1;
  return a->is_get && a->http->stop && *a->http->stop;
}

/* --- open and close --- */

static void start_curl(void) { (void)curl_global_init(CURL_GLOBAL_DEFAULT); }

static mo_status add_header(struct curl_slist **list, const char *text) {
  struct curl_slist *longer = curl_slist_append(*list, text);
  if (!longer) return MO_FAIL(MO_FAILED, "out of memory (HTTP headers): free some memory");
  *list = longer;
  return MO_OK;
}

static mo_status make_headers(pod_http *http) {
  char key[POD_MOST_SECRET + 40];
  snprintf(key, sizeof key, "Authorization: Bearer %s", http->settings->api_key);
  struct curl_slist **lists[] = {&http->headers, &http->with_body};
  for (int i = 0; i < 2; i++) {
    MO_TRY(add_header(lists[i], key));
    MO_TRY(add_header(lists[i], "Accept: application/json, application/problem+json, text/event-stream"));
    MO_TRY(add_header(lists[i], "User-Agent: moe-pod/" MO_VERSION));
    MO_TRY(add_header(lists[i], "Expect:"));
  }
  explicit_bzero(key, sizeof key);
  return add_header(&http->with_body, "Content-Type: application/json");
}

mo_status pod_http_open(pod_http **http, const pod_settings *settings) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  *http = NULL;
  if (!settings->api_key)
    return MO_FAIL(MO_INVALID, "no API key (RUNPOD_API_KEY): set it in the environment or in .env, see .env.example");
  pthread_once(&once, start_curl);
  pod_http *made = mo_alloc(1, sizeof *made);
  if (!made) return MO_FAILED;
  *made = (pod_http){.settings = settings,
                     .curl = curl_easy_init(),
                     .patience = pod_seconds_of(POD_PATIENCE),
                     .timeout = pod_seconds_of(POD_TIMEOUT),
                     .random = (unsigned)time(NULL) ^ (unsigned)getpid() << 8 ^ (unsigned)(uintptr_t)made};
  mo_status status =
      made->curl ? make_headers(made) : MO_FAIL(MO_FAILED, "libcurl cannot start (HTTP): install it anew");
  if (status == MO_OK)
    *http = made;
  else
    pod_http_close(made);
  return status;
}

static void free_headers(struct curl_slist *list) {
  for (struct curl_slist *header = list; header; header = header->next)
    explicit_bzero(header->data, strlen(header->data));
  curl_slist_free_all(list);
}

void pod_http_close(pod_http *http) {
  if (!http) return;
  if (http->curl) curl_easy_cleanup(http->curl);
  free_headers(http->headers);
  free_headers(http->with_body);
  free(http);
}

void pod_http_heed(pod_http *http, const volatile bool *stop) { http->stop = stop; }

void pod_answer_free(pod_answer *answer) {
  json_decref(answer->body);
  *answer = (pod_answer){0};
}

/* --- one attempt --- */

static void set_up(attempt *a, const char *method, const char *url, const char *body, double seconds) {
  pod_http *http = a->http;
  CURL *curl = http->curl;
  bool plain = strncmp(url, "http:", 5) == 0;
  curl_easy_reset(curl);
  http->error[0] = '\0';
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, http->error);
  curl_easy_setopt(curl, CURLOPT_URL, url);
  curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, body ? http->with_body : http->headers);
  curl_easy_setopt(curl, CURLOPT_HEADEROPT, (long)CURLHEADER_SEPARATE);
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L);
  curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 2L);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  if (plain) curl_easy_setopt(curl, CURLOPT_PROXY, ""); /* this machine itself */
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)(1000 * fmin(seconds, 15)));
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(1000 * seconds));
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, a);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, take_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, a);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, look_up);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, a);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  if (!body) return;
  curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
  curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)strlen(body));
}

/* What another attempt would not mend. */
static bool is_final(CURLcode code) {
  switch (code) {
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_NOT_BUILT_IN:
    case CURLE_OUT_OF_MEMORY:
    case CURLE_WRITE_ERROR:
      return true;
    default:
      return false;
  }
}

/* fresh: on a connection of its own, as libcurl by itself sends a request again that an old connection has lost. */
static void make_attempt(attempt *a, const char *method, const char *url, const char *body, double seconds,
                         bool fresh) {
  pod_http *http = a->http;
  free(a->text);
  a->text = NULL;
  a->n = 0;
  a->status = 0;
  a->retry_after = -1;
  a->rate_limit = 0;
  set_up(a, method, url, body, seconds);
  if (fresh) curl_easy_setopt(http->curl, CURLOPT_FRESH_CONNECT, 1L);
  a->code = curl_easy_perform(http->curl);
  curl_easy_getinfo(http->curl, CURLINFO_RESPONSE_CODE, &a->status);
  if (a->code != CURLE_OK && !(a->until > 0)) a->status = 0; /* an answer that did not come whole is none */
  a->refused = a->status == 0 && is_final(a->code);
  if (a->rate_limit > 0) http->not_before = mo_seconds() + a->rate_limit;
}

static bool was_sent(const attempt *a) {
  long bytes = 0;
  curl_easy_getinfo(a->http->curl, CURLINFO_REQUEST_SIZE, &bytes);
  return bytes > 0;
}

/* --- what it says --- */

/* Adds text to what is there, behind `before`, without control characters. */
static void add_detail(char *detail, size_t size, const char *before, const char *text) {
  size_t used = strlen(detail);
  if (!text || !*text) return;
  snprintf(detail + used, size - used, "%s%s", used ? before : "", text);
  for (char *c = detail; *c; c++)
    if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = ' ';
}

/* Title and detail of an RFC 9457 object, and its list of errors. */
static void describe_problem(const json_t *body, char *detail, size_t size) {
  const char *title = json_string_value(json_object_get(body, "title"));
  const char *text = json_string_value(json_object_get(body, "detail"));
  json_t *errors = json_object_get(body, "errors"), *error;
  size_t i;
  add_detail(detail, size, "", title);
  add_detail(detail, size, ": ", text);
  json_array_foreach(errors, i, error) add_detail(detail, size, i ? ", " : ": ", json_string_value(error));
}

static void fill_answer(const attempt *a, pod_answer *answer) {
  const pod_http *http = a->http;
  answer->status = a->status;
  if (a->status == 0) {
    const char *why = http->error[0] ? http->error : curl_easy_strerror(a->code);
    if (a->too_long) why = "the answer is longer than 16 MiB";
    add_detail(answer->detail, sizeof answer->detail, "", why);
    return;
  }
  json_error_t error;
  if (a->n > 0) answer->body = json_loadb(a->text, a->n, JSON_REJECT_DUPLICATES, &error);
  if (a->status < 300) return;
  if (json_is_object(answer->body)) describe_problem(answer->body, answer->detail, sizeof answer->detail);
  if (!answer->detail[0] && a->n > 0) {
    char begin[200];
    snprintf(begin, sizeof begin, "%s", a->text);
    add_detail(answer->detail, sizeof answer->detail, "", begin);
  }
  if (!answer->detail[0]) snprintf(answer->detail, sizeof answer->detail, "no reason given");
  pod_redact(http->settings, answer->detail);
}

/* --- attempts --- */

static bool is_stopped(const pod_http *http) { return http->stop && *http->stop; }

static mo_status stopped(void) {
  return MO_FAIL(MO_STOPPED, "interrupted (waiting for RunPod's API): give the command again");
}

static mo_status wait_for(const pod_http *http, double seconds) {
  for (double end = mo_seconds() + seconds, left; (left = end - mo_seconds()) > 0;) {
    if (is_stopped(http)) return stopped();
    struct timespec pause = {.tv_nsec = (long)(1e9 * fmin(left, 0.1))};
    (void)nanosleep(&pause, NULL);
  }
  return MO_OK;
}

/* An answer to GET that is no JSON comes from something between us and the API, maybe in passing. */
static bool is_garbage(const attempt *a) {
  if (!a->is_get || a->status != 200) return false;
  json_t *body = a->n > 0 ? json_loadb(a->text, a->n, JSON_REJECT_DUPLICATES, NULL) : NULL;
  json_decref(body);
  return !body;
}

/* Seconds until the next attempt, `number` having been made before this one; -1: none is to be made. */
static double next_attempt(pod_http *http, attempt *a, bool once, int number) {
  bool busy = a->status == 429, broken = a->status >= 500 || a->status == 408;
  if (is_garbage(a)) return ++a->garbage < GARBAGE_ATTEMPTS ? pod_backoff(number, &http->random) : -1;
  if (a->refused || (a->status > 0 && !busy && !broken)) return -1;
  if (once && !busy && (broken || was_sent(a))) return -1;
  double own = pod_backoff(number, &http->random);
  if (a->retry_after >= 0) return fmax(a->retry_after, 0.1 * own);
  if (busy && a->rate_limit > 0) return a->rate_limit;
  return own;
}

static mo_status no_answer(const pod_http *http, const char *method, const char *path, const pod_answer *answer,
                           bool refused, int attempts) {
  const char *remedy = "check the network and try again (MOE_POD_PATIENCE says how long it is tried)";
  if (refused) remedy = "check MOE_POD_API, proxies and certificates";
  return MO_FAIL(MO_FAILED, "RunPod's API gives no answer after %d attempt%s: %s (%s %s%s): %s", attempts,
                 mo_plural(attempts), answer->detail, method, http->settings->api, path, remedy);
}

/* Attempts until one counts. */
static mo_status attempts(attempt *a, const char *method, const char *url, const char *body, bool once, int *n) {
  pod_http *http = a->http;
  double deadline = mo_seconds() + http->patience;
  double limited = http->not_before - mo_seconds();
  if (limited > 0 && limited < http->patience) MO_TRY(wait_for(http, limited));
  for (;;) {
    double left = deadline - mo_seconds();
    if (is_stopped(http) && a->is_get) return stopped();
    make_attempt(a, method, url, body, fmin(http->timeout, fmax(left, 1)), once);
    a->cut = a->code == CURLE_ABORTED_BY_CALLBACK && was_sent(a);
    if (a->code == CURLE_ABORTED_BY_CALLBACK && is_stopped(http)) return stopped();
    double wait = next_attempt(http, a, once, (*n)++);
    if (wait < 0 || mo_seconds() + wait > deadline) return MO_OK;
    MO_TRY(wait_for(http, wait));
  }
}

mo_status pod_http_call(pod_http *http, const char *method, const char *path, const json_t *body, bool once,
                        pod_answer *answer) {
  attempt a = {.http = http, .most = MOST_ANSWER, .is_get = strcmp(method, "GET") == 0};
  char url[2048], *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
  int n = 0;
  *answer = (pod_answer){0};
  mo_status status = MO_OK;
  if (body && !text) status = MO_FAIL(MO_FAILED, "out of memory (request): free some memory");
  if (snprintf(url, sizeof url, "%s%s", http->settings->api, path) >= (int)sizeof url)
    status = MO_FAIL(MO_FAILED, "address too long (%.100s...): report this as a bug", path);
  if (status == MO_OK) status = attempts(&a, method, url, text, once, &n);
  if (status == MO_OK) {
    fill_answer(&a, answer);
    answer->lost = once && (a.status >= 500 || a.status == 408 || (a.status == 0 && was_sent(&a)));
    if (a.status == 0 && !answer->lost) status = no_answer(http, method, path, answer, a.refused, n);
  }
  free(a.text);
  free(text);
  if (status != MO_OK) {
    pod_answer_free(answer);
    answer->lost = once && a.cut;
  }
  return status;
}

mo_status pod_http_listen(pod_http *http, const char *path, double seconds, long *status, char **text) {
  attempt a = {.http = http, .most = MOST_TEXT, .is_get = true, .until = mo_seconds() + seconds};
  char url[2048];
  *text = NULL;
  snprintf(url, sizeof url, "%s%s", http->settings->api, path);
  make_attempt(&a, "GET", url, NULL, seconds + 1, false);
  *status = a.status;
  if (is_stopped(http)) {
    free(a.text);
    return stopped();
  }
  *text = a.text ? a.text : mo_strdup("");
  return *text ? MO_OK : MO_FAILED;
}
