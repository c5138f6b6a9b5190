/* Addresses: what a model.path names, and where a token may go. */
#include <ctype.h>
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights/network.h"

#define HUB_PREFIX "hf://"
#define HUB "https://huggingface.co"

static bool begins_with(const char *text, const char *prefix) { return strncmp(text, prefix, strlen(prefix)) == 0; }

bool mo_network_is_address(const char *path) {
  return begins_with(path, HUB_PREFIX) || begins_with(path, "http://") || begins_with(path, "https://");
}

static char *copy(const char *text, size_t length) {
  char *made = mo_alloc(length + 1, 1);
  if (made) memcpy(made, text, length);
  return made;
}

static void trim_slashes(char *text) {
  for (size_t n = strlen(text); n > 0 && text[n - 1] == '/'; n--) text[n - 1] = '\0';
}

/* Characters that mean something in a path are written as %XX. */
static char *escape(const char *text, bool slashes) {
  char *escaped = mo_alloc(3 * strlen(text) + 1, 1), *to = escaped;
  for (; escaped && *text; text++) {
    unsigned char c = (unsigned char)*text;
    if (isalnum(c) || strchr("-._~", c) || (slashes && c == '/'))
      *to++ = (char)c;
    else
      to += sprintf(to, "%%%02X", c);
  }
  return escaped;
}

/* --- origins --- */

static char *part_of(CURLU *url, CURLUPart part) {
  char *text = NULL;
  return curl_url_get(url, part, &text, part == CURLUPART_PORT ? CURLU_DEFAULT_PORT : 0) == CURLUE_OK ? text : NULL;
}

static bool same_part(CURLU *a, CURLU *b, CURLUPart part) {
  char *x = part_of(a, part), *y = part_of(b, part);
  bool same = x && y && strcasecmp(x, y) == 0;
  curl_free(x);
  curl_free(y);
  return same;
}

bool mo_network_same_origin(const char *a, const char *b) {
  CURLU *x = curl_url(), *y = curl_url();
  bool same = x && y && curl_url_set(x, CURLUPART_URL, a, 0) == CURLUE_OK &&
              curl_url_set(y, CURLUPART_URL, b, 0) == CURLUE_OK && same_part(x, y, CURLUPART_SCHEME) &&
              same_part(x, y, CURLUPART_HOST) && same_part(x, y, CURLUPART_PORT);
  curl_url_cleanup(x);
  curl_url_cleanup(y);
  return same;
}

bool mo_network_is_secure(const char *url) { return strncasecmp(url, "https://", 8) == 0; }

/* A password in an address would end up in messages and in the result. */
static mo_status check_address(const char *address, const char *key) {
  CURLU *url = curl_url();
  static const CURLUPart unwanted[] = {CURLUPART_USER, CURLUPART_PASSWORD, CURLUPART_QUERY, CURLUPART_FRAGMENT};
  bool usable = url && curl_url_set(url, CURLUPART_URL, address, 0) == CURLUE_OK, more = false;
  for (int i = 0; usable && i < 4; i++) {
    char *part = part_of(url, unwanted[i]);
    more = more || part;
    curl_free(part);
  }
  curl_url_cleanup(url);
  if (more)
    return MO_FAIL(
        MO_INVALID,
        "the address has a user, a query or a fragment, which cannot be used (%s): give http(s)://HOST/FOLDER", key);
  if (!usable)
    return MO_FAIL(MO_INVALID, "the address \"%.200s\" cannot be read (%s): give http(s)://HOST/FOLDER", address, key);
  return MO_OK;
}

/* --- token and endpoint --- */

static const char *variable(const char *name) {
  const char *value = getenv(name);
  return value && value[0] ? value : NULL;
}

/* The token in a file, NULL: none. */
static char *token_in(const char *path) {
  char line[1024] = "";
  FILE *file = fopen(path, "re");
  if (!file) return NULL;
  if (!fgets(line, sizeof line, file)) line[0] = '\0';
  fclose(file);
  return mo_strdup(line);
}

static char *token_below(const char *folder, const char *rest) {
  char path[4096];
  if (!folder || snprintf(path, sizeof path, "%s%s", folder, rest) >= (int)sizeof path) return NULL;
  return token_in(path);
}

/* Where the hub's own tools look, in their order. */
static char *find_token(void) {
  const char *given = variable("HF_TOKEN");
  if (!given) given = variable("HUGGING_FACE_HUB_TOKEN");
  if (given) return mo_strdup(given);
  if (variable("HF_TOKEN_PATH")) return token_below(variable("HF_TOKEN_PATH"), "");
  if (variable("HF_HOME")) return token_below(variable("HF_HOME"), "/token");
  if (variable("XDG_CACHE_HOME")) return token_below(variable("XDG_CACHE_HOME"), "/huggingface/token");
  return token_below(variable("HOME"), "/.cache/huggingface/token");
}

static mo_status set_token(mo_network *network) {
  char *token = find_token(), *begin = token;
  if (!token) return MO_OK; /* memory that is out shows elsewhere */
  while (isspace((unsigned char)*begin)) begin++;
  size_t length = strlen(begin);
  while (length > 0 && isspace((unsigned char)begin[length - 1])) length--;
  begin[length] = '\0';
  bool usable = true;
  for (const char *c = begin; *c; c++) usable = usable && isgraph((unsigned char)*c);
  if (usable && length > 0) network->token = mo_strdup(begin);
  free(token);
  if (!usable)
    return MO_FAIL(MO_INVALID, "the token has a blank or a control character in it (HF_TOKEN): set it again");
  return length == 0 || network->token ? MO_OK : MO_FAILED;
}

static mo_status set_endpoint(mo_network *network) {
  const char *endpoint = variable("HF_ENDPOINT");
  if (!endpoint) endpoint = HUB;
  if (!begins_with(endpoint, "http://") && !begins_with(endpoint, "https://"))
    return MO_FAIL(MO_INVALID, "\"%.200s\" is no http(s) address (HF_ENDPOINT): set it to that of the hub, or unset it",
                   endpoint);
  MO_TRY(check_address(endpoint, "HF_ENDPOINT"));
  network->endpoint = mo_strdup(endpoint);
  if (!network->endpoint) return MO_FAILED;
  trim_slashes(network->endpoint);
  return MO_OK;
}

/* The variables that the curl program heeds. */
static mo_status set_authorities(mo_network *network) {
  const char *file = variable("CURL_CA_BUNDLE");
  if (!file) file = variable("SSL_CERT_FILE");
  if (!file) return MO_OK;
  network->authorities = mo_strdup(file);
  return network->authorities ? MO_OK : MO_FAILED;
}

/* --- the address --- */

static bool is_name(const char *text, size_t length) {
  for (size_t i = 0; i < length; i++)
    if (!isalnum((unsigned char)text[i]) && !strchr("-._", text[i])) return false;
  return length > 0 && text[0] != '.';
}

static mo_status parse_hub(mo_network *network, const char *address) {
  const char *begin = address + sizeof HUB_PREFIX - 1, *at = strchr(begin, '@');
  size_t length = at ? (size_t)(at - begin) : strlen(begin);
  while (!at && length > 0 && begin[length - 1] == '/') length--;
  const char *slash = memchr(begin, '/', length);
  size_t owner = slash ? (size_t)(slash - begin) : 0;
  bool usable = slash ? is_name(begin, owner) && is_name(slash + 1, length - owner - 1) : is_name(begin, length);
  if (!usable || (at && !at[1]))
    return MO_FAIL(MO_INVALID,
                   "\"%.200s\" names no model of a hub (model.path): give hf://OWNER/NAME or hf://OWNER/NAME@REVISION",
                   address);
  network->repository = copy(begin, length);
  network->revision = mo_strdup(at ? at + 1 : "main");
  return network->repository && network->revision ? MO_OK : MO_FAILED;
}

mo_status mo_network_parse(mo_network *network, const char *address) {
  network->address = mo_strdup(address);
  if (!network->address) return MO_FAILED;
  trim_slashes(network->address);
  MO_TRY(set_endpoint(network));
  MO_TRY(set_authorities(network));
  MO_TRY(set_token(network));
  if (begins_with(address, HUB_PREFIX)) return parse_hub(network, address);
  return check_address(address, "model.path");
}

/* What a revision is that names its commit already. */
static bool is_commit(const char *revision) {
  size_t n = strlen(revision);
  for (size_t i = 0; i < n; i++)
    if (!isxdigit((unsigned char)revision[i])) return false;
  return n == 40;
}

char *mo_network_commit_url(const mo_network *network) {
  if (!network->repository || is_commit(network->revision)) return NULL;
  char *revision = escape(network->revision, false);
  size_t size = strlen(network->endpoint) + strlen(network->repository) + (revision ? strlen(revision) : 0) + 40;
  char *url = revision ? mo_alloc(size, 1) : NULL;
  if (url) snprintf(url, size, "%s/api/models/%s/revision/%s", network->endpoint, network->repository, revision);
  free(revision);
  return url;
}

mo_status mo_network_set_base(mo_network *network) {
  free(network->base);
  network->base = NULL;
  if (!network->repository) {
    network->base = mo_strdup(network->address);
    return network->base ? MO_OK : MO_FAILED;
  }
  if (!network->commit[0]) snprintf(network->commit, sizeof network->commit, "%.40s", network->revision);
  size_t size = strlen(network->endpoint) + strlen(network->repository) + sizeof network->commit + 20;
  network->base = mo_alloc(size, 1);
  if (!network->base) return MO_FAILED;
  snprintf(network->base, size, "%s/%s/resolve/%s", network->endpoint, network->repository, network->commit);
  return MO_OK;
}

char *mo_network_url(const mo_network *network, const char *name) {
  char *escaped = escape(name, false);
  size_t size = strlen(network->base) + (escaped ? strlen(escaped) : 0) + 2;
  char *url = escaped ? mo_alloc(size, 1) : NULL;
  if (url) snprintf(url, size, "%s/%s", network->base, escaped);
  free(escaped);
  return url;
}

char *mo_network_name(const char *address) {
  char *name = mo_strdup(address);
  if (!name) return NULL;
  trim_slashes(name);
  bool hub = begins_with(name, HUB_PREFIX);
  char *begin = hub ? name + sizeof HUB_PREFIX - 1 : strrchr(name, '/') + 1, *at = hub ? strchr(begin, '@') : NULL;
  if (at) *at = '\0';
  memmove(name, begin, strlen(begin) + 1);
  return name;
}
