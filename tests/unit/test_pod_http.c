/* Requests to a server that answers late, badly or not at all; and how long is waited. */
#include "test_pod_server.h"

#include <math.h>
#include <time.h>

#include "common/patience.h"
#include "moe_outliers/clock.h"
#include "pod/http_wait.h"

static server s;

static pod_answer call(const prepared *answers, int n, const char *method, bool once, mo_status expected) {
  pod_http *http;
  pod_answer answer;
  server_open(&s, answers, n);
  pod_settings settings = settings_for(&s);
  json_t *body = strcmp(method, "POST") == 0 ? json_pack("{s:i}", "a", 1) : NULL;
  assert_int_equal(pod_http_open(&http, &settings), MO_OK);
  mo_status status = pod_http_call(http, method, "/v2/x?y=1", body, once, &answer);
  if (status != expected) fail_msg("%d: %s", status, mo_error_message());
  json_decref(body);
  pod_http_close(http);
  server_close(&s);
  return answer;
}

static void test_request(void **state) {
  (void)state;
  const prepared answers[] = {{200, NULL, "{\"a\": [1]}"}};
  pod_answer answer = call(answers, 1, "POST", true, MO_OK);
  assert_int_equal(answer.status, 200);
  assert_int_equal(json_array_size(json_object_get(answer.body, "a")), 1);
  assert_false(answer.lost);
  assert_non_null(strstr(s.asked[0], "POST /v2/x?y=1 HTTP/1.1\r\n"));
  assert_non_null(strstr(s.asked[0], "\r\nAuthorization: Bearer rpa_KEY_of_tests\r\n"));
  assert_non_null(strstr(s.asked[0], "\r\nContent-Type: application/json\r\n"));
  assert_non_null(strstr(s.asked[0], "\r\n\r\n{\"a\":1}"));
  pod_answer_free(&answer);
}

static void test_tried_again(void **state) {
  (void)state;
  const prepared answers[] = {{502, NULL, "<html>"}, {0, NULL, NULL}, {-1, NULL, "{\"a\":"}, {200, NULL, "{\"a\": 5}"}};
  pod_answer answer = call(answers, 4, "GET", false, MO_OK);
  assert_int_equal(json_integer_value(json_object_get(answer.body, "a")), 5);
  pod_answer_free(&answer);
  const prepared garbage[] = {{200, NULL, "<html>"}, {200, NULL, ""}, {200, NULL, "[1,"}, {200, NULL, "<html>"}};
  answer = call(garbage, 4, "GET", false, MO_OK);
  assert_null(answer.body);
  pod_answer_free(&answer);
  /* Of a DELETE nothing is expected. */
  const prepared empty[] = {{204, NULL, NULL}};
  answer = call(empty, 1, "DELETE", false, MO_OK);
  assert_int_equal(answer.status, 204);
  pod_answer_free(&answer);
}

static void test_busy(void **state) {
  (void)state;
  const prepared answers[] = {{429, "Retry-After: 1\r\n", "{}"},
                              {429, "RateLimit: \"minute\";r=0;t=1, \"hour\";r=7;t=900\r\n", "{}"},
                              {200, NULL, "{}"}};
  double begin = mo_seconds();
  pod_answer answer = call(answers, 3, "GET", false, MO_OK);
  assert_int_equal(answer.status, 200);
  assert_true(mo_seconds() - begin >= 1.9);
  pod_answer_free(&answer);
  /* Longer than there is patience: it is not waited for. */
  const prepared late[] = {
      {429, "Retry-After: 3600\r\n", "{\"title\": \"Too Many\", \"status\": 429, \"detail\": \"hour window\"}"}};
  begin = mo_seconds();
  answer = call(late, 1, "POST", true, MO_OK);
  assert_int_equal(answer.status, 429);
  assert_false(answer.lost);
  assert_string_equal(answer.detail, "Too Many: hour window");
  assert_true(mo_seconds() - begin < 1);
  pod_answer_free(&answer);
}

/* A request that creates is sent once, if it may have been carried out. */
static void test_lost(void **state) {
  (void)state;
  static const prepared lost[][1] = {
      {{0, NULL, NULL}}, {{-1, NULL, "{"}}, {{-2, NULL, NULL}}, {{500, NULL, "{}"}}, {{504, NULL, ""}}};
  static const long statuses[] = {0, 0, 0, 500, 504};
  setenv("MOE_POD_TIMEOUT", "0.3", 1);
  for (int i = 0; i < 5; i++) {
    if (statuses[i]) setenv("MOE_POD_TIMEOUT", "20", 1); /* an answer comes */
    pod_answer answer = call(lost[i], 1, "POST", true, MO_OK);
    assert_true(answer.lost);
    assert_int_equal(answer.status, statuses[i]);
    pod_answer_free(&answer);
  }
  unsetenv("MOE_POD_TIMEOUT");
  const prepared busy[] = {{429, "Retry-After: 0\r\n", ""}, {201, NULL, "{\"id\": \"p\"}"}};
  pod_answer answer = call(busy, 2, "POST", true, MO_OK);
  assert_int_equal(answer.status, 201);
  pod_answer_free(&answer);
}

static void test_problems(void **state) {
  (void)state;
  const prepared problem[] = {
      {422, NULL,
       "{\"title\": \"Unprocessable\", \"status\": 422, \"detail\": \"bad\\u0007 rpa_KEY_of_tests\", "
       "\"errors\": [\"$.a: no\", \"$.b: no\"]}"}};
  pod_answer answer = call(problem, 1, "POST", true, MO_OK);
  assert_string_equal(answer.detail, "Unprocessable: bad  ***: $.a: no, $.b: no");
  pod_answer_free(&answer);
  const prepared text[] = {{404, NULL, "no such\nthing"}};
  answer = call(text, 1, "GET", false, MO_OK);
  assert_string_equal(answer.detail, "no such thing");
  pod_answer_free(&answer);
  const prepared nothing[] = {{410, NULL, NULL}};
  answer = call(nothing, 1, "GET", false, MO_OK);
  assert_string_equal(answer.detail, "no reason given");
  pod_answer_free(&answer);
  /* The key goes nowhere else. */
  const prepared elsewhere[] = {{302, "Location: http://127.0.0.1:1/\r\n", NULL}};
  answer = call(elsewhere, 1, "GET", false, MO_OK);
  assert_int_equal(answer.status, 302);
  pod_answer_free(&answer);
}

static void test_nobody_there(void **state) {
  (void)state;
  pod_settings settings = {.api_key = (char *)"rpa_KEY_of_tests", .api = (char *)"http://127.0.0.1:1"};
  pod_http *http;
  pod_answer answer;
  bool stop = true;
  setenv("MOE_POD_PATIENCE", "0.6", 1);
  assert_int_equal(pod_http_open(&http, &settings), MO_OK);
  double begin = mo_seconds();
  expect_error(pod_http_call(http, "GET", "/v2/pods", NULL, false, &answer), MO_FAILED,
               "RunPod's API gives no answer after");
  /* What cannot have been sent is not lost. */
  expect_error(pod_http_call(http, "POST", "/v2/pods", NULL, true, &answer), MO_FAILED,
               "(POST http://127.0.0.1:1/v2/pods)");
  assert_true(mo_seconds() - begin < 10);
  pod_http_heed(http, &stop);
  expect_error(pod_http_call(http, "GET", "/v2/pods", NULL, false, &answer), MO_STOPPED, "interrupted");
  pod_http_close(http);
  unsetenv("MOE_POD_PATIENCE");
  settings.api_key = NULL;
  expect_error(pod_http_open(&http, &settings), MO_INVALID, "no API key (RUNPOD_API_KEY)");
}

static void test_waits(void **state) {
  (void)state;
  time_t now = 1767225600; /* 2026-01-01T00:00:00Z */
  assert_true(mo_retry_after("12", now) == 12);
  assert_true(mo_retry_after("  0 ", now) == 0);
  assert_true(mo_retry_after("Thu, 01 Jan 2026 00:00:30 GMT", now) == 30);
  assert_true(mo_retry_after("Wed, 31 Dec 2025 00:00:30 GMT", now) == 0);
  assert_true(mo_retry_after("soon", now) == -1);
  assert_true(mo_retry_after("-5", now) == -1);
  assert_true(mo_retry_after("", now) == -1);
  assert_true(pod_rate_limit("\"minute\";r=0;t=12, \"hour\";r=2800;t=1812, \"day\";r=49500;t=45012") == 12);
  assert_true(pod_rate_limit("\"minute\"; r=0; t=7,\"hour\";r=0;t=90") == 90);
  assert_true(pod_rate_limit("\"minute\";r=10;t=12") == 0);
  assert_true(pod_rate_limit("\"a;r=0;t=9,\";r=1;t=2") == 0);
  assert_true(pod_rate_limit("") == 0 && pod_rate_limit(";;;,,r=0;t") == 0);
  unsigned random = 1;
  double most = 0;
  for (int attempt = 0; attempt < 40; attempt++) {
    double seconds = pod_backoff(attempt, &random), whole = fmin(30, 0.25 * pow(2, attempt));
    assert_true(seconds >= 0.5 * whole && seconds <= whole);
    most = fmax(most, seconds);
  }
  assert_true(most > 15);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_request), cmocka_unit_test(test_tried_again), cmocka_unit_test(test_busy),
      cmocka_unit_test(test_lost),    cmocka_unit_test(test_problems),    cmocka_unit_test(test_nobody_there),
      cmocka_unit_test(test_waits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
