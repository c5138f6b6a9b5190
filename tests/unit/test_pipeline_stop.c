/* A signal on one rank stops all of them, where it counts; run alone and on several ranks: ranks: 3. A communicator
 * does not forget that it was stopped, so the order of the tests matters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <mpi.h>
#include <signal.h>
#include <string.h>

#include "../../src/pipeline/signals.h"
#include "moe_outliers/comm.h"

static mo_comm *comm;
static int rank, size;

static void names(void **state) {
  (void)state;
  assert_string_equal(mo_signals_name(SIGTERM), "SIGTERM");
  assert_string_equal(mo_signals_name(SIGUSR1), "SIGUSR1");
}

static void nothing_yet(void **state) {
  (void)state;
  mo_comm_heed_stop(comm, true);
  assert_int_equal(mo_signals_received(), 0);
  assert_int_equal(mo_comm_poll(comm), MO_OK);
  assert_int_equal(mo_comm_stop_signal(comm), 0);
  assert_int_equal(mo_comm_join(comm, MO_OK), MO_OK);
}

/* The last rank gets both signals while they don't count; the first one is remembered. */
static void not_heeded(void **state) {
  (void)state;
  mo_comm_heed_stop(comm, false);
  if (rank == size - 1) {
    assert_int_equal(raise(SIGUSR1), 0);
    assert_int_equal(raise(SIGTERM), 0);
    assert_int_equal(mo_signals_received(), SIGUSR1);
  }
  int64_t one = 1;
  assert_int_equal(mo_comm_poll(comm), MO_OK);
  assert_int_equal(mo_comm_allreduce(comm, &one, 1, MO_SUM_I64), MO_OK);
  assert_int_equal(one, size);
  assert_int_equal(mo_comm_join(comm, MO_OK), MO_OK);
  assert_int_equal(mo_comm_stop_signal(comm), 0);
}

/* Waiting for what never comes: rows of a peer that does not send. */
static void ends_waits(void **state) {
  (void)state;
  static mo_message *message; /* never freed */
  static float row[4];
  mo_comm_heed_stop(comm, true);
  assert_int_equal(mo_comm_receive(comm, (rank + 1) % size, 5, row, 1, 4, &message), MO_OK);
  assert_int_equal(mo_comm_wait(comm, &message), MO_STOPPED);
  assert_non_null(message);
  assert_int_equal(mo_comm_poll(comm), MO_STOPPED);
  assert_int_equal(mo_comm_stop_signal(comm), SIGUSR1);
}

static void agreements(void **state) {
  (void)state;
  bool speaker;
  int speakers;
  assert_int_equal(mo_comm_join(comm, MO_STOPPED), MO_STOPPED);
  assert_int_equal(mo_comm_join(comm, rank == 0 ? MO_STOPPED : MO_OK), MO_STOPPED); /* one had finished before */
  assert_int_equal(mo_comm_agree(comm, MO_STOPPED, &speaker), MO_STOPPED);
  int mine = speaker;
  MPI_Allreduce(&mine, &speakers, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  assert_int_equal(speakers, 1);
  mo_comm_heed_stop(comm, false);
  assert_int_equal(mo_comm_poll(comm), MO_OK);
}

/* Last: a failure outweighs it. */
static void failure_while_stopping(void **state) {
  (void)state;
  mo_comm_heed_stop(comm, true);
  mo_status status = rank == 0 ? MO_FAIL(MO_FAILED, "no room (file): free some") : MO_STOPPED;
  assert_int_equal(mo_comm_join(comm, status), rank == 0 ? MO_FAILED : MO_PEER_FAILED);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(names),      cmocka_unit_test(nothing_yet), cmocka_unit_test(not_heeded),
      cmocka_unit_test(ends_waits), cmocka_unit_test(agreements),  cmocka_unit_test(failure_while_stopping),
  };
  if (mo_comm_open(&comm, &argc, &argv) != MO_OK) return 1;
  rank = mo_comm_rank(comm);
  size = mo_comm_size(comm);
  mo_signals_note();
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  mo_comm_close(comm);
  return failed;
}
