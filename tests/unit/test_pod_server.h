/* A server on loopback that gives prepared answers, one per connection, and keeps what was asked. */
#ifndef TEST_POD_SERVER_H
#define TEST_POD_SERVER_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "pod/pod.h"

enum { MOST_ANSWERS = 24 };

/* status 0: the connection is closed without an answer; -1: the answer is cut in the middle; -2: nothing comes. */
typedef struct {
  int status;
  const char *headers; /* lines with \r\n, or NULL */
  const char *body;    /* NULL: none */
} prepared;

typedef struct {
  int listener;
  pthread_t thread;
  const prepared *answers;
  int n_answers, n; /* n: requests so far */
  char asked[MOST_ANSWERS][4096];
  char api[64];
} server;

/* The whole request: headers, and a body of Content-Length. */
static void read_request(int connection, char *text, size_t size) {
  size_t n = 0;
  for (;;) {
    ssize_t got = read(connection, text + n, size - 1 - n);
    if (got <= 0) break;
    n += (size_t)got;
    text[n] = '\0';
    const char *end = strstr(text, "\r\n\r\n"), *length = strcasestr(text, "Content-Length:");
    if (end && (!length || strlen(end + 4) >= (size_t)atol(length + 15))) break;
  }
  text[n] = '\0';
}

static void answer_request(int connection, const prepared *answer) {
  char text[8192];
  const char *body = answer->body ? answer->body : "";
  if (answer->status == 0) return;
  if (answer->status == -2) {
    usleep(400000);
    return;
  }
  int status = answer->status < 0 ? 200 : answer->status;
  size_t length = strlen(body) + (answer->status == -1 ? 100 : 0);
  snprintf(text, sizeof text, "HTTP/1.1 %d X\r\nContent-Length: %zu\r\nConnection: close\r\n%s\r\n%s", status, length,
           answer->headers ? answer->headers : "", body);
  (void)!write(connection, text, strlen(text));
}

static void *serve(void *argument) {
  server *s = argument;
  while (s->n < s->n_answers) {
    int connection = accept(s->listener, NULL, NULL);
    if (connection < 0) break;
    read_request(connection, s->asked[s->n], sizeof s->asked[0]);
    answer_request(connection, s->answers + s->n);
    s->n++;
    close(connection);
  }
  close(s->listener);
  return NULL;
}

static void server_open(server *s, const prepared *answers, int n) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  memset(s, 0, sizeof *s);
  assert_true(n <= MOST_ANSWERS);
  s->answers = answers;
  s->n_answers = n;
  s->listener = socket(AF_INET, SOCK_STREAM, 0);
  assert_int_equal(bind(s->listener, (struct sockaddr *)&address, sizeof address), 0);
  assert_int_equal(listen(s->listener, 8), 0);
  assert_int_equal(getsockname(s->listener, (struct sockaddr *)&address, &size), 0);
  snprintf(s->api, sizeof s->api, "http://127.0.0.1:%d", ntohs(address.sin_port));
  assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

/* All answers must have been asked for. */
static void server_close(server *s) {
  if (s->n < s->n_answers) shutdown(s->listener, SHUT_RDWR);
  pthread_join(s->thread, NULL);
  assert_int_equal(s->n, s->n_answers);
}

static pod_settings settings_for(server *s) {
  return (pod_settings){.api_key = (char *)"rpa_KEY_of_tests", .api = s->api, .state = (char *)"state"};
}

static void expect_error(mo_status status, mo_status code, const char *text) {
  if (status != code || !strstr(mo_error_message(), text))
    fail_msg("status %d, \"%s\": not %d and \"%s\"", status, mo_error_message(), code, text);
  mo_error_clear();
}

#endif
