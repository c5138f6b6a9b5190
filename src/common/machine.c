#include "moe_outliers/machine.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ANCESTORS = 64, PATH_BYTES = 4096 };
static const int64_t NO_LIMIT = (int64_t)1 << 60; /* version 1 says so with a number close to 2^63 */

/* --- sets of cores --- */

int mo_cpus_count(const mo_cpus *cpus) {
  int n = 0;
  for (int i = 0; i < MO_MAX_CPUS / 64; i++) n += __builtin_popcountll(cpus->words[i]);
  return n;
}

bool mo_cpus_parse(mo_cpus *cpus, const char *list) {
  memset(cpus, 0, sizeof *cpus);
  while (*list && *list != '\n') {
    char *end;
    long first = strtol(list, &end, 10), last = first;
    bool good = end != list;
    if (good && *end == '-') {
      list = end + 1;
      last = strtol(list, &end, 10);
      good = end != list;
    }
    if (!good || first < 0 || last < first || last >= MO_MAX_CPUS || (*end && *end != ',' && *end != '\n')) {
      memset(cpus, 0, sizeof *cpus);
      return false;
    }
    for (long i = first; i <= last; i++) cpus->words[i / 64] |= 1ull << i % 64;
    list = *end == ',' ? end + 1 : end;
  }
  return mo_cpus_count(cpus) > 0;
}

static void intersect(mo_cpus *cpus, const mo_cpus *with) {
  for (int i = 0; i < MO_MAX_CPUS / 64; i++) cpus->words[i] &= with->words[i];
}

static bool contains(const mo_cpus *outer, const mo_cpus *inner) {
  for (int i = 0; i < MO_MAX_CPUS / 64; i++)
    if (inner->words[i] & ~outer->words[i]) return false;
  return true;
}

/* --- files --- */

/* The first `bytes` - 1 of a file as text. */
static bool read_text(const char *path, char *text, size_t bytes) {
  FILE *file = fopen(path, "r");
  size_t n = file ? fread(text, 1, bytes - 1, file) : 0;
  text[n] = '\0';
  if (file) fclose(file);
  return n > 0;
}

/* The number behind `name` at the begin of a line, -1: none. */
static int64_t field(const char *text, const char *name) {
  size_t length = strlen(name);
  for (const char *line = text; line; line = strchr(line, '\n')) {
    line += *line == '\n';
    if (strncmp(line, name, length) == 0) return strtoll(line + length, NULL, 10);
  }
  return -1;
}

/* --- the control group --- */

typedef struct {
  const char *root;
  char groups[PATH_BYTES]; /* /proc/self/cgroup */
} control;

/* The group's path in the hierarchy of a version 1 controller, or of version 2 (controller ""); false: none. */
static bool group_path(const control *c, const char *controller, char *path) {
  for (const char *line = c->groups; *line;) {
    const char *names = strchr(line, ':'), *end = strchr(line, '\n');
    const char *group = names ? strchr(names + 1, ':') : NULL;
    if (!end) end = line + strlen(line);
    if (!group || group > end) return false;
    size_t length = strlen(controller);
    for (const char *name = names + 1; name <= group; name += strcspn(name, ",:") + 1) {
      if (strcspn(name, ",:") != length || strncmp(name, controller, length) != 0) continue;
      snprintf(path, PATH_BYTES, "%.*s", (int)(end - group - 1), group + 1);
      if (strstr(path, "..")) path[0] = '\0'; /* outside of what this process sees */
      return true;
    }
    line = *end ? end + 1 : end;
  }
  return false;
}

typedef void (*visitor)(void *context, const char *folder);

/* Call `visit` for the group's folder and those around it, inside out. Inside a container the outer ones may be out of
 * sight: then the hierarchy's root is the container's own group. */
static void walk(const control *c, const char *controller, visitor visit, void *context) {
  char path[PATH_BYTES], folder[2 * PATH_BYTES];
  if (!group_path(c, controller, path)) return;
  for (;;) {
    size_t length = strlen(path);
    while (length > 0 && path[length - 1] == '/') path[--length] = '\0';
    snprintf(folder, sizeof folder, "%s/sys/fs/cgroup%s%s%s", c->root, *controller ? "/" : "", controller, path);
    visit(context, folder);
    char *slash = strrchr(path, '/');
    if (!slash) return;
    *slash = '\0';
  }
}

/* One number or word of a file in a group's folder. */
static bool group_file(const char *folder, const char *name, char *text, size_t bytes) {
  char path[3 * PATH_BYTES];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return read_text(path, text, bytes);
}

static void visit_cores(void *context, const char *folder) {
  static const char *const names[] = {"cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"};
  mo_cpus *allowed = context, found;
  char text[PATH_BYTES];
  for (int i = 0; i < 3; i++)
    if (group_file(folder, names[i], text, sizeof text) && mo_cpus_parse(&found, text)) {
      intersect(allowed, &found);
      return;
    }
}

static void visit_quota(void *context, const char *folder) {
  double *quota = context, cores = 0;
  char text[200], period[200];
  long long most, each;
  if (group_file(folder, "cpu.max", text, sizeof text)) {
    if (sscanf(text, "%lld %lld", &most, &each) == 2 && most > 0 && each > 0) cores = (double)most / (double)each;
  } else if (group_file(folder, "cpu.cfs_quota_us", text, sizeof text) &&
             group_file(folder, "cpu.cfs_period_us", period, sizeof period)) {
    most = strtoll(text, NULL, 10);
    each = strtoll(period, NULL, 10);
    if (most > 0 && each > 0) cores = (double)most / (double)each;
  }
  if (cores > 0 && (*quota == 0 || cores < *quota)) *quota = cores;
}

/* The group's limit less what it uses, but for pages of files, which the kernel takes back. */
static void visit_memory(void *context, const char *folder) {
  mo_machine *machine = context;
  char text[200], stat[PATH_BYTES];
  bool second = group_file(folder, "memory.max", text, sizeof text);
  if (!second && !group_file(folder, "memory.limit_in_bytes", text, sizeof text)) return;
  if (text[0] < '0' || text[0] > '9') return; /* "max" */
  int64_t limit = strtoll(text, NULL, 10);
  if (limit > 0 && limit < NO_LIMIT && (machine->limit == 0 || limit < machine->limit)) machine->limit = limit;
  if (!group_file(folder, second ? "memory.current" : "memory.usage_in_bytes", text, sizeof text)) return;
  int64_t left = limit - strtoll(text, NULL, 10);
  if (group_file(folder, "memory.stat", stat, sizeof stat)) {
    int64_t idle = field(stat, second ? "inactive_file " : "total_inactive_file ");
    int64_t active = field(stat, second ? "active_file " : "total_active_file ");
    left += (idle > 0 ? idle : 0) + (active > 0 ? active : 0);
  }
  if (left < 1) left = 1; /* 0 is unknown */
  if (machine->memory == 0 || left < machine->memory) machine->memory = left;
}

/* --- this process and those that started it --- */

/* Lines of /proc/PID/status. */
static bool process_mask(const char *root, const char *pid, mo_cpus *mask, int64_t *parent) {
  char path[PATH_BYTES], text[2 * PATH_BYTES];
  snprintf(path, sizeof path, "%s/proc/%s/status", root, pid);
  if (!read_text(path, text, sizeof text)) return false;
  static const char name[] = "\nCpus_allowed_list:";
  const char *list = strstr(text, name);
  *parent = field(text, "PPid:");
  return list && mo_cpus_parse(mask, list + strlen(name)); /* behind white space, as of numbers */
}

/* The nearest ancestor that may use more cores than this process is what bound it: what its user gave to that one
 * holds. */
static void limit_to_launcher(const char *root, int64_t pid, const mo_cpus *mask, mo_cpus *allowed) {
  for (int i = 0; i < MOST_ANCESTORS && pid > 0; i++) {
    mo_cpus theirs;
    char name[24];
    snprintf(name, sizeof name, "%lld", (long long)pid);
    if (!process_mask(root, name, &theirs, &pid)) return;
    if (contains(&theirs, mask) && mo_cpus_count(&theirs) > mo_cpus_count(mask)) {
      intersect(allowed, &theirs);
      return;
    }
  }
}

void mo_machine_read(mo_machine *machine, const char *root) {
  char path[PATH_BYTES], text[2 * PATH_BYTES];
  control c = {.root = root};
  int64_t parent = -1;
  memset(machine, 0, sizeof *machine);
  snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
  (void)read_text(path, c.groups, sizeof c.groups);
  snprintf(path, sizeof path, "%s/sys/devices/system/cpu/online", root);
  bool online = read_text(path, text, sizeof text) && mo_cpus_parse(&machine->allowed, text);
  bool masked = process_mask(root, "self", &machine->mask, &parent);
  if (!online && masked) machine->allowed = machine->mask;
  if (!masked) machine->mask = machine->allowed;
  if (masked) limit_to_launcher(root, parent, &machine->mask, &machine->allowed);
  walk(&c, "", visit_cores, &machine->allowed);
  walk(&c, "cpuset", visit_cores, &machine->allowed);
  walk(&c, "", visit_quota, &machine->quota);
  walk(&c, "cpu", visit_quota, &machine->quota);
  snprintf(path, sizeof path, "%s/proc/meminfo", root);
  if (read_text(path, text, sizeof text)) {
    int64_t kilobytes = field(text, "MemAvailable:");
    machine->memory = kilobytes > 0 ? kilobytes * 1024 : 0;
  }
  walk(&c, "", visit_memory, machine);
  walk(&c, "memory", visit_memory, machine);
}

/* --- what follows --- */

int mo_machine_share(const mo_machine *machine, int ranks) {
  int cores = mo_cpus_count(&machine->allowed), bound = mo_cpus_count(&machine->mask);
  if (machine->quota > 0 && machine->quota < cores) cores = (int)(machine->quota + 0.5);
  cores /= ranks;
  if (bound < cores) cores = bound;
  return cores < 1 ? 1 : cores;
}

/* Whether the user told the launcher how to bind. */
static bool asked_for(int bound) {
  static const char *const policies[] = {"OMPI_MCA_hwloc_base_binding_policy", "PRTE_MCA_hwloc_default_binding_policy"};
  for (int i = 0; i < 2; i++)
    if (getenv(policies[i])) return true;
  const char *mapping = getenv("OMPI_MCA_rmaps_base_mapping_policy"), *each = getenv("SLURM_CPUS_PER_TASK");
  return (mapping && strcasestr(mapping, "pe=")) || (each && atoi(each) == bound);
}

bool mo_machine_is_bound(const mo_machine *machine, int ranks) {
  static const char *const launchers[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"};
  int bound = mo_cpus_count(&machine->mask);
  mo_machine unbound = *machine;
  unbound.mask = machine->allowed;
  if (bound >= mo_machine_share(&unbound, ranks)) return false;
  for (int i = 0; i < 4; i++)
    if (getenv(launchers[i])) return !asked_for(bound);
  return false;
}

mo_binding mo_machine_widen(int ranks) {
  mo_machine machine;
  mo_machine_read(&machine, "");
  if (!mo_machine_is_bound(&machine, ranks)) return MO_BINDING_KEPT;
  cpu_set_t *set = (cpu_set_t *)machine.allowed.words;
  return sched_setaffinity(0, sizeof machine.allowed, set) == 0 ? MO_BINDING_WIDENED : MO_BINDING_REFUSED;
}
