/* Routing and experts of the CPU backend. Rounding points: huggingface/transformers 5.17, *TopKRouter and the eager *Experts of
 * each model (weighted outputs rounded, then added to a bf16 sum in order of expert index). */
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "backend/cpu/cpu.h"

/* The largest of n scores that is not taken yet; the lower index among equals. */
static int32_t best(const float *scores, const bool *taken, int64_t n) {
  int32_t at = -1;
  for (int64_t e = 0; e < n; e++)
    if (!taken[e] && (at < 0 || scores[e] > scores[at])) at = (int32_t)e;
  return at;
}

/* Softmax in place, float32. */
static void softmax(float *x, int64_t n) {
  float top = x[0];
  double sum = 0;
  for (int64_t i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
  for (int64_t i = 0; i < n; i++) {
    x[i] = expf(x[i] - top);
    sum += x[i];
  }
  for (int64_t i = 0; i < n; i++) x[i] = (float)(x[i] / sum);
}

/* Experts and weights of one token from its E logits (overwritten). taken: scratch [E]. */
static void choose(const mo_cpu *cpu, const mo_model_spec *spec, float *scores, bool *taken, int32_t *expert, float *weight) {
  int64_t E = spec->moe.experts, K = spec->moe.top_k;
  softmax(scores, E);
  memset(taken, 0, (size_t)E);
  float sum = 0;
  for (int64_t j = 0; j < K; j++) {
    expert[j] = best(scores, taken, E);
    taken[expert[j]] = true;
    weight[j] = scores[expert[j]];
    sum += weight[j];
  }
  for (int64_t j = 0; j < K; j++) {
    if (spec->moe.renormalise) weight[j] /= sum;
    weight[j] *= spec->moe.routed_scale;
    if (spec->moe.weights_bf16) weight[j] = mo_round(cpu, weight[j]);
  }
}

/* Group the rows by expert: counting sort, ascending token within an expert. */
static void group_rows(int64_t T, int64_t E, int64_t K, mo_routing *routing, int64_t *next) {
  memset(routing->start, 0, (size_t)(E + 1) * sizeof *routing->start);
  for (int64_t i = 0; i < T * K; i++) routing->start[routing->expert[i] + 1]++;
  for (int64_t e = 0; e < E; e++) routing->start[e + 1] += routing->start[e];
  memcpy(next, routing->start, (size_t)E * sizeof *next);
  for (int64_t i = 0; i < T * K; i++) {
    int64_t r = next[routing->expert[i]]++;
    routing->row[r] = (int32_t)(i / K);
    routing->place[i] = (int32_t)r;
  }
}

mo_status cpu_route(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights, const void *x, int64_t T,
                    mo_routing *routing) {
  mo_cpu *cpu = mo_cpu_of(backend);
  int64_t E = spec->moe.experts, K = spec->moe.top_k;
  void *block;
  MO_TRY(mo_cpu_rows(cpu, (size_t)(T * E) * sizeof(float), &block));
  float *logits = block;
  MO_TRY(cpu_linear(backend, &weights->one[MO_ROUTER], &weights->one[MO_ROUTER_BIAS], x, T, logits));
  MO_TRY(mo_cpu_reserve(cpu, (size_t)E * sizeof(int64_t)));
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t t = 0; t < T; t++)
    choose(cpu, spec, logits + t * E, mo_cpu_scratch(cpu, omp_get_thread_num()), routing->expert + t * K,
           routing->weight + t * K);
  group_rows(T, E, K, routing, mo_cpu_scratch(cpu, 0));
  return MO_OK;
}

/* A group of experts whose rows fit the operation's scratch: rows r0 .. r0+n-1. */
typedef struct {
  const mo_model_spec *spec;
  const mo_stage_weights *weights;
  const mo_routing *routing;
  int64_t first, last, r0, n;
  float *in, *gate, *up; /* [n, H], [n, F], [n, F]; the activation overwrites gate */
  float *out;            /* [R, H] of the whole operation */
} expert_group;

/* Tiles of one product of every expert of the group, `columns` wide each: (expert, column tile, row tile) by number. */
typedef struct {
  int64_t expert, m0, m, n0, n;
} expert_tile;

static int64_t count_tiles(const expert_group *group, int64_t columns) {
  int64_t tiles = 0, per_row = (columns + MO_TILE_COLS - 1) / MO_TILE_COLS;
  for (int64_t e = group->first; e < group->last; e++)
    tiles += (group->routing->start[e + 1] - group->routing->start[e] + MO_TILE_ROWS - 1) / MO_TILE_ROWS * per_row;
  return tiles;
}

static void list_tiles(const expert_group *group, int64_t columns, expert_tile *tiles) {
  for (int64_t e = group->first; e < group->last; e++) {
    int64_t begin = group->routing->start[e], end = group->routing->start[e + 1];
    for (int64_t n0 = 0; n0 < columns; n0 += MO_TILE_COLS)
      for (int64_t m0 = begin; m0 < end; m0 += MO_TILE_ROWS)
        *tiles++ = (expert_tile){e, m0 - group->r0, end - m0 < MO_TILE_ROWS ? end - m0 : MO_TILE_ROWS, n0,
                                 columns - n0 < MO_TILE_COLS ? columns - n0 : MO_TILE_COLS};
  }
}

static void gate_up_tile(const mo_cpu *cpu, const expert_group *group, const expert_tile *tile, float *panel) {
  int64_t H = group->spec->hidden, F = group->spec->moe.width;
  const float *x = group->in + tile->m0 * H;
  float *g = group->gate + tile->m0 * F + tile->n0, *u = group->up + tile->m0 * F + tile->n0;
  mo_cpu_tile(cpu, group->weights->expert_gate + tile->expert, x, tile->m, tile->n0, tile->n, panel, g, F);
  mo_cpu_tile(cpu, group->weights->expert_up + tile->expert, x, tile->m, tile->n0, tile->n, panel, u, F);
  for (int64_t i = 0; i < tile->m; i++)
    for (int64_t j = 0; j < tile->n; j++)
      g[i * F + j] = mo_cpu_glu_value(cpu, group->spec, mo_round(cpu, g[i * F + j]), mo_round(cpu, u[i * F + j]));
}

static void down_tile(const mo_cpu *cpu, const expert_group *group, const expert_tile *tile, float *panel) {
  int64_t H = group->spec->hidden, F = group->spec->moe.width;
  float *y = group->out + (group->r0 + tile->m0) * H + tile->n0;
  mo_cpu_tile(cpu, group->weights->expert_down + tile->expert, group->gate + tile->m0 * F, tile->m, tile->n0, tile->n, panel, y,
              H);
  if (cpu->bf16)
    for (int64_t i = 0; i < tile->m; i++)
      for (int64_t j = 0; j < tile->n; j++) y[i * H + j] = mo_round_bf16(y[i * H + j]);
}

static mo_status run_group(mo_cpu *cpu, const expert_group *group, const float *x) {
  int64_t H = group->spec->hidden, F = group->spec->moe.width;
  int64_t up_tiles = count_tiles(group, F), down_tiles = count_tiles(group, H);
  expert_tile *tiles = mo_alloc((size_t)(up_tiles + down_tiles), sizeof *tiles), *down = tiles + up_tiles;
  if (!tiles) return MO_FAILED;
  list_tiles(group, F, tiles);
  list_tiles(group, H, down);
#pragma omp parallel num_threads(cpu->threads)
  {
    float *panel = mo_cpu_scratch(cpu, omp_get_thread_num());
#pragma omp for schedule(static)
    for (int64_t i = 0; i < group->n; i++)
      memcpy(group->in + i * H, x + group->routing->row[group->r0 + i] * H, (size_t)H * sizeof(float));
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < up_tiles; i++) gate_up_tile(cpu, group, tiles + i, panel);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < down_tiles; i++) down_tile(cpu, group, down + i, panel);
  }
  free(tiles);
  return MO_OK;
}

mo_status cpu_experts(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights, const void *x,
                      const mo_routing *routing, int64_t first, int64_t last, void *out) {
  enum { GROUP_ROWS = 16384 }; /* bounds the scratch; one expert alone may exceed it */
  mo_cpu *cpu = mo_cpu_of(backend);
  int64_t H = spec->hidden, F = spec->moe.width, widest = H > F ? H : F;
  MO_TRY(mo_cpu_reserve(cpu, (size_t)(MO_TILE_COLS * widest) * sizeof(float)));
  while (first < last) {
    int64_t end = first + 1, r0 = routing->start[first];
    while (end < last && routing->start[end + 1] - r0 <= GROUP_ROWS) end++;
    int64_t n = routing->start[end] - r0;
    void *block;
    MO_TRY(mo_cpu_rows(cpu, (size_t)(n * (H + 2 * F)) * sizeof(float), &block));
    float *in = block;
    expert_group group = {spec, weights, routing, first, end, r0, n, in, in + n * H, in + n * (H + F), out};
    if (n > 0) MO_TRY(run_group(cpu, &group, x));
    first = end;
  }
  return MO_OK;
}

mo_status cpu_combine(mo_backend *backend, const mo_model_spec *spec, const void *expert_out, const mo_routing *routing,
                      int64_t T, void *y) {
  mo_cpu *cpu = mo_cpu_of(backend);
  int64_t H = spec->hidden, K = spec->moe.top_k;
  MO_TRY(mo_cpu_reserve(cpu, (size_t)K * sizeof(int32_t)));
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t t = 0; t < T; t++) {
    int32_t *order = mo_cpu_scratch(cpu, omp_get_thread_num());
    for (int64_t j = 0; j < K; j++) { /* slots by ascending expert */
      int64_t i = j;
      for (; i > 0 && routing->expert[t * K + order[i - 1]] > routing->expert[t * K + j]; i--) order[i] = order[i - 1];
      order[i] = (int32_t)j;
    }
    float *sum = (float *)y + t * H;
    memset(sum, 0, (size_t)H * sizeof *sum);
    for (int64_t j = 0; j < K; j++) {
      const float *row = (const float *)expert_out + routing->place[t * K + order[j]] * H;
      float weight = routing->weight[t * K + order[j]];
      for (int64_t h = 0; h < H; h++) sum[h] = mo_round(cpu, sum[h] + mo_round(cpu, row[h] * weight));
    }
  }
  return MO_OK;
}
