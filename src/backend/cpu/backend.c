/* The CPU backend's table, memory and uploads. */
#include <stdio.h>
#include <stdlib.h>

#include <cblas.h>

#include "backend/cpu/cpu.h"

static mo_status cpu_alloc(mo_backend *backend, size_t bytes, void **memory) {
  (void)backend;
  size_t rounded = (bytes + 255) / 256 * 256;
  *memory = aligned_alloc(256, rounded ? rounded : 256);
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
  free(cpu);
}

static int64_t cpu_available_memory(mo_backend *backend, int sharers) {
  (void)backend;
  long long kilobytes = 0;
  char line[128];
  FILE *file = fopen("/proc/meminfo", "r");
  if (!file) return 0;
  while (fgets(line, sizeof line, file) && sscanf(line, "MemAvailable: %lld kB", &kilobytes) != 1) {
  }
  fclose(file);
  return (int64_t)kilobytes * 1024 / sharers;
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
    .zero = cpu_zero,
    .sync = cpu_sync,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .linear = cpu_linear,
    .clamp = cpu_clamp,
    .rope = cpu_rope,
    .attention = cpu_attention,
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
    .site_statistics = cpu_site_statistics,
    .nll = cpu_nll,
};
