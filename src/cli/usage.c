/* Help texts. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "moe_outliers/config.h"

static const char PROGRAM[] =
    "Usage: moe-outliers COMMAND [ARGUMENT]...\n"
    "Finds outlier features in language models: hidden dimensions with values of large magnitude at many layer norms\n"
    "and positions (Dettmers et al. 2022).\n"
    "\n"
    "Commands:\n"
    "  run CONFIG               analyse a model; alone, or on several ranks with mpirun or srun\n"
    "  plan CONFIG              parameters, bytes, partition and memory of a run, without its weights\n"
    "  config CONFIG            check a config and print its values, with all defaults and -s\n"
    "  doctor [CONFIG]          what is wrong with ranks, machines and files, before a run; started like run\n"
    "  report FILE.h5...        print result files, one or several side by side\n"
    "  export FILE.h5 -o DIR    write a result as the reference implementation's JSON files\n"
    "  synth CONFIG.json -o DIR write a random checkpoint of given shapes\n"
    "\n"
    "  moe-outliers COMMAND --help   options and examples of a command\n"
    "  moe-outliers --version        version, commit, compiler, backends, libraries\n"
    "\n"
    "Exit status: 0 done; 1 failed while running; 2 wrong usage, config or input (nothing was written); 75 a run was\n"
    "stopped by SIGTERM or SIGUSR1: the same command continues it.\n"
    "Errors are one line on stderr; MOE_OUTLIERS_DEBUG=1 in the environment adds the place in the source.\n"
    "\n"
    "Examples:\n"
    "  mpirun -np 4 moe-outliers run configs/demo.cfg\n"
    "  moe-outliers report results/demo.h5\n";

static const char RUN[] =
    "Usage: moe-outliers run CONFIG [-v] [--fresh] [-s section.key=value]...\n"
    "Runs the sequences of a token file through a model and writes the outlier statistics to an HDF5 file. Started by\n"
    "mpirun or srun, the ranks share the layers; started alone, it is one rank. Progress is on stderr. A run that was\n"
    "killed or stopped is continued by the same command, also on another number of ranks.\n"
    "\n"
    "Options:\n"
    "  -s, --set section.key=value   replace one value of the config; strings need no quotes; the last one counts\n"
    "  -v, --verbose                 name the tensors of the checkpoint that the model does not use, and tell at the "
    "end\n"
    "                                where the time outside the stream of weights went\n"
    "      --fresh                   start over: forget what an interrupted run has left in OUTPUT.resume\n"
    "  -h, --help                    this text\n"
    "\n"
    "Examples:\n"
    "  moe-outliers run configs/demo.cfg\n"
    "  mpirun -np 4 moe-outliers run configs/demo.cfg -s analysis.threshold=5.0 -s output.path=results/five.h5\n"
    "  srun -n 8 moe-outliers run configs/06_glm_45_air.cfg -s engine.precision=fp32\n"
    "  moe-outliers run configs/03_qwen3_30b.cfg -s model.path=synthetic:0 -s data.tokens=synthetic:0 \\\n"
    "      -s output.path=/tmp/random.h5   (random "
    "weights\n"
    "    in the shapes of model.config and random tokens, for timing without files)\n"
    "\n"
    "Keys of the config (libconfig), with defaults:\n";

static const char PLAN[] =
    "Usage: moe-outliers plan CONFIG [--gpus N] [--vram GB] [--bandwidth GB/s] [--tflops N] [--per-node N] [--json]\n"
    "                         [-s section.key=value]...\n"
    "Prints what a run would do: parameters (total and active), bytes, operations, partition of the layers, memory of\n"
    "each rank, time and cost. Of the model it needs config.json only: that of model.path, or model.config while "
    "there\n"
    "is none. engine.device = \"auto\" is planned for GPUs.\n"
    "\n"
    "Options:\n"
    "      --gpus N                  ranks, one per GPU or CPU socket (default: deployment.gpus with GPUs, else 1)\n"
    "      --vram GB                 memory of a rank in GB = 1e9 bytes (default: engine.device_memory_gb; with GPUs\n"
    "                                deployment.min_vram_gb, else what a GPU of deployment.gpu_filter has)\n"
    "      --bandwidth GB/s          what a node's storage delivers (default: 5 with GPUs, 2 without)\n"
    "      --tflops N                sustained rate of a rank (default: by deployment.gpu_filter with GPUs, else\n"
    "                                measured on this machine)\n"
    "      --per-node N              ranks that share a node's storage (default 8)\n"
    "      --json                    JSON instead of tables\n"
    "  -s, --set section.key=value   replace one value of the config\n"
    "  -h, --help                    this text\n"
    "\n"
    "Examples:\n"
    "  moe-outliers plan configs/demo.cfg --gpus 4\n"
    "  moe-outliers plan configs/06_glm_45_air.cfg --gpus 2 --vram 80 --bandwidth 7 --json\n";

static const char DOCTOR[] =
    "Usage: moe-outliers doctor [CONFIG] [--patience SECONDS] [-s section.key=value]...\n"
    "Looks, in seconds, at what a run of CONFIG would need: how the ranks were started, their GPUs, cores, network "
    "and\n"
    "memory, the checkpoint and the tokens, the output folder, MPI-IO and locks there, and room. Start it as you "
    "would\n"
    "start run, on the same nodes. Without CONFIG it looks at the ranks, the machines and the working directory.\n"
    "\n"
    "Each line is ok, note (good to know) or fault (the run would fail, or be much slower), with what to do; the last "
    "two\n"
    "are the verdict and the line to start the run with. Nothing is left behind.\n"
    "\n"
    "Options:\n"
    "      --patience SECONDS        a step that takes longer is a fault and ends the program (default 30)\n"
    "  -s, --set section.key=value   replace one value of the config\n"
    "  -h, --help                    this text\n"
    "\n"
    "Exit status: 0 no fault; 1 faults; 2 wrong usage or config.\n"
    "\n"
    "Examples:\n"
    "  srun --mpi=pmix -n 4 moe-outliers doctor configs/06_glm_45_air.cfg\n"
    "  mpirun -np 4 moe-outliers doctor configs/demo.cfg -s output.path=/scratch/demo.h5\n";

static const char CONFIG[] =
    "Usage: moe-outliers config CONFIG [SECTION.KEY]... [--result FILE.h5] [-s section.key=value]...\n"
    "Checks a config with its overrides, and prints it as JSON with all defaults, or the values of keys, one on a "
    "line.\n"
    "For scripts.\n"
    "\n"
    "Options:\n"
    "      --result FILE.h5          check that this is a complete result of such a run: the same model, sequences,\n"
    "                                precision and analysis; exit status 2 and the first difference if it is not\n"
    "  -s, --set section.key=value   replace one value of the config\n"
    "  -h, --help                    this text\n"
    "\n"
    "Examples:\n"
    "  moe-outliers config configs/06_glm_45_air.cfg -s analysis.threshold=5.0\n"
    "  moe-outliers config configs/demo.cfg output.path data.tokens\n"
    "  moe-outliers config configs/demo.cfg --result results/demo.h5\n";

static const char REPORT[] =
    "Usage: moe-outliers report FILE.h5... [--format table|markdown|csv|json] [--features N]\n"
    "                           [--threshold X] [-s analysis.key=value]...\n"
    "Prints result files: with several files a table across them first, then for each its summary and its outlier\n"
    "features, largest magnitude first. Where no feature qualifies, the features of largest magnitude are shown.\n"
    "\n"
    "Options:\n"
    "      --format FORMAT   table (default), markdown, csv or json\n"
    "      --features N      features per file, 0 = all (default: 20 in table and markdown, all in csv and json)\n"
    "      --threshold X     tables of another one of the run's analysis.thresholds\n"
    "  -s, --set KEY=VALUE   judge by other criteria, without a new run: analysis.min_layer_fraction,\n"
    "                        analysis.min_position_fraction, analysis.systematic_fraction, analysis.bootstrap,\n"
    "                        analysis.seed; the defaults are those of each file's run\n"
    "  -h, --help            this text\n"
    "\n"
    "Numbers in brackets are 95 % intervals from resampled sequences (docs/methods.md).\n"
    "\n"
    "Columns: \"layers %\" counts layers hit at either of their two sites, \"sites %\" the sites (layer norm outputs,\n"
    "two per layer), \"positions %\" the (sequence, position) pairs; \"+ %\" and \"- %\" split the occurrences by\n"
    "sign; q1, median and q3 are quartiles of the signed values; \"share %\" is the part of all outlier values, "
    "\"first\n"
    "token %\" the part of the feature's own that are at the first position. csv and json give fractions of 1 under "
    "the\n"
    "names of the result file; csv prints a table of models, an empty line, a table of features.\n"
    "\n"
    "Examples:\n"
    "  moe-outliers report results/demo.h5\n"
    "  moe-outliers report results/*.h5 --format markdown > table.md\n"
    "  moe-outliers report results/demo.h5 --format json --features 0\n";

static const char EXPORT[] =
    "Usage: moe-outliers export FILE.h5 -o DIR [--overwrite]\n"
    "Writes a result file as JSON in the schema of the reference implementation (in Python), so that its readers and\n"
    "plots work on it: final_analysis_results.json, perplexity_results.json (if there is one), config.json.\n"
    "\n"
    "Options:\n"
    "  -o, --output DIR   folder of the files, made if absent\n"
    "      --overwrite    replace files of these names; without it they are an error\n"
    "  -h, --help         this text\n"
    "\n"
    "Examples:\n"
    "  moe-outliers export results/demo.h5 -o exported/demo\n"
    "  moe-outliers export results/glm_4.5_air.h5 -o remote_results/glm_4.5_air --overwrite\n";

static const char SYNTH[] =
    "Usage: moe-outliers synth CONFIG.json -o DIR [--seed S] [--layers N] [--dtype bf16|f32|f16]\n"
    "Writes a checkpoint with random weights in the shapes of a config.json, for benchmarks and tests.\n"
    "\n"
    "Options:\n"
    "  -o, --output DIR   folder of the checkpoint, made if absent; what a killed synth left there is replaced\n"
    "      --seed S       another seed gives other weights (default 0)\n"
    "      --layers N     only the first N layers (default: all)\n"
    "      --dtype TYPE   bf16 (default), f32 or f16\n"
    "  -h, --help         this text\n"
    "\n"
    "Examples:\n"
    "  moe-outliers synth models/OLMoE-1B-7B-0125/config.json -o /tmp/olmoe --layers 2\n"
    "  moe-outliers synth config.json -o /tmp/random --seed 7 --dtype f32\n";

mo_status mo_cli_print_usage(const char *command, FILE *out) {
  static const struct {
    const char *command, *text;
  } texts[] = {{"run", RUN},       {"plan", PLAN},     {"config", CONFIG}, {"doctor", DOCTOR},
               {"report", REPORT}, {"export", EXPORT}, {"synth", SYNTH}};
  if (!mo_cli_is_first_process()) return MO_OK;
  const char *text = PROGRAM;
  for (size_t i = 0; command && i < sizeof texts / sizeof texts[0]; i++)
    if (strcmp(texts[i].command, command) == 0) text = texts[i].text;
  fputs(text, out);
  if (text != RUN) return MO_OK;
  char *keys = mo_config_help();
  if (!keys) return MO_FAIL(MO_FAILED, "out of memory (help text): free some memory");
  fputs(keys, out);
  free(keys);
  return MO_OK;
}
