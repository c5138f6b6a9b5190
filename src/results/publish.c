#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "results/writer.h"

char *mo_partial_path(const char *path) {
  size_t bytes = strlen(path) + sizeof ".partial";
  char *partial = mo_alloc(bytes, 1);
  if (partial) snprintf(partial, bytes, "%s.partial", path);
  return partial;
}

/* Only really making a file tells: root passes every permission check, and a read-only file system none. */
static mo_status check_writable(const char *folder) {
  static const char name[] = "/.moe-outliers-XXXXXX";
  size_t bytes = strlen(folder) + sizeof name;
  char *probe = mo_alloc(bytes, 1);
  if (!probe) return MO_FAILED;
  snprintf(probe, bytes, "%s%s", folder, name);
  mo_status status = MO_OK;
  int descriptor = mkstemp(probe);
  if (descriptor < 0)
    status = MO_FAIL(MO_INVALID, "cannot write to the output folder (%s: %s): choose another output.path", folder,
                     strerror(errno));
  if (descriptor >= 0 && (close(descriptor) != 0 || unlink(probe) != 0))
    status =
        MO_FAIL(MO_INVALID, "cannot remove the test file (%s: %s): choose another output.path", probe, strerror(errno));
  free(probe);
  return status;
}

static mo_status check_folder(const char *path) {
  char *folder = mo_folder_of(path);
  if (!folder) return MO_FAILED;
  mo_status status = MO_OK;
  struct stat information;
  if (stat(folder, &information) == 0) {
    if (S_ISDIR(information.st_mode))
      status = check_writable(folder);
    else
      status = MO_FAIL(MO_INVALID, "the output folder is a file (%s): choose another output.path", folder);
  } else if (errno == ENOENT) {
    status =
        MO_FAIL(MO_INVALID, "the output folder does not exist (%s): create it with mkdir -p \"%s\"", folder, folder);
  } else {
    status = MO_FAIL(MO_INVALID, "cannot reach the output folder (%s: %s): choose another output.path", folder,
                     strerror(errno));
  }
  free(folder);
  return status;
}

/* What is there under the name already must be nothing or a plain file. */
static mo_status check_name(const char *path, bool *exists) {
  struct stat information;
  *exists = false;
  if (stat(path, &information) == 0) {
    *exists = true;
    if (S_ISDIR(information.st_mode))
      return MO_FAIL(MO_INVALID, "the output path is a folder (%s): add a file name to output.path", path);
    if (!S_ISREG(information.st_mode))
      return MO_FAIL(MO_INVALID, "the output path is not a plain file (%s): choose another output.path", path);
    return MO_OK;
  }
  /* A missing or broken folder gets its own message later. */
  if (errno == ENOENT) {
    *exists = lstat(path, &information) == 0; /* a link that leads nowhere */
    return MO_OK;
  }
  if (errno == ENOTDIR || errno == EACCES || errno == ELOOP) return MO_OK;
  return MO_FAIL(MO_INVALID, "the output path cannot be used (%s: %s): choose another output.path", path,
                 strerror(errno));
}

mo_status mo_results_check_path(const char *path, bool overwrite) {
  size_t length = strlen(path);
  if (length == 0) return MO_FAIL(MO_INVALID, "the output path is empty (output.path): give a file name");
  if (path[length - 1] == '/')
    return MO_FAIL(MO_INVALID, "the output path is a folder (%s): add a file name to output.path", path);
  char *partial = mo_partial_path(path);
  if (!partial) return MO_FAILED;
  bool exists = false, partial_exists;
  mo_status status = check_name(path, &exists);
  if (status == MO_OK) status = check_name(partial, &partial_exists);
  free(partial);
  MO_TRY(status);
  if (exists && !overwrite)
    return MO_FAIL(MO_INVALID, "the result file exists (%s): move it away or set output.overwrite = true", path);
  return check_folder(path);
}

mo_status mo_file_sync(const char *path) {
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0)
    return MO_FAIL(MO_FAILED, "cannot open the result file (%s: %s): check its folder", path, strerror(errno));
  mo_status status = MO_OK;
  if (fsync(descriptor) != 0)
    status = MO_FAIL(MO_FAILED, "cannot flush the result file to storage (%s: %s): check space, quota and file system",
                     path, strerror(errno));
  close(descriptor);
  return status;
}

/* For file systems that cannot reserve: compare with what is free now. Returns 0 or an errno. */
static int check_free(int descriptor, const struct stat *information) {
  struct statvfs system;
  if (fstatvfs(descriptor, &system) != 0) return errno;
  double held = 512.0 * (double)information->st_blocks;
  double available = (double)system.f_bavail * (double)system.f_frsize;
  return (double)information->st_size - held > available ? ENOSPC : 0;
}

mo_status mo_file_reserve(const char *path) {
  struct stat information = {0};
  int descriptor = open(path, O_WRONLY | O_CLOEXEC);
  int error = descriptor < 0 || fstat(descriptor, &information) != 0 ? errno : 0;
  /* Not posix_fallocate: where the file system cannot reserve, that writes to each block and races with other nodes. */
  while (!error && fallocate(descriptor, 0, 0, information.st_size) != 0) {
    if (errno == EINTR) continue;
    error = errno;
    if (error != EOPNOTSUPP && error != ENOSYS && error != EINVAL) break;
    error = check_free(descriptor, &information);
    break;
  }
  if (descriptor >= 0) close(descriptor);
  if (!error) return MO_OK;
  return MO_FAIL(MO_FAILED,
                 "no room for the result file (%s, %lld bytes: %s): free space or choose another output.path", path,
                 (long long)information.st_size, strerror(error));
}

static mo_status sync_folder(const char *path) {
  char *folder = mo_folder_of(path);
  if (!folder) return MO_FAILED;
  mo_status status = MO_OK;
  int descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  /* EINVAL: a file system on which folders cannot be flushed and need not be. */
  if (descriptor < 0 || (fsync(descriptor) != 0 && errno != EINVAL))
    status = MO_FAIL(MO_FAILED, "cannot flush the output folder to storage (%s: %s): check the file system", folder,
                     strerror(errno));
  if (descriptor >= 0) close(descriptor);
  free(folder);
  return status;
}

/* 0 or an errno. */
static int rename_file(const char *from, const char *to, bool replace) {
  if (replace) return rename(from, to) == 0 ? 0 : errno;
  if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return errno;
  /* Not every file system can do that in one step. */
  struct stat information;
  if (lstat(to, &information) == 0) return EEXIST;
  return rename(from, to) == 0 ? 0 : errno;
}

mo_status mo_file_publish(const char *partial, const char *path, bool new_path, bool *kept) {
  *kept = false;
  MO_TRY(mo_file_sync(partial));
  int error = rename_file(partial, path, !new_path);
  if (error == EEXIST) {
    *kept = true;
    return MO_FAIL(MO_FAILED, "a result file appeared during the run (%s): this run's result is %s, rename it", path,
                   partial);
  }
  if (error)
    return MO_FAIL(MO_FAILED, "cannot rename the finished result (%s -> %s: %s): check the folder", partial, path,
                   strerror(error));
  mo_status status = sync_folder(path);
  if (status != MO_OK) (void)unlink(path);
  return status;
}
