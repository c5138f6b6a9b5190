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

/* The K best experts by score. taken: scratch [E]. */
static void choose_best(const mo_model_spec *spec, const float *scores, bool *taken, int32_t *expert) {
  memset(taken, 0, (size_t)spec->moe.experts);
  for (int64_t j = 0; j < spec->moe.top_k; j++) {
    expert[j] = best(scores, taken, spec->moe.experts);
    taken[expert[j]] = true;
  }
}

/* softmax over all experts, the K largest, renormalised where the model does. */
static void route_softmax(const mo_model_spec *spec, float *scores, bool *taken, int32_t *expert, float *weight) {
  float sum = 0;
  softmax(scores, spec->moe.experts);
  choose_best(spec, scores, taken, expert);
  for (int64_t j = 0; j < spec->moe.top_k; j++) sum += weight[j] = scores[expert[j]];
  for (int64_t j = 0; j < spec->moe.top_k && spec->moe.renormalise; j++) weight[j] /= sum;
}

/* gpt_oss: the K largest logits, softmax over these. */
static void route_topk(const mo_model_spec *spec, const float *scores, bool *taken, int32_t *expert, float *weight) {
  choose_best(spec, scores, taken, expert);
  for (int64_t j = 0; j < spec->moe.top_k; j++) weight[j] = scores[expert[j]];
  softmax(weight, spec->moe.top_k);
}

/* Set the choice scores of experts outside the best groups to -inf; a group's score is the sum of its two largest. */
static void keep_groups(const mo_model_spec *spec, float *choice, bool *taken) {
  int64_t groups = spec->moe.groups, size = spec->moe.experts / groups;
  bool *kept = taken + spec->moe.experts; /* [groups] */
  memset(kept, 0, (size_t)groups);
  for (int64_t round = 0; round < spec->moe.top_groups; round++) {
    int64_t chosen = -1;
    float highest = 0;
    for (int64_t g = 0; g < groups; g++) {
      if (kept[g]) continue;
      float first = -INFINITY, second = -INFINITY;
      for (int64_t e = g * size; e < (g + 1) * size; e++) {
        second = choice[e] > first ? first : choice[e] > second ? choice[e] : second;
        first = choice[e] > first ? choice[e] : first;
      }
      if (chosen < 0 || first + second > highest) chosen = g, highest = first + second;
    }
    kept[chosen] = true;
  }
  for (int64_t e = 0; e < spec->moe.experts; e++)
    if (!kept[e / size]) choice[e] = -INFINITY;
}

/* glm4_moe: sigmoid scores; the choice alone is corrected by a bias and limited to groups. choice: scratch [E]. */
static void route_sigmoid(const mo_model_spec *spec, const float *correction, float *scores, float *choice, bool *taken,
                          int32_t *expert, float *weight) {
  float sum = 1e-20f;
  for (int64_t e = 0; e < spec->moe.experts; e++) {
    scores[e] = 1.0f / (1.0f + expf(-scores[e]));
    choice[e] = scores[e] + correction[e];
  }
  if (spec->moe.groups > spec->moe.top_groups) keep_groups(spec, choice, taken);
  choose_best(spec, choice, taken, expert);
  for (int64_t j = 0; j < spec->moe.top_k; j++) sum += weight[j] = scores[expert[j]];
  for (int64_t j = 0; j < spec->moe.top_k; j++)
    weight[j] = (spec->moe.renormalise ? weight[j] / sum : weight[j]) * spec->moe.routed_scale;
}

/* Experts and weights of one token from its E logits (overwritten). scratch: [E] floats, then [2E] bools. */
static void choose(const mo_cpu *cpu, const mo_model_spec *spec, const float *correction, float *scores, void *scratch,
                   int32_t *expert, float *weight) {
  float *choice = scratch;
  bool *taken = (bool *)(choice + spec->moe.experts);
  if (spec->moe.router == MO_ROUTER_SOFTMAX_TOPK)
    route_softmax(spec, scores, taken, expert, weight);
  else if (spec->moe.router == MO_ROUTER_TOPK_SOFTMAX)
    route_topk(spec, scores, taken, expert, weight);
  else
    route_sigmoid(spec, correction, scores, choice, taken, expert, weight);
  for (int64_t j = 0; j < spec->moe.top_k && spec->moe.weights_bf16; j++) weight[j] = mo_round(cpu, weight[j]);
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

mo_status cpu_route(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights, const void *x,
                    int64_t T, mo_routing *routing) {
  mo_cpu *cpu = mo_cpu_of(backend);
  int64_t E = spec->moe.experts, K = spec->moe.top_k;
  void *block;
  MO_TRY(mo_cpu_rows(cpu, (size_t)((T + 1) * E) * sizeof(float), &block));
  float *logits = block, *correction = logits + T * E;
  MO_TRY(mo_cpu_product(cpu, &weights->one[MO_ROUTER], &weights->one[MO_ROUTER_BIAS], x, T, !spec->moe.router_float,
                        logits));
  if (spec->moe.correction) mo_cpu_convert_exact(&weights->one[MO_ROUTER_CORRECTION], 0, E, correction);
  MO_TRY(mo_cpu_reserve(cpu, (size_t)E * sizeof(int64_t)));
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t t = 0; t < T; t++)
    choose(cpu, spec, correction, logits + t * E, mo_cpu_scratch(cpu, omp_get_thread_num()), routing->expert + t * K,
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
_Static_assert(sizeof(expert_tile) == MO_EXPERT_TILE, "cpu.h knows its size");

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

/* y [m, n] of row length ldy += bias [n0..]; rounds before and after, as the reference's two operators do. */
static void add_bias(const mo_cpu *cpu, const mo_weight *bias, int64_t m, int64_t n0, int64_t n, float *b, float *y,
                     int64_t ldy) {
  mo_cpu_convert(cpu, bias, n0, n, b);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) y[i * ldy + j] = mo_round(cpu, mo_round(cpu, y[i * ldy + j]) + b[j]);
}

/* gpt_oss: (up + 1) * gate * sigmoid(alpha gate) with clamped gate and up, every step rounded. */
static float clamped_glu(const mo_cpu *cpu, const mo_model_spec *spec, float g, float u) {
  float limit = spec->moe.glu_limit;
  g = g > limit ? limit : g;
  u = u > limit ? limit : u < -limit ? -limit : u;
  float swish = mo_round(cpu, g * mo_cpu_sigmoid(cpu, mo_round(cpu, g * spec->moe.glu_alpha)));
  return mo_round(cpu, mo_round(cpu, u + 1) * swish);
}

/* Fused gate and up: rows 2j and 2j+1 of the weight. panel: scratch for the weight's rows, then bias, then the product. */
static void fused_tile(const mo_cpu *cpu, const expert_group *group, const expert_tile *tile, float *panel) {
  int64_t H = group->spec->hidden, F = group->spec->moe.width, n = 2 * tile->n;
  float *b = panel + 2 * MO_TILE_COLS * H, *both = b + 2 * MO_TILE_COLS;
  mo_cpu_tile(cpu, group->weights->expert_gate_up + tile->expert, group->in + tile->m0 * H, tile->m, 2 * tile->n0, n,
              panel, both, n);
  add_bias(cpu, group->weights->expert_gate_up_bias + tile->expert, tile->m, 2 * tile->n0, n, b, both, n);
  for (int64_t i = 0; i < tile->m; i++)
    for (int64_t j = 0; j < tile->n; j++)
      group->gate[(tile->m0 + i) * F + tile->n0 + j] =
          clamped_glu(cpu, group->spec, both[i * n + 2 * j], both[i * n + 2 * j + 1]);
}

static void gate_up_tile(const mo_cpu *cpu, const expert_group *group, const expert_tile *tile, float *panel) {
  int64_t H = group->spec->hidden, F = group->spec->moe.width;
  const float *x = group->in + tile->m0 * H;
  float *g = group->gate + tile->m0 * F + tile->n0, *u = group->up + tile->m0 * F + tile->n0;
  mo_cpu_tile(cpu, group->weights->expert_gate + tile->expert, x, tile->m, tile->n0, tile->n, panel, g, F);
  mo_cpu_tile(cpu, group->weights->expert_up + tile->expert, x, tile->m, tile->n0, tile->n, panel, u, F);
  for (int64_t i = 0; i < tile->m; i++)
    for (int64_t j = 0; j < tile->n; j++)
      g[i * F + j] = mo_cpu_silu_times(cpu, mo_round(cpu, g[i * F + j]), mo_round(cpu, u[i * F + j]));
}

static void down_tile(const mo_cpu *cpu, const expert_group *group, const expert_tile *tile, float *panel) {
  int64_t H = group->spec->hidden, F = group->spec->moe.width;
  float *y = group->out + (group->r0 + tile->m0) * H + tile->n0;
  mo_cpu_tile(cpu, group->weights->expert_down + tile->expert, group->gate + tile->m0 * F, tile->m, tile->n0, tile->n,
              panel, y, H);
  if (group->spec->moe.expert_bias)
    add_bias(cpu, group->weights->expert_down_bias + tile->expert, tile->m, tile->n0, tile->n, panel, y, H);
  else if (cpu->bf16)
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
    for (int64_t i = 0; i < up_tiles; i++)
      (group->spec->moe.fused ? fused_tile : gate_up_tile)(cpu, group, tiles + i, panel);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < down_tiles; i++) down_tile(cpu, group, down + i, panel);
  }
  free(tiles);
  return MO_OK;
}

mo_status cpu_experts(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights, const void *x,
                      const mo_routing *routing, int64_t first, int64_t last, void *out) {
  mo_cpu *cpu = mo_cpu_of(backend);
  int64_t H = spec->hidden, F = spec->moe.width, widest = H > F ? H : F;
  size_t product = spec->moe.fused ? 2 * MO_TILE_COLS * (MO_TILE_ROWS + 1) : 0;
  MO_TRY(mo_cpu_reserve(cpu, ((size_t)(2 * MO_TILE_COLS * widest) + product) * sizeof(float)));
  while (first < last) {
    int64_t end = first + 1, r0 = routing->start[first];
    while (end < last && routing->start[end + 1] - r0 <= MO_GROUP_ROWS) end++;
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

/* sum [H] = the token's expert outputs, weighted; order: room for K slots. peaks: [R] or NULL. */
static void sum_experts(const mo_cpu *cpu, const mo_model_spec *spec, const float *expert_out,
                        const mo_routing *routing, int64_t t, float *peaks, int32_t *order, float *sum) {
  int64_t H = spec->hidden, K = spec->moe.top_k;
  for (int64_t j = 0; j < K; j++) { /* slots by ascending expert */
    int64_t i = j;
    for (; i > 0 && routing->expert[t * K + order[i - 1]] > routing->expert[t * K + j]; i--) order[i] = order[i - 1];
    order[i] = (int32_t)j;
  }
  memset(sum, 0, (size_t)H * sizeof *sum);
  for (int64_t j = 0; j < K; j++) {
    int32_t place = routing->place[t * K + order[j]];
    const float *row = expert_out + place * H;
    if (peaks) peaks[place] = mo_cpu_peak(row, H);
    float weight = routing->weight[t * K + order[j]];
    for (int64_t h = 0; h < H; h++) sum[h] = mo_round(cpu, sum[h] + mo_round(cpu, row[h] * weight));
  }
}

mo_status cpu_combine(mo_backend *backend, const mo_model_spec *spec, const void *expert_out, const mo_routing *routing,
                      int64_t T, float *peaks, void *y) {
  mo_cpu *cpu = mo_cpu_of(backend);
  int64_t H = spec->hidden;
  MO_TRY(mo_cpu_reserve(cpu, (size_t)spec->moe.top_k * sizeof(int32_t)));
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t t = 0; t < T; t++)
    sum_experts(cpu, spec, expert_out, routing, t, peaks, mo_cpu_scratch(cpu, omp_get_thread_num()),
                (float *)y + t * H);
  return MO_OK;
}

mo_status cpu_combine_add(mo_backend *backend, const mo_model_spec *spec, const void *expert_out,
                          const mo_routing *routing, int64_t T, float *peaks, void *x) {
  mo_cpu *cpu = mo_cpu_of(backend);
  int64_t H = spec->hidden, K = spec->moe.top_k;
  MO_TRY(mo_cpu_reserve(cpu, (size_t)H * sizeof(float) + (size_t)K * sizeof(int32_t)));
#pragma omp parallel for schedule(static) num_threads(cpu->threads)
  for (int64_t t = 0; t < T; t++) {
    float *sum = mo_cpu_scratch(cpu, omp_get_thread_num()), *row = (float *)x + t * H;
    sum_experts(cpu, spec, expert_out, routing, t, peaks, (int32_t *)(sum + H), sum);
    for (int64_t h = 0; h < H; h++) row[h] = mo_round(cpu, row[h] + sum[h]);
  }
  return MO_OK;
}
