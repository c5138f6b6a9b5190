/* How a process was started, by environments as launchers make them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "moe_outliers/doctor.h"

enum { MOST = 6 };

typedef struct {
  const char *variables[MOST][2];
  mo_launch launch;
} start;

static const start STARTS[] = {
    {{{0}}, {MO_LAUNCH_ALONE, 1, 0}},
    {{{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "3"}, {"PMIX_RANK", "3"}}, {MO_LAUNCH_MPIRUN, 4, 3}},
    /* mpirun starts its daemons by srun */
    {{{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "1"}, {"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "0"}},
     {MO_LAUNCH_MPIRUN, 4, 1}},
    {{{"SLURM_JOB_ID", "7"}, {"SLURM_STEP_ID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "5"}},
     {MO_LAUNCH_SRUN, 8, 5}},
    {{{"SLURM_STEP_ID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_PROCID", "1"}},
     {MO_LAUNCH_SRUN, 2, 1}},
    {{{"SLURM_STEP_ID", "0"}, {"SLURM_NTASKS", "2"}, {"SLURM_PROCID", "1"}, {"PMIX_RANK", "1"}},
     {MO_LAUNCH_SRUN_PMIX, 2, 1}},
    {{{"SLURM_STEP_ID", "0"}, {"SLURM_NTASKS", "2"}, {"SLURM_PROCID", "1"}, {"PMI_FD", "9"}, {"PMI_RANK", "1"}},
     {MO_LAUNCH_SRUN_PMI2, 2, 1}},
    {{{"PMI_RANK", "2"}, {"PMI_SIZE", "3"}}, {MO_LAUNCH_MPIEXEC, 3, 2}},
    {{{"PMIX_RANK", "2"}}, {MO_LAUNCH_MPIEXEC, 0, 2}},
    {{{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}}, {MO_LAUNCH_BATCH, 4, 0}},
    {{{"SLURM_JOB_ID", "7"}}, {MO_LAUNCH_BATCH, 0, 0}},
    /* a shell of salloc that is a step */
    {{{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "4"}, {"SLURM_STEP_ID", "4294967290"}, {"SLURM_STEP_NUM_TASKS", "1"}},
     {MO_LAUNCH_BATCH, 4, 0}},
    {{{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "many"}, {"SLURM_STEP_ID", "4294967290"}}, {MO_LAUNCH_BATCH, 0, 0}},
};

static void forget(void) {
  static const char *const names[] = {"OMPI_COMM_WORLD_SIZE",
                                      "OMPI_COMM_WORLD_RANK",
                                      "PMIX_RANK",
                                      "PMI_RANK",
                                      "PMI_FD",
                                      "PMI_SIZE",
                                      "SLURM_JOB_ID",
                                      "SLURM_STEP_ID",
                                      "SLURM_STEP_NUM_TASKS",
                                      "SLURM_NTASKS",
                                      "SLURM_PROCID"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
}

static void starts_are_told_apart(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof STARTS / sizeof *STARTS; i++) {
    forget();
    for (int k = 0; k < MOST && STARTS[i].variables[k][0]; k++)
      assert_int_equal(setenv(STARTS[i].variables[k][0], STARTS[i].variables[k][1], 1), 0);
    mo_launch found = mo_launch_read(), expected = STARTS[i].launch;
    if (found.kind != expected.kind || found.tasks != expected.tasks || found.rank != expected.rank)
      fail_msg("start %zu: kind %d, %d tasks, rank %d", i, found.kind, found.tasks, found.rank);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(starts_are_told_apart)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
