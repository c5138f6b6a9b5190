/* The plan of a run: which rank computes which stages, in blocks; micro-batches; memory; and how long it will take. Made from
 * sizes and assumed rates alone, before any weight is read; the same on every rank. */
#ifndef MOE_OUTLIERS_PLAN_H
#define MOE_OUTLIERS_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "moe_outliers/backend.h"
#include "moe_outliers/config.h"
#include "moe_outliers/model.h"
#include "moe_outliers/status.h"

/* Consecutive stages that one rank holds at the same time and runs every micro-batch through. */
typedef struct {
  int rank;
  int64_t first_stage, n_stages;
} mo_block;

typedef struct {
  int n_ranks;
  int64_t n_stages;    /* L + 2, or L + 1 without perplexity (no head) */
  int64_t first_stage; /* stages before it are not scheduled: a run that goes on has done them */
  int64_t *start;      /* [n_micro] stage at which a micro-batch goes on, >= first_stage; NULL: all at first_stage */
  int64_t n_sequences, length;
  int64_t micro_batch, n_micro; /* sequences of a micro-batch; the last of a variant may be smaller */
  int64_t variants;             /* 1; of an ablation: how often the sequences go through side by side */
  mo_partition_kind asked;      /* what the request said */
  mo_partition_kind partition;  /* contiguous or interleaved, as chosen */
  bool fits;                    /* every rank holds all its weights at the same time */
  mo_stage_cost *costs;         /* [n_stages] */
  int64_t *arena;               /* [n_stages] bytes of the stage's weights in backend memory */
  mo_block *blocks;             /* in stage order, from first_stage to the last */
  int64_t n_blocks;
  int64_t *arena_bytes;     /* [n_ranks] bound of weights in memory at a time */
  int64_t *resident_bytes;  /* [n_ranks] all weights of the rank */
  int64_t contiguous_bytes; /* the least that the fullest rank must hold for a contiguous partition to fit */

  /* Memory of a rank that has a block, beside its arena. The backend's; on a GPU what nvidia-smi shows of the process: */
  int64_t activation_bytes; /* residual stream of all sequences */
  int64_t position_bytes;   /* bits of the positions hit in a micro-batch */
  int64_t workspace_bytes;  /* buffers of one micro-batch */
  int64_t scratch_bytes;    /* of the backend's operations */
  int64_t overhead_bytes;   /* the process, its libraries, connections to other ranks */
  /* The host's, counted with the backend's where its memory is the host's: */
  int64_t staging_bytes;    /* weights and rows on their way to the device */
  int64_t statistics_bytes; /* accumulators, as long as at most an eighth of the features have outliers at a site */
  bool host_memory;         /* the backend's memory is the host's */
  int64_t memory_bytes;     /* the budget, 0 = no bound */
  int64_t ablation_bytes;   /* that the smallest pass of the ablation takes more than this one */
} mo_plan;

/* What storage, ranks and the connections between them are assumed to deliver. */
typedef struct {
  double bytes_per_second;         /* of a node's storage, shared by its ranks that read */
  double rank_bytes_per_second;    /* most that a rank alone reads; 0: all that the node's storage gives */
  int times_read;                  /* of each byte (engine.verify: 2); 0: once */
  double fresh;                    /* times as long takes what is the first to lie in its place in memory; 0: once */
  int ranks_per_node;              /* 0: all ranks on one node */
  double flops_per_second;         /* of a rank */
  const double *stage_seconds;     /* [n_stages] to compute a stage for all sequences; NULL: by its operations */
  double message_bytes_per_second; /* rows from rank to rank; 0: they take no time */
  double read_seconds;             /* before the first byte is read */
  double start_seconds;            /* before the first product, while weights are read already */
} mo_plan_rates;

/* Rates of a device kind that are good enough to balance ranks: sustained ones of whole models, storage of a good local disk.
 * gpu: part of a GPU's name as in deployment.gpu_filter, "" if unknown; *name: what was found there (static). */
mo_plan_rates mo_plan_default_rates(bool cuda, const char *gpu, mo_precision precision, int threads, const char **name);
/* GB (1e9 bytes) of memory of the GPUs of that name, of the smallest where there are several; 0: unknown. */
double mo_plan_gpu_memory(const char *gpu);

typedef struct {
  const mo_model_spec *spec;
  int64_t n_sequences, length;
  int64_t micro_batch;  /* 0: choose (a quarter of the sequences, whatever the ranks and the memory) */
  const int64_t *start; /* [n_micro] stages at which the micro-batches of a continued run go on; NULL: at the first */
  bool perplexity;
  int64_t variants;        /* a pass of an ablation with as many variants; 0: the run itself */
  int64_t followed;        /* of an ablation: outlier features whose growth is followed */
  bool ablates;            /* the run itself, and an ablation follows: its smallest pass must fit too */
  int64_t n_thresholds;    /* that outlier values are found by; 0: 1 */
  bool stores_activations; /* site tensors go to the file: a micro-batch of one on the host */
  int n_ranks;
  int activation_bytes; /* of one value in the backend */
  mo_partition_kind partition;
  const int64_t *stage_bytes; /* [L + 2] arena bytes per stage as in the checkpoint, or NULL: from element_bytes */
  int element_bytes;
  int64_t memory_bytes;    /* per rank for everything; 0 = no bound */
  const char *memory_from; /* who says so, for errors; NULL: engine.device_memory_gb */
  mo_plan_rates rates;

  mo_backend_memory (*memory_of)(const mo_backend_load *load); /* NULL: the backend takes nothing of its own */
  mo_precision precision;
  int threads;
  mo_dtype stored;       /* as in mo_backend_load */
  bool host_memory;      /* the backend's memory is the host's */
  int64_t staging_bytes; /* of the streamer */
} mo_plan_request;

/* Blocks: contiguous, each rank gets consecutive stages; interleaved, small blocks go round the ranks. Automatic: contiguous where
 * some contiguous partition lets every rank hold all its weights, else interleaved, so that all ranks load all the time. Of each
 * kind the plan takes the cut whose predicted time is the smallest among those that it tries. Where a rank's stages do not fit,
 * weights of later blocks replace those of earlier ones; blocks are then at most half of the arena, so that one loads while one
 * computes, where stages are small enough. Ranks beyond the number of stages get none. Memory too small for the largest stage:
 * MO_INVALID with the smallest that works. Free with mo_plan_free. */
MO_CHECKED mo_status mo_plan_make(mo_plan *plan, const mo_plan_request *request);
void mo_plan_free(mo_plan *plan);

/* Micro-batches of a variant follow one another: the variant of one, its first sequence within the variant, its sequences. */
int64_t mo_plan_variant(const mo_plan *plan, int64_t micro);
int64_t mo_plan_first_sequence(const mo_plan *plan, int64_t micro);
int64_t mo_plan_batch(const mo_plan *plan, int64_t micro);

/* The rank that computes a stage; of a stage that is done, the one that puts its results back. -1: nobody. */
int mo_plan_rank_of(const mo_plan *plan, int64_t stage);
int mo_plan_idle_ranks(const mo_plan *plan); /* that have no block */
/* The lowest stage at which a micro-batch begins; start: [n_micro]. n_stages if all are through. */
int64_t mo_plan_first_start(const mo_plan *plan, const int64_t *start);
/* Bytes of backend memory that a rank will use at most; 0 for a rank without a block. */
int64_t mo_plan_memory(const mo_plan *plan, int rank);
/* The same without the arena. */
int64_t mo_plan_memory_beside(const mo_plan *plan);
/* Arena bytes from which a rank's next block can load while one computes; at most what its stages need in all. */
int64_t mo_plan_overlap_bytes(const mo_plan *plan, int rank);

/* A prediction, in seconds from the first read to the last product. */
typedef struct {
  double seconds;
  double compute, load,
      bubble;           /* their sum: a rank's time computing, waiting for weights, and with nothing to do because
                                   of other ranks; means over the ranks that have a block */
  double storage_alone; /* seconds if computing took no time */
  double compute_alone; /* seconds if all weights were there from the start */
} mo_plan_time;

/* By simulation of the engine's schedule: reads ahead in the order of the plan, as far as the arena has room; computes, within a
 * rank's block, any micro-batch whose next stage is loaded; messages between ranks. */
MO_CHECKED mo_status mo_plan_predict(const mo_plan *plan, const mo_plan_rates *rates, mo_plan_time *time);

/* What the `plan` command is asked beside the config; 0: choose. */
typedef struct {
  int n_ranks;    /* of GPUs: deployment.gpus; else 1 */
  double vram_gb; /* engine.device_memory_gb; of GPUs: deployment.min_vram_gb, what deployment.gpu_filter names */
  double bandwidth_gb_s; /* of a node's storage */
  double tflops;         /* of a rank, sustained */
  int ranks_per_node;    /* 8, or all if there are fewer */
  const char *gpu;       /* the GPU's name; NULL: deployment.gpu_filter */
  bool json;
} mo_plan_options;

/* The `plan` command: reads config.json of config->model.path, or config->model.config while that folder holds none, and prints
 * parameters, bytes, partition, memory, predicted time and cost. */
MO_CHECKED mo_status mo_plan_command(const mo_config *config, const mo_plan_options *options, FILE *out);

#endif
