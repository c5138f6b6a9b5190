/* Help texts. */
#include <string.h>

#include "pod/cli.h"

static const char PROGRAM[] =
    "Usage: moe-pod COMMAND [ARGUMENT]...\n"
    "Runs moe-outliers on rented GPUs of RunPod: creates pods, sends the source, builds, fetches the model there, "
    "runs,\n"
    "brings the results back and terminates the pods. A command that was interrupted is continued by the same "
    "command.\n"
    "\n"
    "Before anything is paid for:\n"
    "  gpus                     GPU types with memory, price and availability\n"
    "  plan CONFIG...           the cheapest GPUs that will do, with expected minutes and dollars\n"
    "\n"
    "Runs:\n"
    "  run CONFIG               one model\n"
    "  sweep [CONFIG...]        several models, also at the same time\n"
    "  status [MODEL...]        how far they are, and their cost so far\n"
    "  logs MODEL               what a run prints\n"
    "  fetch MODEL              bring back what a run has so far\n"
    "\n"
    "What is running:\n"
    "  list                     pods and clusters of this project, with price\n"
    "  terminate ID...          end them\n"
    "  cleanup                  end those that belong to no run any more\n"
    "\n"
    "  moe-pod COMMAND --help   options and examples of a command\n"
    "  moe-pod --version        version, commit, compiler, libraries\n"
    "\n"
    "RUNPOD_API_KEY (and HF_TOKEN, where a model needs it) are taken from the environment or from .env in the working\n"
    "directory, see .env.example. docs/runpod.md tells about all of it.\n"
    "Exit status: 0 done; 1 failed while running, or interrupted; 2 wrong usage, config or key (nothing was started).\n"
    "Whatever is left running is named on stderr, with its price and the command that ends it.\n"
    "\n"
    "Examples:\n"
    "  moe-pod plan configs/06_glm_45_air.cfg\n"
    "  moe-pod sweep --models 01 02 03 --parallel 3 --budget 20\n";

static const char GPUS[] =
    "Usage: moe-pod gpus [--community] [--max-price DOLLARS] [--json]\n"
    "Prints the GPU types on which the program runs, the cheapest first: memory, price of one GPU and hour on the "
    "secure\n"
    "and on the community cloud, most GPUs of one pod, and how many are free now.\n"
    "\n"
    "Options:\n"
    "      --community          availability on the community cloud, not the secure one\n"
    "      --max-price DOLLARS  only those of at most this price per GPU and hour\n"
    "      --json               JSON instead of a table\n"
    "  -h, --help               this text\n"
    "\n"
    "Examples:\n"
    "  moe-pod gpus\n"
    "  moe-pod gpus --max-price 1.5 --json\n";

#define CHOICE_OPTIONS                                                                                                 \
  "      --models NAME...          configs by number or name: 02 07 is configs/02_*.cfg and configs/07_*.cfg\n"        \
  "      --max-price DOLLARS       per GPU and hour (default: deployment.max_price, which is for all GPUs together)\n" \
  "      --community               machines of the community cloud too (default: deployment.cloud_type)\n"             \
  "  -s, --set section.key=value   replace one value of the configs\n"
#define RUN_OPTIONS                                                                                                    \
  "      --budget DOLLARS          spend no more than this; what would is not started, what does is ended after its\n" \
  "                                results so far were fetched (default: deployment.budget)\n"                         \
  "      --max-hours HOURS         of a pod's life, kept by a watchdog on the pod too (default: "                      \
  "deployment.max_hours)\n"                                                                                            \
  "      --slurm                   several pods: a cluster with Slurm, in place of plain MPI\n"                        \
  "      --keep                    leave the pod running when the run is over (it is paid until it is terminated, "    \
  "or\n"                                                                                                               \
  "                                ends itself: an hour after its run, MOE_POD_GRACE, or at its deadline)\n"           \
  "      --terminate-on-interrupt  Ctrl-C ends the pods; without it they go on, and the same command goes on with "    \
  "them\n"                                                                                                             \
  "  -n, --dry-run                 say what would be done; nothing is created\n"                                       \
  "      --json                    the outcome as JSON\n"                                                              \
  "  -h, --help                    this text\n"

static const char PLAN[] =
    "Usage: moe-pod plan CONFIG... [--models NAME...] [--max-price DOLLARS] [--community] [--json] [-s "
    "section.key=value]...\n"
    "Prints which GPUs a run would take: of those that the config's plan (memory) and its section deployment allow, "
    "the\n"
    "ones with the fewest expected dollars, and the alternatives. Expected are start, set-up and build, download of "
    "the\n"
    "model, the run by the plan's time model, and fetching the results; prices are those of RunPod's catalog now.\n"
    "Nothing is created.\n"
    "\n"
    "Must hold: deployment.gpu_filter (part of the GPU's id or name), min_vram_gb, max_price, cloud_type, data_center; "
    "the\n"
    "least memory with which the model can be streamed. A wish: deployment.gpus; fewer are taken where that many are "
    "not\n"
    "to be had, and more than one machine has make a cluster of several pods.\n"
    "\n"
    "Options:\n" CHOICE_OPTIONS
    "      --json                    JSON instead of tables\n"
    "  -h, --help                    this text\n"
    "\n"
    "Examples:\n"
    "  moe-pod plan configs/03_qwen3_30b.cfg\n"
    "  moe-pod plan --models 05 06 -s deployment.gpu_filter= --max-price 2.5\n";

static const char RUN[] =
    "Usage: moe-pod run CONFIG [OPTION]...\n"
    "Runs one model on a pod, or on a cluster where it takes more GPUs than one machine has, fetches the result to\n"
    "output.path and terminates the pod. Progress is on stderr. Interrupted at any point, the same command continues.\n"
    "\n"
    "Options:\n" CHOICE_OPTIONS RUN_OPTIONS
    "\n"
    "Examples:\n"
    "  moe-pod run configs/03_qwen3_30b.cfg --dry-run\n"
    "  moe-pod run configs/06_glm_45_air.cfg --max-hours 3 -s analysis.threshold=5.0\n"
    "  moe-pod run --models 02 --community --max-price 0.5\n";

static const char SWEEP[] =
    "Usage: moe-pod sweep [CONFIG...] [--models NAME...] [--parallel N] [OPTION]...\n"
    "Runs several models, each on a pod of its own. Without configs: all configs/NN_NAME.cfg. A model that fails does "
    "not\n"
    "stop the others; what has its result already is not run again.\n"
    "\n"
    "Options:\n" CHOICE_OPTIONS "      --parallel N              pods at a time (default 1)\n" RUN_OPTIONS
    "\n"
    "Examples:\n"
    "  moe-pod sweep --dry-run\n"
    "  moe-pod sweep --models 01 02 03 --parallel 3 --budget 20 --max-hours 2\n"
    "  moe-pod sweep configs/demo.cfg configs/dense_*.cfg --community\n";

static const char LIST[] =
    "Usage: moe-pod list [--json]\n"
    "Prints the account's pods and clusters whose name begins with moe-outliers-: id, status, GPUs, price, age, cost "
    "so\n"
    "far, and the run that they belong to. Pods of a cluster are listed under it; the cluster's id ends them all.\n"
    "\n"
    "Options:\n"
    "      --json   JSON instead of a table\n"
    "  -h, --help   this text\n"
    "\n"
    "Examples:\n"
    "  moe-pod list\n"
    "  moe-pod list --json | jq '.pods[].id'\n";

static const char STATUS[] =
    "Usage: moe-pod status [MODEL...] [--watch] [--interval SECONDS] [--json]\n"
    "Prints the runs that were started from here: step, layers done, pod, price, cost so far, time left.\n"
    "\n"
    "Options:\n"
    "  -w, --watch              again and again until all are done\n"
    "      --interval SECONDS   between two looks (default 10)\n"
    "      --json               JSON instead of a table\n"
    "  -h, --help               this text\n"
    "\n"
    "Examples:\n"
    "  moe-pod status\n"
    "  moe-pod status 06 --watch\n";

static const char LOGS[] =
    "Usage: moe-pod logs MODEL [-f]\n"
    "Prints what set-up, download and run of a model have printed so far. MODEL is a config's name or number.\n"
    "\n"
    "Options:\n"
    "  -f, --follow   go on as more comes\n"
    "  -h, --help     this text\n"
    "\n"
    "Examples:\n"
    "  moe-pod logs 03_qwen3_30b\n"
    "  moe-pod logs 03 -f\n";

static const char FETCH[] =
    "Usage: moe-pod fetch MODEL [-o DIR] [--json]\n"
    "Brings back what a run has on its pod now: the result if it is there, else what a stopped run goes on from, and "
    "logs.\n"
    "\n"
    "Options:\n"
    "  -o, --output DIR   folder to write to (default: where output.path of the config says)\n"
    "      --json         what was fetched as JSON\n"
    "  -h, --help         this text\n"
    "\n"
    "Examples:\n"
    "  moe-pod fetch 06_glm_45_air\n"
    "  moe-pod fetch 06 -o /tmp/partial\n";

static const char TERMINATE[] =
    "Usage: moe-pod terminate ID... | --all [--json]\n"
    "Ends pods and clusters for good, and waits until they are gone. What was not fetched is lost.\n"
    "\n"
    "Options:\n"
    "      --all    all pods and clusters whose name begins with moe-outliers-, also those of runs under way\n"
    "      --json   JSON instead of lines\n"
    "  -h, --help   this text\n"
    "\n"
    "Examples:\n"
    "  moe-pod terminate 7h9k2m4n6p\n"
    "  moe-pod terminate --all\n";

static const char CLEANUP[] =
    "Usage: moe-pod cleanup [--yes] [--dry-run] [--json]\n"
    "Finds every pod and cluster whose name begins with moe-outliers- and that is in no live run, and ends it after "
    "asking.\n"
    "A run is live while a moe-pod that drives it is running here, or until its deadline. Only runs that were started\n"
    "from this folder (MOE_POD_STATE) are known: pods of live runs of another folder or machine are ended as well.\n"
    "\n"
    "Options:\n"
    "  -y, --yes      do not ask\n"
    "  -n, --dry-run  say what would be ended; nothing is\n"
    "      --json     JSON instead of lines\n"
    "  -h, --help     this text\n"
    "\n"
    "Examples:\n"
    "  moe-pod cleanup\n"
    "  moe-pod cleanup --yes\n";

void pod_print_usage(const char *command, FILE *out) {
  static const struct {
    const char *command, *text;
  } texts[] = {{"gpus", GPUS},     {"plan", PLAN}, {"run", RUN},     {"sweep", SWEEP},         {"list", LIST},
               {"status", STATUS}, {"logs", LOGS}, {"fetch", FETCH}, {"terminate", TERMINATE}, {"cleanup", CLEANUP}};
  const char *text = PROGRAM;
  for (size_t i = 0; command && i < sizeof texts / sizeof texts[0]; i++)
    if (strcmp(texts[i].command, command) == 0) text = texts[i].text;
  fputs(text, out);
}
