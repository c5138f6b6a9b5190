/* Reads over the network against a server in this process that answers as a test tells it: ranges, redirects, what
 * goes wrong, how it ends; addresses and tokens; what one rank tells the others; the cache. */
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include "../../src/weights/network.h"
#include "moe_outliers/clock.h"
#include "moe_outliers/network.h"
#include "test_weights_fixture.h"

enum { BYTES = 100000, MOST_REQUESTS = 4000 };

/* --- the server: one thread per connection, one answer per request --- */

typedef struct {
  char path[300], token[100];
  long long from, end; /* of the range, 0 and -1: none */
} seen_request;

static struct {
  int listener, port;
  pthread_t thread;
  pthread_mutex_t lock;
  seen_request seen[MOST_REQUESTS];
  int n_seen;
  /* The answer to a request, headers and all, to be sent; number: of the request, from 0. */
  void (*answer)(int connection, const seen_request *request, int number);
} server = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void put(int connection, const void *data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    ssize_t n = send(connection, (const char *)data + done, bytes - done, MSG_NOSIGNAL);
    if (n <= 0) return;
    done += (size_t)n;
  }
}

static void put_text(int connection, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put_text(int connection, const char *format, ...) {
  char text[1000];
  va_list arguments;
  va_start(arguments, format);
  int n = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  put(connection, text, (size_t)n);
}

/* Bytes [from, end) of the file "w". */
static void put_bytes(int connection, long long from, long long end) {
  char *data = malloc((size_t)(end - from + 1));
  for (long long i = from; i < end; i++) data[i - from] = (char)fixture_byte("w", i);
  put(connection, data, (size_t)(end - from));
  free(data);
}

/* `more`: header lines. */
static void put_range(int connection, const seen_request *r, const char *more) {
  long long end = r->end < BYTES ? r->end : BYTES;
  put_text(connection, "HTTP/1.1 206 Partial\r\nContent-Range: bytes %lld-%lld/%d\r\nContent-Length: %lld\r\n%s\r\n",
           r->from, end - 1, BYTES, end - r->from, more);
  put_bytes(connection, r->from, end);
}

static void put_status(int connection, const char *status, const char *more) {
  put_text(connection, "HTTP/1.1 %s\r\nContent-Length: 0\r\n%s\r\n", status, more);
}

static void read_request(char *text, seen_request *r) {
  *r = (seen_request){.end = -1};
  sscanf(text, "GET %299s", r->path);
  char *range = strstr(text, "Range: bytes="), *token = strstr(text, "Authorization: Bearer ");
  if (range && sscanf(range, "Range: bytes=%lld-%lld", &r->from, &r->end) == 2) r->end++;
  if (token) sscanf(token, "Authorization: Bearer %99s", r->token);
}

static void *serve(void *argument) {
  int connection = (int)(intptr_t)argument;
  char text[8192];
  size_t used = 0;
  for (;;) {
    ssize_t n = recv(connection, text + used, sizeof text - 1 - used, 0);
    if (n <= 0) break;
    used += (size_t)n;
    text[used] = '\0';
    if (!strstr(text, "\r\n\r\n")) continue;
    seen_request request;
    read_request(text, &request);
    used = 0;
    pthread_mutex_lock(&server.lock);
    int number = server.n_seen++;
    assert_true(number < MOST_REQUESTS);
    server.seen[number] = request;
    void (*answer)(int, const seen_request *, int) = server.answer;
    pthread_mutex_unlock(&server.lock);
    answer(connection, &request, number);
  }
  close(connection);
  return NULL;
}

static void *accept_all(void *unused) {
  (void)unused;
  for (;;) {
    int connection = accept(server.listener, NULL, NULL);
    pthread_t thread;
    if (connection < 0) return NULL;
    if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)connection) == 0) pthread_detach(thread);
  }
}

static int start_server(void **state) {
  (void)state;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY)};
  socklen_t size = sizeof address;
  server.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(server.listener, (struct sockaddr *)&address, size) || listen(server.listener, 64)) return 1;
  getsockname(server.listener, (struct sockaddr *)&address, &size);
  server.port = ntohs(address.sin_port);
  setenv("no_proxy", "*", 1);
  setenv("HF_HOME", "/nonexistent", 1);
  unsetenv("HF_TOKEN");
  return pthread_create(&server.thread, NULL, accept_all, NULL);
}

static int stop_server(void **state) {
  (void)state;
  shutdown(server.listener, SHUT_RDWR);
  pthread_join(server.thread, NULL);
  close(server.listener);
  return 0;
}

/* --- helpers --- */

static mo_network *open_at(const char *address, double patience, const char *cache) {
  mo_network *n;
  mo_network_options options = {.cache = cache, .patience = patience};
  expect_ok(mo_network_open(&n, address, &options));
  expect_ok(mo_network_connect(n));
  return n;
}

/* A folder of the server, which answers so from now on. */
static mo_network *open_folder(void (*answer)(int, const seen_request *, int), double patience, const char *cache) {
  char address[100];
  snprintf(address, sizeof address, "http://127.0.0.1:%d/folder/", server.port);
  pthread_mutex_lock(&server.lock);
  server.answer = answer;
  server.n_seen = 0;
  pthread_mutex_unlock(&server.lock);
  return open_at(address, patience, cache);
}

static mo_status read_at(mo_network *n, int64_t offset, int64_t bytes) {
  mo_network_file_state *file = mo_network_entry(n, "w");
  char *data = malloc((size_t)bytes);
  mo_status status = mo_network_read(n, file, offset, bytes, data);
  if (status == MO_OK && !fixture_equal("w", data, offset, bytes)) fail_msg("wrong bytes at %lld", (long long)offset);
  free(data);
  return status;
}

/* The range through one kind of trouble; returns the number of requests. */
static int read_through(void (*answer)(int, const seen_request *, int)) {
  mo_network *n = open_folder(answer, 10, NULL);
  expect_ok(read_at(n, 1000, 50000));
  assert_true(mo_network_received(n) >= 50000 && mo_network_received(n) < 60000);
  mo_network_close(n);
  return server.n_seen;
}

static void read_fails(void (*answer)(int, const seen_request *, int), const char *part) {
  mo_network *n = open_folder(answer, 1.2, NULL);
  expect_error(read_at(n, 1000, 50000), MO_FAILED, part);
  mo_network_close(n);
}

/* --- answers --- */

static void well(int connection, const seen_request *r, int number) {
  (void)number;
  put_range(connection, r, "ETag: \"one\"\r\n");
}

static void cut_off(int connection, const seen_request *r, int number) {
  if (number >= 3) {
    put_range(connection, r, "ETag: W/\"one\"\r\n"); /* a weak one is the same file's */
    return;
  }
  put_text(connection,
           "HTTP/1.1 206 Partial\r\nContent-Range: bytes %lld-%lld/%d\r\nContent-Length: %lld\r\nETag: \"one\"\r\n\r\n",
           r->from, r->end - 1, BYTES, r->end - r->from);
  put_bytes(connection, r->from, r->from + 9000);
  shutdown(connection, SHUT_RDWR);
}

static void wrong_range(int connection, const seen_request *r, int number) {
  seen_request other = {.from = 0, .end = r->end - r->from};
  put_range(connection, number < 2 ? &other : r, "");
}

static void wrong_range_always(int connection, const seen_request *r, int number) {
  (void)number;
  wrong_range(connection, r, 0);
}

static void no_ranges(int connection, const seen_request *r, int number) {
  (void)r;
  (void)number;
  put_text(connection, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", BYTES);
  put_bytes(connection, 0, BYTES);
}

static void closed(int connection, const seen_request *r, int number) {
  if (number > 1)
    well(connection, r, number);
  else
    shutdown(connection, SHUT_RDWR);
}

static void busy_until_a_date(int connection, const seen_request *r, int number) {
  char line[100], date[60];
  time_t soon = time(NULL) + 2;
  strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime(&soon));
  snprintf(line, sizeof line, "Retry-After: %s\r\n", date);
  if (number == 0)
    put_status(connection, "429 Too Many Requests", line);
  else
    well(connection, r, number);
}

static void unavailable(int connection, const seen_request *r, int number) {
  (void)r;
  (void)number;
  put_status(connection, "503 Service Unavailable", "");
}

static void other_size(int connection, const seen_request *r, int number) {
  if (number == 0) {
    cut_off(connection, r, 0);
    return;
  }
  put_text(connection, "HTTP/1.1 206 Partial\r\nContent-Range: bytes %lld-%lld/%d\r\nContent-Length: %lld\r\n\r\n",
           r->from, r->end - 1, BYTES + 1, r->end - r->from);
  put_bytes(connection, r->from, r->end);
}

static void other_etag(int connection, const seen_request *r, int number) {
  if (number == 0)
    cut_off(connection, r, 0);
  else
    put_range(connection, r, "ETag: \"two\"\r\n");
}

static void round_and_round(int connection, const seen_request *r, int number) {
  (void)r;
  (void)number;
  put_status(connection, "302 Found", "Location: /again\r\n");
}

static void gone(int connection, const seen_request *r, int number) {
  if (number == 0)
    cut_off(connection, r, 0);
  else
    put_status(connection, "404 Not Found", "");
}

/* Signed addresses that are good for four requests each, on another host; the first host is asked with a token. */
static void signed_addresses(int connection, const seen_request *r, int number) {
  static atomic_int used[MOST_REQUESTS];
  char line[200];
  if (strstr(r->path, "/signed")) {
    if (r->token[0] || atomic_fetch_add(&used[atoi(strstr(r->path, "/signed") + 7)], 1) >= 4)
      put_status(connection, "403 Forbidden", "");
    else
      put_range(connection, r, "ETag: \"other\"\r\n");
    return;
  }
  snprintf(line, sizeof line,
           "X-Linked-ETag: \"one\"\r\nX-Linked-Size: %d\r\nLocation: http://127.0.0.2:%d/signed%d?key=%d\r\n", BYTES,
           server.port, number, number);
  put_status(connection, "302 Found", line);
}

static void hang(int connection, const seen_request *r, int number) {
  (void)number;
  put_text(connection, "HTTP/1.1 206 Partial\r\nContent-Range: bytes %lld-%lld/%d\r\nContent-Length: %lld\r\n\r\n",
           r->from, r->end - 1, BYTES, r->end - r->from);
  usleep(4000000);
}

/* --- tests --- */

static void trouble_passes(void **state) {
  (void)state;
  assert_int_equal(read_through(well), 1);
  assert_int_equal(read_through(cut_off), 4);
  assert_int_equal(server.seen[1].from, 10000); /* where the first one broke off */
  assert_int_equal(server.seen[3].from, 28000);
  assert_int_equal(read_through(wrong_range), 3);
  assert_int_equal(read_through(closed), 3);
  double begin = mo_seconds();
  assert_int_equal(read_through(busy_until_a_date), 2);
  assert_true(mo_seconds() - begin > 0.9);
}

static void it_gives_up(void **state) {
  (void)state;
  read_fails(unavailable, "/folder/w: the server answers HTTP 503, ");
  read_fails(wrong_range_always, "the server gave bytes 0 to 50000 of 100000, which were not asked for");
  read_fails(no_ranges, "the server does not give ranges of bytes");
  read_fails(other_size, "/folder/w changed on the server while it was read, at byte 10000");
  read_fails(other_etag, "changed on the server while it was read");
  read_fails(round_and_round, "redirects: check the address");
  read_fails(gone, "has gone from the server");
  mo_network *n = open_folder(well, 1, NULL);
  expect_error(read_at(n, BYTES - 10, 11), MO_FAILED, "ends at byte 100000, expected 100001");
  mo_network_close(n);
}

static void *read_all(void *network) {
  for (int64_t i = 0; i < 10; i++) expect_ok(read_at(network, i * 1000, 1000));
  return NULL;
}

/* Many readers; every address is asked for once, and the token goes to the first host alone. */
static void addresses_expire(void **state) {
  (void)state;
  char endpoint[100];
  pthread_t threads[8];
  snprintf(endpoint, sizeof endpoint, "http://127.0.0.1:%d", server.port);
  setenv("HF_ENDPOINT", endpoint, 1);
  setenv("HF_TOKEN", " hf_word \n", 1);
  mo_network *n = open_folder(signed_addresses, 20, NULL);
  unsetenv("HF_TOKEN");
  unsetenv("HF_ENDPOINT");
  (void)mo_network_entry(n, "w");
  for (int i = 0; i < 8; i++) assert_int_equal(pthread_create(&threads[i], NULL, read_all, n), 0);
  for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
  int asked = 0, served = 0;
  for (int i = 0; i < server.n_seen; i++) {
    bool is_signed = strstr(server.seen[i].path, "/signed") != NULL;
    asked += !is_signed;
    served += is_signed;
    assert_string_equal(server.seen[i].token, is_signed ? "" : "hf_word");
  }
  assert_true(served >= 80 + 19 && asked >= 20 && asked <= 30); /* 80 reads of 4 a time, some addresses not used up */
  mo_network_close(n);
}

static void *read_until_interrupted(void *network) {
  assert_int_equal(read_at(network, 0, 1000), MO_STOPPED);
  return NULL;
}

/* Transfers and waits end at once; later reads work again. */
static void reads_are_interrupted(void **state) {
  (void)state;
  void (*const answers[])(int, const seen_request *, int) = {hang, unavailable};
  for (int i = 0; i < 2; i++) {
    mo_network *n = open_folder(answers[i], 60, NULL);
    pthread_t threads[3];
    (void)mo_network_entry(n, "w");
    for (int t = 0; t < 3; t++) assert_int_equal(pthread_create(&threads[t], NULL, read_until_interrupted, n), 0);
    usleep(150000);
    double begin = mo_seconds();
    mo_network_interrupt(n, true);
    for (int t = 0; t < 3; t++) pthread_join(threads[t], NULL);
    assert_true(mo_seconds() - begin < 3);
    assert_int_equal(read_at(n, 0, 10), MO_STOPPED);
    mo_network_interrupt(n, false);
    pthread_mutex_lock(&server.lock);
    server.answer = well;
    pthread_mutex_unlock(&server.lock);
    expect_ok(read_at(n, 5, 1000));
    mo_network_close(n);
  }
}

static mo_status stop_soon(void *counter) { return ++*(int *)counter > 5 ? MO_STOPPED : MO_OK; }

static void asking_is_polled(void **state) {
  (void)state;
  const char *text;
  size_t bytes;
  int counter = 0;
  mo_network *n = open_folder(hang, 60, NULL);
  mo_network_set_poll(n, stop_soon, &counter);
  double begin = mo_seconds();
  assert_int_equal(mo_network_file(n, "config.json", &text, &bytes), MO_STOPPED);
  assert_true(mo_seconds() - begin < 3);
  mo_network_close(n);
}

static void refuse(const char *address, const char *part) {
  mo_network *n;
  mo_network_options options = {.patience = 1};
  assert_true(mo_network_is_address(address));
  expect_error(mo_network_open(&n, address, &options), MO_INVALID, part);
  assert_null(n);
}

static void is_named(const char *address, const char *name) {
  char *found = mo_network_name(address);
  assert_string_equal(found, name);
  free(found);
}

static void addresses(void **state) {
  (void)state;
  assert_false(mo_network_is_address("models/hf://x"));
  assert_false(mo_network_is_address("synthetic:1"));
  refuse("hf://", "names no model");
  refuse("hf:///x", "names no model");
  refuse("hf://a/b/c", "names no model");
  refuse("hf://a/../b", "names no model");
  refuse("hf://a/b@", "names no model");
  refuse("hf://a b/c", "names no model");
  refuse("http://", "cannot be read");
  refuse("https://me:word@host/m", "has a user");
  refuse("https://host/m?key=1", "has a user, a query");
  assert_null(strstr(mo_error_message(), "word"));
  is_named("hf://org/model@refs/pr/1", "org/model");
  is_named("hf://gpt2/", "gpt2");
  is_named("https://host/models/one/", "one");
  assert_true(mo_network_same_origin("https://Hub.co/a", "https://hub.co:443/b"));
  assert_false(mo_network_same_origin("https://hub.co", "http://hub.co"));
  assert_false(mo_network_same_origin("https://hub.co", "https://hub.co.evil.org"));
  assert_false(mo_network_same_origin("https://hub.co", "https://hub.co@evil.org"));
  assert_false(mo_network_same_origin("https://hub.co", "https://hub.co:8443"));
}

/* A commit needs no question; revisions are escaped. */
static void hub_addresses(void **state) {
  (void)state;
  mo_network *n;
  mo_network_options options = {.patience = 1};
  setenv("HF_ENDPOINT", "https://mirror.org/hub/", 1);
  expect_ok(mo_network_open(&n, "hf://org/model@refs/pr/1", &options));
  char *url = mo_network_commit_url(n);
  assert_string_equal(url, "https://mirror.org/hub/api/models/org/model/revision/refs%2Fpr%2F1");
  free(url);
  mo_network_close(n);
  expect_ok(mo_network_open(&n, "hf://org/model@0123456789abcdef0123456789abcdef01234567", &options));
  assert_null(mo_network_commit_url(n));
  expect_ok(mo_network_connect(n));
  assert_string_equal(mo_network_commit(n), "0123456789abcdef0123456789abcdef01234567");
  url = mo_network_url(n, "a b.safetensors");
  assert_string_equal(
      url, "https://mirror.org/hub/org/model/resolve/0123456789abcdef0123456789abcdef01234567/a%20b.safetensors");
  free(url);
  mo_network_close(n);
  unsetenv("HF_ENDPOINT");
}

/* What one rank found the others have without asking; a parcel that broke is noticed. */
static void ranks_are_told(void **state) {
  (void)state;
  mo_network *a = open_folder(well, 5, NULL), *b;
  mo_network_options options = {.patience = 5};
  const char *const names[] = {"w"};
  void *data;
  size_t bytes;
  expect_ok(mo_network_headers(a, names, 1)); /* its length makes no sense: the first eight bytes are kept */
  expect_ok(mo_network_pack(a, &data, &bytes));
  int before = server.n_seen;
  expect_ok(mo_network_open(&b, mo_network_address(a), &options));
  expect_ok(mo_network_unpack(b, data, bytes));
  expect_ok(mo_network_headers(b, names, 1));
  assert_int_equal(server.n_seen, before);
  mo_network_file_state *file = mo_network_entry(b, "w");
  assert_int_equal(file->size, BYTES);
  assert_string_equal(file->etag, "one");
  assert_int_equal(file->head_bytes, 8);
  assert_true(fixture_equal("w", file->head, 0, 8));
  expect_ok(read_at(b, 7, 100));
  char *told[2] = {NULL, NULL};
  for (int i = 0; i < 2; i++) {
    size_t size;
    FILE *out = open_memstream(&told[i], &size);
    mo_network_identify(i ? a : b, out);
    fclose(out);
  }
  assert_string_equal(told[0], told[1]);
  assert_non_null(strstr(told[0], "checkpoint file w = 100000 bytes of one, beginning with "));
  mo_network_close(b);
  for (size_t part = 0; part < bytes; part += 5) {
    expect_ok(mo_network_open(&b, mo_network_address(a), &options));
    expect_error(mo_network_unpack(b, data, part), MO_FAILED, "");
    mo_network_close(b);
  }
  free(told[0]);
  free(told[1]);
  free(data);
  mo_network_close(a);
}

/* --- the cache --- */

static int64_t n_ranges(const char *folder) {
  int64_t n = 0;
  char path[600];
  DIR *open = opendir(folder);
  for (struct dirent *entry; open && (entry = readdir(open));) {
    long long from, end;
    if (entry->d_name[0] == '.') continue;
    n += sscanf(entry->d_name, "%lld-%lld", &from, &end) == 2;
    snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
    n += n_ranges(path);
  }
  if (open) closedir(open);
  return n;
}

/* Only what is missing between ranges is asked for, whatever the cut. */
static void cache_fills_gaps(void **state) {
  (void)state;
  char *folder = fixture_folder();
  mo_network *n = open_folder(well, 5, folder);
  expect_ok(read_at(n, 0, 8)); /* the version is known from here on */
  expect_ok(read_at(n, 1000, 1000));
  expect_ok(read_at(n, 4000, 1000));
  int before = server.n_seen;
  expect_ok(read_at(n, 500, 5000));
  assert_int_equal(server.n_seen - before, 3);
  assert_int_equal(server.seen[before].from, 500);
  assert_int_equal(server.seen[before].end, 1000);
  assert_int_equal(server.seen[before + 1].from, 2000);
  assert_int_equal(server.seen[before + 2].end, 5500);
  mo_network_close(n);
  n = open_folder(well, 5, folder);
  expect_ok(read_at(n, 0, 8));
  before = server.n_seen;
  for (int i = 0; i < 50; i++) expect_ok(read_at(n, 500 + 99 * i, 100));
  assert_int_equal(server.n_seen, before);
  assert_int_equal(n_ranges(folder), 6);
  mo_network_close(n);
  fixture_remove(folder);
}

static void cache_ends_where_nothing_can_be_written(void **state) {
  (void)state;
  char *folder = fixture_folder();
  struct rlimit before, small;
  mo_network *n = open_folder(well, 5, folder);
  assert_null(mo_network_cache_trouble(n));
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
  small = before;
  small.rlim_cur = 2000;
  signal(SIGXFSZ, SIG_IGN);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
  expect_ok(read_at(n, 0, 1000));
  expect_ok(read_at(n, 1000, 3000));
  expect_ok(read_at(n, 4000, 1000));
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
  assert_int_equal(n_ranges(folder), 1);
  assert_non_null(strstr(mo_network_cache_trouble(n), "File too large, nothing more is kept (engine.cache, "));
  mo_network_close(n);
  fixture_remove(folder);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(addresses),        cmocka_unit_test(hub_addresses),
      cmocka_unit_test(trouble_passes),   cmocka_unit_test(it_gives_up),
      cmocka_unit_test(addresses_expire), cmocka_unit_test(reads_are_interrupted),
      cmocka_unit_test(asking_is_polled), cmocka_unit_test(ranks_are_told),
      cmocka_unit_test(cache_fills_gaps), cmocka_unit_test(cache_ends_where_nothing_can_be_written),
  };
  return cmocka_run_group_tests(tests, start_server, stop_server);
}
