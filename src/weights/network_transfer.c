/* One request over a connection that is kept for the next one, ended at once when the network is interrupted. */
#include <curl/curl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "common/patience.h"
#include "moe_outliers/build_info.h"
#include "moe_outliers/clock.h"
#include "weights/network.h"

#define BUFFER (128L << 10)    /* more leaves the caches before it is copied to its place */
#define SLOW_BYTES 1000L       /* a second; less, for long, is taken for a connection that is dead */
#define MOST_TEXT (1000 << 20) /* of a whole file; no index comes near */

/* Redirects are followed by the caller, who decides what the next host is told, and keeps the address. */
struct mo_connection {
  CURLM *multi;
  CURL *easy;
  mo_connection *next;
};

/* A request under way. */
typedef struct {
  mo_network *network;
  mo_exchange *x;
  int64_t room; /* of a whole file's buffer */
  bool accepted, out_of_memory;
} transfer;

/* --- connections --- */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void init_curl(void) { (void)curl_global_init(CURL_GLOBAL_DEFAULT); }

static void free_connection(mo_connection *c) {
  curl_easy_cleanup(c->easy);
  if (c->multi) curl_multi_cleanup(c->multi);
  free(c);
}

static mo_connection *take_connection(mo_network *network) {
  pthread_once(&once, init_curl);
  pthread_mutex_lock(&network->lock);
  mo_connection *c = network->idle;
  if (c) network->idle = c->next;
  pthread_mutex_unlock(&network->lock);
  if (c || !(c = mo_alloc(1, sizeof *c))) return c;
  c->multi = curl_multi_init();
  c->easy = curl_easy_init();
  if (c->multi && c->easy) return c;
  free_connection(c);
  (void)MO_FAIL(MO_FAILED, "out of memory (libcurl): free some memory");
  return NULL;
}

static void give_back(mo_network *network, mo_connection *c) {
  pthread_mutex_lock(&network->lock);
  c->next = network->idle;
  network->idle = c;
  pthread_mutex_unlock(&network->lock);
}

void mo_network_connections_free(mo_network *network) {
  for (mo_connection *c = network->idle, *next; c; c = next) {
    next = c->next;
    free_connection(c);
  }
  network->idle = NULL;
}

/* --- headers --- */

static void trim_copy(char *to, size_t size, const char *from, size_t length) {
  while (length > 0 && strchr(" \t\r\n", from[length - 1])) length--;
  snprintf(to, size, "%.*s", (int)length, from);
}

/* Without quotes and the mark of a weak one: only the same bytes are asked for. */
static void copy_etag(char to[static MO_ETAG_BYTES], const char *from, size_t length) {
  if (length > 2 && strncmp(from, "W/", 2) == 0) from += 2, length -= 2;
  trim_copy(to, MO_ETAG_BYTES, from, length);
  size_t n = strlen(to);
  if (n >= 2 && to[0] == '"' && to[n - 1] == '"') {
    memmove(to, to + 1, n - 2);
    to[n - 2] = '\0';
  }
}

static void read_content_range(mo_exchange *x, const char *value) {
  long long from, to, total;
  if (sscanf(value, "bytes %lld-%lld/%lld", &from, &to, &total) == 3) {
    x->answered_from = from;
    x->answered_end = to + 1;
    x->total = total;
  } else if (sscanf(value, "bytes %lld-%lld/", &from, &to) == 2) {
    x->answered_from = from;
    x->answered_end = to + 1;
  } else if (sscanf(value, "bytes */%lld", &total) == 1) {
    x->total = total;
  }
}

static double read_retry_after(const char *value) {
  double seconds = mo_retry_after(value, time(NULL));
  return seconds > 0 && seconds < 1e6 ? seconds : 0;
}

static void forget_answer(mo_exchange *x) {
  x->status = 0;
  x->answered_from = x->answered_end = x->total = x->length = x->linked_size = -1;
  x->answered_etag[0] = x->linked_etag[0] = x->modified[0] = x->error_code[0] = '\0';
  x->retry_after = 0;
}

static void read_header(mo_exchange *x, const char *name, size_t name_length, const char *value, size_t length) {
  char text[400];
  trim_copy(text, sizeof text, value, length);
#define IS(what) (name_length == sizeof what - 1 && strncasecmp(name, what, name_length) == 0)
  if (IS("content-range")) read_content_range(x, text);
  if (IS("content-length")) x->length = strtoll(text, NULL, 10);
  if (IS("etag")) copy_etag(x->answered_etag, text, strlen(text));
  if (IS("x-linked-etag")) copy_etag(x->linked_etag, text, strlen(text));
  if (IS("x-linked-size")) x->linked_size = strtoll(text, NULL, 10);
  if (IS("last-modified")) snprintf(x->modified, sizeof x->modified, "%.60s", text);
  if (IS("x-error-code")) snprintf(x->error_code, sizeof x->error_code, "%.60s", text);
  if (IS("retry-after")) x->retry_after = read_retry_after(text);
#undef IS
}

static size_t on_header(char *line, size_t size, size_t n, void *context) {
  transfer *t = context;
  const char *colon = memchr(line, ':', n);
  if (n > 5 && strncmp(line, "HTTP/", 5) == 0) {
    const char *blank = memchr(line, ' ', n);
    forget_answer(t->x);
    t->x->status = blank ? atoi(blank) : 0;
  } else if (colon) {
    size_t name = (size_t)(colon - line), skip = name + 1;
    while (skip < n && line[skip] == ' ') skip++;
    read_header(t->x, line, name, line + skip, n - skip);
  }
  return size * n;
}

/* --- the body --- */

/* What a file is known by: without an ETag the time of its last change. */
static void settle_etag(mo_exchange *x) {
  if (!x->answered_etag[0]) snprintf(x->answered_etag, sizeof x->answered_etag, "%s", x->modified);
}

static mo_answer judge(mo_exchange *x) {
  settle_etag(x);
  if (x->bytes < 0) return MO_ANSWER_FITS;
  if (x->status != 206) return MO_ANSWER_NO_RANGES;
  if (x->total < 0 || x->answered_from != x->from || x->answered_end <= x->from || x->answered_end > x->total)
    return MO_ANSWER_WRONG_RANGE;
  if (x->size >= 0 && x->total != x->size) return MO_ANSWER_CHANGED;
  if (x->etag[0] && x->answered_etag[0] && strcmp(x->etag, x->answered_etag) != 0) return MO_ANSWER_CHANGED;
  int64_t end = x->from + x->bytes < x->total ? x->from + x->bytes : x->total;
  return x->answered_end == end ? MO_ANSWER_FITS : MO_ANSWER_WRONG_RANGE;
}

/* Room for n more bytes of a whole file. */
static bool make_room(transfer *t, int64_t n) {
  mo_exchange *x = t->x;
  if (x->bytes >= 0 || x->got + n <= t->room) return true;
  int64_t room = x->length > 0 && t->room == 0 ? x->length : 2 * t->room;
  if (room < x->got + n) room = x->got + n;
  if (room > MOST_TEXT) {
    x->answer = MO_ANSWER_TOO_LONG;
    return false;
  }
  char *to = mo_realloc(x->to, (size_t)room, 1);
  t->out_of_memory = !to;
  if (!to) return false;
  x->to = to;
  t->room = room;
  return true;
}

/* Only a good answer's bytes count; fewer taken than given end the transfer. */
static size_t on_body(char *data, size_t size, size_t n, void *context) {
  transfer *t = context;
  mo_exchange *x = t->x;
  int64_t bytes = (int64_t)(size * n);
  if (x->status != 200 && x->status != 206) return size * n; /* few: a page that says why */
  if (!t->accepted) x->answer = judge(x);
  if (x->answer != MO_ANSWER_FITS) return 0;
  t->accepted = true;
  if (x->bytes >= 0 && x->got + bytes > x->answered_end - x->from) x->answer = MO_ANSWER_TOO_LONG;
  if (x->answer != MO_ANSWER_FITS || !make_room(t, bytes)) return 0;
  memcpy(x->to + x->got, data, (size_t)bytes);
  x->got += bytes;
  atomic_fetch_add(&t->network->received, bytes);
  return size * n;
}

/* --- the exchange --- */

static void set_protocols(CURL *easy) {
#if LIBCURL_VERSION_NUM >= 0x075500
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
#else
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
}

static long seconds_within(double patience, double most) {
  double seconds = patience / 4 < most ? patience / 4 : most;
  return seconds > 1 ? (long)seconds : 1;
}

static void set_options(transfer *t, CURL *easy, char *error, struct curl_slist *headers) {
  const mo_exchange *x = t->x;
  char range[64];
  curl_easy_reset(easy); /* keeps its connections */
  curl_easy_setopt(easy, CURLOPT_URL, x->url);
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  set_protocols(easy);
  curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1); /* many connections are faster than one */
  curl_easy_setopt(easy, CURLOPT_USERAGENT, "moe-outliers/" MO_VERSION);
  curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, BUFFER);
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, seconds_within(t->network->patience, 15));
  curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, SLOW_BYTES);
  curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, seconds_within(t->network->patience, 30));
  if (t->network->authorities) curl_easy_setopt(easy, CURLOPT_CAINFO, t->network->authorities);
  curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, error);
  curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
  curl_easy_setopt(easy, CURLOPT_HEADERDATA, t);
  curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L); /* a proxy's, which are not the server's answer */
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, t);
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
  if (x->bytes >= 0) {
    snprintf(range, sizeof range, "%lld-%lld", (long long)x->from, (long long)(x->from + x->bytes - 1));
    curl_easy_setopt(easy, CURLOPT_RANGE, range);
  }
}

/* Until the end, or an interruption. */
static mo_status perform(const mo_network *network, mo_connection *c, CURLcode *code) {
  struct curl_waitfd event = {.fd = network->stop_event, .events = CURL_WAIT_POLLIN};
  int running = 1, n;
  *code = CURLE_OK;
  if (curl_multi_add_handle(c->multi, c->easy) != CURLM_OK)
    return MO_FAIL(MO_FAILED, "libcurl takes no request: restart");
  mo_status status = MO_OK;
  while (status == MO_OK) {
    if (atomic_load(&network->interrupted)) status = MO_STOPPED;
    if (status == MO_OK && curl_multi_perform(c->multi, &running) != CURLM_OK)
      status = MO_FAIL(MO_FAILED, "libcurl cannot work: free memory and file descriptors (ulimit -n)");
    if (status != MO_OK || !running) break;
    (void)curl_multi_wait(c->multi, &event, 1, 1000, NULL);
  }
  for (CURLMsg *message; (message = curl_multi_info_read(c->multi, &n));)
    if (message->msg == CURLMSG_DONE) *code = message->data.result;
  (void)curl_multi_remove_handle(c->multi, c->easy);
  return status;
}

/* A port of http; once a server has answered it is rather something on the way to it. */
static bool speaks_no_tls(mo_network *network, const char *error) {
  return !atomic_load(&network->answered) &&
         (strstr(error, "wrong version number") || strstr(error, "unexpected TLS packet"));
}

/* What a proxy answers that does not make a tunnel: refused once, it always is. */
static void take_refusal(mo_exchange *x, CURL *easy) {
  long status = 0;
  if (x->status || curl_easy_getinfo(easy, CURLINFO_HTTP_CONNECTCODE, &status) != CURLE_OK || status < 300) return;
  x->proxy = true;
  x->hopeless = status < 500 && status != 408 && status != 429;
  snprintf(x->trouble, sizeof x->trouble, "the proxy answers HTTP %ld", status);
}

static void take_result(transfer *t, CURL *easy, CURLcode code, const char *error) {
  mo_exchange *x = t->x;
  char *redirect = NULL;
  if (x->status) atomic_store(&t->network->answered, true);
  if (x->status >= 300 && x->status < 400 && curl_easy_getinfo(easy, CURLINFO_REDIRECT_URL, &redirect) == CURLE_OK &&
      redirect)
    x->redirect = mo_strdup(redirect);
  if (code == CURLE_OK && x->status == 206 && !t->accepted) x->answer = judge(x); /* one without a body */
  if (code == CURLE_OK || x->answer != MO_ANSWER_FITS) return;
  settle_etag(x);
  x->failed = true;
  x->unreachable =
      code == CURLE_COULDNT_RESOLVE_HOST || code == CURLE_COULDNT_RESOLVE_PROXY || code == CURLE_COULDNT_CONNECT;
  x->hopeless = code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE ||
                code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL || code == CURLE_SSL_CIPHER ||
                (code == CURLE_SSL_CONNECT_ERROR && speaks_no_tls(t->network, error));
  snprintf(x->trouble, sizeof x->trouble, "%.190s", error[0] ? error : curl_easy_strerror(code));
  take_refusal(x, easy);
}

mo_status mo_network_exchange(mo_network *network, mo_exchange *x) {
  char error[CURL_ERROR_SIZE] = "";
  struct curl_slist *headers = NULL;
  transfer t = {.network = network, .x = x};
  CURLcode code;
  forget_answer(x);
  x->got = 0;
  x->failed = x->hopeless = x->unreachable = x->proxy = false;
  x->answer = MO_ANSWER_FITS;
  x->redirect = NULL;
  x->trouble[0] = '\0';
  mo_connection *c = take_connection(network);
  if (!c) return MO_FAILED;
  if (x->with_token && network->token) {
    char line[1200];
    snprintf(line, sizeof line, "Authorization: Bearer %s", network->token);
    headers = curl_slist_append(NULL, line);
  }
  set_options(&t, c->easy, error, headers);
  mo_status status = perform(network, c, &code);
  if (status == MO_OK) take_result(&t, c->easy, code, error);
  curl_easy_reset(c->easy); /* error, headers and t end here */
  curl_slist_free_all(headers);
  if (status == MO_OK)
    give_back(network, c);
  else
    free_connection(c);
  return status == MO_OK && t.out_of_memory ? MO_FAILED : status;
}

/* --- waiting --- */

void mo_network_hold(mo_network *n, double seconds) {
  double until = mo_seconds() + seconds;
  pthread_mutex_lock(&n->lock);
  if (until > n->hold_until) n->hold_until = until;
  pthread_mutex_unlock(&n->lock);
}

double mo_network_held(mo_network *n) {
  pthread_mutex_lock(&n->lock);
  double seconds = n->hold_until - mo_seconds();
  pthread_mutex_unlock(&n->lock);
  return seconds;
}

void mo_network_note_wait(mo_network *n, const char *path, const char *why, double seconds) {
  pthread_mutex_lock(&n->lock);
  if (why)
    snprintf(n->waiting, sizeof n->waiting, "%.200s: %.190s", path, why);
  else
    n->waiting[0] = '\0';
  n->again_at = mo_seconds() + seconds;
  pthread_mutex_unlock(&n->lock);
}

mo_status mo_network_nap(const mo_network *network, double seconds) {
  struct pollfd event = {.fd = network->stop_event, .events = POLLIN};
  while (seconds > 0 && !atomic_load(&network->interrupted)) {
    double part = seconds < 60 ? seconds : 60;
    if (poll(&event, 1, (int)(1000 * part) + 1) > 0) break;
    seconds -= part;
  }
  return atomic_load(&network->interrupted) ? MO_STOPPED : MO_OK;
}
