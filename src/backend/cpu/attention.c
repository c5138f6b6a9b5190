/* Causal attention of the CPU backend: a block of queries against the keys it sees. In bf16 runs scores, scaled scores and
 * probabilities round as in the reference's eager attention (huggingface/transformers 5.17, eager_attention_forward of
 * models/llama and of models/gpt_oss); the softmax itself is float32. */
#include <cblas.h>
#include <math.h>
#include <omp.h>

#include "backend/cpu/cpu.h"

enum { QUERY_BLOCK = MO_QUERY_BLOCK };

typedef struct {
  const mo_model_spec *spec;
  int64_t window, S;
  const float *q, *k, *v, *sinks; /* sinks [heads] or NULL */
  float *out;
  float *top; /* [B*S, heads] or NULL */
} attention_job;

static float largest_of(const float *row, int64_t first, int64_t last) {
  float largest = 0; /* no probability is smaller */
  for (int64_t j = first; j <= last; j++) largest = row[j] > largest ? row[j] : largest;
  return largest;
}

/* Softmax of one row over keys first..last (places in the row), the rest set to 0. *likeliest: the largest, unrounded; NULL: not
 * asked for. */
static void softmax_row(const mo_cpu *cpu, const mo_model_spec *spec, float *row, int64_t n_keys, int64_t first,
                        int64_t last, const float *sink, float *likeliest) {
  float top = sink ? *sink : -INFINITY;
  for (int64_t j = first; j <= last; j++) row[j] = mo_round(cpu, mo_round(cpu, row[j]) * spec->attention.scale);
  for (int64_t j = first; j <= last; j++) top = row[j] > top ? row[j] : top;
  for (int64_t j = 0; j < first; j++) row[j] = 0;
  for (int64_t j = last + 1; j < n_keys; j++) row[j] = 0;
  bool differences = cpu->bf16 && spec->attention.softmax_bf16; /* the reference subtracts the largest in bf16 first */
  for (int64_t j = first; j <= last; j++) row[j] = mo_expf(differences ? mo_round_bf16(row[j] - top) : row[j] - top);
  double sum = 0;
  if (sink) sum = mo_expf(differences ? mo_round_bf16(*sink - top) : *sink - top);
  for (int64_t j = first; j <= last; j++) sum += row[j];
  float scale = (float)(1.0 / sum);
  if (likeliest) *likeliest = largest_of(row, first, last) * scale;
  for (int64_t j = first; j <= last; j++) row[j] = mo_round(cpu, row[j] * scale);
}

/* Queries s0 .. s0+n-1 of one head of one sequence; scores: scratch [QUERY_BLOCK, keys]. */
static void attend(const mo_cpu *cpu, const attention_job *job, int64_t b, int64_t h, int64_t s0, int64_t n,
                   float *scores) {
  int64_t heads = job->spec->attention.heads, kv_heads = job->spec->attention.kv_heads,
          D = job->spec->attention.head_dim;
  int64_t kv = h / (heads / kv_heads), first_key = 0;
  if (job->window > 0 && s0 - job->window + 1 > 0) first_key = s0 - job->window + 1;
  int64_t n_keys = s0 + n - first_key;
  const float *q = job->q + ((b * job->S + s0) * heads + h) * D;
  const float *k = job->k + ((b * job->S + first_key) * kv_heads + kv) * D;
  const float *v = job->v + ((b * job->S + first_key) * kv_heads + kv) * D;
  float *out = job->out + ((b * job->S + s0) * heads + h) * D;
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)n_keys, (int)D, 1.0f, q, (int)(heads * D), k,
              (int)(kv_heads * D), 0.0f, scores, (int)n_keys);
  for (int64_t i = 0; i < n; i++) {
    int64_t last = s0 + i - first_key;
    int64_t first = job->window > 0 && last - job->window + 1 > 0 ? last - job->window + 1 : 0;
    softmax_row(cpu, job->spec, scores + i * n_keys, n_keys, first, last, job->sinks ? job->sinks + h : NULL,
                job->top ? job->top + (b * job->S + s0 + i) * heads + h : NULL);
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)D, (int)n_keys, 1.0f, scores, (int)n_keys, v,
              (int)(kv_heads * D), 0.0f, out, (int)(heads * D));
  if (cpu->bf16)
    for (int64_t i = 0; i < n; i++)
      for (int64_t d = 0; d < D; d++) out[i * heads * D + d] = mo_round_bf16(out[i * heads * D + d]);
}

mo_status cpu_attention(mo_backend *backend, const mo_model_spec *spec, int64_t window, const mo_weight *sinks,
                        const void *q, const void *k, const void *v, int64_t B, int64_t S, void *out, float *top) {
  mo_cpu *cpu = mo_cpu_of(backend);
  int64_t heads = spec->attention.heads, blocks = (S + QUERY_BLOCK - 1) / QUERY_BLOCK;
  MO_TRY(mo_cpu_reserve(cpu, (size_t)(QUERY_BLOCK * S) * sizeof(float)));
  attention_job job = {spec, window, S, q, k, v, NULL, out, top};
  if (sinks && sinks->data) {
    void *block;
    MO_TRY(mo_cpu_rows(cpu, (size_t)heads * sizeof(float), &block));
    mo_cpu_convert(cpu, sinks, 0, heads, block);
    job.sinks = block;
  }
#pragma omp parallel for schedule(dynamic) num_threads(cpu->threads)
  for (int64_t task = 0; task < B * heads * blocks; task++) {
    int64_t s0 = task % blocks * QUERY_BLOCK, h = task / blocks % heads, b = task / blocks / heads;
    attend(cpu, &job, b, h, s0, S - s0 < QUERY_BLOCK ? S - s0 : QUERY_BLOCK, mo_cpu_scratch(cpu, omp_get_thread_num()));
  }
  return MO_OK;
}
