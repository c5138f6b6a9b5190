/* The table of keys: the name, type, range and default of a key stand here and only here. A new key is a new row. */
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config_internal.h"
#include "moe_outliers/ablation.h"

static const char *const DEVICES[] = {"auto", "cpu", "cuda", "check", NULL};         /* mo_device_choice */
static const char *const PRECISIONS[] = {"bf16", "fp32", NULL};                      /* mo_precision */
static const char *const PARTITIONS[] = {"auto", "contiguous", "interleaved", NULL}; /* mo_partition_kind */
static const char *const ABLATE[] = {"none", "features", NULL};                      /* mo_ablate_choice */
static const char *const TOGETHER[] = {"auto", "on", "off", NULL};                   /* mo_together */

#define MAX_TOKENS 1048576.0        /* 2^20 sequences, and as many tokens in each */
#define MAX_SEED 9007199254740991.0 /* 2^53 - 1: ranges are doubles */

/* Section and name are those of the member in mo_config. */
#define KEY(section_, name_, ...) \
  { .section = #section_, .name = #name_, .offset = offsetof(mo_config, section_.name_), __VA_ARGS__ }
#define INT(section_, name_, default_, min_, max_, help_) \
  KEY(section_, name_, .type = MO_KEY_INT, .number = default_, .min = min_, .max = max_, .help = help_)
#define FLOAT(section_, name_, default_, min_, max_, flags_, help_)                                         \
  KEY(section_, name_, .type = MO_KEY_FLOAT, .number = default_, .min = min_, .max = max_, .flags = flags_, \
      .help = help_)
#define BOOL(section_, name_, default_, help_) \
  KEY(section_, name_, .type = MO_KEY_BOOL, .number = default_, .help = help_)
#define STRING(section_, name_, default_, flags_, help_) \
  KEY(section_, name_, .type = MO_KEY_STRING, .text = default_, .flags = flags_, .help = help_)
#define CHOICE(section_, name_, default_, choices_, help_) \
  KEY(section_, name_, .type = MO_KEY_CHOICE, .number = default_, .choices = choices_, .help = help_)
#define LAYERS(section_, name_, max_, help_) KEY(section_, name_, .type = MO_KEY_LAYERS, .max = max_, .help = help_)
#define NUMBERS(section_, name_, min_, max_, flags_, help_) \
  KEY(section_, name_, .type = MO_KEY_NUMBERS, .min = min_, .max = max_, .flags = flags_, .help = help_)
#define POD(name_, max_, help_) \
  KEY(deployment, name_, .type = MO_KEY_FLOAT, .max = max_, .flags = MO_KEY_FOR_POD, .help = help_)
#define POD_TEXT(name_, help_) \
  KEY(deployment, name_, .type = MO_KEY_STRING, .text = "", .flags = MO_KEY_FOR_POD, .help = help_)

/* clang-format off */
const mo_key mo_keys[] = {
    STRING(model, name, "", 0, "name on the hub; \"\": the folder's name"),
    STRING(model, path, NULL, MO_KEY_REQUIRED, "folder with config.json and *.safetensors, its address (hf://, https://), or synthetic:SEED"),
    STRING(model, config, "", 0, "config.json of synthetic weights, and for plan while model.path holds none"),

    STRING(data, tokens, NULL, MO_KEY_FOR_RUN, "token file (HDF5), or synthetic:SEED"),
    INT(data, sequences, 16, 1, MAX_TOKENS, "sequences to run"),
    INT(data, length, 2048, 1, MAX_TOKENS, "tokens of a sequence"),
    INT(data, skip, 0, 0, 2147483647, "sequences skipped at the start of the file"),

    FLOAT(analysis, threshold, 6, 0, FLT_MAX, MO_KEY_OPEN_MIN, "outlier value: |x| >= threshold"),
    NUMBERS(analysis, thresholds, 0, FLT_MAX, MO_KEY_OPEN_MIN, "analyse by up to 8 thresholds; the first is the above"),
    FLOAT(analysis, min_layer_fraction, 0.25, 0, 1, 0, "an outlier feature hits this much of the sites"),
    FLOAT(analysis, min_position_fraction, 0.06, 0, 1, 0, "... and this much of the positions"),
    FLOAT(analysis, systematic_fraction, 1, 0, 1, 0, "a systematic feature hits this much of the layers"),
    INT(analysis, bootstrap, 10000, 0, 10000000, "bootstrap draws; 0: none"),
    INT(analysis, seed, 0, 0, MAX_SEED, "of everything random"),
    BOOL(analysis, perplexity, 1, "compute the perplexity too"),
    BOOL(analysis, experts, 1, "statistics of each expert: outlier values of its tokens, largest output"),
    CHOICE(analysis, ablate, MO_ABLATE_NONE, ABLATE, "features: run again with the outlier features zeroed"),
    INT(analysis, ablate_draws, 3, 0, MO_ABLATION_MOST_DRAWS, "... and with this many draws of as many random other features"),

    CHOICE(engine, device, MO_DEVICE_AUTO, DEVICES, "where to compute; check: cpu with guarded buffers, for tests"),
    CHOICE(engine, precision, MO_PRECISION_BF16, PRECISIONS, "bf16: round where the Hugging Face bf16 model rounds"),
    FLOAT(engine, device_memory_gb, 0, 0, 10000, 0, "memory budget of a rank, GB = 1e9 bytes; 0: choose"),
    FLOAT(engine, host_memory_gb, 0, 0, 10000, 0, "pinned buffers of a rank with a GPU, GB; 0: choose"),
    INT(engine, micro_batch, 0, 0, MAX_TOKENS, "sequences passed on together; 0: choose"),
    CHOICE(engine, partition, MO_PARTITION_AUTO, PARTITIONS, "how layers are given to ranks"),
    INT(engine, readers, 0, 0, 256, "reader threads per rank; 0: choose"),
    INT(engine, threads, 0, 0, 256, "compute threads per rank; 0: choose"),
    BOOL(engine, verify, 0, "read weights twice and compare what is in memory, for doubtful storage"),
    FLOAT(engine, checkpoint_seconds, 30, 0, 1e6, 0, "save this often what a stopped run needs; 0: after every layer"),
    STRING(engine, cache, "", 0, "folder that keeps weights which came over the network; \"\": nothing is kept"),
    FLOAT(engine, network_patience, 600, 1, 1e6, 0, "seconds without a byte after which reading over the network fails"),

    STRING(output, path, NULL, MO_KEY_FOR_RUN, "result file (HDF5)"),
    LAYERS(output, activations, 65535, "layers whose site tensors are stored too, or \"all\""),
    BOOL(output, overwrite, 0, "replace a finished result"),
    CHOICE(output, mpi_io, MO_TOGETHER_AUTO, TOGETHER, "ranks write the result together; off: in turns; auto: where they can"),

    INT(deployment, gpus, 0, 0, 1024, "GPUs that moe-pod asks for, and plan plans for; 0: not said"),
    STRING(deployment, gpu_filter, "", 0, "part of the GPU's name; plan takes its rate from it"),
    FLOAT(deployment, max_price, 0, 0, 1e6, 0, "dollars per hour for all GPUs together; 0: no bound"),
    POD(container_disk_gb, 1e6, "least container disk; for moe-pod, likewise the rest"),
    POD(volume_disk_gb, 1e6, "nothing is kept on volumes: not used"),
    FLOAT(deployment, min_vram_gb, 0, 0, 1e6, 0, "memory of one GPU, for plan too; 0: not said"),
    POD_TEXT(cloud_type, "secure, community or all (secure)"),
    POD_TEXT(data_center, "part of the data center's id"),
    POD_TEXT(image, "container image (RunPod's with CUDA)"),
    POD(max_hours, 1e6, "of a pod's life"),
    POD(budget, 1e9, "dollars"),
};
/* clang-format on */

const int mo_n_keys = (int)(sizeof mo_keys / sizeof mo_keys[0]);
_Static_assert(sizeof mo_keys / sizeof mo_keys[0] <= MO_CONFIG_MAX_KEYS, "raise MO_CONFIG_MAX_KEYS");
_Static_assert(sizeof(mo_device_choice) == sizeof(int) && sizeof(mo_precision) == sizeof(int) &&
                   sizeof(mo_partition_kind) == sizeof(int) && sizeof(mo_ablate_choice) == sizeof(int) &&
                   sizeof(mo_together) == sizeof(int),
               "MO_KEY_CHOICE is stored as an int");

const char *mo_precision_name(mo_precision precision) { return PRECISIONS[precision]; }
const char *mo_device_choice_name(mo_device_choice device) { return DEVICES[device]; }
const char *mo_partition_name(mo_partition_kind partition) { return PARTITIONS[partition]; }

int mo_key_find(const char *section, const char *name) {
  for (int i = 0; i < mo_n_keys; i++)
    if (strcmp(mo_keys[i].section, section) == 0 && strcmp(mo_keys[i].name, name) == 0) return i;
  return -1;
}

bool mo_key_is_section(const char *section) {
  for (int i = 0; i < mo_n_keys; i++)
    if (strcmp(mo_keys[i].section, section) == 0) return true;
  return false;
}

static int smaller(int a, int b) { return a < b ? a : b; }

/* Edit distance (insert, delete, replace, swap of neighbours); names longer than the table's are at no distance. */
static int edit_distance(const char *a, const char *b) {
  enum { SIZE = 32 };
  int n = (int)strnlen(a, SIZE), m = (int)strnlen(b, SIZE);
  if (n == SIZE || m == SIZE) return SIZE;
  int d[SIZE][SIZE];
  for (int i = 0; i <= n; i++) {
    for (int j = 0; j <= m; j++) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = smaller(smaller(d[i - 1][j], d[i][j - 1]) + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1]));
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = smaller(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[n][m];
}

/* Next section after row *i (section NULL), or next key of the section; NULL at the end. Start with *i = -1. */
static const char *next_name(const char *section, int *i) {
  while (++*i < mo_n_keys) {
    const mo_key *key = &mo_keys[*i];
    if (section && strcmp(key->section, section) == 0) return key->name;
    if (!section && (*i == 0 || strcmp(key->section, mo_keys[*i - 1].section) != 0)) return key->section;
  }
  return NULL;
}

void mo_key_hint(const char *section, const char *unknown, char *hint, size_t size) {
  const char *best = NULL;
  int best_distance = 1 + (int)(strlen(unknown) / 3); /* farther away is another word, not a typing error */
  const char *name;
  for (int i = -1; (name = next_name(section, &i));) {
    int distance = edit_distance(unknown, name);
    if (distance <= best_distance - (best != NULL)) {
      best = name;
      best_distance = distance;
    }
  }
  if (best) {
    snprintf(hint, size, "did you mean \"%s\"?", best);
    return;
  }
  int used = snprintf(hint, size, section ? "its keys are " : "the sections are ");
  bool first = true;
  for (int i = -1; (name = next_name(section, &i)) && used >= 0 && (size_t)used < size; first = false)
    used += snprintf(hint + used, size - (size_t)used, "%s%s", first ? "" : ", ", name);
}

/* Default of a key as written in a config file. */
static void print_default(FILE *out, const mo_key *key) {
  if (key->flags & (MO_KEY_REQUIRED | MO_KEY_FOR_RUN))
    fprintf(out, "%-12s", "(required)");
  else if (key->flags & MO_KEY_FOR_POD)
    fprintf(out, "%-12s", "");
  else if (key->type == MO_KEY_STRING)
    fprintf(out, "\"%s\"%*s", key->text, 10 - (int)strlen(key->text), "");
  else if (key->type == MO_KEY_CHOICE)
    fprintf(out, "\"%s\"%*s", key->choices[(int)key->number], 10 - (int)strlen(key->choices[(int)key->number]), "");
  else if (key->type == MO_KEY_BOOL)
    fprintf(out, "%-12s", key->number != 0 ? "true" : "false");
  else if (key->type == MO_KEY_LAYERS || key->type == MO_KEY_NUMBERS)
    fprintf(out, "%-12s", "( )");
  else
    fprintf(out, "%-12g", key->number);
}

char *mo_config_help(void) {
  char *text = NULL;
  size_t size = 0;
  FILE *out = open_memstream(&text, &size);
  if (!out) return NULL;
  for (int i = 0; i < mo_n_keys; i++) {
    const mo_key *key = &mo_keys[i];
    char name[64];
    snprintf(name, sizeof name, "%s.%s", key->section, key->name);
    fprintf(out, "  %-31s ", name);
    print_default(out, key);
    fprintf(out, " %s", key->help);
    for (int c = 0; key->choices && key->choices[c]; c++) fprintf(out, "%s%s", c ? ", " : " (", key->choices[c]);
    fputs(key->choices ? ")\n" : "\n", out);
  }
  if (fclose(out) != 0) {
    free(text);
    return NULL;
  }
  return text;
}
