/* The machine as this process may use it: cores within its affinity mask and its control group, memory within the
 * group's limit. Control groups of version 1 and 2. */
#ifndef MOE_OUTLIERS_MACHINE_H
#define MOE_OUTLIERS_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

enum { MO_MAX_CPUS = 8192 };

/* Laid out as the kernel's masks. */
typedef struct {
  uint64_t words[MO_MAX_CPUS / 64];
} mo_cpus;

int mo_cpus_count(const mo_cpus *cpus);
/* The kernel's lists, as "0-3,8,10-11\n"; false if it is none, then *cpus is empty. */
bool mo_cpus_parse(mo_cpus *cpus, const char *list);

typedef struct {
  mo_cpus mask; /* this process's affinity */
  /* What it might be: the mask of the process that started it with a narrower one, within the control group and the
   * cores that are online. */
  mo_cpus allowed;
  double quota;   /* cores' worth of time that the control group gets; 0: no limit */
  int64_t memory; /* bytes that can be had without swapping, within the control group's limit; 0: unknown */
  int64_t limit;  /* of the control group and those around it: the smallest; 0: none */
} mo_machine;

/* Read from root/proc and root/sys (root "": this machine). What cannot be read counts as no limit. */
void mo_machine_read(mo_machine *machine, const char *root);

/* Cores for one of `ranks` ranks on this machine: an even share of the allowed ones and of the quota, within its mask.
 * >= 1. */
int mo_machine_share(const mo_machine *machine, int ranks);

/* Whether a launcher bound this rank to fewer cores than its share without having been asked to: Open MPI binds each
 * of two ranks to one core. By the launcher's environment variables. */
bool mo_machine_is_bound(const mo_machine *machine, int ranks);

typedef enum { MO_BINDING_KEPT, MO_BINDING_WIDENED, MO_BINDING_REFUSED } mo_binding;

/* Give a rank that is bound so all allowed cores. Threads that start later inherit them. */
mo_binding mo_machine_widen(int ranks);

#endif
