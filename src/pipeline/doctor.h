/* Private to the pipeline: the parts of the doctor. Each looks at one thing and says what it found; what ranks know
 * is gathered first, so that no part has to wait for a rank that failed. */
#ifndef MO_PIPELINE_DOCTOR_H
#define MO_PIPELINE_DOCTOR_H

#include "moe_outliers/devices.h"
#include "moe_outliers/doctor.h"
#include "moe_outliers/machine.h"
#include "moe_outliers/plan.h"
#include "moe_outliers/watch.h"
#include "moe_outliers/weights.h"

enum { MO_TEXT_BYTES = 200 };

/* What a rank knows of itself; every rank has those of all. */
typedef struct {
  mo_rank_device device;               /* and the host's name */
  char device_error[MO_TEXT_BYTES];    /* "" if its GPU answers */
  int32_t local_rank, local_size;      /* on its node */
  int32_t bound, allowed, share;       /* cores: as started, that it might have, that a run uses */
  int32_t binding;                     /* mo_binding: what became of it */
  int64_t memory, limit;               /* as in mo_machine */
  int64_t address_space, locked;       /* RLIMIT_AS, RLIMIT_MEMLOCK; -1: no limit */
  int64_t shared_total, shared_free;   /* bytes of /dev/shm; -1: there is none */
  int32_t nvidia;                      /* whether there is a device file of NVIDIA's driver */
  int32_t infiniband;                  /* adapters */
  int32_t n_interfaces;                /* that are up, but for loopback */
  char interfaces[MO_TEXT_BYTES];      /* their names and addresses */
  char wrong_interface[MO_TEXT_BYTES]; /* what NCCL_SOCKET_IFNAME says in vain, "" if nothing */
} mo_rank_facts;

typedef enum { MO_SAYS_OK, MO_SAYS_NOTE, MO_SAYS_FAULT } mo_finding;

typedef struct {
  const mo_doctor_job *job;
  mo_comm *comm;
  FILE *out;
  int rank, size;
  mo_rank_facts *ranks; /* [size] */
  int count[3];         /* of findings, on rank 0 */
  const char *volatile step;
  mo_watch watch;
  /* for the launch line */
  int wanted; /* ranks */
  bool unbind, relaunch;
  bool no_device; /* that a run could open: told already */
  char *folder;   /* of the output; NULL until it is looked at */
} mo_doctor_state;

/* --- doctor.c --- */
/* Print a line on rank 0. about: one word. */
void mo_doctor_say(mo_doctor_state *d, mo_finding finding, const char *about, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Another thing is looked at from now on. */
void mo_doctor_step(mo_doctor_state *d, const char *about);
/* A fault for what ranks have failed to do, each with its error record; *all: whether none has. Collective. */
MO_CHECKED mo_status mo_doctor_ask(mo_doctor_state *d, const char *about, mo_status status, bool *all);

/* The last two lines, on rank 0. */
void mo_doctor_conclude(const mo_doctor_state *d);

/* --- doctor_facts.c --- */
MO_CHECKED mo_status mo_doctor_gather(mo_doctor_state *d);

/* --- doctor_launch.c --- */
void mo_doctor_look_at_start(mo_doctor_state *d);
/* MPI has ended the processes when it started. */
void mo_doctor_look_at_failed_start(mo_doctor_state *d);
void mo_doctor_print_launch_line(const mo_doctor_state *d);

/* --- doctor_machine.c --- */
void mo_doctor_look_at_gpus(mo_doctor_state *d);
void mo_doctor_look_at_cores(mo_doctor_state *d);
void mo_doctor_look_at_limits(mo_doctor_state *d);
/* What each rank takes of its host's memory: need [size]. */
void mo_doctor_look_at_memory(mo_doctor_state *d, const int64_t *need);

/* --- doctor_network.c --- */
/* Fills in the facts about interfaces. */
void mo_doctor_list_interfaces(mo_rank_facts *facts);
void mo_doctor_look_at_network(mo_doctor_state *d);

/* --- doctor_files.c --- */
/* The output folder, how the result is written there; *usable: whether it can be at all. Collective. */
MO_CHECKED mo_status mo_doctor_look_at_output(mo_doctor_state *d, bool *usable);
/* Room there for a run of this plan. Local. */
void mo_doctor_look_at_disk(mo_doctor_state *d, const mo_model_spec *spec, const mo_plan *plan, int activation_bytes);
/* Shards that the index names and that are not there: "a, b and 3 more"; returns how many, of *all. */
int64_t mo_doctor_missing_shards(const char *folder, char *text, size_t bytes, int64_t *all);

/* --- doctor_model.c --- */
/* The checkpoint, the tokens, and what a run of them needs. Collective. */
MO_CHECKED mo_status mo_doctor_look_at_model(mo_doctor_state *d, bool output_usable);

#endif
