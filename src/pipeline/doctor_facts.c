/* What each rank knows of itself, brought together on all of them. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "pipeline/doctor.h"

static int64_t limit_of(__rlimit_resource_t resource) {
  struct rlimit limit;
  if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  return limit.rlim_cur > INT64_MAX ? -1 : (int64_t)limit.rlim_cur;
}

static int count_entries(const char *path) {
  int n = 0;
  DIR *folder = opendir(path);
  for (struct dirent *entry; folder && (entry = readdir(folder));) n += entry->d_name[0] != '.';
  if (folder) closedir(folder);
  return n;
}

static void read_machine(mo_rank_facts *f) {
  mo_machine machine;
  mo_machine_read(&machine, "");
  f->bound = mo_cpus_count(&machine.mask);
  f->allowed = mo_cpus_count(&machine.allowed);
  if (machine.quota > 0 && machine.quota < f->allowed)
    f->allowed = (int)(machine.quota + 0.5) > 1 ? (int)(machine.quota + 0.5) : 1;
  f->memory = machine.memory;
  f->limit = machine.limit;
  f->binding = (int32_t)mo_machine_widen(f->local_size); /* as a run does */
  mo_machine_read(&machine, "");
  f->share = mo_machine_share(&machine, f->local_size);
}

static void read_facts(const mo_doctor_state *d, mo_rank_facts *f) {
  struct statvfs shared;
  if (mo_devices_describe(d->comm, &f->device) != MO_OK)
    snprintf(f->device_error, sizeof f->device_error, "%s", mo_error_message());
  mo_error_clear();
  f->local_rank = mo_comm_local_rank(d->comm);
  f->local_size = mo_comm_local_size(d->comm);
  read_machine(f);
  f->address_space = limit_of(RLIMIT_AS);
  f->locked = limit_of(RLIMIT_MEMLOCK);
  f->shared_total = f->shared_free = -1;
  if (statvfs("/dev/shm", &shared) == 0) {
    f->shared_total = (int64_t)(shared.f_blocks * shared.f_frsize);
    f->shared_free = (int64_t)(shared.f_bavail * shared.f_frsize);
  }
  f->nvidia = access("/dev/nvidiactl", F_OK) == 0;
  f->infiniband = count_entries("/sys/class/infiniband");
  mo_doctor_list_interfaces(f);
}

mo_status mo_doctor_gather(mo_doctor_state *d) {
  static mo_rank_facts mine;
  void *all;
  size_t bytes, expected = (size_t)d->size * sizeof mine;
  memset(&mine, 0, sizeof mine);
  read_facts(d, &mine);
  MO_TRY(mo_comm_gather(d->comm, &mine, sizeof mine, &all, &bytes));
  if (d->rank != 0) all = mo_alloc(1, expected);
  if (!all) return MO_FAILED;
  d->ranks = all;
  return mo_comm_broadcast(d->comm, all, expected, 0);
}
