/* Private to the pipeline: the checksummed files from which an interrupted run goes on; docs/resume.md.
 *
 * A journal is a file of records that one process appends to, each with one write(): what a killed process has written
 * is there, and a record that was cut off is not taken for one. A blob is a file that is there whole or not at all.
 * Both belong to one identity: a hash of everything that determines the result. */
#ifndef MO_PIPELINE_JOURNAL_H
#define MO_PIPELINE_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe_outliers/status.h"

#define MO_JOURNAL_VERSION 2

/* XXH64 (Collet, xxHash, doc/xxhash_spec.md). */
uint64_t mo_checksum(const void *data, size_t bytes, uint64_t seed);

/* A folder and its path, for messages; the descriptor is the caller's. */
typedef struct {
  int descriptor;
  const char *path;
} mo_folder;

/* --- writing --- */
typedef struct mo_journal mo_journal;

/* Create the journal `name`, which must not exist, and lock it until the close or the end of the process. The folder
 * must outlive it. */
MO_CHECKED mo_status mo_journal_create(mo_journal **journal, const mo_folder *folder, const char *name,
                                       uint64_t identity);
/* Begin the record of a task; one that was begun before is dropped. */
MO_CHECKED mo_status mo_journal_begin(mo_journal *journal, int64_t stage, int64_t micro);
/* Add a part to the record: `*data` is where its `bytes` go, aligned to 8, until the next call. */
MO_CHECKED mo_status mo_journal_part(mo_journal *journal, int32_t kind, int32_t index, size_t bytes, void **data);
/* Put the record aside that was begun, and go on with the one that was put aside before, if any. */
void mo_journal_swap(mo_journal *journal);
/* Write the record. */
MO_CHECKED mo_status mo_journal_commit(mo_journal *journal);
/* What was written survives the loss of power, too. */
MO_CHECKED mo_status mo_journal_sync(mo_journal *journal);
void mo_journal_close(mo_journal *journal);

/* --- reading --- */
typedef struct {
  int64_t stage, micro;
  const char *parts; /* [bytes]; until the next one is read */
  size_t bytes;
} mo_record;

typedef struct {
  int32_t kind, index;
  const void *data; /* aligned to 8 */
  size_t bytes;
} mo_record_part;

typedef struct mo_journal_reader mo_journal_reader;

/* Whether the process that writes the journal still lives (and the file system knows locks). False if there is no such
 * file. */
bool mo_journal_is_written(const mo_folder *folder, const char *name);

/* A journal that is absent or of another identity has no records. */
MO_CHECKED mo_status mo_journal_open(mo_journal_reader **reader, const mo_folder *folder, const char *name,
                                     uint64_t identity);
/* The next good record; *found is false at the end. Damaged ones are passed over and counted, one cut off at the end is
 * not. */
MO_CHECKED mo_status mo_journal_next(mo_journal_reader *reader, mo_record *record, bool *found);
/* The next part of a record; false at its end. *offset: 0 before the first. */
bool mo_record_next(const mo_record *record, size_t *offset, mo_record_part *part);
int64_t mo_journal_damaged(const mo_journal_reader *reader);
void mo_journal_reader_close(mo_journal_reader *reader);

/* --- blobs --- */
typedef struct {
  uint64_t identity;
  int32_t kind, stage, micro, index;
} mo_blob;

/* Write the blob under a temporary name with the suffix `mark`, flush it to storage, and rename it. */
MO_CHECKED mo_status mo_blob_write(const mo_folder *folder, const char *name, const mo_blob *blob, int64_t mark,
                                   const void *data, size_t bytes);
/* Read it into `data`, [bytes]. *good is false if it is absent, damaged, of another kind or size. */
MO_CHECKED mo_status mo_blob_read(const mo_folder *folder, const char *name, const mo_blob *blob, void *data,
                                  size_t bytes, bool *good);

#endif
