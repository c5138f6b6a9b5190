/* What the programs of bench/ that run a model share: random weights of a model's shapes in backend memory, passes over its
 * layers, medians. Errors end the program. */
#ifndef MO_BENCH_MODEL_H
#define MO_BENCH_MODEL_H

#include "moe_outliers/layer.h"

typedef struct {
  mo_model_spec spec;
  mo_backend *backend;
  mo_workspace *workspace;
  mo_stage_weights *weights; /* [L]; of the layers that were loaded */
  void **memory;             /* [L]; NULL for the others */
  void *x;                   /* [N, S, H] residual stream */
  float *start;              /* host, [N, S, H]: the stream before the first layer */
  uint64_t *positions;
  int32_t *row_counts;
  int64_t sequences, length, micro;
  int64_t first;                    /* sequence of the micro-batch under way */
  bool statistics, experts;         /* collected: those of sites; those of experts with them */
  bool experts_expected;            /* their statistics are under way */
  mo_status (*poll)(void *context); /* called in the middle and at the end of every layer; NULL: not */
  void *poll_context;
} bench_model;

/* End the program with the error unless MO_OK; called `program` in the message. */
extern const char *bench_program;
void bench_must(mo_status status);

/* The config.json at `path`, cut to its first `layers` (0: all). */
void bench_model_read(bench_model *model, const char *path, int64_t layers);
/* Sequences, length and micro are set: the stream and the buffers of a micro-batch. */
void bench_model_open(bench_model *model, const mo_backend_table *table, const mo_backend_options *options);
/* Random weights for layers first .. first+n-1. No two layers have the same. */
void bench_model_load(bench_model *model, int64_t first, int64_t n);
void bench_model_close(bench_model *model);

/* The residual stream as it was before the first layer. */
void bench_model_reset(bench_model *model);
int64_t bench_model_values(const bench_model *model); /* of the stream */

int64_t bench_micro_count(const bench_model *model);
int64_t bench_micro_batch(const bench_model *model, int64_t index); /* sequences of micro-batch `index` */
void *bench_micro_rows(const bench_model *model, int64_t index);    /* its part of the stream */
/* Enqueue layers first .. first+n-1 for one micro-batch. */
void bench_model_run(bench_model *model, int64_t index, int64_t first, int64_t n);

/* Operations of active experts of one pass of all sequences. */
double bench_model_flops(const bench_model *model);

/* Sorts; *spread: largest minus smallest. */
double bench_median(double *seconds, int64_t n, double *spread);
double bench_now(void);
int64_t bench_number(const char *text); /* -1 if it is no whole number that is not negative */

#endif
