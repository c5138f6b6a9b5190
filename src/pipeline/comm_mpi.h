/* The MPI communicator behind a mo_comm, for the parallel HDF5 driver only. */
#ifndef MO_PIPELINE_COMM_MPI_H
#define MO_PIPELINE_COMM_MPI_H

#include <mpi.h>

#include "moe_outliers/comm.h"

MPI_Comm mo_comm_mpi(const mo_comm *comm);

#endif
