/* The writing side of a journal, and what all these files share. */
#include "pipeline/journal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "common/files.h"
#include "pipeline/journal_format.h"

typedef struct {
  char *data; /* header and parts */
  size_t bytes, capacity;
} record_buffer;

struct mo_journal {
  const mo_folder *folder;
  char name[32];
  int descriptor;
  uint64_t identity;
  bool dirty; /* written since the last sync */
  record_buffer record, aside;
};

bool mo_try_lock(int descriptor, int operation) {
  return flock(descriptor, operation | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}

mo_status mo_folder_fail(const mo_folder *folder, const char *name, const char *what, int error) {
  return MO_FAIL(MO_FAILED, "cannot %s a file of the interrupted run (%s/%s: %s): check space, quota and file system",
                 what, folder->path, name, strerror(error));
}

mo_status mo_write_all(int descriptor, const void *data, size_t bytes, const mo_folder *folder, const char *name) {
  return mo_write_fully(descriptor, data, bytes) ? MO_OK : mo_folder_fail(folder, name, "write", errno);
}

mo_status mo_read_at(int descriptor, void *data, size_t bytes, int64_t offset, size_t *got, const mo_folder *folder,
                     const char *name) {
  for (*got = 0; *got < bytes;) {
    ssize_t n = pread(descriptor, (char *)data + *got, bytes - *got, offset + (int64_t)*got);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return mo_folder_fail(folder, name, "read", errno);
    if (n == 0) break;
    *got += (size_t)n;
  }
  return MO_OK;
}

mo_status mo_journal_create(mo_journal **journal, const mo_folder *folder, const char *name, uint64_t identity) {
  mo_journal *j = mo_alloc(1, sizeof *j);
  *journal = NULL;
  if (!j) return MO_FAILED;
  j->folder = folder;
  j->identity = identity;
  snprintf(j->name, sizeof j->name, "%s", name);
  j->descriptor = openat(folder->descriptor, name, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
  mo_status status = j->descriptor < 0 ? mo_folder_fail(folder, name, "create", errno) : MO_OK;
  if (status == MO_OK) {
    (void)mo_try_lock(j->descriptor, LOCK_EX); /* nobody else knows the file yet */
    mo_journal_header header = {.magic = MO_JOURNAL_MAGIC, .identity = identity};
    header.checksum = mo_checksum(&header, offsetof(mo_journal_header, checksum), 0);
    status = mo_write_all(j->descriptor, &header, sizeof header, folder, name);
  }
  if (status != MO_OK)
    mo_journal_close(j);
  else
    *journal = j;
  return status;
}

static mo_status reserve(mo_journal *j, size_t bytes) {
  if (bytes <= j->record.capacity) return MO_OK;
  size_t capacity = bytes > 2 * j->record.capacity ? bytes : 2 * j->record.capacity;
  char *data = mo_realloc(j->record.data, capacity, 1);
  if (!data) return MO_FAILED;
  j->record.data = data;
  j->record.capacity = capacity;
  return MO_OK;
}

mo_status mo_journal_begin(mo_journal *j, int64_t stage, int64_t micro) {
  mo_record_header header = {.magic = MO_RECORD_MAGIC, .stage = (int32_t)stage, .micro = (int32_t)micro};
  MO_TRY(reserve(j, sizeof header));
  memcpy(j->record.data, &header, sizeof header);
  j->record.bytes = sizeof header;
  return MO_OK;
}

mo_status mo_journal_part(mo_journal *j, int32_t kind, int32_t index, size_t bytes, void **data) {
  mo_part_header header = {.kind = kind, .index = index, .bytes = bytes};
  size_t place = j->record.bytes + sizeof header;
  MO_TRY(reserve(j, place + mo_padded(bytes)));
  memcpy(j->record.data + j->record.bytes, &header, sizeof header);
  memset(j->record.data + place + bytes, 0, mo_padded(bytes) - bytes);
  *data = j->record.data + place;
  j->record.bytes = place + mo_padded(bytes);
  return MO_OK;
}

void mo_journal_swap(mo_journal *j) {
  record_buffer record = j->record;
  j->record = j->aside;
  j->aside = record;
}

mo_status mo_journal_commit(mo_journal *j) {
  mo_record_header *header = (mo_record_header *)(void *)j->record.data;
  header->bytes = j->record.bytes - sizeof *header;
  header->parts_checksum = mo_checksum(header + 1, header->bytes, j->identity);
  header->checksum = mo_checksum(header, offsetof(mo_record_header, checksum), j->identity);
  j->dirty = true;
  return mo_write_all(j->descriptor, j->record.data, j->record.bytes, j->folder, j->name);
}

mo_status mo_journal_sync(mo_journal *j) {
  if (!j->dirty) return MO_OK;
  if (fdatasync(j->descriptor) != 0) return mo_folder_fail(j->folder, j->name, "flush", errno);
  j->dirty = false;
  return MO_OK;
}

void mo_journal_close(mo_journal *j) {
  if (!j) return;
  if (j->descriptor >= 0) close(j->descriptor);
  free(j->record.data);
  free(j->aside.data);
  free(j);
}
