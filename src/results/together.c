/* How the ranks come by the file: together through MPI-IO, or one after the other. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "moe_outliers/mpi_io.h"
#include "moe_outliers/watch.h"
#include "results/writer.h"

enum { PATIENCE = 60 }; /* seconds; the trial takes milliseconds */

/* The trial hangs: the ranks end, rank 0 first, which has a word to say. */
static void give_up(void *context) {
  const mo_results *results = context;
  if (mo_comm_rank(results->comm) == 0)
    fprintf(stderr,
            "moe-outliers: error: MPI-IO does not come back within %d s (%s): set output.mpi_io = \"off\", or choose "
            "another output.path\n",
            PATIENCE, results->path);
  fflush(stderr);
  alarm(3); /* what hangs may hang here, too */
  mo_mpi_io_give_up();
  _exit(MO_FAILED);
}

static double patience(const mo_results *results) { return PATIENCE + (mo_comm_rank(results->comm) > 0); }

mo_status mo_results_choose_access(mo_results *results, mo_together together) {
  mo_mpi_io found;
  mo_watch watch;
  bool alone = mo_comm_size(results->comm) == 1;
  results->serial = together == MO_TOGETHER_OFF || (alone && together == MO_TOGETHER_AUTO);
  if (alone) return MO_OK;
  mo_watch_begin(&watch, patience(results), give_up, results);
  mo_status status = mo_mpi_io_probe(&found, results->comm, results->path, together == MO_TOGETHER_AUTO);
  mo_watch_end(&watch);
  MO_TRY(status);
  if (found.state == MO_MPI_IO_NOT_SHARED)
    return MO_FAIL(MO_INVALID, "the ranks do not share the output folder (%s; %s): choose another output.path",
                   results->path, found.why);
  if (together != MO_TOGETHER_AUTO || found.state < MO_MPI_IO_NO_LOCKS) return MO_OK;
  results->serial = true;
  results->obstacle = mo_strdup(found.why);
  return results->obstacle ? MO_OK : MO_FAILED;
}
