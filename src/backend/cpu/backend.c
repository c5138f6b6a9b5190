/* The CPU backend's table, memory and uploads. */
#include <stdlib.h>
#include <sys/mman.h>

#include <cblas.h>

#include "backend/cpu/cpu.h"
#include "moe_outliers/machine.h"

/* Large blocks, as the weights', lie in pages of 2 MiB where the system has them: each page that is touched first costs a fault. */
static mo_status cpu_alloc(mo_backend *backend, size_t bytes, void **memory) {
  enum { LINE = 256, HUGE_PAGE = 2 << 20, LARGE = 64 << 20 };
  (void)backend;
  size_t unit = bytes < LARGE ? LINE : HUGE_PAGE;
  size_t rounded = (bytes + unit - 1) / unit * unit;
  *memory = aligned_alloc(unit, rounded ? rounded : unit);
  if (*memory && unit == HUGE_PAGE) (void)madvise(*memory, rounded, MADV_HUGEPAGE);
  if (!*memory)
    return MO_FAIL(MO_FAILED,
                   "out of memory (%zu bytes on the cpu backend): use more ranks, fewer sequences or a smaller "
                   "engine.device_memory_gb",
                   bytes);
  return MO_OK;
}

static void cpu_free(mo_backend *backend, void *memory) {
  (void)backend;
  free(memory);
}

static mo_status cpu_open(mo_backend **backend, const mo_backend_options *options) {
  mo_cpu *cpu = mo_alloc(1, sizeof *cpu);
  if (!cpu) return MO_FAILED;
  cpu->base.table = &mo_backend_cpu;
  cpu->base.precision = options->precision;
  cpu->base.activation_bytes = 4;
  cpu->bf16 = options->precision == MO_PRECISION_BF16;
  cpu->threads = options->threads > 0 ? options->threads : 1;
  openblas_set_num_threads(1); /* the tiles are the parallelism */
  *backend = &cpu->base;
  return MO_OK;
}

static void cpu_close(mo_backend *backend) {
  if (!backend) return;
  mo_cpu *cpu = mo_cpu_of(backend);
  free(cpu->scratch);
  free(cpu->rows);
  free(cpu->statistics.outliers);
  free(cpu->statistics_block);
  free(cpu->experts.experts);
  free(cpu);
}

static int64_t cpu_available_memory(mo_backend *backend, int sharers) {
  (void)backend;
  mo_machine machine;
  mo_machine_read(&machine, "");
  return machine.memory / sharers;
}

static mo_status cpu_upload(mo_backend *backend, void *destination, const void *host, size_t bytes, int64_t *ticket) {
  (void)backend;
  memcpy(destination, host, bytes);
  *ticket = 0;
  return MO_OK;
}

static mo_status cpu_upload_wait(mo_backend *backend, int64_t ticket) {
  (void)backend;
  (void)ticket;
  return MO_OK;
}

static mo_status cpu_read_activations(mo_backend *backend, const void *x, int64_t count, float *host) {
  (void)backend;
  memcpy(host, x, (size_t)count * sizeof(float));
  return MO_OK;
}

static mo_status cpu_write_activations(mo_backend *backend, void *x, int64_t count, const float *host) {
  (void)backend;
  memcpy(x, host, (size_t)count * sizeof(float));
  return MO_OK;
}

static mo_status cpu_download(mo_backend *backend, const void *memory, size_t bytes, void *host) {
  (void)backend;
  memcpy(host, memory, bytes);
  return MO_OK;
}

static mo_status cpu_zero(mo_backend *backend, void *memory, size_t bytes) {
  (void)backend;
  memset(memory, 0, bytes);
  return MO_OK;
}

static mo_status cpu_checksum(mo_backend *backend, const void *memory, size_t bytes, uint64_t *sum) {
  const mo_cpu *cpu = mo_cpu_of(backend);
  const int64_t part = 1 << 20, n = (int64_t)bytes;
  uint64_t total = 0;
#pragma omp parallel for schedule(static) num_threads(cpu->threads) reduction(+ : total)
  for (int64_t at = 0; at < n; at += part)
    total += mo_tensor_sum((const char *)memory + at, at, n - at < part ? n - at : part);
  *sum = total;
  return MO_OK;
}

static mo_status cpu_sync(mo_backend *backend) {
  (void)backend;
  return MO_OK;
}

mo_status mo_cpu_reserve(mo_cpu *cpu, size_t bytes) {
  bytes = (bytes + 255) / 256 * 256;
  if (bytes <= cpu->scratch_bytes) return MO_OK;
  free(cpu->scratch);
  cpu->scratch_bytes = 0;
  MO_TRY(cpu_alloc(&cpu->base, bytes * (size_t)cpu->threads, &cpu->scratch));
  cpu->scratch_bytes = bytes;
  return MO_OK;
}

void *mo_cpu_scratch(const mo_cpu *cpu, int thread) {
  return (char *)cpu->scratch + cpu->scratch_bytes * (size_t)thread;
}

mo_status mo_cpu_rows(mo_cpu *cpu, size_t bytes, void **block) {
  if (bytes > cpu->rows_bytes) {
    free(cpu->rows);
    cpu->rows = NULL;
    cpu->rows_bytes = 0;
    MO_TRY(cpu_alloc(&cpu->base, bytes, &cpu->rows));
    cpu->rows_bytes = bytes;
  }
  *block = cpu->rows;
  return MO_OK;
}

const mo_backend_table mo_backend_cpu = {
    .name = "cpu",
    .host_memory = true,
    .open = cpu_open,
    .close = cpu_close,
    .memory = mo_backend_memory_cpu,
    .available_memory = cpu_available_memory,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .alloc_host = cpu_alloc,
    .free_host = cpu_free,
    .upload = cpu_upload,
    .upload_wait = cpu_upload_wait,
    .read_activations = cpu_read_activations,
    .write_activations = cpu_write_activations,
    .download = cpu_download,
    .fetch = cpu_download,
    .zero = cpu_zero,
    .checksum = cpu_checksum,
    .sync = cpu_sync,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .linear = cpu_linear,
    .linear_add = cpu_linear_add,
    .clamp = cpu_clamp,
    .rope = cpu_rope,
    .norm_rope = cpu_norm_rope,
    .attention = cpu_attention,
    .zero_features = cpu_zero_features,
    .take_features = cpu_take_features,
    .expert_growth = cpu_expert_growth,
    .row_sums = cpu_row_sums,
    .add = cpu_add,
    .glu = cpu_glu,
    .split = cpu_split,
    .sigmoid_gate = cpu_sigmoid_gate,
    .delta_conv = cpu_delta_conv,
    .delta_rule = cpu_delta_rule,
    .delta_norm = cpu_delta_norm,
    .route = cpu_route,
    .experts = cpu_experts,
    .combine = cpu_combine,
    .combine_add = cpu_combine_add,
    .row_peaks = cpu_row_peaks,
    .site_statistics = cpu_site_statistics,
    .site_results = cpu_site_results,
    .expert_statistics = cpu_expert_statistics,
    .expert_results = cpu_expert_results,
    .nll = cpu_nll,
};
