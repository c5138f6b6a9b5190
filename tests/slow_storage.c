/* Storage that fails, for tests: loaded before the C library (LD_PRELOAD) it counts what is read of *.safetensors, and once
 * SLOW_STORAGE_AFTER bytes have been asked for
 *
 *   SLOW_STORAGE_SECONDS=N   all reads hang for N seconds, whatever signals come,
 *   SLOW_STORAGE_EACH=N      every read takes N seconds,
 *   SLOW_STORAGE_ERRNO=N     the reads fail with that error.
 *
 * Without the first of these variables it changes nothing. */
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long long setting(const char *name) {
  const char *text = getenv(name);
  return text ? atoll(text) : -1;
}

static int is_weights(int fd) {
  char link[40], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = '\0';
  return strstr(path, ".safetensors") != NULL;
}

/* Until a time of the monotonic clock, in nanoseconds. */
static void hang_until(long long end) {
  struct timespec until = {.tv_sec = end / 1000000000, .tv_nsec = end % 1000000000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) continue;
}

/* Before a read: hang, or an errno; 0: go on. */
static int fate(int fd, size_t bytes) {
  static atomic_llong asked, end;
  long long after = setting("SLOW_STORAGE_AFTER"), seconds = setting("SLOW_STORAGE_SECONDS");
  if (after < 0 || !is_weights(fd)) return 0;
  if (atomic_fetch_add(&asked, (long long)bytes) + (long long)bytes <= after) return 0;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  long long not_yet = 0, moment = now.tv_sec * 1000000000LL + now.tv_nsec, mine = moment + seconds * 1000000000LL;
  long long each = setting("SLOW_STORAGE_EACH");
  if (each > 0) hang_until(moment + each * 1000000000LL);
  if (seconds > 0) {
    if (atomic_compare_exchange_strong(&end, &not_yet, mine)) not_yet = mine;
    hang_until(not_yet);
  }
  long long error = setting("SLOW_STORAGE_ERRNO");
  return error > 0 ? (int)error : 0;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define GIVE_UP(fd, bytes)               \
  do {                                   \
    int error = fate((fd), (bytes));     \
    if (error) return errno = error, -1; \
  } while (0)

static size_t size_of(const struct iovec *parts, int n) {
  size_t bytes = 0;
  for (int i = 0; i < n; i++) bytes += parts[i].iov_len;
  return bytes;
}

ssize_t pread(int fd, void *buffer, size_t bytes, off_t offset) {
  GIVE_UP(fd, bytes);
  return NEXT(pread)(fd, buffer, bytes, offset);
}

ssize_t pread64(int fd, void *buffer, size_t bytes, off64_t offset) {
  GIVE_UP(fd, bytes);
  return NEXT(pread64)(fd, buffer, bytes, offset);
}

ssize_t preadv2(int fd, const struct iovec *parts, int n, off_t offset, int flags) {
  GIVE_UP(fd, size_of(parts, n));
  return NEXT(preadv2)(fd, parts, n, offset, flags);
}

ssize_t preadv64v2(int fd, const struct iovec *parts, int n, off64_t offset, int flags) {
  GIVE_UP(fd, size_of(parts, n));
  return NEXT(preadv64v2)(fd, parts, n, offset, flags);
}
