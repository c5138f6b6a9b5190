#include "pod/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/files.h"

mo_status pod_path(char path[POD_PATH_BYTES], const char *format, ...) {
  va_list args;
  va_start(args, format);
  int length = vsnprintf(path, POD_PATH_BYTES, format, args);
  va_end(args);
  if (length >= 0 && length < POD_PATH_BYTES) return MO_OK;
  return MO_FAIL(MO_INVALID, "a path is too long (%.60s...): use shorter names of folders", path);
}

mo_status pod_make_folders(const char *path) {
  size_t bad = mo_make_folders(path, 0700);
  if (bad == 0) return MO_OK;
  return MO_FAIL(MO_FAILED, "cannot make the folder (%.*s): %s: choose another place", (int)bad, path, strerror(errno));
}

mo_status pod_make_folder_of(const char *path) {
  char *folder = mo_folder_of(path);
  mo_status status = folder ? pod_make_folders(folder) : MO_FAILED;
  free(folder);
  return status;
}

static mo_status flush_folder_of(const char *path) {
  char *folder = mo_folder_of(path);
  if (!folder) return MO_FAILED;
  int descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  bool good = descriptor >= 0 && (fsync(descriptor) == 0 || errno == EINVAL); /* some file systems flush no folders */
  mo_status status =
      good ? MO_OK
           : MO_FAIL(MO_FAILED, "cannot flush the folder (%s): %s: choose another place", folder, strerror(errno));
  if (descriptor >= 0) close(descriptor);
  free(folder);
  return status;
}

mo_status pod_write_durably(const char *path, const void *data, size_t bytes, mode_t mode) {
  char temporary[POD_PATH_BYTES];
  MO_TRY(pod_path(temporary, "%s.new", path));
  int descriptor = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  bool good = descriptor >= 0 && mo_write_fully(descriptor, data, bytes) && fsync(descriptor) == 0;
  int error = errno;
  if (descriptor >= 0 && close(descriptor) != 0 && good) error = errno, good = false;
  if (good && rename(temporary, path) != 0) error = errno, good = false;
  if (good) return flush_folder_of(path);
  if (descriptor >= 0) unlink(temporary);
  return MO_FAIL(MO_FAILED, "cannot write (%s): %s: make room there, or choose another place", path, strerror(error));
}

mo_status pod_rename_durably(const char *from, const char *to) {
  int descriptor = open(from, O_RDONLY | O_CLOEXEC);
  bool good = descriptor >= 0 && fsync(descriptor) == 0 && rename(from, to) == 0;
  int error = errno;
  if (descriptor >= 0) close(descriptor);
  if (good) return flush_folder_of(to);
  return MO_FAIL(MO_FAILED, "cannot rename %s (%s): %s: make room there, or choose another place", from, to,
                 strerror(error));
}

mo_status pod_read_file(char **text, size_t *bytes, const char *path, size_t most) {
  struct stat info;
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0 || fstat(descriptor, &info) != 0) {
    int error = errno;
    if (descriptor >= 0) close(descriptor);
    return MO_FAIL(MO_FAILED, "cannot read (%s): %s: check the path", path, strerror(error));
  }
  size_t size = (size_t)info.st_size < most ? (size_t)info.st_size : most;
  char *buffer = mo_alloc(size + 1, 1);
  size_t n = 0;
  if (buffer && lseek(descriptor, info.st_size - (off_t)size, SEEK_SET) >= 0) {
    ssize_t got = 1;
    while (n < size && got > 0) {
      got = read(descriptor, buffer + n, size - n);
      if (got > 0) n += (size_t)got;
    }
  }
  close(descriptor);
  if (!buffer) return MO_FAILED;
  buffer[n] = '\0';
  *text = buffer;
  *bytes = n;
  return MO_OK;
}
