/* Config files as bytes: loading, and a look at them and their includes before libconfig sees them. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config_internal.h"

#define MAX_DEPTH 10    /* libconfig's own limit; it reports what is deeper */
#define MAX_INCLUDES 64 /* of all files together: files that include each other twice would take 2^10 times as long */

static mo_status unreadable(const char *path) {
  return MO_FAIL(MO_INVALID, "config file cannot be read: %s (%s): check the path and its permissions", strerror(errno),
                 path);
}

static mo_status check_file(int file, const char *path, size_t *size) {
  struct stat info;
  if (fstat(file, &info) != 0) return unreadable(path);
  if (S_ISDIR(info.st_mode)) return MO_FAIL(MO_INVALID, "config file is a folder (%s): give a file", path);
  if (!S_ISREG(info.st_mode))
    return MO_FAIL(MO_INVALID, "config file is not a regular file (%s): give a config file", path);
  if (info.st_size > MO_CONFIG_MAX_BYTES)
    return MO_FAIL(MO_INVALID, "config file has %lld bytes (%s): give one of at most %d bytes", (long long)info.st_size,
                   path, MO_CONFIG_MAX_BYTES);
  *size = (size_t)info.st_size;
  return MO_OK;
}

static mo_status read_all(int file, const char *path, char *text, size_t size) {
  size_t done = 0;
  while (done < size) {
    ssize_t n = read(file, text + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return unreadable(path);
    if (n == 0) break;
    done += (size_t)n;
  }
  const char *zero = memchr(text, '\0', done);
  if (zero)
    return MO_FAIL(MO_INVALID, "config file has a zero byte (%s, byte %zu): give a text file", path,
                   (size_t)(zero - text));
  text[done] = '\0';
  return MO_OK;
}

mo_status mo_config_load(char **text, const char *path) {
  *text = NULL;
  /* Not blocking: opening a named pipe would wait for its writer. */
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return unreadable(path);
  size_t size = 0;
  mo_status status;
  MO_TRY_TO(done, check_file(file, path, &size));
  *text = mo_alloc(size + 1, 1);
  MO_TRY_TO(done, *text ? MO_OK : MO_FAILED);
  status = read_all(file, path, *text, size);
done:
  close(file);
  if (status != MO_OK) {
    free(*text);
    *text = NULL;
  }
  return status;
}

/* If `line` starts an include as libconfig's scanner sees it, the place after its opening quote, else NULL. */
static const char *include_path(const char *line) {
  line += strspn(line, " \t");
  if (strncmp(line, "@include", 8) != 0) return NULL;
  line += 8;
  size_t blanks = strspn(line, " \t");
  return blanks > 0 && line[blanks] == '"' ? line + blanks + 1 : NULL;
}

/* Copy the quoted path at `quoted` behind "include_dir/". Caller frees *path. */
static mo_status resolve(char **path, const char *quoted, const char *include_dir, const char *place) {
  char *out = *path = mo_alloc(strlen(include_dir) + strlen(quoted) + 2, 1);
  if (!out) return MO_FAILED;
  out += sprintf(out, "%s/", include_dir);
  for (const char *c = quoted; *c && *c != '"'; c++) {
    if (*c == '\\' && c[1] != '\\' && c[1] != '"')
      return MO_FAIL(MO_INVALID, "backslash in an @include path (%s): write / between folders", place);
    if (*c == '\\') c++;
    *out++ = *c;
  }
  return MO_OK;
}

static mo_status check_includes(const char *text, const char *name, const char *include_dir, int depth, int *count);

static mo_status check_include(const char *quoted, const char *place, const char *include_dir, int depth, int *count) {
  if (++*count > MAX_INCLUDES)
    return MO_FAIL(MO_INVALID, "more than %d includes (%s): look for files that include each other", MAX_INCLUDES,
                   place);
  char *path = NULL, *text = NULL;
  mo_status status;
  MO_TRY_TO(done, resolve(&path, quoted, include_dir, place));
  if (access(path, R_OK) != 0) goto done; /* libconfig reports it, unless it stands in a comment */
  MO_TRY_TO(done, mo_config_load(&text, path));
  if (depth < MAX_DEPTH) status = check_includes(text, path, include_dir, depth + 1, count);
done:
  free(path);
  free(text);
  return status;
}

static mo_status check_includes(const char *text, const char *name, const char *include_dir, int depth, int *count) {
  MO_TRY(mo_config_check_numbers(text, name, true));
  int number = 1;
  for (const char *line = text; line; number++) {
    const char *quoted = include_path(line);
    if (quoted) {
      char place[MO_PLACE_SIZE];
      snprintf(place, sizeof place, "%s:%d", name, number);
      MO_TRY(check_include(quoted, place, include_dir, depth, count));
    }
    const char *end = strchr(line, '\n');
    line = end ? end + 1 : NULL;
  }
  return MO_OK;
}

mo_status mo_config_check_source(const char *text, const char *name, const char *include_dir) {
  int count = 0;
  return check_includes(text, name, include_dir, 0, &count);
}
