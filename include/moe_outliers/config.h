/* The run's configuration: a libconfig file (design: model, data, analysis, engine, output, deployment) plus
 * `-s section.key=value` overrides, parsed into one struct, with units, ranges and defaults checked here and nowhere else. */
#ifndef MOE_OUTLIERS_CONFIG_H
#define MOE_OUTLIERS_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "moe_outliers/status.h"

typedef enum { MO_DEVICE_AUTO, MO_DEVICE_CPU, MO_DEVICE_CUDA, MO_DEVICE_CHECK } mo_device_choice;
typedef enum { MO_PRECISION_BF16, MO_PRECISION_FP32 } mo_precision;
typedef enum { MO_ABLATE_NONE, MO_ABLATE_FEATURES } mo_ablate_choice;
typedef enum { MO_PARTITION_AUTO, MO_PARTITION_CONTIGUOUS, MO_PARTITION_INTERLEAVED } mo_partition_kind;
typedef enum { MO_TOGETHER_AUTO, MO_TOGETHER_ON, MO_TOGETHER_OFF } mo_together; /* through MPI-IO, or in turns */

enum { MO_MOST_THRESHOLDS = 8 };

typedef struct {
  struct {
    char *name;   /* hub name, "" if not given: then the folder's name is used */
    char *path;   /* folder with config.json and *.safetensors; its address; or "synthetic:SEED": random weights */
    char *config; /* config.json of synthetic weights, and to plan with while the folder holds none; "" if not given */
  } model;
  struct {
    char *tokens;      /* HDF5 token file; or "synthetic:SEED": random ids */
    int64_t sequences; /* N */
    int64_t length;    /* S, tokens of a sequence */
    int64_t skip;      /* sequences skipped at the start of the file */
  } data;
  struct {
    double threshold;          /* outlier: |x| >= threshold */
    double *thresholds;        /* [n_thresholds] distinct; the first is `threshold`, by the others it is analysed too */
    int64_t n_thresholds;      /* 1..MO_MOST_THRESHOLDS */
    double min_layer_fraction; /* of the 2L sites */
    double min_position_fraction; /* of the S positions */
    double systematic_fraction;   /* of the L layers */
    int64_t bootstrap;            /* draws */
    int64_t seed;
    bool perplexity;
    bool experts;            /* statistics of experts */
    mo_ablate_choice ablate; /* run again with the outlier features zeroed, and with random ones */
    int64_t ablate_draws;    /* of random features */
  } analysis;
  struct {
    mo_device_choice device;
    mo_precision precision;
    double device_memory_gb; /* GB = 1e9 bytes; 0 = choose */
    double host_memory_gb;   /* of staging buffers where the device has its own memory; 0 = choose */
    int64_t micro_batch;     /* sequences; 0 = choose */
    mo_partition_kind partition;
    int64_t readers;           /* reader threads per rank; 0 = choose */
    int64_t threads;           /* compute threads per rank; 0 = choose */
    bool verify;               /* compare weights in memory with a second read of the files */
    double checkpoint_seconds; /* a rank saves what it needs to go on this often; 0 = after every layer */
    char *cache;               /* folder that keeps what came over the network, "": none */
    double network_patience;   /* seconds without a byte after which a read over the network fails */
  } engine;
  struct {
    char *path;
    bool all_activations; /* activations = "all" */
    int64_t *activations; /* layer numbers whose site tensors are stored, sorted, distinct */
    int64_t n_activations;
    bool overwrite;
    mo_together mpi_io; /* how several ranks write the result */
  } output;
  struct {
    int64_t gpus;       /* 0 = not given */
    char *gpu_filter;   /* part of the GPU's name, "" if not given */
    double min_vram_gb; /* of a GPU; 0 = not given */
    double max_price;   /* dollars per hour for all GPUs together; 0 = not given */
    /* For moe-pod alone; 0 and "" = not given. */
    double container_disk_gb, volume_disk_gb;
    char *cloud_type, *data_center,
        *image;               /* secure, community or all; part of the data center's id; of the container */
    double max_hours, budget; /* of a pod; dollars of a command */
  } deployment;
  char *text;      /* the config as run: libconfig text after overrides, for the result file */
  char *directory; /* folder of the config file (without trailing slash), for messages */
  char *file;      /* the config file, likewise; the name that was given to a text */
} mo_config;

/* Read `path` and apply `n_overrides` texts "section.key=value" in order (strings may be given without quotes).
 * Unknown keys, wrong types, values out of range, missing required keys (model.path, data.tokens, output.path for a
 * run) are MO_INVALID with file and line. for_run: require what `run` needs; `plan` needs model.path only.
 * On success the caller owns *config and frees it with mo_config_free; on failure nothing is left. */
MO_CHECKED mo_status mo_config_read(mo_config *config, const char *path, const char *const *overrides, int n_overrides,
                                    bool for_run);

/* As mo_config_read, from text in memory (tests, fuzzing). name: what error lines call it. @include is resolved
 * against include_dir (NULL: the working directory). */
MO_CHECKED mo_status mo_config_parse(mo_config *config, const char *text, const char *name, const char *include_dir,
                                     const char *const *overrides, int n_overrides, bool for_run);

void mo_config_free(mo_config *config);

/* A config as run (mo_config.text, the result file's attribute `config`) as JSON text: sections and keys in their order,
 * numbers exact. name: what error lines call it. Any text may be given: MO_INVALID if it is no libconfig, or includes
 * files. Caller frees *json. */
MO_CHECKED mo_status mo_config_json(char **json, const char *text, const char *name);

/* Every key with its default and one line of help, for --help. Caller frees; NULL if out of memory. */
char *mo_config_help(void);

const char *mo_precision_name(mo_precision precision);      /* "bf16", "fp32" */
const char *mo_device_choice_name(mo_device_choice device); /* "auto", "cpu", "cuda", "check" */
const char *mo_partition_name(mo_partition_kind partition); /* "auto", "contiguous", "interleaved" */

#endif
