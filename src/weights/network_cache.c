/* engine.cache: a folder per model, in it one per file, in it a file per range, FROM-END: the bytes, then a trailer.
 * A range appears under its name whole or not at all, so that any number of processes may share the folder.
 * Checksums tell those that a disk spoilt; they are removed and fetched again. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "common/files.h"
#include "weights/network.h"

#define MAGIC "moerange"
#define SPARE 1000000000  /* bytes left free, as the result may go to the same disk; or a twentieth of a small one */
#define STALE (24 * 3600) /* seconds: nobody writes a range for so long */

typedef struct {
  char magic[8];
  int64_t from, bytes, size; /* size: of the whole file */
  uint64_t sum;              /* of the bytes, as a tensor's, and of the three numbers */
} trailer;

typedef struct {
  char text[4096];
} path_text;

/* --- names --- */

static uint64_t hash_text(const char *text) {
  uint64_t h = 0xcbf29ce484222325u;
  for (; *text; text++) h = (h ^ (unsigned char)*text) * 0x100000001b3u;
  return h;
}

static uint64_t sum_of(const trailer *t, const void *data) {
  int64_t numbers[3] = {t->from, t->bytes, t->size};
  return mo_tensor_sum(data, 0, t->bytes) + mo_tensor_sum(numbers, 8, sizeof numbers);
}

static bool join(path_text *path, const char *folder, const char *name) {
  return snprintf(path->text, sizeof path->text, "%s/%s", folder, name) < (int)sizeof path->text;
}

static void replace(char *text, const char *unwanted, char by) {
  for (; (text = strpbrk(text, unwanted)); text++) *text = by;
}

/* Of a file: its version is the commit's, or follows from the ETag. Without one it is not kept. */
static bool folder_of(const mo_network *n, mo_network_file_state *file, path_text *path) {
  char version[20] = "";
  if (!n->cache) return false;
  if (!n->repository) {
    pthread_mutex_lock(&file->lock);
    if (file->etag[0])
      snprintf(version, sizeof version, ".%016llx", (unsigned long long)(hash_text(file->etag) + (uint64_t)file->size));
    pthread_mutex_unlock(&file->lock);
    if (!version[0]) return false;
  }
  return snprintf(path->text, sizeof path->text, "%s/%s%s", n->cache, file->name, version) < (int)sizeof path->text;
}

static void end_cache(mo_network *n, const char *why) {
  pthread_mutex_lock(&n->lock);
  if (!atomic_exchange(&n->cache_ends, true))
    snprintf(n->cache_trouble, sizeof n->cache_trouble, "%s (engine.cache, %.160s)", why, n->cache);
  pthread_mutex_unlock(&n->lock);
}

static void cannot_write(mo_network *n, int error) {
  char why[120];
  snprintf(why, sizeof why, "%.60s, nothing more is kept", strerror(error));
  end_cache(n, why);
}

mo_status mo_network_cache_open(mo_network *n, const char *folder) {
  char key[1200];
  if (!folder || !folder[0]) return MO_OK;
  if (n->repository)
    snprintf(key, sizeof key, "%.500s/%s", n->repository, n->commit);
  else
    snprintf(key, sizeof key, "%.200s.%016llx", n->address, (unsigned long long)hash_text(n->address));
  char *slash = n->repository ? strrchr(key, '/') : NULL;
  if (slash) *slash = '@';
  replace(key, "/:", '-');
  size_t size = strlen(folder) + strlen(key) + 2;
  free(n->cache);
  n->cache = mo_alloc(size, 1);
  if (!n->cache) return MO_FAILED;
  snprintf(n->cache, size, "%s/%s", folder, key);
  if (mo_make_folders(n->cache, 0777) == 0 && access(n->cache, W_OK | X_OK) == 0) return MO_OK;
  int error = errno;
  if (access(n->cache, R_OK | X_OK) == 0) {
    cannot_write(n, error);
    return MO_OK;
  }
  return MO_FAIL(MO_INVALID, "cannot write to the folder: %s (engine.cache, %s): give one that can be written",
                 strerror(error), folder);
}

/* --- what is there --- */

/* Holding the file's lock. */
static void add_cached(mo_network_file_state *file, int64_t from, int64_t end) {
  int64_t at = 0;
  while (at < file->n_cached && file->cached[at].from < from) at++;
  if (at > 0 && file->cached[at - 1].end > from) return; /* fetched twice at the same time: one is enough */
  if (at < file->n_cached && file->cached[at].from < end) return;
  mo_cached *all = realloc(file->cached, (size_t)(file->n_cached + 1) * sizeof *all);
  if (!all) return; /* what is not listed is fetched */
  memmove(all + at + 1, all + at, (size_t)(file->n_cached - at) * sizeof *all);
  all[at] = (mo_cached){.from = from, .end = end};
  file->cached = all;
  file->n_cached++;
}

static void remove_cached(mo_network_file_state *file, int64_t from) {
  pthread_mutex_lock(&file->lock);
  for (int64_t i = 0; i < file->n_cached; i++) {
    if (file->cached[i].from != from) continue;
    memmove(file->cached + i, file->cached + i + 1, (size_t)(file->n_cached - i - 1) * sizeof *file->cached);
    file->n_cached--;
    break;
  }
  pthread_mutex_unlock(&file->lock);
}

/* What a process left that was ended while it wrote. */
static void remove_stale(const char *folder, const char *name) {
  path_text path;
  struct stat information;
  if (join(&path, folder, name) && stat(path.text, &information) == 0 && time(NULL) - information.st_mtime > STALE)
    (void)unlink(path.text);
}

static void list_ranges(mo_network *n, mo_network_file_state *file) {
  path_text folder;
  if (!folder_of(n, file, &folder)) return;
  pthread_mutex_lock(&file->lock);
  DIR *open = file->listed ? NULL : opendir(folder.text);
  for (struct dirent *entry; open && (entry = readdir(open));) {
    long long from, end;
    int length = 0;
    if (strncmp(entry->d_name, "new.", 4) == 0) remove_stale(folder.text, entry->d_name);
    if (sscanf(entry->d_name, "%lld-%lld%n", &from, &end, &length) == 2 && !entry->d_name[length] && 0 <= from &&
        from < end)
      add_cached(file, from, end);
  }
  file->listed = true;
  pthread_mutex_unlock(&file->lock);
  if (open) closedir(open);
}

/* --- reading --- */

static bool read_all(int fd, void *to, int64_t bytes, int64_t offset) {
  for (int64_t done = 0; done < bytes;) {
    ssize_t got = pread(fd, (char *)to + done, (size_t)(bytes - done), offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += got;
  }
  return true;
}

/* The whole range is what was written. *size: of the file that it is of. */
static bool check_range(int fd, const mo_cached *range, int64_t *size) {
  trailer t;
  int64_t bytes = range->end - range->from;
  char *data = malloc((size_t)bytes);
  bool right = data && read_all(fd, data, bytes, 0) && read_all(fd, &t, sizeof t, bytes) &&
               memcmp(t.magic, MAGIC, 8) == 0 && t.from == range->from && t.bytes == bytes && sum_of(&t, data) == t.sum;
  free(data);
  if (right) *size = t.size;
  return right;
}

/* The part [offset, offset + bytes) of a range. */
static bool read_part(mo_network *n, mo_network_file_state *file, mo_cached *range, int64_t offset, int64_t bytes,
                      void *to) {
  path_text folder, path;
  char name[64];
  int64_t size = -1;
  snprintf(name, sizeof name, "%lld-%lld", (long long)range->from, (long long)range->end);
  if (!folder_of(n, file, &folder) || !join(&path, folder.text, name)) return false;
  int fd = open(path.text, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  bool right = range->checked || check_range(fd, range, &size);
  if (!right) (void)unlink(path.text);
  right = right && read_all(fd, to, bytes, offset - range->from);
  close(fd);
  pthread_mutex_lock(&file->lock);
  if (right && file->size < 0 && size >= 0) file->size = size;
  for (int64_t i = 0; right && i < file->n_cached; i++)
    if (file->cached[i].from == range->from) file->cached[i].checked = true;
  pthread_mutex_unlock(&file->lock);
  return right;
}

void mo_network_cache_read(mo_network *n, mo_network_file_state *file, int64_t offset, int64_t bytes, void *buffer,
                           int64_t *got, int64_t *next) {
  *got = 0;
  *next = offset + bytes;
  if (!n->cache) return;
  list_ranges(n, file);
  mo_cached found = {.from = -1};
  pthread_mutex_lock(&file->lock);
  for (int64_t i = 0; i < file->n_cached; i++) {
    const mo_cached *range = &file->cached[i];
    if (range->from <= offset && offset < range->end) found = *range;
    if (range->from > offset && range->from < *next) *next = range->from;
  }
  pthread_mutex_unlock(&file->lock);
  if (found.from < 0) return;
  int64_t part = found.end - offset < bytes ? found.end - offset : bytes;
  if (read_part(n, file, &found, offset, part, buffer)) {
    *got = part;
    return;
  }
  remove_cached(file, found.from);
  mo_network_cache_read(n, file, offset, bytes, buffer, got, next);
}

bool mo_network_cache_whole(mo_network *n, mo_network_file_state *file, char **text, int64_t *bytes) {
  mo_cached first = {0};
  if (!n->cache || !n->repository) return false; /* others may have changed since */
  list_ranges(n, file);
  pthread_mutex_lock(&file->lock);
  if (file->n_cached > 0) first = file->cached[0];
  pthread_mutex_unlock(&file->lock);
  if (first.from != 0 || first.end == 0 || !(*text = malloc((size_t)first.end))) return false;
  *bytes = first.end;
  if (read_part(n, file, &first, 0, first.end, *text) && file->size == first.end) return true;
  remove_cached(file, 0);
  free(*text);
  *text = NULL;
  return false;
}

/* --- writing --- */

static bool has_room(const char *folder, int64_t bytes) {
  struct statvfs system;
  if (statvfs(folder, &system) != 0) return true; /* the write will tell */
  double all = (double)system.f_blocks * (double)system.f_frsize, spare = all / 20 < SPARE ? all / 20 : SPARE;
  return (double)system.f_bavail * (double)system.f_frsize >= (double)bytes + spare;
}

static bool write_range(const char *folder, const trailer *t, const void *data) {
  path_text fresh, final;
  char name[64];
  snprintf(name, sizeof name, "%lld-%lld", (long long)t->from, (long long)(t->from + t->bytes));
  if (!join(&final, folder, name) || !join(&fresh, folder, "new.XXXXXX")) return false;
  int fd = mkostemp(fresh.text, O_CLOEXEC);
  if (fd < 0) return false;
  bool written =
      mo_write_fully(fd, data, (size_t)t->bytes) && mo_write_fully(fd, t, sizeof *t) && fchmod(fd, 0644) == 0;
  int error = errno;
  written = close(fd) == 0 && written && rename(fresh.text, final.text) == 0;
  if (!written) (void)unlink(fresh.text);
  if (!written && error) errno = error;
  return written;
}

void mo_network_cache_write(mo_network *n, mo_network_file_state *file, int64_t offset, int64_t bytes,
                            const void *data) {
  path_text folder;
  if (bytes <= 0 || atomic_load(&n->cache_ends) || !folder_of(n, file, &folder)) return;
  trailer t = {.magic = MAGIC, .from = offset, .bytes = bytes};
  pthread_mutex_lock(&file->lock);
  t.size = file->size;
  pthread_mutex_unlock(&file->lock);
  t.sum = sum_of(&t, data);
  if (!has_room(n->cache, bytes)) {
    end_cache(n, "the disk is nearly full, nothing more is kept");
    return;
  }
  errno = 0;
  if (mo_make_folders(folder.text, 0777) != 0 || !write_range(folder.text, &t, data)) {
    cannot_write(n, errno);
    return;
  }
  pthread_mutex_lock(&file->lock);
  if (file->listed) add_cached(file, offset, offset + bytes);
  pthread_mutex_unlock(&file->lock);
}

/* --- files that a commit has not --- */

/* false: such a note is not kept, as one that was wrong would spoil the cache for good. */
static bool name_note(const mo_network *n, const mo_network_file_state *file, path_text *path) {
  if (!n->cache || !n->repository || strcmp(file->name, "config.json") == 0) return false;
  return snprintf(path->text, sizeof path->text, "%s/%s.missing", n->cache, file->name) < (int)sizeof path->text;
}

bool mo_network_cache_knows_missing(mo_network *n, const mo_network_file_state *file) {
  path_text path;
  return name_note(n, file, &path) && access(path.text, F_OK) == 0;
}

const char *mo_network_cache_note(mo_network *n, const char *name) {
  mo_network_file_state *file = mo_network_entry(n, name);
  return file && file->missing && mo_network_cache_knows_missing(n, file) ? n->cache : NULL;
}

void mo_network_cache_note_missing(mo_network *n, const mo_network_file_state *file) {
  path_text path;
  if (atomic_load(&n->cache_ends) || !name_note(n, file, &path)) return;
  int fd = open(path.text, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd >= 0) close(fd);
}

const char *mo_network_cache_trouble(mo_network *n) { return atomic_load(&n->cache_ends) ? n->cache_trouble : NULL; }
