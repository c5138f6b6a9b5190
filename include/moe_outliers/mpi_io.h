/* Whether the ranks can write one file together through MPI-IO where the results shall go: found out with a small
 * file, so that neither a run nor its user has to know the file system. */
#ifndef MOE_OUTLIERS_MPI_IO_H
#define MOE_OUTLIERS_MPI_IO_H

#include <stdbool.h>
#include <stdint.h>

#include "moe_outliers/comm.h"
#include "moe_outliers/status.h"

/* From good to bad; ranks agree on the worst. */
typedef enum {
  MO_MPI_IO_WORKS,
  MO_MPI_IO_UNTRIED,   /* the small file could not be made, for lack of room above all */
  MO_MPI_IO_NO_LOCKS,  /* byte ranges cannot be locked, or ranks do not see each other's locks */
  MO_MPI_IO_BROKEN,    /* MPI-IO fails, or says that it wrote what is not there */
  MO_MPI_IO_NOT_SHARED /* ranks see different folders: no file can be written together in any way */
} mo_mpi_io_state;

typedef struct {
  int32_t state;
  char why[320]; /* of the first rank that found this; "" where it works */
} mo_mpi_io;

/* Try it in the folder of `path`; *found is the same on all ranks. Byte ranges are locked first: some libraries for
 * MPI-IO end the job where they cannot. through_mpi false: nothing of MPI-IO is called. The file is removed again.
 * Collective. */
MO_CHECKED mo_status mo_mpi_io_probe(mo_mpi_io *found, mo_comm *comm, const char *path, bool through_mpi);

/* Remove the small file of a trial that does not end (watch.h). Local, from any thread. */
void mo_mpi_io_give_up(void);

#endif
