/* What the CPU backend takes beside what is alloc'ed from it: the buffers that its operations grow (backend.c), in the sizes that
 * they ask for. tests/unit/test_backend_memory.c holds this against what they really take. */
#include "backend/cpu/cpu.h"

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t tiles_of(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

typedef struct {
  int64_t H, F, E, K, S, T;
  int64_t q, keys, values, widest; /* columns of the widest matrix of a product */
} sizes;

static sizes sizes_of(const mo_backend_load *load) {
  const mo_model_spec *spec = load->spec;
  sizes z = {.H = spec->hidden,
             .F = spec->moe.width,
             .E = spec->moe.experts,
             .K = spec->moe.top_k,
             .S = load->S,
             .T = load->B * load->S,
             .q = spec->attention.heads * spec->attention.head_dim,
             .keys = spec->delta.k_heads * spec->delta.k_dim,
             .values = spec->delta.v_heads * spec->delta.v_dim};
  z.widest = larger(larger(z.H, z.q), larger(z.values, larger(spec->dense.width, spec->moe.shared_width)));
  return z;
}

/* Of one thread. */
static int64_t thread_scratch(const mo_backend_load *load, const sizes *z) {
  const mo_model_spec *spec = load->spec;
  int64_t kd = spec->delta.k_dim, vd = spec->delta.v_dim;
  int64_t floats = MO_TILE_COLS * (z->widest + 1 + MO_TILE_ROWS); /* linear_add; norms take less */
  floats = larger(floats, MO_QUERY_BLOCK * z->S);
  floats = larger(floats, MO_VOCAB_TILE * (z->H + smaller(z->S, MO_NLL_ROWS)));
  if (z->E)
    floats = larger(
        floats, 2 * MO_TILE_COLS * larger(z->H, z->F) + (spec->moe.fused ? 2 * MO_TILE_COLS * (MO_TILE_ROWS + 1) : 0));
  if (z->values) floats = larger(floats, MO_DELTA_CHUNK * (3 * kd + 2 * vd + 2 * MO_DELTA_CHUNK + 1) + kd * vd);
  return larger(floats * 4, z->E * 8) + 256;
}

/* The one block of an operation. */
static int64_t operation_rows(const mo_backend_load *load, const sizes *z) {
  const mo_model_spec *spec = load->spec;
  int64_t bytes = larger(4 * z->S * spec->rope.dim, 4 * spec->attention.heads);
  int64_t vocabulary_tiles = tiles_of(spec->vocab, MO_VOCAB_TILE);
  bytes = larger(bytes, smaller(z->S, MO_NLL_ROWS) * (vocabulary_tiles * MO_NLL_PARTIAL + 4));
  if (z->values) bytes = larger(bytes, 4 * ((2 * z->keys + z->values) * spec->delta.kernel + 2 * spec->delta.v_heads));
  if (!z->E) return bytes;
  int64_t rows = smaller(z->T * z->K, larger(MO_GROUP_ROWS, z->T)); /* a token goes to an expert at most once */
  int64_t columns = tiles_of(z->F, MO_TILE_COLS) + tiles_of(z->H, MO_TILE_COLS);
  return larger(larger(bytes, 4 * (z->T + 1) * z->E), 4 * rows * (z->H + 2 * z->F)) +
         MO_EXPERT_TILE * columns * (tiles_of(rows, MO_TILE_ROWS) + z->E);
}

/* At worst every value is an outlier. */
static int64_t statistics(const mo_backend_load *load, const sizes *z) {
  return (z->E + 1) * (int64_t)sizeof(mo_expert_sums) + load->B * (z->H * 29 + 20) +
         z->T * z->H * (int64_t)sizeof(mo_outlier);
}

mo_backend_memory mo_backend_memory_cpu(const mo_backend_load *load) {
  /* Measured with every architecture's smallest checkpoint: 45 MB with MPI and HDF5. The rest is for what the allocator keeps
   * of freed buffers, and per thread for its stack and OpenBLAS's buffer. */
  const int64_t process = 128000000, thread = 8000000;
  sizes z = sizes_of(load);
  int64_t threads = load->threads > 0 ? load->threads : 1;
  return (mo_backend_memory){
      .scratch = threads * thread_scratch(load, &z) + operation_rows(load, &z) + statistics(load, &z),
      .overhead = process + threads * thread};
}
