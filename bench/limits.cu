/* The limits of this machine for the work: matrix products of the models' experts through cuBLAS, copies to and inside
 * the GPU, and weights from files to the GPU.
 *
 *   bench_limits [--dense | --files] [FILE]... [--direct FILE...]
 *
 * --dense measures the dense product alone, --files only files. The FILEs are read one after the other through the page
 * cache with 1, 4, 8 and 14 threads (warm them first), those after --direct past it. Prints one JSON object a line:
 * seconds are the best and the median of 10 repeats after a warm-up (files: one pass, buffers made before); rates (1e12
 * FLOP/s, 1e9 bytes/s) are those of the best. */
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

enum { REPEATS = 10, STREAMS = 8, MAX_READERS = 14 };

#define CHECK(call)                                                                                      \
  do {                                                                                                   \
    int check_status = (int)(call);                                                                      \
    if (check_status) {                                                                                  \
      fprintf(stderr, "bench_limits: error: %s:%d: %s = %d\n", __FILE__, __LINE__, #call, check_status); \
      exit(1);                                                                                           \
    }                                                                                                    \
  } while (0)

static double now() {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
  double best, median;
} timing;

/* Times work(), whose streams must be blocking ones: those and the events on the default stream wait for each other. */
template <typename Work>
static timing measure(Work work) {
  cudaEvent_t begin, end;
  std::vector<double> seconds;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  work(); /* warm-up */
  CHECK(cudaDeviceSynchronize());
  for (int i = 0; i < REPEATS; i++) {
    float milliseconds;
    CHECK(cudaEventRecord(begin));
    work();
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    seconds.push_back(1e-3 * milliseconds);
  }
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  std::sort(seconds.begin(), seconds.end());
  return {seconds.front(), seconds[seconds.size() / 2]};
}

/* --- matrix products --- */

/* Y[e] = X[e] W[e]^T for each expert: X [experts, tokens, in], W [experts, out, in], Y [experts, tokens, out] */
typedef struct {
  const char *name;
  int experts, tokens, in, out;
} product;

/* All 16 x 2048 tokens, spread evenly over the experts, unless the name says otherwise. */
static const product PRODUCTS[] = {
    {"dense 8192 cubed", 1, 8192, 8192, 8192},      {"OLMoE gate+up", 64, 4096, 2048, 2048},
    {"OLMoE down", 64, 4096, 1024, 2048},           {"Qwen3-30B gate+up", 128, 2048, 2048, 1536},
    {"Qwen3-30B down", 128, 2048, 768, 2048},       {"Qwen3-30B down, one sequence", 128, 128, 768, 2048},
    {"Qwen3-Next gate+up", 512, 640, 2048, 1024},   {"Qwen3-Next down", 512, 640, 512, 2048},
    {"GLM-4.5-Air gate+up", 128, 2048, 4096, 2816}, {"GPT-OSS-120B gate+up", 128, 1024, 2880, 5760},
    {"Mixtral gate+up", 8, 8192, 4096, 28672},
};

typedef struct {
  const product *p;
  __nv_bfloat16 *x, *w, *y;
} operands;

typedef struct {
  cublasHandle_t handles[STREAMS]; /* one per stream: a handle's workspace serves one stream at a time */
  cublasHandle_t single;           /* on the default stream */
} blas;

/* Products of zeros draw less power and run faster than a model's. */
__global__ void fill(__nv_bfloat16 *values, size_t n, unsigned seed) {
  size_t stride = (size_t)gridDim.x * blockDim.x;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += stride) {
    unsigned hash = (unsigned)(i * 2654435761u) ^ seed;
    hash = (hash ^ hash >> 13) * 0x5bd1e995u;
    hash ^= hash >> 15;
    values[i] = __float2bfloat16(((float)(hash & 0xffff) / 65536.0f - 0.5f) * 0.1f);
  }
}

static __nv_bfloat16 *random_values(size_t n, unsigned seed) {
  __nv_bfloat16 *values;
  CHECK(cudaMalloc(&values, n * sizeof *values));
  fill<<<1024, 256>>>(values, n, seed);
  CHECK(cudaGetLastError());
  return values;
}

static void expert_product(cublasHandle_t handle, const operands *o, int expert) {
  const product *p = o->p;
  size_t e = (size_t)expert;
  const float one = 1, zero = 0;
  const __nv_bfloat16 *w = o->w + e * p->out * p->in, *x = o->x + e * p->tokens * p->in;
  __nv_bfloat16 *y = o->y + e * p->tokens * p->out;
  CHECK(cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, p->out, p->tokens, p->in, &one, w, CUDA_R_16BF, p->in, x,
                     CUDA_R_16BF, p->in, &zero, y, CUDA_R_16BF, p->out, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

static void report_product(const product *p, const char *method, timing t) {
  double flops = 2.0 * p->experts * p->tokens * (double)p->in * p->out;
  printf(
      "{\"kind\": \"product\", \"name\": \"%s\", \"method\": \"%s\", \"experts\": %d, \"tokens\": %d, \"in\": %d, "
      "\"out\": %d, \"best_s\": %.6g, \"median_s\": %.6g, \"tflops\": %.1f}\n",
      p->name, method, p->experts, p->tokens, p->in, p->out, t.best, t.median, 1e-12 * flops / t.best);
  fflush(stdout);
}

#if CUBLAS_VERSION >= 120500 /* the first with cublasGemmGroupedBatchedEx */
template <typename T>
static T *to_device(const std::vector<T> &host) {
  T *device;
  CHECK(cudaMalloc(&device, host.size() * sizeof(T)));
  CHECK(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return device;
}

/* One call for all experts, each a group of one, as unequal token counts need. */
static void measure_grouped(cublasHandle_t handle, const operands *o) {
  const product *p = o->p;
  size_t n = (size_t)p->experts;
  std::vector<cublasOperation_t> transposed(n, CUBLAS_OP_T), plain(n, CUBLAS_OP_N);
  std::vector<int> out(n, p->out), tokens(n, p->tokens), in(n, p->in), sizes(n, 1);
  std::vector<float> one(n, 1.0f), zero(n, 0.0f);
  std::vector<const void *> w, x;
  std::vector<void *> y;
  for (size_t e = 0; e < n; e++) {
    w.push_back(o->w + e * p->out * p->in);
    x.push_back(o->x + e * p->tokens * p->in);
    y.push_back(o->y + e * p->tokens * p->out);
  }
  const void **device_w = to_device(w), **device_x = to_device(x);
  void **device_y = to_device(y);
  timing t = measure([&] {
    CHECK(cublasGemmGroupedBatchedEx(handle, transposed.data(), plain.data(), out.data(), tokens.data(), in.data(),
                                     one.data(), device_w, CUDA_R_16BF, in.data(), device_x, CUDA_R_16BF, in.data(),
                                     zero.data(), device_y, CUDA_R_16BF, out.data(), p->experts, sizes.data(),
                                     CUBLAS_COMPUTE_32F));
  });
  report_product(p, "grouped call", t);
  CHECK(cudaFree(device_w));
  CHECK(cudaFree(device_x));
  CHECK(cudaFree(device_y));
}
#endif

static void measure_product(const blas *b, const product *p) {
  size_t n = (size_t)p->experts;
  operands o = {p, random_values(n * p->tokens * p->in, 1), random_values(n * p->out * p->in, 2), NULL};
  CHECK(cudaMalloc(&o.y, n * p->tokens * p->out * sizeof *o.y));
  report_product(p, "one call each", measure([&] {
                   for (int e = 0; e < p->experts; e++) expert_product(b->single, &o, e);
                 }));
  if (p->experts > 1) {
    report_product(p, "one call each, 8 streams", measure([&] {
                     for (int e = 0; e < p->experts; e++) expert_product(b->handles[e % STREAMS], &o, e);
                   }));
#if CUBLAS_VERSION >= 120500
    measure_grouped(b->single, &o);
#endif
  }
  CHECK(cudaFree(o.x));
  CHECK(cudaFree(o.w));
  CHECK(cudaFree(o.y));
}

static void measure_products(bool dense_only) {
  blas b;
  CHECK(cublasCreate(&b.single));
  for (int i = 0; i < STREAMS; i++) {
    cudaStream_t stream; /* lives as long as the program */
    CHECK(cudaStreamCreate(&stream));
    CHECK(cublasCreate(&b.handles[i]));
    CHECK(cublasSetStream(b.handles[i], stream));
  }
  size_t n = dense_only ? 1 : sizeof PRODUCTS / sizeof *PRODUCTS;
  for (size_t i = 0; i < n; i++) measure_product(&b, PRODUCTS + i);
  for (int i = 0; i < STREAMS; i++) CHECK(cublasDestroy(b.handles[i]));
  CHECK(cublasDestroy(b.single));
}

/* --- copies --- */

static void measure_copy(const char *name, const void *from, void *to, size_t bytes) {
  timing t = measure([&] { CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, 0)); });
  printf(
      "{\"kind\": \"copy\", \"name\": \"%s\", \"bytes\": %zu, \"best_s\": %.6g, \"median_s\": %.6g, "
      "\"gb_per_s\": %.1f}\n",
      name, bytes, t.best, t.median, 1e-9 * (double)bytes / t.best);
  fflush(stdout);
}

static void measure_copies() {
  const size_t bytes = (size_t)1 << 30;
  void *host, *from, *to;
  CHECK(cudaMallocHost(&host, bytes));
  CHECK(cudaMalloc(&from, bytes));
  CHECK(cudaMalloc(&to, bytes));
  memset(host, 1, bytes);
  CHECK(cudaMemset(from, 1, bytes));
  measure_copy("pinned host memory to GPU", host, to, bytes);
  measure_copy("within the GPU", from, to, bytes);
  CHECK(cudaFreeHost(host));
  CHECK(cudaFree(from));
  CHECK(cudaFree(to));
}

/* --- files: every reader fills two pinned buffers in turn, each copied to the GPU while the other fills --- */

enum { CHUNK = 16 << 20, RING = 64 * CHUNK };

typedef struct {
  const char *path;
  int fd;
  size_t bytes;
} source_file;

typedef struct {
  std::vector<source_file> files;
  size_t file, next; /* the first chunk no reader has taken: file and offset, under mutex */
  pthread_mutex_t mutex;
  pthread_barrier_t ready; /* all readers have their buffers */
  char *ring;              /* [RING] GPU memory that chunks land in */
  size_t landed;           /* bytes taken, under mutex */
} file_stream;

typedef struct {
  const source_file *file;
  size_t offset, bytes, place; /* place: in the ring */
} chunk;

static bool take_chunk(file_stream *f, chunk *c) {
  pthread_mutex_lock(&f->mutex);
  bool some = f->file < f->files.size();
  if (some) {
    c->file = &f->files[f->file];
    c->offset = f->next;
    c->bytes = std::min((size_t)CHUNK, c->file->bytes - c->offset);
    c->place = f->landed % RING;
    f->landed += CHUNK;
    f->next += CHUNK;
    if (f->next >= c->file->bytes) f->file++, f->next = 0;
  }
  pthread_mutex_unlock(&f->mutex);
  return some;
}

/* Asks for the whole chunk even where the file ends in it: reads past the page cache must be of whole blocks. */
static void read_chunk(const chunk *c, char *buffer) {
  for (size_t got = 0; got < c->bytes;) {
    ssize_t n = pread(c->file->fd, buffer + got, CHUNK - got, (off_t)(c->offset + got));
    if (n <= 0) {
      fprintf(stderr, "bench_limits: error: cannot read (%s): %s\n", c->file->path,
              n ? strerror(errno) : "file got shorter");
      exit(1);
    }
    got += (size_t)n;
  }
}

static void *read_chunks(void *argument) {
  file_stream *f = (file_stream *)argument;
  cudaStream_t stream;
  cudaEvent_t copied[2];
  char *buffers[2];
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (int i = 0; i < 2; i++) {
    CHECK(cudaEventCreate(&copied[i]));
    CHECK(cudaMallocHost((void **)&buffers[i], CHUNK));
  }
  pthread_barrier_wait(&f->ready);
  chunk c;
  for (int i = 0; take_chunk(f, &c); i ^= 1) {
    CHECK(cudaEventSynchronize(copied[i]));
    read_chunk(&c, buffers[i]);
    CHECK(cudaMemcpyAsync(f->ring + c.place, buffers[i], c.bytes, cudaMemcpyHostToDevice, stream));
    CHECK(cudaEventRecord(copied[i], stream));
  }
  CHECK(cudaStreamSynchronize(stream));
  pthread_barrier_wait(&f->ready);
  for (int i = 0; i < 2; i++) {
    CHECK(cudaEventDestroy(copied[i]));
    CHECK(cudaFreeHost(buffers[i]));
  }
  CHECK(cudaStreamDestroy(stream));
  return NULL;
}

static size_t open_file(file_stream *f, const char *path, bool direct) {
  source_file file = {path, open(path, O_RDONLY | (direct ? O_DIRECT : 0)), 0};
  off_t bytes = file.fd < 0 ? -1 : lseek(file.fd, 0, SEEK_END);
  if (bytes <= 0) {
    fprintf(stderr, "bench_limits: error: cannot read (%s): %s\n", path, bytes ? strerror(errno) : "empty file");
    exit(1);
  }
  file.bytes = (size_t)bytes;
  f->files.push_back(file);
  return file.bytes;
}

static void measure_files(const std::vector<const char *> &paths, int readers, bool direct) {
  file_stream f = {{}, 0, 0, PTHREAD_MUTEX_INITIALIZER, {}, NULL, 0};
  size_t bytes = 0;
  for (const char *path : paths) bytes += open_file(&f, path, direct);
  CHECK(cudaMalloc(&f.ring, RING));
  CHECK(pthread_barrier_init(&f.ready, NULL, (unsigned)readers + 1));
  pthread_t threads[MAX_READERS];
  for (int i = 0; i < readers; i++) CHECK(pthread_create(&threads[i], NULL, read_chunks, &f));
  pthread_barrier_wait(&f.ready);
  double begin = now();
  pthread_barrier_wait(&f.ready);
  double seconds = now() - begin;
  for (int i = 0; i < readers; i++) CHECK(pthread_join(threads[i], NULL));
  printf(
      "{\"kind\": \"file\", \"name\": \"%s\", \"readers\": %d, \"files\": %zu, \"bytes\": %zu, \"best_s\": %.6g, "
      "\"gb_per_s\": %.2f}\n",
      direct ? "disk to GPU" : "page cache to GPU", readers, paths.size(), bytes, seconds,
      1e-9 * (double)bytes / seconds);
  fflush(stdout);
  CHECK(pthread_barrier_destroy(&f.ready));
  CHECK(cudaFree(f.ring));
  for (const source_file &file : f.files) close(file.fd);
}

static void report_versions() {
  int runtime, driver, cublas;
  cublasHandle_t handle;
  CHECK(cudaRuntimeGetVersion(&runtime));
  CHECK(cudaDriverGetVersion(&driver));
  CHECK(cublasCreate(&handle));
  CHECK(cublasGetVersion(handle, &cublas));
  CHECK(cublasDestroy(handle));
  printf("{\"kind\": \"versions\", \"cuda_runtime\": \"%d.%d\", \"cuda_driver\": \"%d.%d\", \"cublas\": %d}\n",
         runtime / 1000, runtime % 1000 / 10, driver / 1000, driver % 1000 / 10, cublas);
}

int main(int argc, char **argv) {
  static const int readers[] = {1, 4, 8, MAX_READERS};
  bool dense_only = false, files_only = false;
  std::vector<const char *> files[2], *sink = &files[0]; /* through the page cache, past it */
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--dense") == 0) {
      dense_only = true;
    } else if (strcmp(argv[i], "--files") == 0) {
      files_only = true;
    } else if (strcmp(argv[i], "--direct") == 0) {
      sink = &files[1];
    } else if (argv[i][0] == '-') {
      fprintf(stderr, "usage: bench_limits [--dense | --files] [FILE]... [--direct FILE...]\n");
      return 2;
    } else {
      sink->push_back(argv[i]);
    }
  }
  report_versions();
  if (!files_only) measure_products(dense_only);
  if (dense_only) return 0;
  if (!files_only) measure_copies();
  for (int direct = 0; direct < 2; direct++)
    for (int count : readers)
      if (!files[direct].empty()) measure_files(files[direct], count, direct);
  return 0;
}
