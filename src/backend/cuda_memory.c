/* What the CUDA backend takes beside what is alloc'ed from it. Plain C and always built, so that a run on GPUs can be planned
 * anywhere. Sizes are those that the operations in cuda/ ask mo_cuda_scratch for; what they share one purpose for is counted at
 * its largest. */
#include "moe_outliers/backend.h"

enum {
  NLL_ROWS = 2048, /* nll.cu: ROWS, TILE */
  NLL_TILE = 8192,
  ROUTE_CHUNK = 1024, /* route.cu: CHUNK */
  /* statistics.cu: SEGMENT; bytes of extremes and hits, of tile_sums; fewest columns of a tile; outliers */
  SEGMENT = 64,
  SEGMENT_CELL = 24 + 2,
  TILE_SUMS = 24,
  COLUMNS = 128,
  FEWEST_OUTLIERS = 1 << 18,
  EXPERT_STREAMS = 8, /* cuda.cuh */
  BIASED_VALUES = 8 << 20,
  FEW_ROWS = 16,
  EXPERT_MAPS = 3 * 128, /* experts_hopper.cu: bytes of an expert's tensor maps, of the table of experts */
  EXPERT_TABLE = 16384,
  /* delta_mma.cuh: tokens and bytes of an mo_delta_relation; delta_rule_mma.cu: MOST_SCRATCH */
  RELATION_TOKENS = 64,
  RELATION = 21264,
  MOST_RELATIONS = 512 << 20
};

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t tiles_of(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

typedef struct {
  const mo_model_spec *spec;
  int64_t B, S, T, H, F, E, R; /* R: routed rows */
  int64_t number;              /* bytes of a number in compute type */
  bool converts, embeds;       /* matrices need a copy in compute type; so does the embedding */
} sizes;

static sizes sizes_of(const mo_backend_load *load) {
  const mo_model_spec *spec = load->spec;
  bool bf16 = load->precision == MO_PRECISION_BF16;
  return (sizes){.spec = spec,
                 .B = load->B,
                 .S = load->S,
                 .T = load->B * load->S,
                 .H = spec->hidden,
                 .F = spec->moe.width,
                 .E = spec->moe.experts,
                 .R = load->B * load->S * spec->moe.top_k,
                 .number = bf16 ? 2 : 4,
                 .converts = load->stored != (bf16 ? MO_BF16 : MO_F32),
                 .embeds = load->stored != MO_BF16 && load->stored != MO_F32};
}

/* A matrix in compute type; experts have buffers of their own. */
static int64_t weight(const sizes *z) {
  const mo_model_spec *spec = z->spec;
  int64_t q = spec->attention.heads * spec->attention.head_dim * (spec->attention.output_gate ? 2 : 1);
  int64_t keys = spec->delta.k_heads * spec->delta.k_dim, values = spec->delta.v_heads * spec->delta.v_dim;
  int64_t rows = larger(larger(q, 2 * keys + 2 * values), larger(spec->dense.width, spec->moe.shared_width));
  int64_t numbers = z->converts ? larger(larger(rows, z->E), smaller(spec->vocab, NLL_TILE)) * z->H : 0;
  return z->number * (z->embeds ? larger(numbers, spec->vocab * z->H) : numbers);
}

static int64_t vector(const sizes *z) {
  const mo_model_spec *spec = z->spec;
  int64_t keys = spec->delta.k_heads * spec->delta.k_dim, values = spec->delta.v_heads * spec->delta.v_dim;
  int64_t widest = larger(spec->attention.heads * spec->attention.head_dim, larger(spec->dense.width, 2 * z->E));
  widest = larger(larger(widest, z->H),
                  (2 * z->S + 1) * (spec->rope.dim / 2) + spec->attention.heads * spec->attention.head_dim);
  if (spec->moe.expert_bias) widest = larger(widest, z->E * (2 * z->F + z->H));
  return 4 * larger(widest, (2 * keys + values) * spec->delta.kernel + 2 * spec->delta.v_heads);
}

/* Of the delta rule on tensor cores; in the buffer that experts gather rows in. */
static int64_t relations(const sizes *z) {
  const mo_model_spec *spec = z->spec;
  if (z->number != 2 || spec->delta.k_dim != 128 || spec->delta.k_heads < 1 || spec->delta.v_dim % 64) return 0;
  int64_t head = spec->delta.v_heads / spec->delta.k_heads * tiles_of(z->S, RELATION_TOKENS) * RELATION;
  return smaller(z->B * spec->delta.k_heads * head, larger(MOST_RELATIONS, head));
}

/* The products of experts one after the other on several streams; grouped ones take less. */
static int64_t experts(const sizes *z) {
  if (!z->E) return relations(z);
  int64_t rows = 3 * z->R * z->F * z->number + larger(z->R * z->H * z->number, relations(z));
  int64_t weights = z->converts || z->spec->moe.mxfp4 ? EXPERT_STREAMS * 3 * z->F * z->H : 0;
  return rows + weights * z->number;
}

/* Float32 sums of the products that have a bias or are of few rows. */
static int64_t biased(const sizes *z) {
  const mo_model_spec *spec = z->spec;
  int64_t q = spec->attention.heads * spec->attention.head_dim, widest = larger(larger(q, spec->dense.width), z->H);
  bool any = spec->attention.qkv_bias || spec->attention.o_bias || spec->dense.bias;
  int64_t few = smaller(z->T, FEW_ROWS) * z->H;
  return any ? larger(few, smaller(z->T * widest, larger(BIASED_VALUES, widest))) : few;
}

static int64_t logits(const sizes *z) {
  int64_t head = smaller(z->T, NLL_ROWS) * (smaller(z->spec->vocab, NLL_TILE) + 3);
  bool groups = z->spec->moe.router == MO_ROUTER_SIGMOID && z->spec->moe.groups > z->spec->moe.top_groups;
  return 4 * larger(larger(head, biased(z)), z->T * z->E * (groups || z->E > 1024 ? 3 : 1));
}

static int64_t statistics(const sizes *z) {
  int64_t segments = tiles_of(z->S, SEGMENT);
  return 512 + z->B * (z->H * 29 + 20) + z->B * segments * (z->H * SEGMENT_CELL + tiles_of(z->H, COLUMNS) * TILE_SUMS);
}

static int64_t expert_statistics(const sizes *z) { return z->E ? (z->E + 1) * (int64_t)sizeof(mo_expert_sums) : 0; }

/* The list of outliers: at worst all values. */
static int64_t outliers(const sizes *z) { return larger(FEWEST_OUTLIERS, z->T * z->H) * (int64_t)sizeof(mo_outlier); }

static int64_t small(const sizes *z) {
  int64_t routing = (z->E + 1) * 8 + (tiles_of(z->R, ROUTE_CHUNK) + 1) * z->E * 4;
  return larger(routing, larger(z->T * 28, EXPERT_TABLE + z->E * EXPERT_MAPS));
}

mo_backend_memory mo_backend_memory_cuda(const mo_backend_load *load) {
  /* The context with the kernels that are used; cuBLAS: 64 MiB of ours and 32 MiB of each of the handles for experts (Hopper,
   * less elsewhere); blocks that are rounded up to the driver's 2 MiB. */
  const int64_t context = 600000000, workspaces = (64 + 32 * EXPERT_STREAMS) << 20, rounding = 64 << 20;
  const int64_t connection = 300000000; /* NCCL: a pair of ranks; a rank has at most two neighbours */
  sizes z = sizes_of(load);
  int64_t parts[] = {weight(&z),     vector(&z),   experts(&z), logits(&z),
                     statistics(&z), outliers(&z), small(&z),   expert_statistics(&z)};
  int64_t sum = 0, most = relations(&z); /* experts' rows come after them */
  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
    sum += parts[i];
    if (i != 2) most = larger(most, parts[i]); /* those of experts have their size from the first micro-batch on */
  }
  /* A buffer that grows is held beside its successor until the GPU has caught up. */
  return (mo_backend_memory){
      .scratch = sum + most, .overhead = context + workspaces + rounding, .peers = 2 * connection};
}
