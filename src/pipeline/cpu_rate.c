#include "pipeline/cpu_rate.h"

#include "moe_outliers/backend.h"
#include "moe_outliers/clock.h"

enum { ROWS = 256, WIDTH = 1024 };

static const double of_a_model = 0.6; /* what passes with attention and statistics reach of a product's rate */

typedef struct {
  mo_backend *backend;
  void *x, *y, *w;
} product;

static mo_status open_product(product *p, mo_precision precision, int threads) {
  const mo_backend_table *op = &mo_backend_cpu;
  mo_backend_options options = {.precision = precision, .threads = threads};
  MO_TRY(op->open(&p->backend, &options));
  MO_TRY(op->alloc(p->backend, (size_t)ROWS * WIDTH * (size_t)p->backend->activation_bytes, &p->x));
  MO_TRY(op->alloc(p->backend, (size_t)ROWS * WIDTH * (size_t)p->backend->activation_bytes, &p->y));
  MO_TRY(op->alloc(p->backend, (size_t)WIDTH * WIDTH * sizeof(float), &p->w));
  MO_TRY(op->zero(p->backend, p->x, (size_t)ROWS * WIDTH * (size_t)p->backend->activation_bytes));
  return op->zero(p->backend, p->w, (size_t)WIDTH * WIDTH * sizeof(float));
}

static void close_product(product *p) {
  if (!p->backend) return;
  mo_backend_cpu.free(p->backend, p->x);
  mo_backend_cpu.free(p->backend, p->y);
  mo_backend_cpu.free(p->backend, p->w);
  mo_backend_cpu.close(p->backend);
}

/* As it is at present, also where others use the cores. The first time threads start and pages come. */
static mo_status time_product(const product *p, mo_precision precision, double *rate) {
  const double enough = 0.05;
  int n = 0;
  mo_weight w = {
      .data = p->w, .dtype = precision == MO_PRECISION_BF16 ? MO_BF16 : MO_F32, .rows = WIDTH, .cols = WIDTH};
  MO_TRY(mo_backend_cpu.linear(p->backend, &w, NULL, p->x, ROWS, p->y));
  double begin = mo_seconds(), seconds = 0;
  for (; seconds < enough; seconds = mo_seconds() - begin, n++)
    MO_TRY(mo_backend_cpu.linear(p->backend, &w, NULL, p->x, ROWS, p->y));
  *rate = n * 2.0 * ROWS * WIDTH * WIDTH / seconds;
  return MO_OK;
}

mo_status mo_cpu_rate(mo_precision precision, int threads, double *flops_per_second) {
  product p = {0};
  mo_status status = open_product(&p, precision, threads);
  if (status == MO_OK) status = time_product(&p, precision, flops_per_second);
  if (status == MO_OK) *flops_per_second *= of_a_model;
  close_product(&p);
  return status;
}
