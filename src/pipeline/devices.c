/* The ranks' choice of backend and GPU. */
#include "moe_outliers/devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* "rank 2 on node5, rank 3 on node5 and 4 more": the ranks that see no GPU. */
static void list_without(const mo_rank_device *ranks, int n, char *text, size_t bytes) {
  enum { NAMED = 4 };
  int found = 0;
  size_t length = 0;
  text[0] = '\0';
  for (int i = 0; i < n; i++) {
    if (ranks[i].visible > 0 || found++ >= NAMED) continue;
    int added =
        snprintf(text + length, bytes - length, "%srank %d on %s", length ? ", " : "", ranks[i].rank, ranks[i].host);
    if (added > 0) length += (size_t)added < bytes - length ? (size_t)added : bytes - length - 1;
  }
  if (found > NAMED) snprintf(text + length, bytes - length, " and %d more", found - NAMED);
}

static mo_status refuse_some(const mo_rank_device *ranks, int n, int without) {
  char list[512];
  list_without(ranks, n, list, sizeof list);
  return MO_FAIL(MO_INVALID,
                 "%d of %d ranks see%s no GPU: %s (engine.device): start ranks only where GPUs are (check "
                 "CUDA_VISIBLE_DEVICES and nvidia-smi there), or set engine.device to \"cpu\"",
                 without, n, without == 1 ? "s" : "", list);
}

static bool same_gpu(const mo_rank_device *a, const mo_rank_device *b) {
  return memcmp(a->id, b->id, sizeof a->id) == 0;
}

/* Ranks a and b have the same GPU. */
static mo_status refuse_shared(const mo_rank_device *ranks, int n, int a, int b) {
  int there = 0, gpus = 0;
  for (int i = 0; i < n; i++) {
    if (strcmp(ranks[i].host, ranks[a].host) != 0) continue;
    int first = 0;
    while (!same_gpu(ranks + first, ranks + i)) first++;
    there++;
    gpus += first == i;
  }
  return MO_FAIL(
      MO_INVALID,
      "ranks %d and %d would share a GPU: the %d ranks on %s have %d GPU%s (engine.device): start at most %d "
      "rank%s there (on one node: mpirun -np %d), or let each rank see a GPU of its own (srun "
      "--gpus-per-task=1, CUDA_VISIBLE_DEVICES)",
      ranks[a].rank, ranks[b].rank, there, ranks[a].host, gpus, mo_plural(gpus), gpus, mo_plural(gpus), gpus);
}

mo_status mo_devices_check(mo_device_choice choice, const mo_rank_device *ranks, int n, bool *gpus) {
  int without = 0;
  for (int i = 0; i < n; i++) without += ranks[i].visible < 1;
  *gpus = without == 0;
  if (without == n && choice == MO_DEVICE_AUTO) return MO_OK;
  if (without == n)
    return MO_FAIL(MO_INVALID,
                   "no CUDA device is visible (engine.device): set engine.device to \"cpu\", or check nvidia-smi and "
                   "CUDA_VISIBLE_DEVICES");
  if (without > 0) return refuse_some(ranks, n, without);
  for (int b = 1; b < n; b++)
    for (int a = 0; a < b; a++)
      if (same_gpu(ranks + a, ranks + b)) return refuse_shared(ranks, n, a, b);
  return MO_OK;
}

mo_status mo_devices_describe(const mo_comm *comm, mo_rank_device *self) {
  self->rank = mo_comm_rank(comm);
  if (gethostname(self->host, sizeof self->host - 1) != 0) snprintf(self->host, sizeof self->host, "an unnamed host");
#ifdef MO_HAVE_CUDA
  if (mo_comm_size(comm) > 1) mo_backend_cuda_meet_peers();
  self->visible = mo_backend_cuda_count();
  if (self->visible < 1) return MO_OK;
  self->device = mo_comm_local_rank(comm) % self->visible;
  return mo_backend_cuda_id(self->device, self->id);
#else
  return MO_OK;
#endif
}

/* Every rank hears of every other, and all come to the same verdict. */
static mo_status agree_on_gpus(mo_comm *comm, mo_device_choice choice, int *device, bool *gpus) {
  mo_rank_device self = {0};
  void *all;
  size_t bytes, expected = (size_t)mo_comm_size(comm) * sizeof self;
  MO_TRY(mo_devices_describe(comm, &self));
  MO_TRY(mo_comm_gather(comm, &self, sizeof self, &all, &bytes));
  if (mo_comm_rank(comm) != 0) all = mo_alloc(1, expected);
  if (!all) return MO_FAILED;
  mo_status status = mo_comm_broadcast(comm, all, expected, 0);
  if (status == MO_OK) status = mo_devices_check(choice, all, mo_comm_size(comm), gpus);
  free(all);
  *device = self.device;
  return status;
}

mo_status mo_devices_choose(mo_comm *comm, mo_device_choice choice, const mo_backend_table **table, int *device) {
  bool gpus = false;
  *device = 0;
  if (choice != MO_DEVICE_AUTO) MO_TRY(mo_backend_choose(choice, table)); /* whether it is built in at all */
  if (choice == MO_DEVICE_AUTO || choice == MO_DEVICE_CUDA) MO_TRY(agree_on_gpus(comm, choice, device, &gpus));
  if (choice == MO_DEVICE_AUTO) MO_TRY(mo_backend_choose(gpus ? MO_DEVICE_CUDA : MO_DEVICE_CPU, table));
  return MO_OK;
}
