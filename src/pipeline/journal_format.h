/* Layout of journals and blobs, in the byte order of the machine that writes them; the magic numbers tell a foreign
 * one. */
#ifndef MO_PIPELINE_JOURNAL_FORMAT_H
#define MO_PIPELINE_JOURNAL_FORMAT_H

#include <fcntl.h>

#include "pipeline/journal.h"

enum { MO_RECORD_ALIGNMENT = 8 };
#define MO_JOURNAL_MAGIC 0x314C4E524A4F4D01u /* at the start of a file */
#define MO_RECORD_MAGIC 0x44524F4D4F455231u
#define MO_BLOB_MAGIC 0x31424F4C424F4D01u

/* At the start of a journal. checksum: of what is before it. */
typedef struct {
  uint64_t magic, identity, checksum;
} mo_journal_header;

/* Before the parts of a record. checksum: of what is before it, with the identity as the seed. */
typedef struct {
  uint64_t magic;
  int32_t stage, micro;
  uint64_t bytes; /* of the parts, a multiple of MO_RECORD_ALIGNMENT */
  uint64_t parts_checksum, checksum;
} mo_record_header;

typedef struct {
  int32_t kind, index;
  uint64_t bytes; /* without the padding behind them */
} mo_part_header;

typedef struct {
  uint64_t magic;
  mo_blob blob;
  uint64_t bytes, data_checksum, checksum;
} mo_blob_header;

static inline size_t mo_padded(size_t bytes) {
  return (bytes + MO_RECORD_ALIGNMENT - 1) / MO_RECORD_ALIGNMENT * MO_RECORD_ALIGNMENT;
}

/* flock, where the file system has locks: true if the lock was taken or there are none. */
bool mo_try_lock(int descriptor, int operation);

MO_CHECKED mo_status mo_folder_fail(const mo_folder *folder, const char *name, const char *what, int error);

/* All bytes, however many calls it takes. */
MO_CHECKED mo_status mo_write_all(int descriptor, const void *data, size_t bytes, const mo_folder *folder,
                                  const char *name);
/* As many bytes at the offset as the file has: *got. */
MO_CHECKED mo_status mo_read_at(int descriptor, void *data, size_t bytes, int64_t offset, size_t *got,
                                const mo_folder *folder, const char *name);

#endif
