/* Pinned host memory and copies from it to the GPU, beside the operations. A few streams take the copies in turn; a
 * ticket is the event behind a copy. Threads that wait for one sleep: they would take cores from those that read. */
#include "backend/cuda/cuda.cuh"

#include <pthread.h>
#include <stdlib.h>

enum { STREAMS = 4, MOST = 1024 };

struct mo_cuda_uploads {
  pthread_mutex_t lock;
  cudaStream_t streams[STREAMS];
  unsigned turn;            /* copies so far */
  cudaEvent_t events[MOST]; /* [n_events], by ticket */
  int idle[MOST];           /* [n_idle] tickets not in use */
  int n_events, n_idle;
};

mo_status mo_cuda_uploads_open(mo_cuda *cuda) {
  mo_cuda_uploads *u = (mo_cuda_uploads *)mo_alloc(1, sizeof *u);
  if (!u) return MO_FAILED;
  pthread_mutex_init(&u->lock, NULL);
  cuda->uploads = u;
  for (int i = 0; i < STREAMS; i++) MO_CUDA(cudaStreamCreateWithFlags(&u->streams[i], cudaStreamNonBlocking));
  return MO_OK;
}

void mo_cuda_uploads_close(mo_cuda *cuda) {
  mo_cuda_uploads *u = cuda->uploads;
  if (!u) return;
  for (int i = 0; i < u->n_events; i++) (void)cudaEventDestroy(u->events[i]);
  for (int i = 0; i < STREAMS; i++)
    if (u->streams[i]) (void)cudaStreamDestroy(u->streams[i]);
  pthread_mutex_destroy(&u->lock);
  free(u);
  cuda->uploads = NULL;
}

extern "C" mo_status cuda_alloc_host(mo_backend *backend, size_t bytes, void **memory) {
  MO_CUDA(cudaSetDevice(mo_cuda_of(backend)->device));
  if (cudaMallocHost(memory, bytes ? bytes : 256) == cudaSuccess) return MO_OK;
  *memory = NULL;
  (void)cudaGetLastError();
  return MO_FAIL(
      MO_FAILED,
      "out of pinned host memory (%.3f GB asked for): set a smaller engine.host_memory_gb, or raise the limit of "
      "locked memory (ulimit -l)",
      1e-9 * (double)bytes);
}

extern "C" void cuda_free_host(mo_backend *backend, void *memory) {
  if (memory && !mo_cuda_of(backend)->abandoned) (void)cudaFreeHost(memory);
}

/* A free ticket, -1 if there is none, and the stream for its copy. */
static mo_status take_ticket(mo_cuda_uploads *u, int *ticket, cudaStream_t *stream) {
  cudaError_t error = cudaSuccess;
  *ticket = -1;
  pthread_mutex_lock(&u->lock);
  if (u->n_idle > 0) {
    *ticket = u->idle[--u->n_idle];
  } else if (u->n_events < MOST) {
    error = cudaEventCreateWithFlags(&u->events[u->n_events], cudaEventDisableTiming | cudaEventBlockingSync);
    if (error == cudaSuccess) *ticket = u->n_events++;
  }
  *stream = u->streams[u->turn++ % STREAMS];
  pthread_mutex_unlock(&u->lock);
  MO_CUDA(error);
  if (*ticket < 0) return MO_FAIL(MO_FAILED, "more than %d uploads under way: wait for earlier ones", MOST);
  return MO_OK;
}

static void give_ticket(mo_cuda_uploads *u, int ticket) {
  pthread_mutex_lock(&u->lock);
  u->idle[u->n_idle++] = ticket;
  pthread_mutex_unlock(&u->lock);
}

extern "C" mo_status cuda_upload(mo_backend *backend, void *destination, const void *host, size_t bytes,
                                 int64_t *ticket) {
  mo_cuda_uploads *u = mo_cuda_of(backend)->uploads;
  cudaStream_t stream;
  int taken;
  MO_CUDA(cudaSetDevice(mo_cuda_of(backend)->device));
  MO_TRY(take_ticket(u, &taken, &stream));
  cudaError_t error = cudaMemcpyAsync(destination, host, bytes, cudaMemcpyHostToDevice, stream);
  if (error == cudaSuccess) error = cudaEventRecord(u->events[taken], stream);
  if (error != cudaSuccess) give_ticket(u, taken);
  MO_CUDA(error);
  *ticket = taken;
  return MO_OK;
}

extern "C" mo_status cuda_upload_wait(mo_backend *backend, int64_t ticket) {
  mo_cuda_uploads *u = mo_cuda_of(backend)->uploads;
  MO_CUDA(cudaSetDevice(mo_cuda_of(backend)->device));
  cudaError_t error = cudaEventSynchronize(u->events[ticket]);
  give_ticket(u, (int)ticket);
  MO_CUDA(error);
  return MO_OK;
}
