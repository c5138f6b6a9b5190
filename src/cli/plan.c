/* moe-outliers plan CONFIG [--gpus N] [--vram GB] [--bandwidth GB/s] [--tflops N] [--per-node N] [--json] [-s key=value]... */
#include "moe_outliers/plan.h"

#include "cli.h"
#include "moe_outliers/config.h"

typedef struct {
  const char *config;
  int64_t gpus, per_node;
  mo_plan_options options;
  bool help;
  mo_cli_overrides overrides;
} plan_arguments;

enum { SET = 1, GPUS, VRAM, BANDWIDTH, TFLOPS, PER_NODE, JSON };
static const mo_cli_option OPTIONS[] = {
    {SET, "set", 's', "section.key=value"},
    {GPUS, "gpus", 0, "the number of ranks"},
    {VRAM, "vram", 0, "the memory of a rank in GB (1e9 bytes)"},
    {BANDWIDTH, "bandwidth", 0, "what a node's storage delivers in GB/s"},
    {TFLOPS, "tflops", 0, "the sustained rate of a rank in TFLOP/s"},
    {PER_NODE, "per-node", 0, "the number of ranks on a node"},
    {JSON, "json", 0, NULL},
};

static mo_status take(plan_arguments *plan, const mo_cli_arguments *arguments, int event) {
  switch (event) {
    case SET:
      return mo_cli_overrides_add(&plan->overrides, arguments->value);
    case GPUS:
      return mo_cli_integer(arguments, "--gpus", 1, 4096, &plan->gpus);
    case VRAM:
      return mo_cli_float(arguments, "--vram", 10000, &plan->options.vram_gb);
    case BANDWIDTH:
      return mo_cli_float(arguments, "--bandwidth", 1e6, &plan->options.bandwidth_gb_s);
    case TFLOPS:
      return mo_cli_float(arguments, "--tflops", 1e6, &plan->options.tflops);
    case PER_NODE:
      return mo_cli_integer(arguments, "--per-node", 1, 4096, &plan->per_node);
    case JSON:
      plan->options.json = true;
      return MO_OK;
    case MO_CLI_HELP:
      plan->help = true;
      return MO_OK;
    default:
      return mo_cli_only_operand(arguments, "config file", &plan->config);
  }
}

static mo_status parse(plan_arguments *plan, int argc, char **argv) {
  mo_cli_arguments arguments = MO_CLI_ARGUMENTS(argc, argv, OPTIONS);
  for (;;) {
    int event;
    MO_TRY(mo_cli_next(&arguments, &event));
    if (event == MO_CLI_END) break;
    MO_TRY(take(plan, &arguments, event));
    if (plan->help) return MO_OK;
  }
  return mo_cli_need(&arguments, "config file", plan->config);
}

static mo_status plan_config(plan_arguments *plan) {
  mo_config config;
  plan->options.n_ranks = (int)plan->gpus;
  plan->options.ranks_per_node = (int)plan->per_node;
  MO_TRY(mo_config_read(&config, plan->config, plan->overrides.texts, plan->overrides.n, false));
  mo_status status = mo_plan_command(&config, &plan->options, stdout);
  mo_config_free(&config);
  return status;
}

int mo_cli_plan(int argc, char **argv) {
  plan_arguments plan = {0};
  mo_status status = parse(&plan, argc, argv);
  if (status == MO_OK) status = plan.help ? mo_cli_print_usage("plan", stdout) : plan_config(&plan);
  mo_cli_overrides_free(&plan.overrides);
  return mo_cli_finish(status);
}
