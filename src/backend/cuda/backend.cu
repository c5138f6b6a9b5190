/* The CUDA backend's table, memory and transfers. */
#include "backend/cuda/cuda.cuh"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static mo_status out_of_memory(size_t bytes) {
  size_t available = 0, total = 0;
  (void)cudaGetLastError();
  (void)cudaMemGetInfo(&available, &total);
  return MO_FAIL(
      MO_FAILED,
      "out of GPU memory (%.3f GB asked for, %.3f GB free): set a smaller engine.device_memory_gb or use more "
      "ranks",
      1e-9 * (double)bytes, 1e-9 * (double)available);
}

static mo_status cuda_alloc(mo_backend *backend, size_t bytes, void **memory) {
  MO_CUDA(cudaSetDevice(mo_cuda_of(backend)->device));
  if (cudaMalloc(memory, bytes ? bytes : 256) == cudaSuccess) return MO_OK;
  *memory = NULL;
  return out_of_memory(bytes);
}

static void cuda_free(mo_backend *backend, void *memory) {
  if (mo_cuda_of(backend)->abandoned) return; /* the memory goes with the process */
  (void)cudaSetDevice(mo_cuda_of(backend)->device);
  (void)cudaFree(memory);
}

mo_status mo_cuda_expert_streams(mo_cuda *cuda) {
  /* A handle's workspace serves one stream at a time. */
  for (int i = 0; i < MO_CUDA_EXPERT_STREAMS && !cuda->expert_blas[i]; i++) {
    MO_CUDA(cudaStreamCreateWithFlags(&cuda->experts[i], cudaStreamNonBlocking));
    MO_CUDA(cudaEventCreateWithFlags(&cuda->join[i], cudaEventDisableTiming));
    MO_TRY(mo_cuda_open_blas(&cuda->expert_blas[i], cuda->experts[i]));
  }
  return MO_OK;
}

static mo_status create(mo_cuda *cuda) {
  cudaDeviceProp properties;
  MO_CUDA(cudaSetDevice(cuda->device));
  MO_CUDA(cudaGetDeviceProperties(&properties, cuda->device));
  cuda->multiprocessors = properties.multiProcessorCount;
  cuda->hopper = properties.major == 9 && properties.minor == 0 && !cuda->portable;
  MO_CUDA(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking));
  MO_CUDA(cudaEventCreateWithFlags(&cuda->fork, cudaEventDisableTiming));
  MO_CUDA(cudaStreamCreateWithFlags(&cuda->fetch, cudaStreamNonBlocking));
  MO_CUDA(cudaEventCreateWithFlags(&cuda->scanned, cudaEventDisableTiming));
  MO_CUDA(cudaEventCreateWithFlags(&cuda->summed, cudaEventDisableTiming));
  mo_cuda_furnish(cuda);
  if (!cuda->hopper || !cuda->bf16_run) MO_TRY(mo_cuda_expert_streams(cuda));
  return mo_cuda_uploads_open(cuda);
}

static void cuda_close(mo_backend *backend) {
  if (!backend || mo_cuda_of(backend)->abandoned) return;
  mo_cuda *cuda = mo_cuda_of(backend);
  mo_cuda_finish_furnishing(cuda);
  (void)cudaSetDevice(cuda->device);
  (void)cudaDeviceSynchronize();
  mo_cuda_uploads_close(cuda);
  for (int i = 0; i < MO_CUDA_EXPERT_STREAMS; i++) {
    if (cuda->expert_blas[i]) (void)mo_cublas.destroy(cuda->expert_blas[i]);
    if (cuda->experts[i]) (void)cudaStreamDestroy(cuda->experts[i]);
    if (cuda->join[i]) (void)cudaEventDestroy(cuda->join[i]);
  }
  if (cuda->blas) (void)mo_cublas.destroy(cuda->blas);
  if (cuda->fork) (void)cudaEventDestroy(cuda->fork);
  if (cuda->fetch) (void)cudaStreamDestroy(cuda->fetch);
  if (cuda->scanned) (void)cudaEventDestroy(cuda->scanned);
  if (cuda->summed) (void)cudaEventDestroy(cuda->summed);
  if (cuda->stream) (void)cudaStreamDestroy(cuda->stream);
  (void)cudaFree(cuda->blas_workspace);
  for (int i = 0; i < MO_SCRATCH_COUNT; i++) (void)cudaFree(cuda->scratch[i]);
  for (int i = 0; i < cuda->n_outgrown; i++) (void)cudaFreeHost(cuda->outgrown[i]);
  (void)cudaFreeHost(cuda->host.memory);
  (void)cudaFreeHost(cuda->statistics_host.memory);
  (void)cudaFreeHost(cuda->experts_host.memory);
  free(cuda->site);
  free(cuda);
}

/* Each takes 20 ms when the context is made and 10 when it ends (H100), so a process alone keeps CUDA's 8. */
extern "C" void mo_backend_cuda_meet_peers(void) { (void)setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); }

extern "C" int mo_backend_cuda_count(void) {
  int devices = 0;
  bool counted = cudaGetDeviceCount(&devices) == cudaSuccess;
  (void)cudaGetLastError();
  return counted ? devices : 0;
}

/* From the driver itself, because the runtime may give all MIG instances the UUID of the GPU that they are parts of. It is
 * not linked: this program also starts where there is no driver. */
static bool driver_uuid(int device, uint8_t id[16]) {
  typedef int (*get_device)(int *, int);
  typedef int (*get_uuid)(void *, int);
  void *driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (!driver) return false;
  get_device get = (get_device)dlsym(driver, "cuDeviceGet");
  get_uuid uuid_of = (get_uuid)dlsym(driver, "cuDeviceGetUuid_v2");
  int handle;
  bool known = get && uuid_of && get(&handle, device) == 0 && uuid_of(id, handle) == 0;
  (void)dlclose(driver);
  return known;
}

extern "C" mo_status mo_backend_cuda_id(int device, uint8_t id[16]) {
  cudaDeviceProp properties;
  if (driver_uuid(device, id)) return MO_OK;
  MO_CUDA(cudaGetDeviceProperties(&properties, device));
  memcpy(id, &properties.uuid, sizeof properties.uuid);
  return MO_OK;
}

static int64_t cuda_available_memory(mo_backend *backend, int sharers) {
  size_t available = 0, total = 0;
  (void)sharers; /* a GPU belongs to one rank */
  mo_cuda_finish_furnishing(mo_cuda_of(backend));
  (void)cudaSetDevice(mo_cuda_of(backend)->device);
  return cudaMemGetInfo(&available, &total) == cudaSuccess ? (int64_t)available : 0;
}

static bool environment_says(const char *name) {
  const char *value = getenv(name);
  return value && strcmp(value, "1") == 0;
}

static mo_status cuda_open(mo_backend **backend, const mo_backend_options *options) {
  int devices = mo_backend_cuda_count();
  if (options->device >= devices)
    return MO_FAIL(
        MO_INVALID,
        "no CUDA device %d (engine.device): %d are visible: set engine.device to \"cpu\", or check nvidia-smi "
        "and CUDA_VISIBLE_DEVICES",
        options->device, devices);
  mo_cuda *cuda = (mo_cuda *)mo_alloc(1, sizeof *cuda);
  if (!cuda) return MO_FAILED;
  cuda->base.table = &mo_backend_cuda;
  cuda->base.precision = options->precision;
  cuda->base.activation_bytes = options->precision == MO_PRECISION_BF16 ? 2 : 4;
  cuda->bf16_run = options->precision == MO_PRECISION_BF16;
  cuda->portable = environment_says("MO_CUDA_PORTABLE");
  cuda->device = options->device;
  mo_status status = create(cuda);
  if (status != MO_OK)
    cuda_close(&cuda->base);
  else
    *backend = &cuda->base;
  return status;
}

mo_status mo_cuda_scratch(mo_cuda *cuda, mo_scratch_use use, size_t bytes, void **memory) {
  if (bytes > cuda->scratch_bytes[use]) {
    /* In the order of the stream. Waiting for the GPU would wait for transfers too, and so for what other ranks do. */
    if (cuda->scratch[use]) MO_CUDA(cudaFreeAsync(cuda->scratch[use], cuda->stream));
    cuda->scratch[use] = NULL;
    cuda->scratch_bytes[use] = 0;
    if (cudaMallocAsync(&cuda->scratch[use], bytes, cuda->stream) != cudaSuccess) {
      cuda->scratch[use] = NULL;
      return out_of_memory(bytes);
    }
    cuda->scratch_bytes[use] = bytes;
  }
  *memory = cuda->scratch[use];
  return MO_OK;
}

mo_status mo_cuda_grow_host(mo_cuda *cuda, size_t bytes, mo_cuda_pinned *buffer) {
  size_t size = bytes > 2 * buffer->bytes ? bytes : 2 * buffer->bytes;
  void *memory;
  if (bytes <= buffer->bytes) return MO_OK;
  MO_TRY(cuda_alloc_host(&cuda->base, size, &memory));
  if (buffer->memory) cuda->outgrown[cuda->n_outgrown++] = buffer->memory; /* each is twice the one before */
  *buffer = (mo_cuda_pinned){memory, size};
  return MO_OK;
}

mo_status mo_cuda_host(mo_cuda *cuda, size_t bytes, void **memory) {
  MO_TRY(mo_cuda_grow_host(cuda, bytes, &cuda->host));
  *memory = cuda->host.memory;
  return MO_OK;
}

static mo_status cuda_sync(mo_backend *backend) {
  MO_CUDA(cudaStreamSynchronize(mo_cuda_of(backend)->stream));
  return MO_OK;
}

static mo_status cuda_download(mo_backend *backend, const void *memory, size_t bytes, void *host) {
  mo_cuda *cuda = mo_cuda_of(backend);
  MO_CUDA(cudaMemcpyAsync(host, memory, bytes, cudaMemcpyDeviceToHost, cuda->stream));
  return cuda_sync(backend);
}

static mo_status cuda_fetch(mo_backend *backend, const void *memory, size_t bytes, void *host) {
  mo_cuda *cuda = mo_cuda_of(backend);
  MO_CUDA(cudaMemcpyAsync(host, memory, bytes, cudaMemcpyDeviceToHost, cuda->fetch));
  MO_CUDA(cudaStreamSynchronize(cuda->fetch));
  return MO_OK;
}

static mo_status cuda_zero(mo_backend *backend, void *memory, size_t bytes) {
  MO_CUDA(cudaMemsetAsync(memory, 0, bytes, mo_cuda_of(backend)->stream));
  return MO_OK;
}

/* bf16 activations travel as bf16 and are widened on the host: exact, and half the bytes. */
static mo_status cuda_read_activations(mo_backend *backend, const void *x, int64_t count, float *host) {
  mo_cuda *cuda = mo_cuda_of(backend);
  if (!cuda->bf16_run) return cuda_download(backend, x, (size_t)count * sizeof(float), host);
  void *narrow;
  MO_TRY(mo_cuda_host(cuda, (size_t)count * 2, &narrow));
  MO_TRY(cuda_download(backend, x, (size_t)count * 2, narrow));
  for (int64_t i = 0; i < count; i++) {
    uint32_t wide = (uint32_t)((const uint16_t *)narrow)[i] << 16;
    memcpy(host + i, &wide, 4);
  }
  return MO_OK;
}

static mo_status cuda_write_activations(mo_backend *backend, void *x, int64_t count, const float *host) {
  mo_cuda *cuda = mo_cuda_of(backend);
  size_t bytes = (size_t)count * (size_t)cuda->base.activation_bytes;
  const void *source = host;
  if (cuda->bf16_run) {
    void *narrow;
    MO_TRY(mo_cuda_host(cuda, bytes, &narrow));
    for (int64_t i = 0; i < count; i++) {
      uint32_t wide;
      memcpy(&wide, host + i, 4);
      ((uint16_t *)narrow)[i] = (uint16_t)(wide >> 16);
    }
    source = narrow;
  }
  MO_CUDA(cudaMemcpyAsync(x, source, bytes, cudaMemcpyHostToDevice, cuda->stream));
  return cuda_sync(backend);
}

static mo_backend_table make_table(void) {
  mo_backend_table t = {};
  t.name = "cuda";
  t.host_memory = false;
  t.open = cuda_open;
  t.close = cuda_close;
  t.memory = mo_backend_memory_cuda;
  t.available_memory = cuda_available_memory;
  t.alloc = cuda_alloc;
  t.free = cuda_free;
  t.alloc_host = cuda_alloc_host;
  t.free_host = cuda_free_host;
  t.upload = cuda_upload;
  t.upload_wait = cuda_upload_wait;
  t.read_activations = cuda_read_activations;
  t.write_activations = cuda_write_activations;
  t.download = cuda_download;
  t.fetch = cuda_fetch;
  t.zero = cuda_zero;
  t.checksum = cuda_checksum;
  t.sync = cuda_sync;
  t.embed = cuda_embed;
  t.norm = cuda_norm;
  t.linear = cuda_linear;
  t.linear_add = cuda_linear_add;
  t.clamp = cuda_clamp;
  t.rope = cuda_rope;
  t.norm_rope = cuda_norm_rope;
  t.attention = cuda_attention;
  t.split = cuda_split;
  t.sigmoid_gate = cuda_sigmoid_gate;
  t.delta_conv = cuda_delta_conv;
  t.delta_rule = cuda_delta_rule;
  t.delta_norm = cuda_delta_norm;
  t.zero_features = cuda_zero_features;
  t.take_features = cuda_take_features;
  t.expert_growth = cuda_expert_growth;
  t.row_sums = cuda_row_sums;
  t.add = cuda_add;
  t.glu = cuda_glu;
  t.route = cuda_route;
  t.experts = cuda_experts;
  t.combine = cuda_combine;
  t.combine_add = cuda_combine_add;
  t.row_peaks = cuda_row_peaks;
  t.site_statistics = cuda_site_statistics;
  t.site_results = cuda_site_results;
  t.expert_statistics = cuda_expert_statistics;
  t.expert_results = cuda_expert_results;
  t.nll = cuda_nll;
  return t;
}

extern "C" const mo_backend_table mo_backend_cuda = make_table();
