/* The `doctor` command: what is wrong with the ranks, the machines and the files of a run, said before it is run. */
#ifndef MOE_OUTLIERS_DOCTOR_H
#define MOE_OUTLIERS_DOCTOR_H

#include <stdio.h>

#include "moe_outliers/comm.h"
#include "moe_outliers/config.h"

typedef enum {
  MO_LAUNCH_ALONE,   /* by hand */
  MO_LAUNCH_MPIRUN,  /* Open MPI's */
  MO_LAUNCH_MPIEXEC, /* another one that speaks PMI, or PMIx, outside of Slurm */
  MO_LAUNCH_BATCH,   /* by hand within a Slurm job, not by srun */
  MO_LAUNCH_SRUN,    /* srun, which offered no PMI */
  MO_LAUNCH_SRUN_PMI2,
  MO_LAUNCH_SRUN_PMIX
} mo_launch_kind;

/* How this process was started, by its environment. */
typedef struct {
  mo_launch_kind kind;
  int tasks; /* processes that were started together; of a Slurm job by hand: its tasks; 0: unknown */
  int rank;  /* of this one among them */
} mo_launch;

/* To be called before MPI starts, which adds to the environment. */
mo_launch mo_launch_read(void);

typedef struct {
  mo_launch launch;
  const char *program;     /* as it was called */
  const mo_config *config; /* NULL: none was given */
  const char *config_path;
  const char *const *overrides; /* [n_overrides] */
  int n_overrides;
  double patience; /* seconds that a step may take */
} mo_doctor_job;

/* Before MPI starts: where it may end the process by that, this process stays behind to say so, and a child of it
 * goes on, which calls mo_doctor_started when MPI has started. -1 for who goes on; else the exit status. */
int mo_doctor_supervise(const mo_doctor_job *job, FILE *out);
void mo_doctor_started(void);

/* Look, and print a line for each thing looked at to `out` on rank 0. *faults: how many, the same on all ranks.
 * Nothing is left behind. A step that does not come back ends the processes with exit status 1 and a line that says
 * which it was. Collective. */
MO_CHECKED mo_status mo_doctor(const mo_doctor_job *job, mo_comm *comm, FILE *out, int *faults);

#endif
