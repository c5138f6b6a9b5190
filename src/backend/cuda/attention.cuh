/* What the kernels of attention share: the job and how it is cut into blocks of queries. */
#ifndef MO_BACKEND_CUDA_ATTENTION_CUH
#define MO_BACKEND_CUDA_ATTENTION_CUH

#include "backend/cuda/cuda.cuh"

constexpr float LOG2_E = 1.44269504088896341f;

struct attention_job {
  const void *q, *k, *v;
  const float *sinks; /* [heads] or NULL */
  void *out;
  float *top; /* [B*S, heads] largest probability of a key, or NULL */
  int S, D, heads, kv_heads, window; /* window 0: all keys */
  float scale;
  bool differences;        /* the largest score is subtracted in bf16 */
  int pairs, query_blocks; /* pairs: (sequence, head) */
  int group;               /* pairs whose blocks run side by side, so that their keys stay in the L2 cache */
};

/* A block of queries of one head of one sequence. */
struct attention_place {
  int query_block, b, h, kv_head;
};

/* Within a group of pairs the last queries, which see most keys, come first. */
__device__ __forceinline__ attention_place attention_place_of(const attention_job &job, int block) {
  int per_group = job.group * job.query_blocks, base = block / per_group * job.group, within = block % per_group;
  int size = min(job.group, job.pairs - base), pair = base + within % size;
  attention_place place;
  place.query_block = job.query_blocks - 1 - within / size;
  place.b = pair / job.heads;
  place.h = pair % job.heads;
  place.kv_head = place.h / (job.heads / job.kv_heads);
  return place;
}

__device__ __forceinline__ float *attention_top_of(const attention_job &job, int b, int row, int h) {
  return job.top + ((int64_t)b * job.S + row) * job.heads + h;
}

/* First and last tile of `keys` keys that queries first .. first+n-1 see. */
__device__ __forceinline__ void attention_tiles_of(const attention_job &job, int first, int n, int keys, int *begin,
                                                   int *end) {
  int oldest = job.window > 0 ? max(0, first - job.window + 1) : 0;
  *begin = oldest / keys;
  *end = min(first + n - 1, job.S - 1) / keys;
}

/* Fill in how the work is cut; blocks of `queries` queries, `element` bytes a number. */
static inline void attention_cut(attention_job *job, int queries, int element) {
  const int64_t cache = 16 << 20; /* about a third of the L2 cache of an H100 */
  int64_t bytes = (int64_t)job->S * job->D * 2 * element, kv_heads = bytes < cache ? cache / bytes : 1;
  int64_t group = kv_heads * (job->heads / job->kv_heads);
  job->query_blocks = (job->S + queries - 1) / queries;
  job->group = (int)(group < job->pairs ? group : job->pairs);
}

#ifdef MO_HAVE_HOPPER
/* Whether mo_cuda_attention_hopper does this job: on an sm_90 device, bf16, D = 64, 128 or 256, arrays on 16-byte
 * boundaries. */
bool mo_cuda_attention_hopper_fits(const mo_cuda *cuda, const attention_job *job);
/* The same as the portable kernel for bf16: scores in float32, probabilities meet v in bf16 before they are
 * normalised. */
MO_CHECKED mo_status mo_cuda_attention_hopper(mo_cuda *cuda, const attention_job *job);
#endif

#endif
