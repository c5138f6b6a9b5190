/* How the ranks were started, and how they should be. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pipeline/doctor.h"

/* --- the environment --- */

/* A variable as a number, -1 if it is none. */
static int number(const char *name) {
  const char *text = getenv(name);
  char *end;
  long value = text ? strtol(text, &end, 10) : -1;
  return text && end != text && !*end && value >= 0 && value < 10000000 ? (int)value : -1;
}

static int first_number(const char *a, const char *b) { return number(a) >= 0 ? number(a) : number(b); }

mo_launch mo_launch_read(void) {
  mo_launch launch = {.kind = MO_LAUNCH_ALONE, .tasks = 1};
  bool pmix = getenv("PMIX_RANK") != NULL, pmi = getenv("PMI_RANK") || getenv("PMI_FD");
  if (number("OMPI_COMM_WORLD_SIZE") > 0) {
    launch.kind = MO_LAUNCH_MPIRUN;
    launch.tasks = number("OMPI_COMM_WORLD_SIZE");
    launch.rank = number("OMPI_COMM_WORLD_RANK");
  } else if (first_number("SLURM_STEP_ID", "SLURM_STEPID") >= 0) { /* not of a shell of salloc, whose number is large */
    launch.kind = pmix ? MO_LAUNCH_SRUN_PMIX : pmi ? MO_LAUNCH_SRUN_PMI2 : MO_LAUNCH_SRUN;
    launch.tasks = first_number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS");
    launch.rank = number("SLURM_PROCID");
  } else if (pmix || pmi) {
    launch.kind = MO_LAUNCH_MPIEXEC;
    launch.tasks = number("PMI_SIZE");
    launch.rank = first_number("PMIX_RANK", "PMI_RANK");
  } else if (number("SLURM_JOB_ID") >= 0 || number("SLURM_NTASKS") > 1) {
    launch.kind = MO_LAUNCH_BATCH;
    launch.tasks = number("SLURM_NTASKS");
  }
  if (launch.tasks < 0) launch.tasks = 0;
  if (launch.rank < 0) launch.rank = 0;
  return launch;
}

/* --- what is said --- */

static void say_ranks(mo_doctor_state *d) {
  enum { NAMED = 4 };
  char list[512] = "";
  size_t used = 0;
  int nodes = 0;
  for (int i = 0; i < d->size; i++) {
    const mo_rank_facts *f = d->ranks + i;
    if (f->local_rank != 0 || nodes++ >= NAMED) continue;
    int n = snprintf(list + used, sizeof list - used, "%s%d on %s", used ? ", " : "", f->local_size, f->device.host);
    if (n > 0) used += (size_t)n < sizeof list - used ? (size_t)n : sizeof list - used - 1;
  }
  mo_doctor_say(d, MO_SAYS_OK, "ranks", "%d on %d node%s: %s%s", d->size, nodes, mo_plural(nodes), list,
                nodes > NAMED ? ", ..." : "");
}

static void name_library(char *text, size_t bytes) {
  char whole[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  if (MPI_Get_library_version(whole, &length) != MPI_SUCCESS) snprintf(whole, sizeof whole, "unknown MPI");
  whole[strcspn(whole, ",\n")] = '\0';
  snprintf(text, bytes, "%s", whole);
}

static const char *describe(mo_launch_kind kind) {
  switch (kind) {
    case MO_LAUNCH_MPIRUN:
      return "by Open MPI's mpirun";
    case MO_LAUNCH_MPIEXEC:
      return "by a launcher that speaks PMI";
    case MO_LAUNCH_SRUN:
      return "by srun";
    case MO_LAUNCH_SRUN_PMI2:
      return "by srun with PMI-2";
    case MO_LAUNCH_SRUN_PMIX:
      return "by srun with PMIx";
    case MO_LAUNCH_BATCH:
      return "by hand in a Slurm job";
    default:
      return "by hand";
  }
}

/* Several processes were started, and each is rank 0 of 1. */
static void say_singletons(mo_doctor_state *d, const char *library) {
  const mo_launch *launch = &d->job->launch;
  d->wanted = launch->tasks;
  d->relaunch = true;
  if (launch->kind == MO_LAUNCH_BATCH)
    mo_doctor_say(d, MO_SAYS_FAULT, "start",
                  "1 rank, started by hand, though the Slurm job has %d tasks: start them as the last line says",
                  launch->tasks);
  else if (launch->kind == MO_LAUNCH_SRUN)
    mo_doctor_say(d, MO_SAYS_FAULT, "start",
                  "srun started %d programs that do not know each other, each is rank 0 of 1: it offered them no PMIx: "
                  "start them as the last line says",
                  launch->tasks);
  else if (launch->kind == MO_LAUNCH_MPIRUN)
    mo_doctor_say(
        d, MO_SAYS_FAULT, "start",
        "mpirun started %d programs that do not know each other: it belongs to another MPI than the program's "
        "(%s): call that one's mpirun",
        launch->tasks, library);
  else
    mo_doctor_say(d, MO_SAYS_FAULT, "start",
                  "%d programs were started %s and do not know each other, each is rank 0 of 1: the program's MPI (%s) "
                  "does not speak what it offers: start them as the last line says",
                  launch->tasks, describe(launch->kind), library);
}

void mo_doctor_look_at_start(mo_doctor_state *d) {
  const mo_launch *launch = &d->job->launch;
  char library[MO_TEXT_BYTES];
  name_library(library, sizeof library);
  d->wanted = d->size;
  say_ranks(d);
  if (d->size == 1 && launch->tasks > 1)
    say_singletons(d, library);
  else if (launch->tasks > 0 && launch->tasks != d->size)
    mo_doctor_say(d, MO_SAYS_NOTE, "start", "%d ranks, started %s, where the environment tells of %d tasks", d->size,
                  describe(launch->kind), launch->tasks);
  else
    mo_doctor_say(d, MO_SAYS_OK, "start", "%s", describe(launch->kind));
  mo_doctor_say(d, MO_SAYS_OK, "MPI", "%s", library);
}

void mo_doctor_look_at_failed_start(mo_doctor_state *d) {
  const mo_launch *launch = &d->job->launch;
  char library[MO_TEXT_BYTES];
  name_library(library, sizeof library);
  d->wanted = launch->tasks;
  d->relaunch = true;
  mo_doctor_say(
      d, MO_SAYS_FAULT, "start",
      "%d programs were started %s, which does not offer what %s speaks, so that it ended them: start them as the "
      "last line says",
      launch->tasks, describe(launch->kind), library);
}

/* --- the launch line --- */

/* What Open MPI's mpirun wants to hear before it starts so many ranks. */
static void put_permissions(const mo_doctor_state *d) {
  int cores = 0;
  for (int i = 0; d->ranks && i < d->size; i++)
    if (d->ranks[i].local_rank == 0) cores += d->ranks[i].allowed;
  bool told = getenv("OMPI_MCA_rmaps_base_oversubscribe") || getenv("PRTE_MCA_rmaps_default_mapping_policy");
  if (cores > 0 && d->wanted > cores && !told) fputs(" --oversubscribe", d->out);
  if (geteuid() == 0 && !getenv("OMPI_ALLOW_RUN_AS_ROOT") && !getenv("PRTE_ALLOW_RUN_AS_ROOT"))
    fputs(" --allow-run-as-root", d->out);
}

static void put_word(FILE *out, const char *word) {
  static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=,+@%";
  fputc(' ', out);
  if (*word && word[strspn(word, plain)] == '\0') {
    fputs(word, out);
    return;
  }
  fputc('\'', out);
  for (; *word; word++)
    if (*word == '\'')
      fputs("'\\''", out);
    else
      fputc(*word, out);
  fputc('\'', out);
}

/* What srun offers, of a process that is alone: "pmix", "pmi2" if that may help, or NULL. */
static const char *ask_srun(bool old) {
  char line[256];
  bool pmix = false, pmi2 = false;
  FILE *list = popen("timeout 5 srun --mpi=list 2>&1 </dev/null", "r");
  while (list && fgets(line, sizeof line, list)) {
    pmix = pmix || strstr(line, "pmix");
    pmi2 = pmi2 || strstr(line, "pmi2");
  }
  if (list) pclose(list);
  return pmix ? "pmix" : pmi2 && old ? "pmi2" : NULL;
}

/* The PMI to start with by srun; NULL: by mpirun. */
static const char *choose_pmi(const mo_doctor_state *d) {
  mo_launch_kind kind = d->job->launch.kind;
  if (!d->relaunch) return kind == MO_LAUNCH_SRUN_PMIX ? "pmix" : kind == MO_LAUNCH_SRUN_PMI2 ? "pmi2" : NULL;
  if (kind == MO_LAUNCH_SRUN_PMIX || kind == MO_LAUNCH_MPIRUN || kind == MO_LAUNCH_MPIEXEC) return NULL;
  return ask_srun(kind != MO_LAUNCH_SRUN_PMI2);
}

void mo_doctor_print_launch_line(const mo_doctor_state *d) {
  const mo_doctor_job *job = d->job;
  const char *pmi = choose_pmi(d);
  int cores = d->ranks ? d->ranks[0].allowed / d->ranks[0].local_size : 1;
  bool srun = pmi || (!d->relaunch && job->launch.kind == MO_LAUNCH_SRUN);
  fputs("launch:", d->out);
  if (srun) {
    fputs(" srun", d->out);
    if (pmi) fprintf(d->out, " --mpi=%s", pmi);
    fprintf(d->out, " -n %d", d->wanted);
    if (d->unbind) fprintf(d->out, " --cpus-per-task=%d", cores > 1 ? cores : 1);
  } else if (d->wanted > 1 || job->launch.kind == MO_LAUNCH_MPIRUN) {
    fprintf(d->out, " mpirun -np %d%s", d->wanted, d->unbind ? " --bind-to none" : "");
    if (job->launch.kind != MO_LAUNCH_MPIEXEC) put_permissions(d);
  }
  put_word(d->out, job->program);
  fputs(" run", d->out);
  put_word(d->out, job->config ? job->config_path : "CONFIG");
  for (int i = 0; i < job->n_overrides; i++) {
    fputs(" -s", d->out);
    put_word(d->out, job->overrides[i]);
  }
  fputc('\n', d->out);
}
