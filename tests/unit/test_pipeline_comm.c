/* Messages between ranks, run alone and on several: ranks: 3. Every rank runs every test; what the ranks counted is
 * compared through MPI itself. The tests at the end raise failures, which a communicator does not forget. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "moe_outliers/comm.h"

static mo_comm *comm;
static int rank, size;

static void ok(mo_status status) {
  if (status != MO_OK) fail_msg("rank %d: status %d: %s", rank, (int)status, mo_error_message());
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int sum_over_ranks(int value) {
  int sum;
  MPI_Allreduce(&value, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  return sum;
}

/* What rank r holds at place i: large, of both signs, different everywhere. */
static int64_t value_at(int r, size_t i) {
  uint64_t h = ((uint64_t)r + 1) * 0x9e3779b97f4a7c15u ^ (i + 1) * 0xbf58476d1ce4e5b9u;
  return (int64_t)(h ^ h >> 29);
}

static void knows_its_place(void **state) {
  (void)state;
  int mpi_rank, mpi_size;
  MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank);
  MPI_Comm_size(MPI_COMM_WORLD, &mpi_size);
  assert_int_equal(rank, mpi_rank);
  assert_int_equal(size, mpi_size);
  assert_int_equal(mo_comm_local_size(comm), size); /* one machine */
  assert_int_equal(mo_comm_local_rank(comm), rank);
  ok(mo_comm_poll(comm));
  ok(mo_comm_barrier(comm));
}

/* --- notes --- */

/* All others tell rank 0, as often as their notes get away; it learns the last word of each. */
static void notes(void **state) {
  (void)state;
  enum { LAST = 100 };
  char note[MO_NOTE_BYTES] = {0};
  int from, value, last[64] = {0}, finished = 0;
  ok(mo_comm_take_note(comm, note, &from));
  assert_int_equal(from, -1);
  sum_over_ranks(0);
  for (value = 1; rank > 0 && value <= LAST;) {
    bool sent;
    memcpy(note, &value, sizeof value);
    memset(note + sizeof value, rank, sizeof note - sizeof value);
    ok(mo_comm_send_note(comm, 0, note, &sent));
    value += sent;
  }
  while (rank == 0 && finished < size - 1) {
    ok(mo_comm_take_note(comm, note, &from));
    if (from < 0) continue;
    memcpy(&value, note, sizeof value);
    for (size_t i = sizeof value; i < sizeof note; i++) assert_int_equal(note[i], from);
    assert_int_equal(value, last[from] + 1);
    last[from] = value;
    finished += value == LAST;
  }
  sum_over_ranks(0);
  ok(mo_comm_take_note(comm, note, &from));
  assert_int_equal(from, -1);
}

/* --- reductions --- */

enum { COUNT = 1003 };

static void sums(void **state) {
  (void)state;
  static int64_t i64[COUNT];
  static int32_t i32[COUNT];
  static double f64[COUNT];
  for (size_t i = 0; i < COUNT; i++) {
    i64[i] = value_at(rank, i) / 8;
    i32[i] = (int32_t)(value_at(rank, i) % 500000000);
    f64[i] = (double)(value_at(rank, i) / 4096); /* sums of whole numbers are exact */
  }
  ok(mo_comm_allreduce(comm, i64, COUNT, MO_SUM_I64));
  ok(mo_comm_allreduce(comm, i32, COUNT, MO_SUM_I32));
  ok(mo_comm_allreduce(comm, f64, COUNT, MO_SUM_F64));
  for (size_t i = 0; i < COUNT; i++) {
    int64_t sum64 = 0, sum32 = 0;
    double sum = 0;
    for (int r = 0; r < size; r++) {
      sum64 += value_at(r, i) / 8;
      sum32 += value_at(r, i) % 500000000;
      sum += (double)(value_at(r, i) / 4096);
    }
    assert_true(i64[i] == sum64 && i32[i] == sum32 && f64[i] == sum);
  }
}

static void extremes_and_bits(void **state) {
  (void)state;
  static int64_t most[COUNT], least[COUNT];
  static float top[COUNT];
  static uint64_t bits[COUNT];
  for (size_t i = 0; i < COUNT; i++) {
    most[i] = least[i] = value_at(rank, i);
    top[i] = (float)value_at(rank, i) * 1e-30f;
    bits[i] = (uint64_t)value_at(rank, i) & (uint64_t)value_at(rank, i + 1);
  }
  ok(mo_comm_allreduce(comm, most, COUNT, MO_MAX_I64));
  ok(mo_comm_allreduce(comm, least, COUNT, MO_MIN_I64));
  ok(mo_comm_allreduce(comm, top, COUNT, MO_MAX_F32));
  ok(mo_comm_allreduce(comm, bits, COUNT, MO_OR_U64));
  for (size_t i = 0; i < COUNT; i++) {
    int64_t high = INT64_MIN, low = INT64_MAX;
    uint64_t all = 0;
    for (int r = 0; r < size; r++) {
      high = value_at(r, i) > high ? value_at(r, i) : high;
      low = value_at(r, i) < low ? value_at(r, i) : low;
      all |= (uint64_t)value_at(r, i) & (uint64_t)value_at(r, i + 1);
    }
    assert_true(most[i] == high && least[i] == low && bits[i] == all && top[i] == (float)high * 1e-30f);
  }
}

/* Nothing, and more than one piece of 2^24 elements. */
static void reductions_of_any_length(void **state) {
  (void)state;
  size_t n = ((size_t)1 << 24) + 5;
  ok(mo_comm_allreduce(comm, NULL, 0, MO_SUM_I64));
  int32_t *values = malloc(n * sizeof *values);
  assert_non_null(values);
  for (size_t i = 0; i < n; i++) values[i] = (int32_t)(i % 1000) * (rank + 1);
  ok(mo_comm_allreduce(comm, values, n, MO_SUM_I32));
  for (size_t i = 0; i < n; i++)
    if (values[i] != (int32_t)(i % 1000) * size * (size + 1) / 2) fail_msg("element %zu is %d", i, values[i]);
  free(values);
}

/* --- gather, broadcast --- */

/* Rank r gives `bytes[r % 3]` bytes. */
static void check_gather(const size_t bytes[3]) {
  size_t mine = bytes[rank % 3], total = 0, all_bytes;
  uint8_t *block = mine ? malloc(mine) : NULL, *all;
  assert_true(block || !mine);
  for (size_t i = 0; i < mine; i++) block[i] = (uint8_t)value_at(rank, i);
  ok(mo_comm_gather(comm, block, mine, (void **)&all, &all_bytes));
  free(block);
  if (rank) {
    assert_null(all);
    return;
  }
  for (int r = 0; r < size; r++)
    for (size_t i = 0; i < bytes[r % 3]; i++, total++)
      if (all[total] != (uint8_t)value_at(r, i)) fail_msg("byte %zu of rank %d", i, r);
  assert_int_equal(all_bytes, total);
  assert_non_null(all);
  free(all);
}

static void gather_of_uneven_blocks(void **state) {
  (void)state;
  check_gather((size_t[]){10, 10, 10});
  check_gather((size_t[]){1, 100003, 7});
  check_gather((size_t[]){5000, 0, 3});
}

static void gather_of_empty_blocks(void **state) {
  (void)state;
  check_gather((size_t[]){0, 0, 0});
  check_gather((size_t[]){0, 17, 0});
  check_gather((size_t[]){0, 0, 1});
}

static void gather_of_large_blocks(void **state) {
  (void)state;
  check_gather((size_t[]){3, ((size_t)1 << 24) + 9, (size_t)1 << 24});
}

static void broadcast_from_every_rank(void **state) {
  (void)state;
  static const size_t lengths[] = {0, 1, 4096, ((size_t)1 << 24) + 3};
  for (int root = 0; root < size; root++)
    for (size_t k = 0; k < 4; k++) {
      uint8_t *data = malloc(lengths[k] + 1);
      assert_non_null(data);
      for (size_t i = 0; i < lengths[k]; i++) data[i] = (uint8_t)value_at(rank, i);
      data[lengths[k]] = 99;
      ok(mo_comm_broadcast(comm, data, lengths[k], root));
      for (size_t i = 0; i < lengths[k]; i++)
        if (data[i] != (uint8_t)value_at(root, i)) fail_msg("byte %zu from rank %d", i, root);
      assert_int_equal(data[lengths[k]], 99);
      free(data);
    }
}

/* --- messages --- */

enum { TAGS = 150, ROWS = 7, WIDTH = 13 };

/* From each rank to the next, sent in one order and received in the other; sizes differ. */
static void messages_of_many_tags(void **state) {
  (void)state;
  static float out[TAGS][ROWS * WIDTH], in[TAGS][ROWS * WIDTH];
  static mo_message *sending[TAGS], *receiving[TAGS];
  int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  if (size == 1) return; /* nobody to talk to */
  for (int tag = 0; tag < TAGS; tag++) {
    for (int i = 0; i < ROWS * WIDTH; i++) out[tag][i] = (float)(value_at(rank, (size_t)(tag * 1000 + i)) % 100000);
    ok(mo_comm_send(comm, next, tag, out[tag], tag % ROWS, WIDTH, &sending[tag]));
  }
  for (int tag = TAGS - 1; tag >= 0; tag--)
    ok(mo_comm_receive(comm, previous, tag, in[tag], tag % ROWS, WIDTH, &receiving[tag]));
  for (int tag = 0; tag < TAGS; tag++) {
    ok(mo_comm_wait(comm, &receiving[tag]));
    ok(mo_comm_wait(comm, &sending[tag]));
    assert_null(receiving[tag]);
    assert_null(sending[tag]);
    for (int i = 0; i < ROWS * WIDTH; i++)
      assert_true(in[tag][i] ==
                  (i < tag % ROWS * WIDTH ? (float)(value_at(previous, (size_t)(tag * 1000 + i)) % 100000) : 0));
  }
  ok(mo_comm_wait(comm, &sending[0])); /* nothing to wait for */
}

/* A message that was not sent yet is not there, however often one asks; asking does not wait. */
static void messages_are_asked_for(void **state) {
  (void)state;
  const float out = (float)(rank + 1);
  float in = 0;
  mo_message *sending = NULL, *receiving = NULL;
  int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  ok(mo_comm_test(comm, &receiving)); /* nothing to ask for */
  if (size == 1) return;
  ok(mo_comm_receive(comm, previous, 3, &in, 1, 1, &receiving));
  for (int i = 0; i < 100; i++) {
    ok(mo_comm_test(comm, &receiving));
    assert_non_null(receiving);
  }
  ok(mo_comm_barrier(comm));
  ok(mo_comm_send(comm, next, 3, &out, 1, 1, &sending));
  while (sending || receiving) {
    ok(mo_comm_test(comm, &sending));
    ok(mo_comm_test(comm, &receiving));
  }
  assert_true(in == (float)(previous + 1));
}

/* Tags beyond what MPI holds, side by side with small ones. */
static void messages_of_large_tags(void **state) {
  (void)state;
  static const int64_t tags[] = {0, 1, INT_MAX, (int64_t)INT_MAX + 1, (int64_t)1 << 40};
  float out[5], in[5];
  mo_message *sending[5], *receiving[5];
  int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  if (size == 1) return;
  for (int i = 0; i < 5; i++) {
    out[i] = (float)(10 * rank + i);
    ok(mo_comm_receive(comm, previous, tags[i], &in[i], 1, 1, &receiving[i]));
    ok(mo_comm_send(comm, next, tags[i], &out[i], 1, 1, &sending[i]));
    ok(mo_comm_wait(comm, &sending[i])); /* one message per tag at a time, and large tags wrap round */
    ok(mo_comm_wait(comm, &receiving[i]));
    assert_true(in[i] == (float)(10 * previous + i));
  }
}

static void a_large_message(void **state) {
  (void)state;
  enum { LONG = 1000, WIDE = 2048 };
  float *values = malloc(sizeof(float) * LONG * WIDE);
  mo_message *message = NULL;
  assert_non_null(values);
  for (int i = 0; i < LONG * WIDE; i++) values[i] = rank == 0 ? (float)i : 0;
  if (rank == 0 && size > 1) ok(mo_comm_send(comm, size - 1, 5, values, LONG, WIDE, &message));
  if (rank == size - 1 && size > 1) ok(mo_comm_receive(comm, 0, 5, values, LONG, WIDE, &message));
  ok(mo_comm_wait(comm, &message));
  for (int i = 0; i < LONG * WIDE && rank == size - 1; i++)
    if (values[i] != (float)i) fail_msg("value %d is %g", i, (double)values[i]);
  free(values);
}

static void messages_too_large_are_refused(void **state) {
  (void)state;
  float value = 0;
  mo_message *message = NULL;
  assert_int_equal(mo_comm_send(comm, 0, 0, &value, (int64_t)INT_MAX + 1, 1, &message), MO_FAILED);
  assert_non_null(strstr(mo_error_message(), "engine.micro_batch"));
  assert_null(message);
  mo_error_clear();
}

/* --- failures --- */

static void agreement_on_success(void **state) {
  (void)state;
  bool speaker;
  for (int i = 0; i < 20; i++) {
    assert_int_equal(mo_comm_agree(comm, MO_OK, &speaker), MO_OK);
    assert_int_equal(sum_over_ranks(speaker), 1);
    assert_int_equal(mo_comm_join(comm, MO_OK), MO_OK);
  }
  ok(mo_comm_poll(comm));
}

/* Rank 0 fails a while after the others began to wait, rank 1 for a message, rank 2 in a collective call. The
 * requests that they give up stay with MPI, and so must their memory. */
static void a_failure_ends_every_wait(void **state) {
  (void)state;
  static float value;
  static int64_t sum = 1;
  static mo_message *message;
  if (size == 1) return;
  MPI_Barrier(MPI_COMM_WORLD);
  double begin = now();
  if (rank == 0) {
    usleep(200000);
    mo_comm_raise(comm);
    mo_comm_raise(comm);    /* safe to repeat */
    ok(mo_comm_poll(comm)); /* its own failure is no peer's */
    return;
  }
  mo_status status;
  if (rank == 1) {
    ok(mo_comm_receive(comm, 0, 3, &value, 1, 1, &message));
    status = mo_comm_wait(comm, &message);
    assert_non_null(message);
  } else
    status = mo_comm_allreduce(comm, &sum, 1, MO_SUM_I64);
  assert_int_equal(status, MO_PEER_FAILED);
  assert_true(now() - begin > 0.1 && now() - begin < 10);
  assert_int_equal(mo_comm_poll(comm), MO_PEER_FAILED);
  assert_string_equal(mo_error_message(), ""); /* not this rank's to report */
}

/* The worst code, the same on every rank; the lowest rank that has it speaks. */
static void agreement_on_the_worst(void **state) {
  (void)state;
  static const struct {
    mo_status codes[3], worst;
    int speaker;
  } cases[] = {
      {{MO_OK, MO_INVALID, MO_OK}, MO_INVALID, 1},
      {{MO_INVALID, MO_INVALID, MO_INVALID}, MO_INVALID, 0},
      {{MO_PEER_FAILED, MO_INVALID, MO_INVALID}, MO_INVALID, 1},
      {{MO_INVALID, MO_PEER_FAILED, MO_FAILED}, MO_FAILED, 2},
      {{MO_FAILED, MO_INVALID, MO_FAILED}, MO_FAILED, 0},
      {{MO_OK, MO_OK, MO_FAILED}, MO_FAILED, 2},
  };
  if (size != 3) return;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    bool speaker;
    mo_status own = cases[i].codes[rank];
    assert_int_equal(mo_comm_agree(comm, own, &speaker), cases[i].worst);
    assert_int_equal(speaker, rank == cases[i].speaker);
    assert_int_equal(mo_comm_join(comm, own), own == MO_OK ? MO_PEER_FAILED : own);
  }
}

/* A single rank agrees with itself. */
static void agreement_of_one(void **state) {
  (void)state;
  bool speaker;
  if (size != 1) return;
  assert_int_equal(mo_comm_agree(comm, MO_INVALID, &speaker), MO_INVALID);
  assert_true(speaker);
  assert_int_equal(mo_comm_join(comm, MO_FAILED), MO_FAILED);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(knows_its_place),
      cmocka_unit_test(notes),
      cmocka_unit_test(sums),
      cmocka_unit_test(extremes_and_bits),
      cmocka_unit_test(reductions_of_any_length),
      cmocka_unit_test(gather_of_uneven_blocks),
      cmocka_unit_test(gather_of_empty_blocks),
      cmocka_unit_test(gather_of_large_blocks),
      cmocka_unit_test(broadcast_from_every_rank),
      cmocka_unit_test(messages_of_many_tags),
      cmocka_unit_test(messages_of_large_tags),
      cmocka_unit_test(messages_are_asked_for),
      cmocka_unit_test(a_large_message),
      cmocka_unit_test(messages_too_large_are_refused),
      cmocka_unit_test(agreement_on_success),
      cmocka_unit_test(a_failure_ends_every_wait),
      cmocka_unit_test(agreement_on_the_worst),
      cmocka_unit_test(agreement_of_one),
  };
  if (mo_comm_open(&comm, &argc, &argv) != MO_OK) {
    fprintf(stderr, "%s\n", mo_error_message());
    return 1;
  }
  rank = mo_comm_rank(comm);
  size = mo_comm_size(comm);
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  mo_comm_close(comm);
  return failed;
}
