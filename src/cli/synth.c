/* moe-outliers synth CONFIG.json -o DIR [--seed S] [--layers N] [--dtype bf16|f32|f16] */
#include "moe_outliers/synth.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "common/meter.h"
#include "moe_outliers/clock.h"

typedef struct {
  const char *config, *directory;
  uint64_t seed;
  int64_t layers; /* 0: all of the config */
  int dtype;
  bool help;
} synth_arguments;

enum { OUTPUT = 1, SEED, LAYERS, DTYPE };
static const mo_cli_option OPTIONS[] = {
    {OUTPUT, "output", 'o', "the folder of the checkpoint"},
    {SEED, "seed", 0, "a whole number"},
    {LAYERS, "layers", 0, "the number of layers"},
    {DTYPE, "dtype", 0, "bf16, f32 or f16"},
};

static mo_status take_dtype(synth_arguments *synth, const char *name) {
  static const char *const names[] = {"bf16", "f32", "f16"}; /* the order of mo_synth's dtype */
  for (int i = 0; i < 3; i++) {
    if (strcmp(names[i], name) != 0) continue;
    synth->dtype = i;
    return MO_OK;
  }
  return MO_FAIL(MO_INVALID, "--dtype \"%s\" is unknown (moe-outliers synth): give bf16, f32 or f16", name);
}

static mo_status take(synth_arguments *synth, const mo_cli_arguments *arguments, int event) {
  switch (event) {
    case OUTPUT:
      synth->directory = arguments->value;
      return MO_OK;
    case SEED:
      return mo_cli_unsigned(arguments, "--seed", &synth->seed);
    case LAYERS:
      return mo_cli_integer(arguments, "--layers", 1, 65536, &synth->layers);
    case DTYPE:
      return take_dtype(synth, arguments->value);
    case MO_CLI_HELP:
      synth->help = true;
      return MO_OK;
    default:
      return mo_cli_only_operand(arguments, "CONFIG.json", &synth->config);
  }
}

static mo_status parse(synth_arguments *synth, int argc, char **argv) {
  mo_cli_arguments arguments = MO_CLI_ARGUMENTS(argc, argv, OPTIONS);
  for (;;) {
    int event;
    MO_TRY(mo_cli_next(&arguments, &event));
    if (event == MO_CLI_END) break;
    MO_TRY(take(synth, &arguments, event));
    if (synth->help) return MO_OK;
  }
  MO_TRY(mo_cli_need(&arguments, "CONFIG.json", synth->config));
  return mo_cli_need(&arguments, "-o folder", synth->directory);
}

typedef struct {
  mo_meter meter;
  double started;
} shown;

static void tell(void *context, int64_t written, int64_t all) {
  shown *show = context;
  double time = mo_seconds(), seconds = time - show->started;
  char text[160], left[MO_DURATION_BYTES];
  if (!mo_meter_due(&show->meter, time)) return;
  snprintf(text, sizeof text, "%.3g of %.3g GB written  %.2f GB/s  ETA %s", 1e-9 * (double)written, 1e-9 * (double)all,
           1e-9 * mo_meter_rate(&show->meter, time, written),
           mo_meter_duration(left, mo_meter_left(seconds, (double)written, (double)all)));
  mo_meter_show(&show->meter, time, (double)written / (double)all, text);
}

static mo_status write_model(const synth_arguments *synth) {
  shown show = {.started = mo_seconds()};
  mo_synth_progress progress = {tell, &show};
  mo_meter_start(&show.meter, show.started);
  mo_status status = mo_synth(synth->config, synth->directory, synth->seed, synth->layers, synth->dtype, &progress);
  mo_meter_clear(&show.meter);
  return status;
}

int mo_cli_synth(int argc, char **argv) {
  synth_arguments synth = {0};
  mo_status status = parse(&synth, argc, argv);
  if (status == MO_OK && synth.help)
    status = mo_cli_print_usage("synth", stdout);
  else if (status == MO_OK)
    status = write_model(&synth);
  return mo_cli_finish(status);
}
