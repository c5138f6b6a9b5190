/* Who we are and which programs to use: from the environment, then from .env. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pod/pod.h"

enum {
  MOST_BYTES = 1 << 16,         /* of .env */
  LEAST_SECRET = 8,             /* shorter ones cannot be taken out of a log without harm */
  MOST_SECRET = POD_MOST_SECRET /* longer ones might be cut in two where output is redacted in pieces */
};

/* --- .env --- */

static char *trim(char *text) {
  while (isspace((unsigned char)*text)) text++;
  char *end = text + strlen(text);
  while (end > text && isspace((unsigned char)end[-1])) *--end = '\0';
  return text;
}

/* The value of a line, its quotes or the comment behind it taken off, in place; NULL: a quote is missing. */
static char *unquote(char *value) {
  if (*value == '"' || *value == '\'') {
    char quote = *value, *end = strchr(value + 1, quote);
    if (!end) return NULL;
    const char *rest = end + 1 + strspn(end + 1, " \t");
    if (*rest && *rest != '#') return NULL;
    *end = '\0';
    return value + 1;
  }
  for (char *c = value; *c; c++)
    if (*c == '#' && (c == value || isspace((unsigned char)c[-1]))) {
      *c = '\0';
      break;
    }
  return trim(value);
}

static bool is_ours(const char *name) {
  return strcmp(name, "RUNPOD_API_KEY") == 0 || strcmp(name, "HF_TOKEN") == 0 || strncmp(name, "MOE_POD_", 8) == 0;
}

/* Takes one line into the environment, where the variable is not set: what is exported has the last word. Lines of
 * other programs are passed over. */
static mo_status take_line(char *line, int number) {
  line = trim(line);
  if (!*line || *line == '#') return MO_OK;
  if (strncmp(line, "export", 6) == 0 && isspace((unsigned char)line[6])) line = trim(line + 7);
  char *equals = strchr(line, '=');
  if (equals) *equals = '\0';
  char *name = trim(line), *value = equals ? unquote(trim(equals + 1)) : NULL;
  bool named = *name && !isdigit((unsigned char)*name);
  for (const char *c = name; *c; c++) named = named && (isalnum((unsigned char)*c) || *c == '_');
  /* The line itself is not shown: it may hold the key. */
  if (!value || !named) return MO_FAIL(MO_INVALID, "line is not understood (.env:%d): write NAME=VALUE", number);
  const char *set = getenv(name);
  if (is_ours(name) && !(set && *set) && setenv(name, value, 1) != 0)
    return MO_FAIL(MO_FAILED, "out of memory (.env:%d): free some memory", number);
  return MO_OK;
}

static mo_status take_lines(char *text) {
  int number = 1;
  for (char *line = text; line; number++) {
    char *end = strchr(line, '\n');
    if (end) *end = '\0';
    MO_TRY(take_line(line, number));
    line = end ? end + 1 : NULL;
  }
  return MO_OK;
}

static mo_status unreadable(void) {
  return MO_FAIL(MO_INVALID, "file cannot be read: %s (.env): check its permissions", strerror(errno));
}

static mo_status read_env_file(pod_settings *settings) {
  struct stat info;
  FILE *file = fopen(".env", "re");
  if (!file) return errno == ENOENT ? MO_OK : unreadable();
  char *text = NULL;
  mo_status status = MO_OK;
  if (fstat(fileno(file), &info) != 0 || !S_ISREG(info.st_mode) || info.st_size > MOST_BYTES) {
    status = MO_FAIL(MO_INVALID, "not a file of at most %d bytes (.env): see .env.example", MOST_BYTES);
    goto done;
  }
  if (info.st_mode & (S_IRWXG | S_IRWXO))
    snprintf(settings->warning, sizeof settings->warning, "others may read .env, which holds keys: chmod 600 .env");
  text = mo_alloc((size_t)info.st_size + 1, 1);
  MO_TRY_TO(done, text ? MO_OK : MO_FAILED);
  if (fread(text, 1, (size_t)info.st_size, file) != (size_t)info.st_size && ferror(file)) {
    status = unreadable();
    goto done;
  }
  status = take_lines(text);
done:
  free(text);
  fclose(file);
  return status;
}

/* --- values --- */

static mo_status take(char **member, const char *name, const char *otherwise) {
  const char *value = getenv(name);
  if (!value || !*value) value = otherwise;
  if (!value) return MO_OK;
  *member = mo_strdup(value);
  return *member ? MO_OK : MO_FAILED;
}

/* What goes into a header must not end it. */
static mo_status take_secret(char **member, const char *name) {
  MO_TRY(take(member, name, NULL));
  (void)unsetenv(name);
  if (!*member) return MO_OK;
  size_t n = strlen(*member);
  bool plain = n >= LEAST_SECRET && n <= MOST_SECRET;
  for (const char *c = *member; *c; c++) plain = plain && isgraph((unsigned char)*c);
  if (plain) return MO_OK;
  return MO_FAIL(MO_INVALID,
                 "not a key: of %d to %d characters without blanks (%s, in the environment or .env): copy it again",
                 LEAST_SECRET, MOST_SECRET, name);
}

static bool is_local(const char *host) {
  static const char *const hosts[] = {"127.0.0.1", "localhost", "[::1]"};
  const char *bracket = host[0] == '[' ? strchr(host, ']') : NULL;
  size_t n = bracket ? (size_t)(bracket + 1 - host) : strcspn(host, ":/");
  for (size_t i = 0; i < sizeof hosts / sizeof hosts[0]; i++)
    if (strlen(hosts[i]) == n && strncasecmp(hosts[i], host, n) == 0) return true;
  return false;
}

/* The key goes nowhere in clear, but to this machine itself. */
static mo_status check_api(char *api) {
  size_t n = strlen(api);
  while (n > 0 && api[n - 1] == '/') api[--n] = '\0';
  bool printable = true;
  for (const char *c = api; *c; c++) printable = printable && isgraph((unsigned char)*c) && *c != '@' && *c != '?';
  if (printable && strncmp(api, "https://", 8) == 0 && api[8]) return MO_OK;
  if (printable && strncmp(api, "http://", 7) == 0 && is_local(api + 7)) return MO_OK;
  return MO_FAIL(MO_INVALID,
                 "\"%.200s\" will not do (MOE_POD_API): give https://HOST, or http:// for this machine itself", api);
}

static mo_status take_identity(pod_settings *settings) {
  static const char *const names[] = {"id_ed25519", "id_ecdsa", "id_rsa"};
  const char *given = getenv("MOE_POD_IDENTITY"), *home = getenv("HOME");
  char path[4096];
  if (given && *given) {
    bool tilde = given[0] == '~' && given[1] == '/' && home;
    snprintf(path, sizeof path, "%s%s", tilde ? home : "", tilde ? given + 1 : given);
    if (access(path, R_OK) != 0)
      return MO_FAIL(MO_INVALID, "private key cannot be read: %s (MOE_POD_IDENTITY, %s): give the path of one",
                     strerror(errno), path);
    settings->identity = mo_strdup(path);
    return settings->identity ? MO_OK : MO_FAILED;
  }
  for (size_t i = 0; home && i < sizeof names / sizeof names[0]; i++) {
    snprintf(path, sizeof path, "%s/.ssh/%s", home, names[i]);
    if (access(path, R_OK) != 0) continue;
    settings->identity = mo_strdup(path);
    return settings->identity ? MO_OK : MO_FAILED;
  }
  return MO_OK;
}

/* Cuts a path's last part off and returns it, "" if there is none. */
static const char *cut(char *path) {
  char *slash = strrchr(path, '/');
  if (!slash) return "";
  *slash = '\0';
  return slash + 1;
}

/* Whether the program is REPOSITORY/build/PRESET/moe-pod. */
static bool find_repository(char *path, size_t size) {
  char list[4200];
  ssize_t n = readlink("/proc/self/exe", path, size - 1);
  path[n > 0 ? n : 0] = '\0';
  (void)cut(path);
  (void)cut(path);
  if (strcmp(cut(path), "build") != 0) return false;
  snprintf(list, sizeof list, "%s/CMakeLists.txt", path);
  return path[0] && access(list, R_OK) == 0;
}

static mo_status take_source(pod_settings *settings) {
  char path[4096];
  MO_TRY(take(&settings->source, "MOE_POD_SOURCE", NULL));
  if (settings->source) return MO_OK;
  if (!find_repository(path, sizeof path) && !getcwd(path, sizeof path))
    return MO_FAIL(MO_FAILED, "no working directory: %s (.): change to one that is there", strerror(errno));
  settings->source = mo_strdup(path);
  return settings->source ? MO_OK : MO_FAILED;
}

static mo_status read_all(pod_settings *settings) {
  MO_TRY(read_env_file(settings));
  MO_TRY(take_secret(&settings->api_key, "RUNPOD_API_KEY"));
  MO_TRY(take_secret(&settings->hf_token, "HF_TOKEN"));
  MO_TRY(take(&settings->api, "MOE_POD_API", "https://api.runpod.io"));
  MO_TRY(check_api(settings->api));
  MO_TRY(take(&settings->ssh, "MOE_POD_SSH", "ssh"));
  MO_TRY(take(&settings->rsync, "MOE_POD_RSYNC", "rsync"));
  MO_TRY(take(&settings->state, "MOE_POD_STATE", ".moe-pod"));
  MO_TRY(take_identity(settings));
  return take_source(settings);
}

mo_status pod_settings_read(pod_settings *settings) {
  *settings = (pod_settings){0};
  mo_status status = read_all(settings);
  if (status != MO_OK) pod_settings_free(settings);
  return status;
}

static void forget(char *secret) {
  if (secret) explicit_bzero(secret, strlen(secret));
  free(secret);
}

void pod_settings_free(pod_settings *settings) {
  forget(settings->api_key);
  forget(settings->hf_token);
  free(settings->api);
  free(settings->ssh);
  free(settings->rsync);
  free(settings->identity);
  free(settings->state);
  free(settings->source);
  *settings = (pod_settings){0};
}

/* --- redaction --- */

static void redact(const char *secret, char *text) {
  if (!secret || !*secret) return;
  size_t n = strlen(secret);
  char *out = text, *found;
  for (; (found = strstr(text, secret)); text = found + n) {
    memmove(out, text, (size_t)(found - text));
    out += found - text;
    memcpy(out, "***", 3);
    out += 3;
  }
  memmove(out, text, strlen(text) + 1);
}

void pod_redact(const pod_settings *settings, char *text) {
  redact(settings->api_key, text);
  redact(settings->hf_token, text);
}

double pod_seconds_of(pod_span span) {
  static const struct {
    const char *name;
    double otherwise;
  } spans[] = {
      [POD_GRACE] = {"MOE_POD_GRACE", 3600},   [POD_LOOKUP] = {"MOE_POD_LOOKUP", 90},
      [POD_MARGIN] = {"MOE_POD_MARGIN", 300},  [POD_PATIENCE] = {"MOE_POD_PATIENCE", 300},
      [POD_POLL] = {"MOE_POD_POLL", 10},       [POD_REACH] = {"MOE_POD_REACH", 900},
      [POD_STALL] = {"MOE_POD_STALL", 1800},   [POD_SYNC] = {"MOE_POD_SYNC", 60},
      [POD_TIMEOUT] = {"MOE_POD_TIMEOUT", 60},
  };
  const char *text = getenv(spans[span].name);
  char *end;
  double seconds = text ? strtod(text, &end) : 0;
  return text && end != text && *end == '\0' && seconds > 0 && seconds <= 1e9 ? seconds : spans[span].otherwise;
}
