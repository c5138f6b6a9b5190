#include "weights/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MAX_READ (1 << 30)    /* of one pread */
#define SAMPLE (256 << 10)    /* between pages that are looked for in the page cache */
#define DIRECT_READ (1 << 20) /* of one pread past the cache; larger ones were slower on every disk measured */

mo_status mo_file_open_regular(const char *path, int *fd, int64_t *size) {
  *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a FIFO must not hang the open */
  if (*fd < 0 && errno == ENOENT) return MO_OK;
  if (*fd < 0)
    return MO_FAIL(MO_INVALID, "cannot open: %s (%s): check the permissions and, for many shards, ulimit -n",
                   strerror(errno), path);
  struct stat info;
  if (fstat(*fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(*fd);
    *fd = -1;
    return MO_FAIL(MO_INVALID, "not a regular file (%s): put the checkpoint's file there", path);
  }
  *size = info.st_size;
  return MO_OK;
}

/* --- through the page cache --- */

static mo_status read_failed(const char *path, int64_t offset, int64_t bytes) {
  return MO_FAIL(MO_FAILED, "cannot read bytes %lld to %lld of file %s: %s: check the storage and run again",
                 (long long)offset, (long long)(offset + bytes), path, strerror(errno));
}

static mo_status file_ended(const char *path, int64_t at, int64_t expected) {
  return MO_FAIL(MO_FAILED,
                 "file %s ends at byte %lld, expected %lld: it was changed after it was opened, fetch it again", path,
                 (long long)at, (long long)expected);
}

mo_status mo_file_read_range(int fd, const char *path, int64_t offset, int64_t bytes, void *buffer) {
  int64_t done = 0;
  while (done < bytes) {
    int64_t want = bytes - done < MAX_READ ? bytes - done : MAX_READ;
    ssize_t got = pread(fd, (char *)buffer + done, (size_t)want, (off_t)(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return read_failed(path, offset, bytes);
    if (got == 0) return file_ended(path, offset + done, offset + bytes);
    done += got;
  }
  return MO_OK;
}

/* How many of the first bytes the page cache seems to hold: a page in every SAMPLE bytes is asked for, and the last
 * one. All where that cannot be told. The mapping is asked about, never looked into. */
static int64_t seems_cached(const mo_weight_file *file, int64_t offset, int64_t bytes) {
  int64_t page = sysconf(_SC_PAGESIZE), first = offset / page * page, last = (offset + bytes - 1) / page * page - first;
  size_t length = (size_t)(offset + bytes - first);
  char *map = mmap(NULL, length, PROT_READ, MAP_SHARED, file->fd, (off_t)first);
  if (map == MAP_FAILED) return bytes;
  int64_t at = 0;
  for (;; at = at + SAMPLE < last ? at + SAMPLE : last) {
    unsigned char resident = 1;
    bool known = mincore(map + at, 1, &resident) == 0;
    if (known && !(resident & 1)) break;
    if (!known || at == last) {
      at = (int64_t)length;
      break;
    }
  }
  munmap(map, length);
  return first + at > offset ? first + at - offset : 0;
}

/* A read that may not wait starts reading ahead where the cache ends, all of what was asked for: so it is asked for
 * little more than is there. */
mo_status mo_file_read_cached(mo_weight_file *file, int64_t offset, int64_t bytes, void *buffer, int64_t *got) {
  int64_t cached = seems_cached(file, offset, bytes);
  *got = 0;
  if (cached > 0 && !atomic_load(&file->opaque)) {
    struct iovec part = {buffer, (size_t)cached};
    ssize_t n = preadv2(file->fd, &part, 1, (off_t)offset, RWF_NOWAIT);
    if (n < 0 && errno != EAGAIN && errno != EINTR) atomic_store(&file->opaque, true);
    if (n > 0) *got = n;
  }
  if (!atomic_load(&file->opaque) || cached < bytes) return MO_OK;
  MO_TRY(mo_file_read_range(file->fd, file->path, offset, bytes, buffer));
  *got = bytes;
  return MO_OK;
}

/* --- past it --- */

/* Memory file systems have nothing behind the cache; NFS is read ahead by its client. */
static bool better_cached(int fd) {
  struct statfs info;
  if (fstatfs(fd, &info) != 0) return true;
  return info.f_type == TMPFS_MAGIC || info.f_type == RAMFS_MAGIC || info.f_type == HUGETLBFS_MAGIC ||
         info.f_type == NFS_SUPER_MAGIC;
}

/* The same file once more, also where its name has gone. */
static int open_direct(const mo_weight_file *file) {
  char name[40];
  snprintf(name, sizeof name, "/proc/self/fd/%d", file->fd);
  int fd = better_cached(file->fd) ? -1 : open(name, O_RDONLY | O_CLOEXEC | O_DIRECT);
  return fd < 0 ? MO_DIRECT_REFUSED : fd;
}

bool mo_file_can_direct(mo_weight_file *file) {
  int known = atomic_load(&file->direct);
  if (known == MO_DIRECT_UNTRIED) {
    int mine = open_direct(file);
    if (atomic_compare_exchange_strong(&file->direct, &known, mine))
      known = mine;
    else if (mine >= 0)
      close(mine); /* another thread was first */
  }
  return known >= 0 && !atomic_load(&file->refused);
}

mo_status mo_file_read_direct(mo_weight_file *file, int64_t offset, int64_t bytes, void *buffer, bool *refused) {
  int64_t skipped = offset % MO_DIRECT_BLOCK, at = offset - skipped, end = offset + bytes;
  char *to = (char *)buffer - skipped;
  int64_t stop = (end + MO_DIRECT_BLOCK - 1) / MO_DIRECT_BLOCK * MO_DIRECT_BLOCK;
  *refused = !mo_file_can_direct(file);
  while (!*refused && at < end) {
    int64_t want = stop - at < DIRECT_READ ? stop - at : DIRECT_READ;
    ssize_t got = pread(atomic_load(&file->direct), to, (size_t)want, (off_t)at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) { /* the file system wants other blocks, or none */
      atomic_store(&file->refused, true);
      *refused = true;
      break;
    }
    if (got < 0) return read_failed(file->path, offset, bytes);
    if (at + got < end && (got == 0 || got % MO_DIRECT_BLOCK != 0)) return file_ended(file->path, at + got, end);
    at += got;
    to += got;
  }
  return MO_OK;
}

void mo_file_close(mo_weight_file *file) {
  int direct = atomic_load(&file->direct);
  if (direct >= 0) close(direct);
  if (file->fd >= 0) close(file->fd);
  free(file->name);
  free(file->path);
}
