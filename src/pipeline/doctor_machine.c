/* GPUs, cores, memory and its limits. */
#include <stdlib.h>
#include <string.h>

#include "pipeline/doctor.h"

static double gb(int64_t bytes) { return 1e-9 * (double)bytes; }

/* --- GPUs --- */

static bool is_new_gpu(const mo_rank_facts *ranks, int i) {
  for (int k = 0; k < i; k++)
    if (memcmp(ranks[k].device.id, ranks[i].device.id, sizeof ranks[i].device.id) == 0) return false;
  return true;
}

/* GPUs that the ranks take, and of nodes whose ranks see more than that: what they see. */
static void count_gpus(const mo_doctor_state *d, int *taken, int *seen) {
  *taken = *seen = 0;
  for (int i = 0; i < d->size; i++) {
    const mo_rank_facts *f = d->ranks + i;
    *taken += f->device.visible > 0 && is_new_gpu(d->ranks, i);
    if (f->local_rank == 0) *seen += f->device.visible > f->local_size ? f->device.visible : f->local_size;
  }
}

/* A message of the check that a run makes; false: it has none. */
static bool refuse_gpus(mo_doctor_state *d, mo_device_choice choice, bool *gpus) {
  mo_rank_device *devices = mo_alloc((size_t)d->size, sizeof *devices);
  mo_status status = MO_FAILED;
  for (int i = 0; devices && i < d->size; i++) devices[i] = d->ranks[i].device;
  if (devices) status = mo_devices_check(choice, devices, d->size, gpus);
  if (status != MO_OK) mo_doctor_say(d, MO_SAYS_FAULT, "GPUs", "%s", mo_error_message());
  mo_error_clear();
  free(devices);
  return status != MO_OK;
}

/* The ranks may use GPUs, and could be asked about them. */
static void look_at_visible(mo_doctor_state *d, mo_device_choice choice) {
  bool gpus = false;
  int taken, seen;
  count_gpus(d, &taken, &seen);
  if (refuse_gpus(d, choice, &gpus)) {
    d->no_device = true;
    if (d->ranks[0].device.visible && taken < d->size) d->wanted = taken;
  } else if (!gpus) {
    mo_doctor_say(d, MO_SAYS_OK, "GPUs", "no rank sees any: the ranks compute on the CPU");
  } else if (seen > d->size && !d->relaunch) {
    d->wanted = seen;
    mo_doctor_say(d, MO_SAYS_NOTE, "GPUs", "%d of the %d that are seen are not used: start %d ranks to use all",
                  seen - d->size, seen, seen);
  } else {
    mo_doctor_say(d, MO_SAYS_OK, "GPUs", "one for each rank; rank 0 sees %d", d->ranks[0].device.visible);
  }
}

void mo_doctor_look_at_gpus(mo_doctor_state *d) {
  const mo_backend_table *table;
  mo_device_choice choice = d->job->config ? d->job->config->engine.device : MO_DEVICE_AUTO;
  bool built = false;
#ifdef MO_HAVE_CUDA
  built = true;
#endif
  if (choice != MO_DEVICE_AUTO && mo_backend_choose(choice, &table) != MO_OK) {
    d->no_device = true;
    mo_doctor_say(d, MO_SAYS_FAULT, "GPUs", "%s", mo_error_message());
    mo_error_clear();
    return;
  }
  for (int i = 0; i < d->size; i++)
    if (d->ranks[i].device_error[0]) {
      d->no_device = true;
      mo_doctor_say(d, MO_SAYS_FAULT, "GPUs", "on %s (rank %d): %s", d->ranks[i].device.host, i,
                    d->ranks[i].device_error);
      return;
    }
  if (choice != MO_DEVICE_AUTO && choice != MO_DEVICE_CUDA)
    mo_doctor_say(d, MO_SAYS_OK, "GPUs", "not asked for: engine.device is \"%s\"", mo_device_choice_name(choice));
  else if (built)
    look_at_visible(d, choice);
  else if (d->ranks[0].nvidia)
    mo_doctor_say(d, MO_SAYS_NOTE, "GPUs",
                  "%s has NVIDIA's driver, but the program was built without CUDA: build it with cmake --preset cuda",
                  d->ranks[0].device.host);
  else
    mo_doctor_say(d, MO_SAYS_OK, "GPUs", "no GPU, and built without CUDA: the ranks compute on the CPU");
}

/* --- cores --- */

static int fair_share(const mo_rank_facts *f) { return f->allowed > f->local_size ? f->allowed / f->local_size : 1; }

/* The rank with the fewest cores of its share. */
static const mo_rank_facts *worst_bound(const mo_doctor_state *d) {
  const mo_rank_facts *worst = d->ranks;
  for (int i = 1; i < d->size; i++) {
    const mo_rank_facts *f = d->ranks + i;
    if ((int64_t)f->share * fair_share(worst) < (int64_t)worst->share * fair_share(f)) worst = f;
  }
  return worst;
}

void mo_doctor_look_at_cores(mo_doctor_state *d) {
  const mo_rank_facts *f = worst_bound(d), *first = d->ranks;
  const char *remedy = "mpirun --bind-to none, or srun --cpus-per-task";
  d->unbind = f->share < fair_share(f) && (f->share == 1 || f->binding == MO_BINDING_REFUSED);
  for (int i = 0; i < d->size && !d->unbind; i++) d->unbind = d->ranks[i].binding == MO_BINDING_WIDENED;
  if (f->binding == MO_BINDING_REFUSED)
    mo_doctor_say(d, MO_SAYS_FAULT, "cores", "rank %d on %s is bound to %d of %d cores and may not change that: %s",
                  f->device.rank, f->device.host, f->bound, f->allowed, remedy);
  else if (f->share < fair_share(f))
    mo_doctor_say(d, MO_SAYS_NOTE, "cores", "rank %d on %s is bound to %d core%s, its share would be %d: %s",
                  f->device.rank, f->device.host, f->share, mo_plural(f->share), fair_share(f), remedy);
  else if (d->unbind)
    mo_doctor_say(d, MO_SAYS_NOTE, "cores",
                  "rank 0 was bound to %d core%s of %d; a run takes its share, %d, by itself; this says so: %s",
                  first->bound, mo_plural(first->bound), first->allowed, first->share, remedy);
  else if (f->allowed < f->local_size)
    mo_doctor_say(d, MO_SAYS_NOTE, "cores", "%d ranks share %d core%s of %s: start fewer", f->local_size, f->allowed,
                  mo_plural(f->allowed), f->device.host);
  else
    mo_doctor_say(d, MO_SAYS_OK, "cores", "%d for each rank, of %d on %s", f->share, f->allowed, f->device.host);
}

/* --- limits --- */

enum { SHARED_NEED = 8 << 20, SHARED_WISH = 64 << 20, LOCKED_WISH = 64 << 20 }; /* bytes, of a rank */

static void look_at_shared_memory(mo_doctor_state *d) {
  const mo_rank_facts *least = d->ranks;
  for (int i = 1; i < d->size; i++)
    if (d->ranks[i].shared_free / d->ranks[i].local_size < least->shared_free / least->local_size) least = d->ranks + i;
  int64_t need = (int64_t)SHARED_NEED * least->local_size, wish = (int64_t)SHARED_WISH * least->local_size;
  if (least->local_size == 1) {
    mo_doctor_say(d, MO_SAYS_OK, "/dev/shm", "one rank on a node needs none");
  } else if (least->shared_free < need) {
    mo_doctor_say(
        d, MO_SAYS_FAULT, "/dev/shm",
        "%.3f GB are free on %s, too little for %d ranks: remove old files there (vader_segment*), or give the "
        "container more (--shm-size, bind the host's)",
        gb(least->shared_free > 0 ? least->shared_free : 0), least->device.host, least->local_size);
  } else if (least->shared_free < wish) {
    mo_doctor_say(d, MO_SAYS_NOTE, "/dev/shm",
                  "%.3f GB are free on %s, little for %d ranks: give the container more (--shm-size)",
                  gb(least->shared_free), least->device.host, least->local_size);
  } else {
    mo_doctor_say(d, MO_SAYS_OK, "/dev/shm", "%.3f GB free", gb(least->shared_free));
  }
}

void mo_doctor_look_at_limits(mo_doctor_state *d) {
  bool nodes = false;
  int64_t locked = -1;
  bool infiniband = false;
  for (int i = 0; i < d->size; i++) {
    const mo_rank_facts *f = d->ranks + i;
    nodes = nodes || (i > 0 && f->local_rank == 0);
    infiniband = infiniband || f->infiniband > 0;
    if (f->locked >= 0 && (locked < 0 || f->locked < locked)) locked = f->locked;
  }
  if (locked >= 0 && locked < LOCKED_WISH && infiniband && nodes)
    mo_doctor_say(d, MO_SAYS_NOTE, "memlock",
                  "only %.4g MB of memory may be locked, which InfiniBand needs: ulimit -l unlimited, on the nodes",
                  1e-6 * (double)locked);
  else if (locked >= 0)
    mo_doctor_say(d, MO_SAYS_OK, "memlock", "%.4g MB may be locked", 1e-6 * (double)locked);
  else
    mo_doctor_say(d, MO_SAYS_OK, "memlock", "no limit");
  look_at_shared_memory(d);
}

/* --- memory --- */

static bool same_host(const mo_rank_facts *a, const mo_rank_facts *b) {
  return strcmp(a->device.host, b->device.host) == 0;
}

/* What all ranks of a host take; *least: what they may have. */
static int64_t need_of_host(const mo_doctor_state *d, const int64_t *need, int i, int64_t *least) {
  int64_t sum = 0;
  *least = d->ranks[i].memory;
  for (int k = 0; k < d->size; k++) {
    if (!same_host(d->ranks + k, d->ranks + i)) continue;
    sum += need[k];
    if (d->ranks[k].memory > 0 && d->ranks[k].memory < *least) *least = d->ranks[k].memory;
  }
  return sum;
}

static bool refuse_address_space(mo_doctor_state *d, const int64_t *need) {
  for (int i = 0; i < d->size; i++) {
    const mo_rank_facts *f = d->ranks + i;
    if (f->address_space < 0 || f->address_space >= need[i]) continue;
    mo_doctor_say(d, MO_SAYS_FAULT, "memory",
                  "rank %d needs %.3f GB, but its address space may have %.3f GB only: ulimit -v unlimited", i,
                  gb(need[i]), gb(f->address_space));
    return true;
  }
  return false;
}

void mo_doctor_look_at_memory(mo_doctor_state *d, const int64_t *need) {
  int64_t least = 0, most = 0, of_most = 0;
  int worst = 0;
  for (int i = 0; i < d->size; i++) {
    int64_t sum = need_of_host(d, need, i, &least);
    if (i > 0 && (double)sum * (double)(of_most ? of_most : 1) <= (double)most * (double)(least ? least : 1)) continue;
    worst = i;
    most = sum;
    of_most = least;
  }
  const mo_rank_facts *f = d->ranks + worst;
  char group[80] = "";
  if (f->limit) snprintf(group, sizeof group, ", control group's limit %.3f GB", gb(f->limit));
  if (refuse_address_space(d, need)) return;
  if (of_most > 0 && most > of_most)
    mo_doctor_say(d, MO_SAYS_FAULT, "memory",
                  "the ranks on %s need %.3f GB, but %.3f GB can be had (%s): ask for more (--mem), use more nodes, or "
                  "set engine.device_memory_gb",
                  f->device.host, gb(most), gb(of_most), group[0] ? group + 2 : "all of the machine's");
  else
    mo_doctor_say(d, MO_SAYS_OK, "memory", "the ranks on %s need %.3f GB of %.3f GB that can be had%s", f->device.host,
                  gb(most), gb(of_most), group);
}
