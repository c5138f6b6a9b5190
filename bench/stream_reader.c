/* Weights through the streamer and nothing else: every stage of a checkpoint is brought to the backend and given back.
 *
 *   bench_stream_reader FOLDER [--device cpu|check|cuda] [--arena GB,...] [--readers N,...] [--chunk KIB,...]
 *                              [--host GB] [--repeat R] [--verify]
 *
 * FOLDER may be an address, as model.path. --arena: memory for weights (0, the default: for all); --readers: 0, the default: as in a run; --chunk: bytes of a
 * read (0, the default: choose); --host: bound of staging buffers (0: none). Prints a line of JSON for each of R passes
 * with each combination: seconds from the opening of the streamer (arena, staging buffers and threads are made) to the
 * last byte, GB = 1e9 bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "moe_outliers/backend.h"
#include "moe_outliers/machine.h"
#include "moe_outliers/network.h"

enum { MOST = 16 };

typedef struct {
  double values[MOST];
  int n;
} list;

typedef struct {
  const char *folder;
  mo_device_choice device;
  list arena_gb, readers, chunk_kib;
  double host_gb;
  int repeat;
  bool verify;
} options;

typedef struct {
  mo_model_spec spec;
  mo_network *network; /* NULL: a folder here */
  mo_checkpoint *checkpoint;
  mo_catalogue catalogue;
  mo_backend *backend;
  int64_t *stages;
} scene;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void must(mo_status status) {
  if (status == MO_OK) return;
  fprintf(stderr, "bench_stream_reader: error: %s\n", mo_error_message());
  exit(1);
}

static void usage(void) {
  fprintf(stderr,
          "usage: bench_stream_reader FOLDER [--device cpu|check|cuda] [--arena GB,...] [--readers N,...] "
          "[--chunk KIB,...] [--host GB] [--repeat R] [--verify]\n");
  exit(2);
}

static mo_device_choice device_of(const char *name) {
  const mo_device_choice all[] = {MO_DEVICE_AUTO, MO_DEVICE_CPU, MO_DEVICE_CUDA, MO_DEVICE_CHECK};
  for (int i = 0; i < 4; i++)
    if (strcmp(name, mo_device_choice_name(all[i])) == 0) return all[i];
  usage();
  return MO_DEVICE_AUTO;
}

static list list_of(const char *text) {
  list l = {0};
  for (char *end; l.n < MOST; text = end + 1) {
    double value = strtod(text, &end);
    if (end == text || value < 0 || (*end && *end != ',')) usage();
    l.values[l.n++] = value;
    if (!*end) break;
  }
  return l;
}

static options parse(int argc, char **argv) {
  options o = {.device = MO_DEVICE_AUTO, .repeat = 1, .arena_gb.n = 1, .readers.n = 1, .chunk_kib.n = 1};
  for (int i = 1; i < argc; i++) {
    const char *key = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (strcmp(key, "--verify") == 0) {
      o.verify = true;
      continue;
    }
    if (key[0] != '-') {
      o.folder = key;
      continue;
    }
    if (!value) usage();
    i++;
    if (strcmp(key, "--device") == 0)
      o.device = device_of(value);
    else if (strcmp(key, "--arena") == 0)
      o.arena_gb = list_of(value);
    else if (strcmp(key, "--host") == 0)
      o.host_gb = atof(value);
    else if (strcmp(key, "--readers") == 0)
      o.readers = list_of(value);
    else if (strcmp(key, "--chunk") == 0)
      o.chunk_kib = list_of(value);
    else if (strcmp(key, "--repeat") == 0)
      o.repeat = atoi(value);
    else
      usage();
  }
  if (!o.folder || o.repeat < 1 || o.host_gb < 0) usage();
  return o;
}

static void open_network(scene *s, const char *address) {
  mo_network_options patient = {.patience = 60};
  const char *text;
  size_t bytes;
  must(mo_network_open(&s->network, address, &patient));
  must(mo_network_connect(s->network));
  must(mo_network_file(s->network, "config.json", &text, &bytes));
  must(mo_model_parse(&s->spec, text, bytes, address));
  must(mo_checkpoint_open_network(&s->checkpoint, s->network));
}

static void open_folder(scene *s, const char *folder) {
  char config[4096];
  snprintf(config, sizeof config, "%s/config.json", folder);
  must(mo_model_read(&s->spec, config));
  must(mo_checkpoint_open(&s->checkpoint, folder));
}

static void open_scene(scene *s, const options *o) {
  const mo_backend_table *table;
  mo_backend_options backend = {.threads = 1};
  if (mo_network_is_address(o->folder))
    open_network(s, o->folder);
  else
    open_folder(s, o->folder);
  must(mo_catalogue_build(&s->catalogue, &s->spec, s->checkpoint));
  must(mo_backend_choose(o->device, &table));
  must(table->open(&s->backend, &backend));
  s->stages = mo_alloc((size_t)s->catalogue.n_stages, sizeof *s->stages);
  if (!s->stages) must(MO_FAILED);
  for (int64_t i = 0; i < s->catalogue.n_stages; i++) s->stages[i] = i;
}

static void close_scene(scene *s) {
  s->backend->table->close(s->backend);
  mo_catalogue_free(&s->catalogue);
  mo_checkpoint_close(s->checkpoint);
  mo_network_close(s->network);
  mo_model_free(&s->spec);
  free(s->stages);
}

static void pass(const scene *s, const mo_stream_plan *plan) {
  mo_streamer *streamer;
  const mo_stage_weights *weights;
  mo_stream_timing sum = {0};
  double begin = now(), opened, end;
  must(mo_streamer_open(&streamer, plan, &s->spec, &s->catalogue, s->checkpoint, s->backend));
  opened = now();
  for (int64_t i = 0; i < plan->n_stages; i++) {
    must(mo_streamer_acquire(streamer, i, &weights, NULL, NULL));
    mo_streamer_release(streamer, i);
    mo_stream_timing one = mo_streamer_timing(streamer, i);
    sum.bytes_read += one.bytes_read;
    sum.bytes_direct += one.bytes_direct;
    sum.read_seconds += one.read_seconds;
    sum.copy_seconds += one.copy_seconds;
  }
  end = now();
  must(mo_streamer_check(streamer));
  mo_streamer_close(streamer);
  mo_stream_ring ring = mo_stream_ring_of(plan);
  printf(
      "{\"device\": \"%s\", \"readers\": %d, \"buffers\": %d, \"chunk_kib\": %lld, \"arena_gb\": %.2f, \"bytes\": "
      "%lld, "
      "\"direct\": %.3f, \"open_s\": %.3f, \"s\": %.3f, \"gb_per_s\": %.2f, \"read_s\": %.2f, \"copy_s\": %.2f, "
      "\"gb_per_s_after_open\": %.2f}\n",
      s->backend->table->name, ring.n_readers, ring.n_buffers, (long long)ring.chunk_bytes / 1024,
      1e-9 * (double)plan->arena_bytes, (long long)sum.bytes_read, (double)sum.bytes_direct / (double)sum.bytes_read,
      opened - begin, end - begin, 1e-9 * (double)sum.bytes_read / (end - begin), sum.read_seconds, sum.copy_seconds,
      1e-9 * (double)sum.bytes_read / (end - opened));
  fflush(stdout);
}

int main(int argc, char **argv) {
  options o = parse(argc, argv);
  scene s = {0};
  mo_machine machine;
  open_scene(&s, &o);
  mo_machine_read(&machine, "");
  int cores = mo_machine_share(&machine, 1);
  int64_t all = 0;
  for (int64_t i = 0; i < s.catalogue.n_stages; i++) all += s.catalogue.stages[i].arena_bytes;
  for (int i = 0; i < o.arena_gb.n * o.chunk_kib.n * o.readers.n * o.repeat; i++) {
    int n = i / o.repeat;
    int64_t arena = (int64_t)(o.arena_gb.values[n / o.readers.n / o.chunk_kib.n] * 1e9);
    int readers = (int)o.readers.values[n % o.readers.n];
    mo_stream_plan plan = {.stages = s.stages,
                           .n_stages = s.catalogue.n_stages,
                           .arena_bytes = arena ? arena : all,
                           .chunk_bytes = (int64_t)(o.chunk_kib.values[n / o.readers.n % o.chunk_kib.n] * 1024),
                           .n_readers = readers                     ? readers
                                        : cores < MO_STREAM_READERS ? cores
                                                                    : MO_STREAM_READERS,
                           .host_bytes = (int64_t)(o.host_gb * 1e9),
                           .verify = o.verify};
    pass(&s, &plan);
  }
  close_scene(&s);
}
