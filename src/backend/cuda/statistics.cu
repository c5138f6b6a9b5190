/* Site statistics on the GPU: one pass over the activations in tiles of 64 positions by 32 packs of columns. Outliers are
 * rare: a tile looks at a column again (in cache) only where the first look saw one. Then a small kernel adds up the tiles in
 * order: results depend neither on the micro-batch nor on the scheduling. Semantics: cpu_site_statistics. */
#include "backend/cuda/pack.cuh"

enum : int {
  SEGMENT = 64, /* positions of a tile: one word of the position bits */
  WARPS = 8,
  THREADS = WARPS * 32,
  DEPTH = SEGMENT / WARPS, /* positions of a warp */
  AT_FIRST = 128,          /* in site_job's hits */
  FIRST_PART = 8192        /* outliers that come to the host with the results: one wait for most sites */
};

/* Outlier values of a column in a tile; defined only where there are any. */
typedef struct {
  float min, max;
  double sum_abs;
  int32_t position; /* of the largest, in the sequence */
} extremes;

/* Over all values of a tile. */
typedef struct {
  double sum, squares, top;
} tile_sums;

typedef struct {
  const void *x;
  int64_t B, S, H;
  int64_t segments, column_tiles; /* tiles of a sequence: [segments, column_tiles] */
  float threshold;
  uint64_t *positions; /* [B, H, segments] of this micro-batch */
  uint16_t *hits;      /* [B, segments, H] outlier values, AT_FIRST if one is at position 0, 256 times the positive ones */
  extremes *partials;  /* [B, segments, H] */
  tile_sums *sums;     /* [B, segments, column_tiles] */
  int32_t *row_counts; /* [B, S] outlier values, to be added to; NULL: not asked for */
  mo_outlier *list;    /* [capacity] */
  int64_t capacity;
} site_job;

/* The micro-batch's results, laid out alike on device and host. */
typedef struct {
  unsigned long long *n_outliers;
  double *sum_abs, *sum, *sum_squares;
  int32_t *count, *positive, *position;
  float *min, *max, *max_abs;
  uint8_t *first;
} site_results;

static size_t result_bytes_of(int64_t B, int64_t H) {
  size_t cell = sizeof(double) + 3 * sizeof(int32_t) + 2 * sizeof(float) + 1, row = 2 * sizeof(double) + sizeof(float);
  return (256 + (size_t)(B * H) * cell + (size_t)B * row + 255) / 256 * 256;
}

/* Results in a block of that size. */
static site_results lay_out(void *block, int64_t B, int64_t H) {
  int64_t cells = B * H;
  site_results r;
  r.n_outliers = (unsigned long long *)block;
  r.sum_abs = (double *)((char *)block + 256);
  r.sum = r.sum_abs + cells;
  r.sum_squares = r.sum + B;
  r.count = (int32_t *)(r.sum_squares + B);
  r.positive = r.count + cells;
  r.position = r.positive + cells;
  r.min = (float *)(r.position + cells);
  r.max = r.min + cells;
  r.max_abs = r.max + cells;
  r.first = (uint8_t *)(r.max_abs + B);
  return r;
}

/* --- a tile --- */

/* Outliers of a tile: the columns where the first look saw some, and what the second counts. */
template <int COLUMNS>
struct tile_hits {
  int listed[COLUMNS];    /* whether the column is in the list */
  uint16_t list[COLUMNS]; /* [n] */
  uint16_t hits[COLUMNS]; /* as site_job's */
  int rows[SEGMENT];      /* outliers of each position */
  int n;
};

/* First look at this warp's positions of the tile: sums, and the largest |x| of each of the lane's columns. `rows`: valid
 * positions. Where PACKED, column k of the lane is lane*W + k, else k*32 + lane. */
template <typename T, bool PACKED>
static __device__ void first_look(const T *tile, int64_t H, int rows, int columns, float (&top)[mo_pack<T>::width],
                                  double &sum, double &squares) {
  constexpr int W = mo_pack<T>::width;
  int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
  float x[PACKED ? 1 : DEPTH][W];
  uint4 raw[DEPTH];
#pragma unroll
  for (int i = 0; i < DEPTH; i++) { /* all loads before the first use */
    int p = warp * DEPTH + i;
    if constexpr (PACKED) {
      raw[i] = p < rows && lane * W < columns ? *reinterpret_cast<const uint4 *>(tile + p * H + lane * W)
                                              : make_uint4(0, 0, 0, 0);
    } else {
#pragma unroll
      for (int k = 0; k < W; k++)
        x[i][k] = p < rows && k * 32 + lane < columns ? to_float(tile[p * H + k * 32 + lane]) : 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < DEPTH; i++) {
    float(&v)[W] = x[PACKED ? 0 : i];
    if constexpr (PACKED) unpack(raw[i], v, tile);
#pragma unroll
    for (int k = 0; k < W; k++) {
      double value = v[k];
      top[k] = fmaxf(top[k], fabsf(v[k]));
      sum += value;
      squares = fma(value, value, squares);
    }
  }
}

/* Sums and largest |x| of the tile in a fixed order, to *out. */
static __device__ void reduce_tile(double sum, double squares, float top, tile_sums *out) {
  __shared__ tile_sums warps[WARPS];
#pragma unroll
  for (int step = 16; step; step /= 2) {
    sum += __shfl_xor_sync(~0u, sum, step);
    squares += __shfl_xor_sync(~0u, squares, step);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
  }
  if (threadIdx.x % 32 == 0) {
    tile_sums &mine = warps[threadIdx.x / 32];
    mine.sum = sum, mine.squares = squares, mine.top = top;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  tile_sums all = warps[0];
  for (int i = 1; i < WARPS; i++) {
    all.sum += warps[i].sum;
    all.squares += warps[i].squares;
    all.top = fmax(all.top, warps[i].top);
  }
  *out = all;
}

/* Larger for the value that counts as the larger one: by magnitude, of equal ones the positive one. */
static __device__ uint32_t rank_of(float x) { return __float_as_uint(fabsf(x)) << 1 | (x > 0); }

/* Of a tile's values, by its min and max: the one of the largest rank. */
static __device__ float larger_of(float low, float high) { return rank_of(low) > rank_of(high) ? low : high; }

/* A column's values at lane and lane + 32, and which positions are outliers. */
struct column_look {
  float x[2];
  bool hit[2];
  uint64_t bits;
};

template <typename T>
static __device__ column_look look_at_column(const site_job &job, const T *tile, int rows, int c) {
  column_look look;
  look.bits = 0;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int p = (int)threadIdx.x % 32 + 32 * half;
    look.x[half] = p < rows ? to_float(tile[p * job.H + c]) : 0.0f;
    look.hit[half] = p < rows && fabsf(look.x[half]) >= job.threshold;
    look.bits |= (uint64_t)__ballot_sync(~0u, look.hit[half]) << (32 * half);
  }
  return look;
}

/* Second look, by one warp: outliers of column c (column h of the site). cell: of (b, segment, h). */
template <typename T, typename Hits>
static __device__ void count_column(const site_job &job, const column_look &look, int c, int64_t segment, int64_t cell,
                                    uint64_t *word, Hits &found) {
  int lane = (int)threadIdx.x % 32, positive = 0;
  float low = INFINITY, high = -INFINITY;
  double sum_abs = 0;
  uint64_t top = 0; /* rank, then the earlier position */
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int p = lane + 32 * half;
    float x = look.x[half];
    if (look.hit[half]) {
      atomicAdd(&found.rows[p], 1);
      low = fminf(low, x);
      high = fmaxf(high, x);
      sum_abs += (double)fabsf(x);
      uint64_t key = (uint64_t)rank_of(x) << 32 | (uint32_t)(SEGMENT - p);
      if (key > top) top = key;
    }
    positive += __popc(__ballot_sync(~0u, look.hit[half] && x > 0));
  }
#pragma unroll
  for (int step = 16; step; step /= 2) {
    low = fminf(low, __shfl_xor_sync(~0u, low, step));
    high = fmaxf(high, __shfl_xor_sync(~0u, high, step));
    sum_abs += __shfl_xor_sync(~0u, sum_abs, step);
    uint64_t other = __shfl_xor_sync(~0u, top, step);
    if (other > top) top = other;
  }
  if (lane != 0) return;
  found.hits[c] = (uint16_t)(__popcll(look.bits) + (segment == 0 && look.bits & 1 ? AT_FIRST : 0) + 256 * positive);
  job.partials[cell].min = low;
  job.partials[cell].max = high;
  job.partials[cell].sum_abs = sum_abs;
  job.partials[cell].position = (int32_t)(segment * SEGMENT) + SEGMENT - (int32_t)(uint32_t)top;
  *word |= look.bits;
}

/* The column's outlier values to the list from place `first`, as far as it has room. */
static __device__ void list_column(const site_job &job, const column_look &look, int64_t h, int64_t first) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int p = (int)threadIdx.x % 32 + 32 * half;
    int64_t at = first + __popcll(look.bits & (((uint64_t)1 << p) - 1));
    if (!look.hit[half] || at >= job.capacity) continue;
    job.list[at].feature = (int32_t)h;
    job.list[at].value = look.x[half];
  }
}

/* The tile of a sequence b at its positions 64 * segment.. and columns h0... */
template <typename T>
struct tile_place {
  const T *values;
  int64_t b, segment, h0;
  int rows, columns;
};

/* Second look, by all warps, at the listed columns. A warp takes room in the list once: values have no order there. */
template <typename T, typename Hits>
static __device__ void second_look(const site_job &job, const tile_place<T> &tile, Hits &found,
                                   unsigned long long *n_outliers) {
  int warp = (int)threadIdx.x / 32, total = 0;
  column_look look;
  for (int k = warp; k < found.n; k += WARPS) {
    look = look_at_column(job, tile.values, tile.rows, found.list[k]);
    total += __popcll(look.bits);
  }
  unsigned long long first = 0;
  if (threadIdx.x % 32 == 0 && total) first = atomicAdd(n_outliers, (unsigned long long)total);
  first = __shfl_sync(~0u, first, 0);
  for (int k = warp; k < found.n; k += WARPS) {
    int c = found.list[k];
    int64_t h = tile.h0 + c, cell = (tile.b * job.segments + tile.segment) * job.H + h;
    if (found.n > WARPS) look = look_at_column(job, tile.values, tile.rows, c); /* else it is that column's still */
    list_column(job, look, h, (int64_t)first);
    first += (unsigned long long)__popcll(look.bits);
    count_column<T>(job, look, c, tile.segment, cell,
                    job.positions + (tile.b * job.H + h) * job.segments + tile.segment, found);
  }
}

/* A block per tile, tiles of the same positions side by side; the last ones first, which whoever wrote them left in L2. */
template <typename T, bool PACKED>
static __global__ void __launch_bounds__(THREADS) scan_tiles(site_job job, unsigned long long *n_outliers) {
  constexpr int W = mo_pack<T>::width, COLUMNS = 32 * W;
  __shared__ tile_hits<COLUMNS> found;
  int64_t index = gridDim.x - 1 - (int64_t)blockIdx.x, place = index / job.column_tiles; /* place: of (b, segment) */
  tile_place<T> tile;
  tile.b = place / job.segments, tile.segment = place % job.segments;
  tile.h0 = index % job.column_tiles * COLUMNS;
  tile.rows = (int)(job.S - tile.segment * SEGMENT < SEGMENT ? job.S - tile.segment * SEGMENT : SEGMENT);
  tile.columns = (int)(job.H - tile.h0 < COLUMNS ? job.H - tile.h0 : COLUMNS);
  tile.values = (const T *)job.x + (tile.b * job.S + tile.segment * SEGMENT) * job.H + tile.h0;
  if (threadIdx.x < COLUMNS) {
    found.hits[threadIdx.x] = 0;
    found.listed[threadIdx.x] = 0;
  }
  if (threadIdx.x < SEGMENT) found.rows[threadIdx.x] = 0;
  if (threadIdx.x == 0) found.n = 0;
  __syncthreads();
  float top[W] = {}, largest = 0;
  double sum = 0, squares = 0;
  first_look<T, PACKED>(tile.values, job.H, tile.rows, tile.columns, top, sum, squares);
#pragma unroll
  for (int k = 0; k < W; k++) {
    largest = fmaxf(largest, top[k]);
    if (!(top[k] >= job.threshold)) continue;
    int c = PACKED ? (int)threadIdx.x % 32 * W + k : k * 32 + (int)threadIdx.x % 32;
    if (atomicExch(&found.listed[c], 1) == 0) found.list[atomicAdd(&found.n, 1)] = (uint16_t)c;
  }
  reduce_tile(sum, squares, largest, job.sums + index); /* a barrier: the list is complete */
  if (found.n) {
    second_look(job, tile, found, n_outliers);
    __syncthreads();
    if (job.row_counts && threadIdx.x < SEGMENT && found.rows[threadIdx.x])
      atomicAdd(job.row_counts + tile.b * job.S + tile.segment * SEGMENT + threadIdx.x, found.rows[threadIdx.x]);
  }
  if (threadIdx.x < tile.columns) job.hits[place * job.H + tile.h0 + threadIdx.x] = found.hits[threadIdx.x];
}

/* --- adding up --- */

/* A cell (b, h): its segments in order. */
static __device__ void sum_cell(const site_job &job, const site_results &r, int64_t cell) {
  int64_t first = cell / job.H * job.segments * job.H + cell % job.H;
  const uint16_t *__restrict__ hits = job.hits + first;
  const extremes *__restrict__ partials = job.partials + first;
  int32_t count = 0, positive = 0, position = 0;
  float low = INFINITY, high = -INFINITY;
  double sum_abs = 0;
  uint32_t top = 0;
  r.first[cell] = (hits[0] & AT_FIRST) != 0;
#pragma unroll 16
  for (int64_t s = 0; s < job.segments; s++) {
    int hit = hits[s * job.H];
    if (!hit) continue;
    extremes part = partials[s * job.H];
    uint32_t rank = rank_of(larger_of(part.min, part.max));
    if (rank > top) {
      top = rank;
      position = part.position;
    }
    count += hit % AT_FIRST;
    positive += hit / 256;
    low = fminf(low, part.min);
    high = fmaxf(high, part.max);
    sum_abs += part.sum_abs;
  }
  r.count[cell] = count;
  r.positive[cell] = positive;
  r.min[cell] = low;
  r.max[cell] = high;
  r.sum_abs[cell] = sum_abs;
  r.position[cell] = position;
}

/* By a block: the sequence's tiles in a fixed order. */
static __device__ void sum_sequence(const site_job &job, const site_results &r, int64_t b) {
  __shared__ tile_sums all[THREADS];
  int64_t n = job.segments * job.column_tiles;
  double sum = 0, squares = 0, top = 0;
  for (int64_t i = threadIdx.x; i < n; i += THREADS) {
    const tile_sums &part = job.sums[b * n + i];
    sum += part.sum;
    squares += part.squares;
    top = fmax(top, part.top);
  }
  all[threadIdx.x].sum = sum, all[threadIdx.x].squares = squares, all[threadIdx.x].top = top;
  for (int half = THREADS / 2; half; half /= 2) {
    __syncthreads();
    if ((int)threadIdx.x >= half) continue;
    tile_sums &mine = all[threadIdx.x], &other = all[threadIdx.x + half];
    mine.sum += other.sum;
    mine.squares += other.squares;
    mine.top = fmax(mine.top, other.top);
  }
  if (threadIdx.x != 0) return;
  r.sum[b] = all[0].sum;
  r.sum_squares[b] = all[0].squares;
  r.max_abs[b] = (float)all[0].top;
}

/* A block per sequence, then a thread per cell. */
static __global__ void __launch_bounds__(THREADS) sum_tiles(site_job job, site_results r) {
  if (blockIdx.x < job.B) return sum_sequence(job, r, blockIdx.x);
  int64_t cell = (blockIdx.x - job.B) * THREADS + threadIdx.x;
  if (cell < job.B * job.H) sum_cell(job, r, cell);
}

/* --- the operation --- */

template <typename T>
static mo_status launch_scan(mo_cuda *cuda, const site_job &job, const site_results &results) {
  int64_t tiles = job.B * job.segments * job.column_tiles;
  MO_CUDA(cudaMemsetAsync(results.n_outliers, 0, sizeof *results.n_outliers, cuda->stream));
  if (job.row_counts)
    MO_CUDA(cudaMemsetAsync(job.row_counts, 0, (size_t)(job.B * job.S) * sizeof(int32_t), cuda->stream));
  if (mo_packs(cuda, job.x, job.H))
    scan_tiles<T, true><<<(unsigned)tiles, THREADS, 0, cuda->stream>>>(job, results.n_outliers);
  else
    scan_tiles<T, false><<<(unsigned)tiles, THREADS, 0, cuda->stream>>>(job, results.n_outliers);
  MO_LAUNCHED("scan_tiles");
  sum_tiles<<<(unsigned)(job.B + (job.B * job.H + THREADS - 1) / THREADS), THREADS, 0, cuda->stream>>>(job, results);
  MO_LAUNCHED("sum_tiles");
  return MO_OK;
}

/* Device arrays of the job in one block, after the results. */
static mo_status reserve_device(mo_cuda *cuda, site_job *job, site_results *results) {
  size_t cells = (size_t)(job->B * job->segments * job->H), result_bytes = result_bytes_of(job->B, job->H),
         tiles = (size_t)(job->B * job->segments * job->column_tiles);
  size_t bytes = result_bytes + cells * (sizeof(extremes) + sizeof(uint16_t)) + tiles * sizeof(tile_sums);
  void *block;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_STATISTICS, bytes, &block));
  *results = lay_out(block, job->B, job->H);
  job->partials = (extremes *)((char *)block + result_bytes);
  job->sums = (tile_sums *)(job->partials + cells);
  job->hits = (uint16_t *)(job->sums + tiles);
  return MO_OK;
}

/* Run the kernels with room for `outliers` at least, and start the copy of the results and the first part of the list to
 * the host, beside what is enqueued next. */
static mo_status scan_site(mo_cuda *cuda, site_job *job, int64_t outliers) {
  const int64_t fewest = 1 << 18;
  site_results results;
  size_t result_bytes = result_bytes_of(job->B, job->H);
  void *list;
  int64_t room = (int64_t)(cuda->scratch_bytes[MO_SCRATCH_OUTLIERS] / sizeof(mo_outlier));
  if (room < fewest) room = fewest;
  if (room < outliers) room = outliers;
  MO_TRY(reserve_device(cuda, job, &results));
  MO_TRY(mo_cuda_grow_host(cuda, result_bytes + FIRST_PART * sizeof(mo_outlier), &cuda->statistics_host));
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_OUTLIERS, (size_t)room * sizeof(mo_outlier), &list));
  job->list = (mo_outlier *)list;
  job->capacity = room;
  MO_TRY(MO_BY_TYPE(cuda, launch_scan, cuda, *job, results));
  MO_CUDA(cudaEventRecord(cuda->scanned, cuda->stream));
  MO_CUDA(cudaStreamWaitEvent(cuda->fetch, cuda->scanned, 0));
  MO_CUDA(cudaMemcpyAsync(cuda->statistics_host.memory, results.n_outliers, result_bytes, cudaMemcpyDeviceToHost,
                          cuda->fetch));
  MO_CUDA(cudaMemcpyAsync((char *)cuda->statistics_host.memory + result_bytes, list, FIRST_PART * sizeof(mo_outlier),
                          cudaMemcpyDeviceToHost, cuda->fetch));
  return MO_OK;
}

/* The whole list behind the results in pinned memory, where its first part is already. */
static mo_status fetch_list(mo_cuda *cuda, const site_job *job, int64_t n) {
  size_t bytes = (size_t)n * sizeof(mo_outlier), result_bytes = result_bytes_of(job->B, job->H);
  if (n <= FIRST_PART) return MO_OK;
  if (result_bytes + bytes > cuda->statistics_host.bytes) {
    MO_TRY(mo_cuda_grow_host(cuda, result_bytes + bytes, &cuda->statistics_host));
    MO_CUDA(cudaMemcpyAsync(cuda->statistics_host.memory, cuda->scratch[MO_SCRATCH_STATISTICS], result_bytes,
                            cudaMemcpyDeviceToHost, cuda->fetch));
  }
  MO_CUDA(cudaMemcpyAsync((char *)cuda->statistics_host.memory + result_bytes, job->list, bytes, cudaMemcpyDeviceToHost,
                          cuda->fetch));
  MO_CUDA(cudaStreamSynchronize(cuda->fetch));
  return MO_OK;
}

mo_status cuda_site_statistics(mo_backend *backend, const void *x, int64_t B, int64_t S, int64_t H, float threshold,
                               uint64_t *positions, int64_t first_sequence, int32_t *row_counts) {
  mo_cuda *cuda = mo_cuda_of(backend);
  int columns = 32 * (cuda->bf16_run ? mo_pack<bf16>::width : mo_pack<float>::width);
  site_job *job = (site_job *)cuda->site;
  if (!job && !(cuda->site = job = (site_job *)mo_alloc(1, sizeof *job))) return MO_FAILED;
  *job = (site_job){};
  job->x = x;
  job->B = B, job->S = S, job->H = H;
  job->segments = (S + SEGMENT - 1) / SEGMENT;
  job->column_tiles = (H + columns - 1) / columns;
  job->threshold = threshold;
  job->positions = positions + first_sequence * H * job->segments;
  job->row_counts = row_counts;
  return scan_site(cuda, job, 0);
}

mo_status cuda_site_results(mo_backend *backend, mo_site_statistics *statistics) {
  mo_cuda *cuda = mo_cuda_of(backend);
  site_job *job = (site_job *)cuda->site;
  MO_CUDA(cudaStreamSynchronize(cuda->fetch));
  int64_t n = (int64_t) * (const unsigned long long *)cuda->statistics_host.memory;
  if (n > job->capacity) { /* the list was too short: once more, behind the operations since, which left x as it was */
    MO_TRY(scan_site(cuda, job, n));
    MO_CUDA(cudaStreamSynchronize(cuda->fetch));
  }
  MO_TRY(fetch_list(cuda, job, n));
  site_results results = lay_out(cuda->statistics_host.memory, job->B, job->H);
  statistics->n_sequences = job->B;
  statistics->rows = job->B * job->S;
  statistics->count = results.count, statistics->positive = results.positive;
  statistics->min = results.min, statistics->max = results.max;
  statistics->sum_abs = results.sum_abs, statistics->sum = results.sum, statistics->sum_squares = results.sum_squares;
  statistics->max_abs = results.max_abs;
  statistics->position = results.position, statistics->first = results.first;
  statistics->outliers = (mo_outlier *)((char *)cuda->statistics_host.memory + result_bytes_of(job->B, job->H));
  statistics->n_outliers = n;
  return MO_OK;
}
