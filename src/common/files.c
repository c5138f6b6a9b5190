#include "common/files.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool mo_write_fully(int descriptor, const void *data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    ssize_t n = write(descriptor, (const char *)data + done, bytes - done);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) errno = ENOSPC;
    if (n <= 0) return false;
    done += (size_t)n;
  }
  return true;
}

/* Made now, or there before. */
static bool is_there(const char *folder, mode_t mode) {
  struct stat info;
  if (mkdir(folder, mode) == 0) return true;
  int error = errno;
  bool found = stat(folder, &info) == 0;
  if (found && S_ISDIR(info.st_mode)) return true;
  errno = found ? ENOTDIR : error;
  return false;
}

size_t mo_make_folders(const char *path, mode_t mode) {
  char part[PATH_MAX];
  size_t length = strlen(path);
  if (length >= sizeof part) {
    errno = ENAMETOOLONG;
    return length;
  }
  for (size_t n = 1; n <= length; n++) {
    if (path[n] != '/' && path[n]) continue;
    memcpy(part, path, n);
    part[n] = '\0';
    if (!is_there(part, mode)) return n;
  }
  return 0;
}
