/* Answers of the API: what is taken from them, and what is refused. */
#include "test_pod_server.h"

#include "pod/api_json.h"

#define POD(id_, name_, more_)                                                                               \
  "{\"id\": \"" id_ "\", \"name\": \"" name_                                                                 \
  "\", \"status\": \"RUNNING\", \"cost\": 0.44, \"dataCenterId\": \"US-KS-2\", "                             \
  "\"gpu\": {\"id\": \"NVIDIA L40S\", \"count\": 2}, \"createdAt\": \"2026-06-01T12:00:00Z\", "              \
  "\"ssh\": {\"proxy\": null, \"direct\": {\"host\": \"1.2.3.4\", \"port\": 34446, \"username\": \"root\", " \
  "\"command\": \"x\"}}" more_ "}"

static server s;
static pod_settings settings;
static pod_http *http;

static void open_server(const prepared *answers, int n) {
  server_open(&s, answers, n);
  settings = settings_for(&s);
  assert_int_equal(pod_http_open(&http, &settings), MO_OK);
}

static void close_server(void) {
  pod_http_close(http);
  server_close(&s);
}

/* --- reading --- */

static void test_pods(void **state) {
  (void)state;
  const prepared answers[] = {
      {200, NULL,
       "{\"pods\": [" POD("p1", "moe-outliers-a", "") ", " POD(
           "p2", "x",
           ", \"cluster\": {\"id\": \"c1\", \"rank\": 1, \"ip\": \"10.0.0.2\", \"role\": "
           "\"SLURM_COMPUTE\"}") ", " POD("p3", "y", ", \"cluster\": {\"id\": \"c1\", \"rank\": null}") "]}"},
      {200, NULL, "{\"pods\": []}"}};
  pod_pod *pods;
  int n;
  open_server(answers, 2);
  assert_int_equal(pod_api_pods(http, &pods, &n), MO_OK);
  assert_non_null(strstr(s.asked[0], "GET /v2/pods?includeClusterPods=true HTTP"));
  assert_int_equal(n, 3);
  assert_string_equal(pods[0].id, "p1");
  assert_string_equal(pods[0].name, "moe-outliers-a");
  assert_string_equal(pods[0].gpu, "NVIDIA L40S");
  assert_string_equal(pods[0].data_center, "US-KS-2");
  assert_string_equal(pods[0].host, "1.2.3.4");
  assert_string_equal(pods[0].user, "root");
  assert_string_equal(pods[0].cluster, "");
  assert_int_equal(pods[0].rank, -1);
  assert_int_equal(pods[0].gpus, 2);
  assert_int_equal(pods[0].port, 34446);
  assert_int_equal(pods[0].state, POD_RUNNING);
  assert_true(pods[0].cost == 0.44);
  assert_true(pods[0].created == 1780315200);
  assert_string_equal(pods[1].cluster, "c1");
  assert_string_equal(pods[1].cluster_ip, "10.0.0.2");
  assert_int_equal(pods[1].rank, 1);
  assert_int_equal(pods[2].rank, -1);
  free(pods);
  assert_int_equal(pod_api_pods(http, &pods, &n), MO_OK);
  assert_int_equal(n, 0);
  free(pods);
  close_server();
}

static void test_pod_details(void **state) {
  (void)state;
  pod_pod pod;
  json_t *json = json_loads(
      "{\"id\": \"p\", \"name\": \"\\u00e4\", \"status\": \"NEW_ONE\", \"cost\": 0, \"dataCenterId\": null, "
      "\"createdAt\": \"2026-06-01T14:30:00.5+02:30\", \"ssh\": {\"proxy\": null, \"direct\": null}}",
      0, NULL);
  assert_int_equal(pod_json_pod(json, &pod, "GET"), MO_OK);
  assert_int_equal(pod.state, POD_UNKNOWN);
  assert_int_equal(pod.port, 0);
  assert_int_equal(pod.gpus, 0);
  assert_true(pod.created == 1780315200.5);
  json_decref(json);
}

/* Whatever is wrong with one pod of a list is an error of the list. */
static void test_strange_pods(void **state) {
  (void)state;
  static const char *const edits[][3] = {
      {"\"id\": \"p\"", "\"id\": 5", "\"id\""},
      {"\"id\": \"p\"", "\"id\": \"\"", "\"id\""},
      {"\"id\": \"p\"", "\"id\": \"0123456789012345678901234567890123456789012345678901234567890123456789\"", "\"id\""},
      {"\"name\": \"n\"", "\"nam\": \"n\"", "\"name\""},
      {"\"RUNNING\"", "null", "\"status\""},
      {"0.44", "\"0.44\"", "\"cost\""},
      {"0.44", "-1", "\"cost\""},
      {"2026-06-01T12:00:00Z", "yesterday", "\"createdAt\""},
      {"34446", "70000", "\"port\""},
      {"\"direct\"", "\"indirect\"", "\"ssh\""},
      {"\"US-KS-2\"", "[]", "\"dataCenterId\""},
      {"{\"id\": \"p\"", "5, {\"id\": \"p\"", "a pod is not an object"},
  };
  const char *whole = "{\"pods\": [" POD("p", "n", "") "]}";
  for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
    char text[2048];
    const char *at = strstr(whole, edits[i][0]);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - whole), whole, edits[i][1], at + strlen(edits[i][0]));
    const prepared answers[] = {{200, NULL, text}};
    pod_pod *pods;
    int n;
    open_server(answers, 1);
    expect_error(pod_api_pods(http, &pods, &n), MO_FAILED, edits[i][2]);
    assert_null(pods);
    close_server();
  }
}

/* Nothing but a list says what is there. */
static void test_lists_that_are_none(void **state) {
  (void)state;
  static const prepared answers[][1] = {
      {{200, NULL, "[]"}},
      {{200, NULL, "{}"}},
      {{200, NULL, "{\"pods\": null, \"clusters\": null, \"gpus\": {}, \"keys\": 1}"}},
      {{204, NULL, "{\"pods\": []}"}},
      {{410, NULL, "{\"title\": \"Gone\", \"status\": 410, \"detail\": \"v2 has ended\"}"}},
      {{404, NULL, NULL}},
      {{301, NULL, NULL}},
  };
  static const char *const errors[] = {"there is no list",
                                       "there is no list",
                                       "there is no list",
                                       "RunPod answers 204",
                                       "RunPod answers 410: Gone: v2 has ended (GET /v2/",
                                       "RunPod answers 404",
                                       "RunPod answers 301"};
  for (int i = 0; i < 7; i++)
    for (int kind = 0; kind < 4; kind++) {
      void *list = NULL;
      int n = 7;
      open_server(answers[i], 1);
      mo_status status = kind == 0   ? pod_api_pods(http, (pod_pod **)&list, &n)
                         : kind == 1 ? pod_api_clusters(http, (pod_cluster **)&list, &n)
                         : kind == 2 ? pod_api_gpus(http, 1, false, false, (pod_gpu_type **)&list, &n)
                                     : pod_api_ssh_keys(http, (char ***)&list, &n);
      expect_error(status, MO_FAILED, errors[i]);
      assert_null(list);
      assert_int_equal(n, 0);
      close_server();
    }
}

static void test_refusals(void **state) {
  (void)state;
  static const struct {
    prepared answer;
    mo_status code;
    const char *text;
  } cases[] = {
      {{401, NULL, "{\"title\": \"Unauthorized\", \"detail\": \"no\"}"}, MO_INVALID, "check RUNPOD_API_KEY"},
      {{403, NULL, "{}"}, MO_FAILED, "permission"},
      {{422, NULL, "{\"detail\": \"x\", \"errors\": [\"$: bogus\"]}"}, MO_FAILED, "x: $: bogus (GET /v2/clusters)"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    pod_cluster *clusters;
    int n;
    open_server(&cases[i].answer, 1);
    expect_error(pod_api_clusters(http, &clusters, &n), cases[i].code, cases[i].text);
    close_server();
  }
}

static void test_clusters(void **state) {
  (void)state;
  const prepared answers[] = {
      {200, NULL,
       "{\"clusters\": [{\"id\": \"c1\", \"name\": \"moe-outliers-x\", \"type\": \"TRAINING\", \"createdAt\": "
       "\"2026-06-01T12:00:00Z\", "
       "\"compute\": {\"gpuTypeId\": \"H100\", \"gpuCountPerPod\": 8, \"podCount\": 2}, \"pods\": {\"total\": 2, "
       "\"byStatus\": {}}, "
       "\"primary\": {\"podId\": \"p\", \"status\": \"RUNNING\", \"sshEndpoint\": \"1.2.3.4:22001\"}}]}"},
      {404, NULL, "{}"},
      {200, NULL,
       "{\"id\": \"c2\", \"name\": \"n\", \"createdAt\": \"2026-06-01T12:00:00Z\", \"compute\": {\"gpuTypeId\": "
       "\"H100\", "
       "\"gpuCountPerPod\": 8, \"podCount\": 2}, \"primary\": {\"podId\": \"p\", \"status\": \"RUNNING\", "
       "\"sshEndpoint\": \"1.2.3.4\"}}"},
      {200, NULL, "{\"keys\": [\"ssh-ed25519 AAAA me\", \"ssh-rsa BBBB\"]}"}};
  pod_cluster *clusters, cluster;
  char **keys;
  bool found = true;
  int n;
  open_server(answers, 4);
  assert_int_equal(pod_api_clusters(http, &clusters, &n), MO_OK);
  assert_int_equal(n, 1);
  assert_string_equal(clusters[0].host, "1.2.3.4");
  assert_int_equal(clusters[0].port, 22001);
  assert_int_equal(clusters[0].pods * clusters[0].gpus_per_pod, 16);
  free(clusters);
  assert_int_equal(pod_api_cluster(http, "c2", &cluster, &found), MO_OK);
  assert_false(found);
  expect_error(pod_api_cluster(http, "c2", &cluster, &found), MO_FAILED, "\"sshEndpoint\"");
  assert_int_equal(pod_api_ssh_keys(http, &keys, &n), MO_OK);
  assert_int_equal(n, 2);
  assert_string_equal(keys[1], "ssh-rsa BBBB");
  free(keys[0]);
  free(keys[1]);
  free(keys);
  close_server();
}

#define GPU(id_, maker_, more_)                                                                           \
  "{\"id\": \"" id_ "\", \"name\": \"short\", \"pool\": null, \"manufacturer\": \"" maker_                \
  "\", \"memory\": 24, \"secure\": true, "                                                                \
  "\"community\": false, \"price\": {\"secure\": 0.69, \"community\": 0}, \"maxCount\": {\"secure\": 8, " \
  "\"community\": 0}" more_ "}"

static void test_gpus(void **state) {
  (void)state;
  const prepared answers[] = {
      {200, NULL,
       "{\"gpus\": [" GPU(
           "NVIDIA GeForce RTX 4090", "NVIDIA",
           ", \"availability\": \"HIGH\", \"dataCenters\": [{\"id\": \"A\", \"name\": \"a\", \"availability\": "
           "\"LOW\"}, "
           "{\"id\": \"B\", \"name\": \"b\", \"availability\": \"NONE\"}, "
           "{\"id\": \"C\", \"name\": \"c\", \"availability\": \"HIGH\"}]") ", " GPU("AMD Instinct MI300X OAM", "AMD",
                                                                                     "") ", " GPU("Tesla "
                                                                                                  "V100-PCIE-16GB",
                                                                                                  "NVIDIA",
                                                                                                  "") ", " GPU("NVIDIA "
                                                                                                               "RTX "
                                                                                                               "2000 "
                                                                                                               "Ada "
                                                                                                               "Generat"
                                                                                                               "ion",
                                                                                                               "NVIDIA",
                                                                                                               "") "]"
                                                                                                                   "}"},
      {200, NULL, "{\"gpus\": []}"}};
  pod_gpu_type *types;
  int n;
  open_server(answers, 2);
  assert_int_equal(pod_api_gpus(http, 3, true, false, &types, &n), MO_OK);
  assert_non_null(strstr(
      s.asked[0], "GET /v2/catalog/gpus?include=AVAILABILITY&product=POD&count=3&cloud=COMMUNITY&minCudaVersion="));
  assert_int_equal(n, 2);
  assert_string_equal(types[0].id, "NVIDIA GeForce RTX 4090");
  assert_int_equal(types[0].available, 3);
  assert_int_equal(types[0].n_data_centers, 2);
  assert_string_equal(types[0].data_centers[0], "C");
  assert_string_equal(types[0].data_centers[1], "A");
  assert_true(types[0].secure && !types[0].community && types[0].price_secure == 0.69);
  assert_int_equal(types[0].most_secure, 8);
  assert_string_equal(types[1].id, "NVIDIA RTX 2000 Ada Generation");
  assert_int_equal(types[1].available, -1);
  free(types);
  assert_int_equal(pod_api_gpus(http, 0, false, false, &types, &n), MO_OK);
  assert_non_null(strstr(s.asked[1], "GET /v2/catalog/gpus HTTP"));
  free(types);
  close_server();
}

/* --- creating and ending --- */

static json_t *asked_json(int i) {
  json_t *body = json_loads(strstr(s.asked[i], "\r\n\r\n") + 4, 0, NULL);
  assert_non_null(body);
  return body;
}

static void test_create(void **state) {
  (void)state;
  const prepared answers[] = {{201, NULL, "{\"id\": \"p9\"}"},
                              {201, NULL, "{\"id\": \"c9\"}"},
                              {201, NULL, "{}"},
                              {500, NULL, "{}"},
                              {0, NULL, NULL},
                              {400, NULL, "{\"title\": \"Bad Request\", \"detail\": \"no instances\"}"},
                              {403, NULL, "{}"},
                              {402, NULL, "{\"detail\": \"balance\"}"}};
  json_t *env = json_pack("{s:s}", "A", "b");
  pod_order order = {.name = "moe-outliers-k-1",
                     .gpu = "NVIDIA L40S",
                     .image = "i:1",
                     .data_center = "US-1",
                     .gpus = 2,
                     .disk_gb = 50,
                     .pods = 1,
                     .community = true,
                     .env = env};
  char id[64], detail[512];
  bool none, lost;
  open_server(answers, 8);
  assert_int_equal(pod_api_create(http, &order, id, &none, &lost, NULL), MO_OK);
  assert_string_equal(id, "p9");
  assert_true(!none && !lost);
  json_t *wanted =
      json_pack("{s:s, s:s, s:i, s:[s], s:b, s:O, s:[s], s:s, s:{s:s, s:i, s:s}}", "name", "moe-outliers-k-1", "image",
                "i:1", "disk", 50, "ports", "22/tcp", "startSsh", 1, "env", env, "dataCenterIds", "US-1", "cloud",
                "COMMUNITY", "gpu", "id", "NVIDIA L40S", "count", 2, "minCudaVersion", POD_MIN_CUDA);
  json_t *asked = asked_json(0);
  assert_true(json_equal(asked, wanted));
  json_decref(asked);
  json_decref(wanted);

  order.pods = 3;
  order.slurm = true;
  order.data_center = "";
  order.args = "bash -c x";
  order.volume = "vol";
  assert_int_equal(pod_api_create(http, &order, id, &none, &lost, NULL), MO_OK);
  wanted = json_pack("{s:s, s:s, s:i, s:[s], s:b, s:O, s:s, s:{s:[{s:s, s:s}]}, s:s, s:{s:s, s:i, s:i}}", "name",
                     "moe-outliers-k-1", "image", "i:1", "disk", 50, "ports", "22/tcp", "startSsh", 1, "env", env,
                     "args", "bash -c x", "mounts", "network", "volumeId", "vol", "path", "/workspace", "type", "SLURM",
                     "compute", "gpuTypeId", "NVIDIA L40S", "gpuCountPerPod", 2, "podCount", 3);
  asked = asked_json(1);
  assert_true(json_equal(asked, wanted));
  assert_non_null(strstr(s.asked[1], "POST /v2/clusters "));
  json_decref(asked);
  json_decref(wanted);

  order.pods = 1;
  for (int i = 0; i < 3; i++) { /* no id, 500, no answer: it may be there */
    assert_int_equal(pod_api_create(http, &order, id, &none, &lost, NULL), MO_OK);
    assert_true(lost && !none && !id[0]);
  }
  assert_int_equal(pod_api_create(http, &order, id, &none, &lost, detail), MO_OK);
  assert_true(none && !lost);
  assert_string_equal(detail, "Bad Request: no instances");
  assert_int_equal(pod_api_create(http, &order, id, &none, &lost, NULL), MO_OK);
  assert_true(none);
  expect_error(pod_api_create(http, &order, id, &none, &lost, NULL), MO_FAILED, "add credit");
  json_decref(env);
  close_server();
}

static void test_end(void **state) {
  (void)state;
  const prepared answers[] = {
      {204, NULL, NULL},
      {200, NULL, POD("p", "n", "")},
      {404, NULL, "{}"}, /* gone at the second look */
      {404, NULL, "{}"},
      {404, NULL, "{}"}, /* gone already */
      {204, NULL, NULL},
      {404, NULL, "{}"}, /* a cluster, of which a pod is left for a while */
      {200, NULL, "{\"pods\": [" POD("p", "n", ", \"cluster\": {\"id\": \"c\", \"rank\": 0}") "]}"},
      {404, NULL, "{}"},
      {200, NULL, "{\"pods\": []}"},
      {409, NULL, "{\"detail\": \"belongs to a cluster\"}"}};
  open_server(answers, 11);
  assert_int_equal(pod_api_end(http, "p", false), MO_OK);
  assert_non_null(strstr(s.asked[0], "DELETE /v2/pods/p HTTP"));
  assert_int_equal(pod_api_end(http, "p", false), MO_OK);
  assert_int_equal(pod_api_end(http, "c", true), MO_OK);
  assert_non_null(strstr(s.asked[5], "DELETE /v2/clusters/c HTTP"));
  expect_error(pod_api_end(http, "p", false), MO_FAILED,
               "RunPod answers 409: belongs to a cluster (DELETE /v2/pods/p)");
  expect_error(pod_api_end(http, "../billing", false), MO_INVALID, "\"../billing\" is no id");
  close_server();
}

static void test_stays(void **state) {
  (void)state;
  const prepared answers[] = {{204, NULL, NULL}, {200, NULL, POD("p", "n", "")}, {200, NULL, POD("p", "n", "")}};
  setenv("MOE_POD_PATIENCE", "0.5", 1);
  open_server(answers, 3);
  expect_error(pod_api_end(http, "p", false), MO_FAILED, "still there 0.5 s after it was deleted (pod p)");
  close_server();
  setenv("MOE_POD_PATIENCE", "3", 1);
}

static void test_log(void **state) {
  (void)state;
  const prepared answers[] = {{200, NULL,
                               "id: 1\ndata: {\"ts\":\"t\",\"source\":\"container\",\"line\":\"one\"}\n\n: comment\n"
                               "data: {\"line\":\"two\"}\ndata: garbage\n"},
                              {404, NULL, "{}"}};
  char *text;
  open_server(answers, 2);
  assert_int_equal(pod_api_log(http, "p", &text), MO_OK);
  assert_string_equal(text, "one\ntwo\n");
  free(text);
  expect_error(pod_api_log(http, "p", &text), MO_FAILED, "RunPod answers 404");
  close_server();
}

static void test_times(void **state) {
  (void)state;
  double seconds;
  assert_true(pod_parse_time("1970-01-01T00:00:10Z", &seconds) && seconds == 10);
  assert_true(pod_parse_time("1970-01-01t00:00:10.25z", &seconds) && seconds == 10.25);
  assert_true(pod_parse_time("1970-01-01T02:00:00+02:00", &seconds) && seconds == 0);
  assert_true(pod_parse_time("1969-12-31T19:00:01-05:00", &seconds) && seconds == 1);
  static const char *const bad[] = {
      "", "1970-01-01", "1970-01-01T00:00:10", "1970-01-01T00:00:10+2", "1970-01-01T00:00:10Zx", "x"};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(pod_parse_time(bad[i], &seconds));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_pods),         cmocka_unit_test(test_pod_details),
      cmocka_unit_test(test_strange_pods), cmocka_unit_test(test_lists_that_are_none),
      cmocka_unit_test(test_refusals),     cmocka_unit_test(test_clusters),
      cmocka_unit_test(test_gpus),         cmocka_unit_test(test_create),
      cmocka_unit_test(test_end),          cmocka_unit_test(test_stays),
      cmocka_unit_test(test_log),          cmocka_unit_test(test_times),
  };
  setenv("MOE_POD_PATIENCE", "3", 1); /* the server answers at once */
  return cmocka_run_group_tests(tests, NULL, NULL);
}
