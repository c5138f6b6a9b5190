/* Cores and memory as the kernel's files tell them, from files made here. */
#include <errno.h>
#include <sched.h>
#include <sys/stat.h>

#include "moe_outliers/machine.h"
#include "test_weights_fixture.h"

static char *root;

/* A file below the root, with its folders. */
static void put(const char *name, const char *text) {
  char path[512];
  fixture_path(path, root, name);
  for (char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    assert_true(mkdir(path, 0777) == 0 || errno == EEXIST);
    *slash = '/';
  }
  fixture_text(root, name, text);
}

static int make_root(void **state) {
  (void)state;
  root = fixture_folder();
  put("sys/devices/system/cpu/online", "0-15\n");
  put("proc/meminfo", "MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable:    8000 kB\n");
  put("proc/self/status", "Name:\tx\nPPid:\t70\nCpus_allowed:\tffff\nCpus_allowed_list:\t0-15\nMems_allowed:\t1\n");
  put("proc/70/status", "Name:\tbash\nPPid:\t1\nCpus_allowed_list:\t0-15\n");
  return 0;
}

static int remove_root(void **state) {
  (void)state;
  fixture_remove(root);
  return 0;
}

static mo_machine read_machine(void) {
  mo_machine machine;
  mo_machine_read(&machine, root);
  return machine;
}

static void bind_to(const char *list) {
  char text[200];
  snprintf(text, sizeof text, "Name:\tx\nPPid:\t70\nCpus_allowed_list:\t%s\n", list);
  put("proc/self/status", text);
}

static void lists(void **state) {
  (void)state;
  mo_cpus cpus;
  assert_true(mo_cpus_parse(&cpus, "0-3,8,10-11\n"));
  assert_int_equal(mo_cpus_count(&cpus), 7);
  assert_true(cpus.words[0] == 0xd0f);
  assert_true(mo_cpus_parse(&cpus, "63-64,8191"));
  assert_true(cpus.words[0] == 1ull << 63 && cpus.words[1] == 1 && cpus.words[127] == 1ull << 63);
  static const char *const bad[] = {"", "\n", "x", "1-", "3-1", "0-8192", "-1", "1;2", "1,,2"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_false(mo_cpus_parse(&cpus, bad[i]));
    assert_int_equal(mo_cpus_count(&cpus), 0);
  }
}

static void without_limits(void **state) {
  (void)state;
  mo_machine m = read_machine();
  assert_int_equal(mo_cpus_count(&m.mask), 16);
  assert_int_equal(mo_cpus_count(&m.allowed), 16);
  assert_true(m.quota == 0);
  assert_int_equal(m.memory, 8000 * 1024);
  assert_int_equal(m.limit, 0);
  assert_int_equal(mo_machine_share(&m, 1), 16);
  assert_int_equal(mo_machine_share(&m, 3), 5);
  assert_int_equal(mo_machine_share(&m, 40), 1);
}

static void nothing_to_read(void **state) {
  (void)state;
  mo_machine m;
  mo_machine_read(&m, "/nowhere");
  assert_int_equal(m.memory, 0);
  assert_int_equal(mo_machine_share(&m, 2), 1);
  assert_false(mo_machine_is_bound(&m, 2));
}

static void version_2(void **state) {
  (void)state;
  put("proc/self/cgroup", "0::/jobs/one\n");
  put("sys/fs/cgroup/jobs/one/cpuset.cpus.effective", "2-9\n");
  put("sys/fs/cgroup/jobs/one/cpu.max", "max 100000\n");
  put("sys/fs/cgroup/jobs/cpu.max", "650000 100000\n");
  put("sys/fs/cgroup/cpu.max", "1200000 100000\n");
  put("sys/fs/cgroup/jobs/one/memory.max", "5000000\n");
  put("sys/fs/cgroup/jobs/one/memory.current", "3000000\n");
  put("sys/fs/cgroup/jobs/one/memory.stat", "anon 1\nfile 1900000\ninactive_file 700000\nactive_file 200000\n");
  put("sys/fs/cgroup/jobs/memory.max", "max\n");
  mo_machine m = read_machine();
  assert_int_equal(mo_cpus_count(&m.allowed), 8);
  assert_true(m.quota == 6.5); /* the smallest of those around it */
  assert_int_equal(m.memory, 5000000 - 3000000 + 900000);
  assert_int_equal(m.limit, 5000000);
  assert_int_equal(mo_machine_share(&m, 1), 7);
  assert_int_equal(mo_machine_share(&m, 2), 3);
  put("sys/fs/cgroup/jobs/memory.max", "1000\n"); /* used up */
  put("sys/fs/cgroup/jobs/memory.current", "2000\n");
  assert_int_equal(read_machine().memory, 1);
  assert_int_equal(read_machine().limit, 1000);
}

static void version_1(void **state) {
  (void)state;
  put("proc/self/cgroup", "7:memory:/box/a\n5:cpuset:/box\n3:cpu,cpuacct:/box/b\n1:name=systemd:/\n0::/\n");
  put("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "4000000\n");
  put("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "3500000\n");
  put("sys/fs/cgroup/memory/box/memory.stat", "inactive_file 9\ntotal_inactive_file 1000\ntotal_active_file 24\n");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  put("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n");
  put("sys/fs/cgroup/cpuset/box/cpuset.effective_cpus", "0-3\n");
  put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  put("sys/fs/cgroup/cpu/box/b/cpu.cfs_quota_us", "300000\n");
  put("sys/fs/cgroup/cpu/box/b/cpu.cfs_period_us", "100000\n");
  mo_machine m = read_machine();
  assert_int_equal(m.memory, 500000 + 1024);
  assert_int_equal(m.limit, 4000000);
  assert_int_equal(mo_cpus_count(&m.allowed), 4);
  assert_true(m.quota == 3);
}

/* A container of version 1 sees the outer path but has its own group mounted at the root. */
static void outer_path(void **state) {
  (void)state;
  put("proc/self/cgroup", "3:memory:/docker/0123\n0::/../other\n");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n");
  put("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000\n");
  put("sys/fs/cgroup/cpu.max", "400000 100000\n");
  mo_machine m = read_machine();
  assert_int_equal(m.memory, 1500000);
  assert_true(m.quota == 4);
}

static void clear_environment(void) {
  static const char *const names[] = {"OMPI_COMM_WORLD_RANK",
                                      "PMIX_RANK",
                                      "PMI_RANK",
                                      "SLURM_PROCID",
                                      "SLURM_CPUS_PER_TASK",
                                      "OMPI_MCA_hwloc_base_binding_policy",
                                      "OMPI_MCA_rmaps_base_mapping_policy",
                                      "PRTE_MCA_hwloc_default_binding_policy"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
}

static void bound_by_a_launcher(void **state) {
  (void)state;
  clear_environment();
  bind_to("5");
  mo_machine m = read_machine();
  assert_int_equal(mo_cpus_count(&m.allowed), 16);
  assert_int_equal(mo_machine_share(&m, 2), 1);
  assert_false(mo_machine_is_bound(&m, 2)); /* started alone: its user's wish */
  setenv("OMPI_COMM_WORLD_RANK", "1", 1);
  assert_true(mo_machine_is_bound(&m, 2));
  assert_false(mo_machine_is_bound(&m, 16)); /* its fair share */
  setenv("OMPI_MCA_hwloc_base_binding_policy", "core", 1);
  assert_false(mo_machine_is_bound(&m, 2)); /* --bind-to core */
  unsetenv("OMPI_MCA_hwloc_base_binding_policy");
  setenv("OMPI_MCA_rmaps_base_mapping_policy", "socket:PE=1", 1);
  assert_false(mo_machine_is_bound(&m, 2));
  clear_environment();
  setenv("SLURM_PROCID", "0", 1);
  assert_true(mo_machine_is_bound(&m, 2));
  setenv("SLURM_CPUS_PER_TASK", "1", 1);
  assert_false(mo_machine_is_bound(&m, 2)); /* -c 1 */
  clear_environment();
}

/* The launcher itself may use only some cores: taskset -c 0-7 mpirun ... */
static void launcher_with_a_mask(void **state) {
  (void)state;
  clear_environment();
  setenv("PMIX_RANK", "0", 1);
  bind_to("5");
  put("proc/70/status", "PPid:\t60\nCpus_allowed_list:\t5\n"); /* a shell between them */
  put("proc/60/status", "PPid:\t1\nCpus_allowed_list:\t4-7\n");
  put("proc/1/status", "PPid:\t0\nCpus_allowed_list:\t0-15\n");
  mo_machine m = read_machine();
  assert_int_equal(mo_cpus_count(&m.allowed), 4);
  assert_true(m.allowed.words[0] == 0xf0);
  assert_true(mo_machine_is_bound(&m, 2));
  put("proc/60/status", "PPid:\t1\nCpus_allowed_list:\t6-9\n"); /* unrelated */
  m = read_machine();
  assert_int_equal(mo_cpus_count(&m.allowed), 16);
  clear_environment();
}

static void this_machine(void **state) {
  (void)state;
  clear_environment();
  mo_machine m;
  mo_machine_read(&m, "");
  cpu_set_t set;
  assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
  assert_int_equal(mo_cpus_count(&m.mask), CPU_COUNT(&set));
  assert_true(m.memory > 1000000);
  assert_int_equal(mo_machine_widen(1), MO_BINDING_KEPT);
  if (mo_cpus_count(&m.allowed) < 2) return;
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
    if (CPU_ISSET(i, &set)) CPU_SET(i, &one);
  assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
  setenv("OMPI_COMM_WORLD_RANK", "0", 1);
  assert_int_equal(mo_machine_widen(1), MO_BINDING_WIDENED);
  assert_int_equal(sched_getaffinity(0, sizeof one, &one), 0);
  assert_int_equal(CPU_COUNT(&one), mo_cpus_count(&m.allowed));
  clear_environment();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(lists),
      cmocka_unit_test_setup_teardown(without_limits, make_root, remove_root),
      cmocka_unit_test(nothing_to_read),
      cmocka_unit_test_setup_teardown(version_2, make_root, remove_root),
      cmocka_unit_test_setup_teardown(version_1, make_root, remove_root),
      cmocka_unit_test_setup_teardown(outer_path, make_root, remove_root),
      cmocka_unit_test_setup_teardown(bound_by_a_launcher, make_root, remove_root),
      cmocka_unit_test_setup_teardown(launcher_with_a_mask, make_root, remove_root),
      cmocka_unit_test(this_machine),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
