/* Journals and blobs of an interrupted run: what was written comes back, and nothing else does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../src/pipeline/journal.h"

enum { IDENTITY = 1234567, KIND = 7, RECORDS = 5 };

static char path[] = "journal-test-XXXXXX";
static mo_folder folder;

static void ok(mo_status status) {
  if (status != MO_OK) fail_msg("status %d: %s", (int)status, mo_error_message());
}

static int make_folder(void **state) {
  (void)state;
  if (!mkdtemp(path)) return -1;
  folder = (mo_folder){open(path, O_RDONLY | O_DIRECTORY), path};
  return folder.descriptor < 0;
}

static int remove_folder(void **state) {
  (void)state;
  close(folder.descriptor);
  return rmdir(path);
}

/* --- the checksum --- */

static void known_checksums(void **state) {
  (void)state;
  static const char text[] = "Call me Ishmael. Some years ago--never mind how long precisely-";
  unsigned char numbers[100];
  for (int i = 0; i < 100; i++) numbers[i] = (unsigned char)i;
  /* Values of the reference implementation. */
  assert_int_equal(mo_checksum("", 0, 0), 0xEF46DB3751D8E999);
  assert_int_equal(mo_checksum("a", 1, 0), 0xD24EC4F1A98C6E5B);
  assert_int_equal(mo_checksum("abc", 3, 0), 0x44BC2CF5AD770999);
  assert_int_equal(mo_checksum(text, strlen(text), 0), 0x02A2E85470D6FD96);
  assert_int_equal(mo_checksum("abc", 3, 12345), 0x01700E64F6F23509);
  assert_int_equal(mo_checksum(numbers, sizeof numbers, 12345), 0x028BA1AE2DE4DE27);
}

static void every_byte_counts(void **state) {
  (void)state;
  unsigned char data[100] = {0};
  for (size_t bytes = 0; bytes <= sizeof data; bytes++) {
    uint64_t before = mo_checksum(data, bytes, 0);
    if (bytes < sizeof data) assert_int_not_equal(mo_checksum(data, bytes + 1, 0), before);
    for (size_t i = 0; i < bytes; i++) {
      data[i] ^= 0x10;
      assert_int_not_equal(mo_checksum(data, bytes, 0), before);
      data[i] ^= 0x10;
    }
  }
}

/* --- journals --- */

static size_t part_bytes(int i) { return (size_t)(i * 37 % 101); }

static unsigned char byte_of(int i, size_t place) { return (unsigned char)(i * 31 + (int)place * 7 + 1); }

static void write_part(mo_journal *journal, int i, int p) {
  void *data;
  ok(mo_journal_part(journal, KIND + p, i - p, part_bytes(i + p), &data));
  assert_int_equal((uintptr_t)data % 8, 0);
  for (size_t k = 0; k < part_bytes(i + p); k++) ((unsigned char *)data)[k] = byte_of(i + p, k);
}

static void write_record(mo_journal *journal, int i) {
  ok(mo_journal_begin(journal, i, 2 * i));
  for (int p = 0; p < 3; p++) write_part(journal, i, p);
  ok(mo_journal_commit(journal));
}

static void write_journal(const char *name, int n) {
  mo_journal *journal;
  (void)unlinkat(folder.descriptor, name, 0);
  ok(mo_journal_create(&journal, &folder, name, IDENTITY));
  for (int i = 0; i < n; i++) write_record(journal, i);
  ok(mo_journal_sync(journal));
  mo_journal_close(journal);
}

static void check_record(const mo_record *record, int i) {
  mo_record_part part;
  size_t offset = 0;
  assert_int_equal(record->stage, i);
  assert_int_equal(record->micro, 2 * i);
  for (int p = 0; p < 3; p++) {
    assert_true(mo_record_next(record, &offset, &part));
    assert_int_equal(part.kind, KIND + p);
    assert_int_equal(part.index, i - p);
    assert_int_equal(part.bytes, part_bytes(i + p));
    for (size_t k = 0; k < part.bytes; k++) assert_int_equal(((const unsigned char *)part.data)[k], byte_of(i + p, k));
  }
  assert_false(mo_record_next(record, &offset, &part));
}

/* Bit i of the result: record i is there, and is what was written; each once and in order. */
static unsigned read_journal(const char *name, uint64_t identity, int64_t *damaged) {
  mo_journal_reader *reader;
  unsigned seen = 0;
  bool found;
  ok(mo_journal_open(&reader, &folder, name, identity));
  for (mo_record record;;) {
    ok(mo_journal_next(reader, &record, &found));
    if (!found) break;
    assert_true(record.stage >= 0 && record.stage < RECORDS && seen >> record.stage == 0);
    check_record(&record, (int)record.stage);
    seen |= 1u << record.stage;
  }
  *damaged = mo_journal_damaged(reader);
  mo_journal_reader_close(reader);
  return seen;
}

static unsigned char *load(const char *name, size_t *bytes) {
  struct stat information;
  int file = openat(folder.descriptor, name, O_RDONLY);
  assert_true(file >= 0 && fstat(file, &information) == 0);
  *bytes = (size_t)information.st_size;
  unsigned char *data = malloc(*bytes + 1);
  assert_int_equal(read(file, data, *bytes), *bytes);
  close(file);
  return data;
}

static void store(const char *name, const unsigned char *data, size_t bytes) {
  int file = openat(folder.descriptor, name, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  assert_true(file >= 0);
  assert_int_equal(write(file, data, bytes), bytes);
  close(file);
}

/* Where the journal ends after n records. */
static size_t end_of(int n) {
  struct stat information;
  write_journal("end", n);
  assert_int_equal(fstatat(folder.descriptor, "end", &information, 0), 0);
  unlinkat(folder.descriptor, "end", 0);
  return (size_t)information.st_size;
}

static void comes_back(void **state) {
  (void)state;
  int64_t damaged;
  write_journal("j", RECORDS);
  assert_int_equal(read_journal("j", IDENTITY, &damaged), 0x1f);
  assert_int_equal(damaged, 0);
  unlinkat(folder.descriptor, "j", 0);
  assert_int_equal(read_journal("j", IDENTITY, &damaged), 0); /* absent */
  assert_int_equal(damaged, 0);
}

static void dropped_records_are_not_written(void **state) {
  (void)state;
  int64_t damaged;
  void *data;
  mo_journal *journal;
  ok(mo_journal_create(&journal, &folder, "j", IDENTITY));
  write_record(journal, 0);
  ok(mo_journal_begin(journal, 1, 2));
  ok(mo_journal_part(journal, KIND, 1, 1000, &data));
  write_record(journal, 1); /* begins anew */
  ok(mo_journal_begin(journal, 2, 4));
  mo_journal_close(journal);
  assert_int_equal(read_journal("j", IDENTITY, &damaged), 3);
  assert_int_equal(damaged, 0);
  unlinkat(folder.descriptor, "j", 0);
}

/* A record may be put aside, and ended amid another one. */
static void records_put_aside(void **state) {
  (void)state;
  int64_t damaged;
  mo_journal *journal;
  ok(mo_journal_create(&journal, &folder, "j", IDENTITY));
  for (int i = 0; i < 3; i += 2) {
    ok(mo_journal_begin(journal, i, 2 * i));
    write_part(journal, i, 0);
    mo_journal_swap(journal);
    ok(mo_journal_begin(journal, i + 1, 2 * (i + 1)));
    write_part(journal, i + 1, 0);
    write_part(journal, i + 1, 1);
    mo_journal_swap(journal);
    write_part(journal, i, 1);
    write_part(journal, i, 2);
    ok(mo_journal_commit(journal));
    mo_journal_swap(journal);
    write_part(journal, i + 1, 2);
    ok(mo_journal_commit(journal));
  }
  ok(mo_journal_begin(journal, 4, 8));
  mo_journal_swap(journal); /* is never ended */
  mo_journal_close(journal);
  assert_int_equal(read_journal("j", IDENTITY, &damaged), 0xf);
  assert_int_equal(damaged, 0);
  unlinkat(folder.descriptor, "j", 0);
}

/* A process may be killed at any byte: all records before are there, and it is no damage. */
static void cut_anywhere(void **state) {
  (void)state;
  size_t bytes, ends[RECORDS + 1];
  int64_t damaged;
  for (int n = 0; n <= RECORDS; n++) ends[n] = end_of(n);
  write_journal("j", RECORDS);
  unsigned char *data = load("j", &bytes);
  for (size_t cut = 0; cut <= bytes; cut++) {
    unsigned whole = 0;
    for (int n = 0; n < RECORDS; n++) whole |= (unsigned)(ends[n + 1] <= cut) << n;
    store("j", data, cut);
    assert_int_equal(read_journal("j", IDENTITY, &damaged), whole);
    assert_int_equal(damaged, 0);
  }
  free(data);
  unlinkat(folder.descriptor, "j", 0);
}

/* A wrong byte costs the record it is in, and no other. */
static void damaged_anywhere(void **state) {
  (void)state;
  size_t bytes, ends[RECORDS + 1];
  int64_t damaged;
  for (int n = 0; n <= RECORDS; n++) ends[n] = end_of(n);
  write_journal("j", RECORDS);
  unsigned char *data = load("j", &bytes);
  for (size_t place = 0; place < bytes; place++) {
    unsigned left = 0;
    for (int n = 0; n < RECORDS && place >= ends[0]; n++)
      left |= (unsigned)(place < ends[n] || place >= ends[n + 1]) << n;
    data[place] ^= 0x40;
    store("j", data, bytes);
    assert_int_equal(read_journal("j", IDENTITY, &damaged), left);
    assert_int_equal(damaged, 1);
    data[place] ^= 0x40;
  }
  free(data);
  unlinkat(folder.descriptor, "j", 0);
}

/* After a loss of power the end of a file may be zeros, or other files' bytes. */
static void followed_by_rubbish(void **state) {
  (void)state;
  size_t bytes;
  int64_t damaged;
  write_journal("j", RECORDS);
  unsigned char *data = load("j", &bytes), *more = calloc(bytes + 5000, 1);
  memcpy(more, data, bytes);
  store("j", more, bytes + 5000);
  assert_int_equal(read_journal("j", IDENTITY, &damaged), 0x1f);
  for (size_t i = 0; i < 5000; i++) more[bytes + i] = (unsigned char)(i * i >> 3);
  store("j", more, bytes + 5000);
  assert_int_equal(read_journal("j", IDENTITY, &damaged), 0x1f);
  free(data);
  free(more);
  unlinkat(folder.descriptor, "j", 0);
}

static void of_another_run(void **state) {
  (void)state;
  int64_t damaged;
  write_journal("j", RECORDS);
  assert_int_equal(read_journal("j", IDENTITY + 1, &damaged), 0);
  assert_int_equal(damaged, 1);
  unlinkat(folder.descriptor, "j", 0);
}

static void locked_while_written(void **state) {
  (void)state;
  mo_journal *journal, *second;
  assert_false(mo_journal_is_written(&folder, "j"));
  ok(mo_journal_create(&journal, &folder, "j", IDENTITY));
  assert_true(mo_journal_is_written(&folder, "j"));
  assert_int_equal(mo_journal_create(&second, &folder, "j", IDENTITY), MO_FAILED); /* never two of a name */
  assert_non_null(strstr(mo_error_message(), "cannot create a file of the interrupted run (journal-test-"));
  assert_non_null(strstr(mo_error_message(), "/j: File exists): check space"));
  mo_error_clear();
  mo_journal_close(journal);
  assert_false(mo_journal_is_written(&folder, "j"));
  unlinkat(folder.descriptor, "j", 0);
}

/* --- blobs --- */

static void blobs(void **state) {
  (void)state;
  static const mo_blob mine = {IDENTITY, 1, 2, 3, 4};
  const mo_blob others[] = {{IDENTITY + 1, 1, 2, 3, 4},
                            {IDENTITY, 0, 2, 3, 4},
                            {IDENTITY, 1, 0, 3, 4},
                            {IDENTITY, 1, 2, 0, 4},
                            {IDENTITY, 1, 2, 3, 0}};
  char text[] = "what a blob holds", got[sizeof text + 1];
  bool good = true;
  ok(mo_blob_read(&folder, "b", &mine, got, sizeof text, &good));
  assert_false(good); /* absent */
  ok(mo_blob_write(&folder, "b", &mine, 0, text, sizeof text));
  ok(mo_blob_read(&folder, "b", &mine, got, sizeof text, &good));
  assert_true(good);
  assert_string_equal(got, text);
  assert_int_not_equal(faccessat(folder.descriptor, "b.tmp0", F_OK, 0), 0);
  for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
    ok(mo_blob_read(&folder, "b", &others[i], got, sizeof text, &good));
    assert_false(good);
  }
  ok(mo_blob_read(&folder, "b", &mine, got, sizeof text - 1, &good));
  assert_false(good);
  ok(mo_blob_read(&folder, "b", &mine, got, sizeof text + 1, &good));
  assert_false(good);
  size_t bytes;
  unsigned char *data = load("b", &bytes);
  for (size_t place = 0; place < bytes; place++) {
    data[place] ^= 1;
    store("b", data, bytes);
    data[place] ^= 1;
    ok(mo_blob_read(&folder, "b", &mine, got, sizeof text, &good));
    assert_false(good);
    store("b", data, place);
    ok(mo_blob_read(&folder, "b", &mine, got, sizeof text, &good));
    assert_false(good);
  }
  free(data);
  unlinkat(folder.descriptor, "b", 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(known_checksums),      cmocka_unit_test(every_byte_counts),
      cmocka_unit_test(comes_back),           cmocka_unit_test(dropped_records_are_not_written),
      cmocka_unit_test(cut_anywhere),         cmocka_unit_test(damaged_anywhere),
      cmocka_unit_test(followed_by_rubbish),  cmocka_unit_test(of_another_run),
      cmocka_unit_test(locked_while_written), cmocka_unit_test(blobs),
      cmocka_unit_test(records_put_aside),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
