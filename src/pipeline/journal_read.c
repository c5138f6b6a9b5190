/* The reading side of a journal, and blobs. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pipeline/journal_format.h"

struct mo_journal_reader {
  const mo_folder *folder;
  char name[32];
  int descriptor; /* -1: there is nothing to read */
  uint64_t identity;
  int64_t offset, size, damaged;
  char *parts;
  size_t capacity;
};

bool mo_journal_is_written(const mo_folder *folder, const char *name) {
  int descriptor = openat(folder->descriptor, name, O_RDONLY | O_CLOEXEC);
  bool locked = descriptor >= 0 && !mo_try_lock(descriptor, LOCK_SH);
  if (descriptor >= 0) close(descriptor);
  return locked;
}

static mo_status read_start(mo_journal_reader *r) {
  mo_journal_header header;
  size_t got;
  struct stat information;
  if (fstat(r->descriptor, &information) != 0) return mo_folder_fail(r->folder, r->name, "read", errno);
  r->size = information.st_size;
  MO_TRY(mo_read_at(r->descriptor, &header, sizeof header, 0, &got, r->folder, r->name));
  r->offset = sizeof header;
  if (got < sizeof header) { /* its process ended just then */
    r->size = r->offset;
    return MO_OK;
  }
  bool whole = header.checksum == mo_checksum(&header, offsetof(mo_journal_header, checksum), 0);
  if (whole && header.magic == MO_JOURNAL_MAGIC && header.identity == r->identity) return MO_OK;
  r->size = r->offset;
  r->damaged++;
  return MO_OK;
}

mo_status mo_journal_open(mo_journal_reader **reader, const mo_folder *folder, const char *name, uint64_t identity) {
  mo_journal_reader *r = mo_alloc(1, sizeof *r);
  *reader = NULL;
  if (!r) return MO_FAILED;
  r->folder = folder;
  r->identity = identity;
  snprintf(r->name, sizeof r->name, "%s", name);
  r->descriptor = openat(folder->descriptor, name, O_RDONLY | O_CLOEXEC);
  mo_status status = MO_OK;
  if (r->descriptor >= 0)
    status = read_start(r);
  else if (errno != ENOENT)
    status = mo_folder_fail(folder, name, "open", errno);
  if (status != MO_OK)
    mo_journal_reader_close(r);
  else
    *reader = r;
  return status;
}

void mo_journal_reader_close(mo_journal_reader *r) {
  if (!r) return;
  if (r->descriptor >= 0) close(r->descriptor);
  free(r->parts);
  free(r);
}

int64_t mo_journal_damaged(const mo_journal_reader *r) { return r->damaged; }

static bool is_header(const mo_journal_reader *r, const mo_record_header *header) {
  return header->magic == MO_RECORD_MAGIC &&
         header->checksum == mo_checksum(header, offsetof(mo_record_header, checksum), r->identity);
}

/* Where the next record's header is at or after the offset; the file's size if nowhere. */
static mo_status find_header(mo_journal_reader *r, int64_t offset) {
  enum { BLOCK = 1 << 16 };
  char *block = mo_alloc(BLOCK, 1);
  if (!block) return MO_FAILED;
  mo_status status = MO_OK;
  bool found = false;
  while (!found && status == MO_OK && offset < r->size) {
    size_t got, i = 0;
    status = mo_read_at(r->descriptor, block, BLOCK, offset, &got, r->folder, r->name);
    if (status != MO_OK || got < sizeof(mo_record_header)) break;
    for (; !found && i + sizeof(mo_record_header) <= got; i += found ? 0 : MO_RECORD_ALIGNMENT) {
      mo_record_header header;
      memcpy(&header, block + i, sizeof header);
      found = is_header(r, &header);
    }
    offset += (int64_t)i;
  }
  r->offset = found ? offset : r->size;
  free(block);
  return status;
}

/* Read the record at the offset. *good: whether it is one; *end: nothing follows, at most a record that was cut off. */
static mo_status read_record(mo_journal_reader *r, mo_record_header *header, bool *good, bool *end) {
  size_t got;
  *good = *end = false;
  MO_TRY(mo_read_at(r->descriptor, header, sizeof *header, r->offset, &got, r->folder, r->name));
  *end = got < sizeof *header;
  if (*end || !is_header(r, header)) return MO_OK;
  *end = header->bytes > (uint64_t)(r->size - r->offset) - sizeof *header;
  if (*end) return MO_OK;
  if (header->bytes > r->capacity) {
    free(r->parts);
    r->capacity = 0;
    r->parts = mo_alloc(header->bytes, 1);
    if (!r->parts) return MO_FAILED;
    r->capacity = header->bytes;
  }
  if (header->bytes > 0)
    MO_TRY(mo_read_at(r->descriptor, r->parts, header->bytes, r->offset + (int64_t)sizeof *header, &got, r->folder,
                      r->name));
  *good =
      header->bytes == 0 || (got == header->bytes && mo_checksum(r->parts, got, r->identity) == header->parts_checksum);
  return MO_OK;
}

mo_status mo_journal_next(mo_journal_reader *r, mo_record *record, bool *found) {
  *found = false;
  while (r->descriptor >= 0 && r->offset < r->size) {
    mo_record_header header;
    bool good, end;
    MO_TRY(read_record(r, &header, &good, &end));
    if (end) break;
    if (good) {
      *record = (mo_record){header.stage, header.micro, r->parts, header.bytes};
      r->offset += (int64_t)(sizeof header + header.bytes);
      *found = true;
      return MO_OK;
    }
    r->damaged++;
    MO_TRY(find_header(r, r->offset + MO_RECORD_ALIGNMENT));
  }
  return MO_OK;
}

bool mo_record_next(const mo_record *record, size_t *offset, mo_record_part *part) {
  mo_part_header header;
  size_t left = record->bytes - *offset;
  if (left < sizeof header) return false;
  memcpy(&header, record->parts + *offset, sizeof header);
  left -= sizeof header;
  if (header.bytes > left || mo_padded(header.bytes) > left) return false;
  *offset += sizeof header;
  *part = (mo_record_part){header.kind, header.index, record->parts + *offset, header.bytes};
  *offset += mo_padded(header.bytes);
  return true;
}

/* --- blobs --- */

mo_status mo_blob_write(const mo_folder *folder, const char *name, const mo_blob *blob, int64_t mark, const void *data,
                        size_t bytes) {
  char temporary[96];
  mo_blob_header header;
  memset(&header, 0, sizeof header); /* what the checksum covers has no gaps, but compilers don't know */
  header.magic = MO_BLOB_MAGIC;
  header.blob = *blob;
  header.bytes = bytes;
  header.data_checksum = mo_checksum(data, bytes, blob->identity);
  header.checksum = mo_checksum(&header, offsetof(mo_blob_header, checksum), 0);
  snprintf(temporary, sizeof temporary, "%s.tmp%lld", name, (long long)mark);
  int descriptor = openat(folder->descriptor, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) return mo_folder_fail(folder, temporary, "create", errno);
  mo_status status = mo_write_all(descriptor, &header, sizeof header, folder, temporary);
  if (status == MO_OK) status = mo_write_all(descriptor, data, bytes, folder, temporary);
  if (status == MO_OK && fdatasync(descriptor) != 0) status = mo_folder_fail(folder, temporary, "flush", errno);
  close(descriptor);
  if (status == MO_OK && renameat(folder->descriptor, temporary, folder->descriptor, name) != 0)
    status = mo_folder_fail(folder, name, "rename", errno);
  if (status != MO_OK) {
    (void)unlinkat(folder->descriptor, temporary, 0);
    return status;
  }
  /* EINVAL: a file system on which folders cannot be flushed and need not be. */
  if (fsync(folder->descriptor) != 0 && errno != EINVAL) return mo_folder_fail(folder, name, "flush", errno);
  return MO_OK;
}

mo_status mo_blob_read(const mo_folder *folder, const char *name, const mo_blob *blob, void *data, size_t bytes,
                       bool *good) {
  mo_blob_header header;
  size_t got;
  *good = false;
  int descriptor = openat(folder->descriptor, name, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return errno == ENOENT ? MO_OK : mo_folder_fail(folder, name, "open", errno);
  mo_status status = mo_read_at(descriptor, &header, sizeof header, 0, &got, folder, name);
  bool fits = status == MO_OK && got == sizeof header && header.magic == MO_BLOB_MAGIC && header.bytes == bytes &&
              header.checksum == mo_checksum(&header, offsetof(mo_blob_header, checksum), 0) &&
              memcmp(&header.blob, blob, sizeof *blob) == 0;
  if (fits) {
    status = mo_read_at(descriptor, data, bytes, sizeof header, &got, folder, name);
    *good = status == MO_OK && got == bytes && mo_checksum(data, bytes, blob->identity) == header.data_checksum;
  }
  close(descriptor);
  return status;
}
