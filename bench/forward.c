/* Time of the forward pass with all weights in backend memory: random weights of a model's real shapes, N x S tokens.
 *
 *   bench_forward CONFIG.json [--layers L] [--sequences N] [--length S] [--micro B] [--device cuda|cpu] [--repeat R] [--no-experts]
 *                 [--profile]
 *
 * Prints the median time of a pass over the decoder layers with and without the outlier statistics (--no-experts: of the sites
 * alone), and TFLOP/s counting the operations of active experts. --profile waits after every operation and prints where the time goes. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "model.h"
#include "profile.h"

enum { MAX_REPEATS = 64 };

typedef struct {
  const char *config, *device;
  int64_t layers, sequences, length, micro, repeat;
  bool profile, no_experts;
} options;

/* Seconds of one pass of all micro-batches through all layers. */
static double one_pass(bench_model *m) {
  bench_model_reset(m);
  bench_must(m->backend->table->sync(m->backend));
  double begin = bench_now();
  for (int64_t i = 0; i < bench_micro_count(m); i++) bench_model_run(m, i, 0, m->spec.n_layers);
  bench_must(m->backend->table->sync(m->backend));
  return bench_now() - begin;
}

/* Passes without and with statistics take turns: the GPU's clock falls while it warms up. */
static void time_passes(bench_model *m, int64_t repeat, double seconds[2][MAX_REPEATS]) {
  for (int64_t i = 0; i < 2 * repeat; i++) {
    m->statistics = i % 2;
    seconds[i % 2][i / 2] = one_pass(m);
  }
}

static void print_profile(bench_model *m) {
  mo_workspace_close(m->workspace);
  profile_begin(m->backend, true);
  bench_must(mo_workspace_open(&m->workspace, &m->spec, m->backend, m->micro, m->length));
  double total = one_pass(m);
  const profile_entry *entries = profile_entries();
  for (int i = 0; i < PROFILE_OPERATIONS; i++)
    if (entries[i].calls)
      printf("    %-16s %8.4f s %5.1f %% %6" PRId64 " calls\n", entries[i].name, entries[i].seconds,
             100 * entries[i].seconds / total, entries[i].calls);
}

static void report(bench_model *m, const options *o) {
  double seconds[2][MAX_REPEATS], spread, with_spread;
  one_pass(m); /* warm-up */
  time_passes(m, o->repeat, seconds);
  double without = bench_median(seconds[0], o->repeat, &spread);
  double with = bench_median(seconds[1], o->repeat, &with_spread);
  printf("%-14s %3" PRId64 " layers %2" PRId64 " x %" PRId64 " micro %2" PRId64
         ": %8.4f s (+-%.4f) %6.1f TFLOP/s; with statistics %8.4f s (+%.1f %%)\n",
         m->spec.architecture, m->spec.n_layers, o->sequences, o->length, o->micro, without, spread / 2,
         1e-12 * bench_model_flops(m) / without, with, 100 * (with / without - 1));
  if (o->profile) print_profile(m);
}

static void run(const options *o) {
  bench_model m = {.sequences = o->sequences, .length = o->length, .micro = o->micro, .experts = !o->no_experts};
  const mo_backend_table *table;
  mo_backend_options backend_options = {.precision = MO_PRECISION_BF16, .threads = 0};
  bench_must(mo_backend_choose(strcmp(o->device, "cuda") == 0 ? MO_DEVICE_CUDA : MO_DEVICE_CPU, &table));
  bench_model_read(&m, o->config, o->layers);
  bench_model_open(&m, table, &backend_options);
  bench_model_load(&m, 0, m.spec.n_layers);
  report(&m, o);
  bench_model_close(&m);
}

int main(int argc, char **argv) {
  options o = {.device = "cuda", .sequences = 16, .length = 2048, .micro = 16, .repeat = 5};
  bench_program = "bench_forward";
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    if (strcmp(argv[i], "--profile") == 0)
      o.profile = true;
    else if (strcmp(argv[i], "--no-experts") == 0)
      o.no_experts = true;
    else if (argv[i][0] != '-')
      o.config = argv[i];
    else if (strcmp(argv[i], "--layers") == 0)
      o.layers = bench_number(value), i++;
    else if (strcmp(argv[i], "--sequences") == 0)
      o.sequences = bench_number(value), i++;
    else if (strcmp(argv[i], "--length") == 0)
      o.length = bench_number(value), i++;
    else if (strcmp(argv[i], "--micro") == 0)
      o.micro = bench_number(value), i++;
    else if (strcmp(argv[i], "--repeat") == 0)
      o.repeat = bench_number(value), i++;
    else if (strcmp(argv[i], "--device") == 0)
      o.device = value, i++;
    else
      o.repeat = 0;
  }
  if (!o.config || o.layers < 0 || o.sequences < 1 || o.length < 1 || o.micro < 1 || o.repeat < 1 ||
      o.repeat > MAX_REPEATS) {
    fprintf(
        stderr,
        "usage: bench_forward CONFIG.json [--layers L] [--sequences N] [--length S] [--micro B] [--device cuda|cpu] "
        "[--repeat R] [--no-experts] [--profile]\n");
    return 2;
  }
  run(&o);
  return 0;
}
