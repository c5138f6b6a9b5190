/* moe-pod: what all its files share. One process; the only threads are those of a sweep, one per run (sweep.c). Data flows one way:
 * settings (environment, .env, options) -> estimate (the model's plan) -> choice (catalog) -> run (ledger, life) -> report.
 * Everything that costs money is created by life.c alone, after the ledger knows its name, and ended by end.c alone. */
#ifndef MO_POD_H
#define MO_POD_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "moe_outliers/config.h"
#include "moe_outliers/status.h"

#define POD_PREFIX "moe-outliers-" /* of the names of all pods and clusters; cleanup looks for it */
#define POD_MIN_CUDA "12.8"        /* that a machine's driver must know: the image's CUDA */

/* --- settings.c: who we are and which programs to use --- */
typedef struct {
  char *
      api_key; /* RUNPOD_API_KEY of the environment, else of .env; NULL: none. Never printed, logged or passed on a command line */
  char *hf_token; /* HF_TOKEN likewise */
  char *api;      /* MOE_POD_API, default https://api.runpod.io: without a final slash */
  char *ssh;      /* MOE_POD_SSH, default ssh: a program, or one with options (split at blanks) */
  char *rsync;    /* MOE_POD_RSYNC, default rsync */
  char *
      identity; /* MOE_POD_IDENTITY: private key; NULL: the first of ~/.ssh/id_ed25519, id_ecdsa, id_rsa that is there */
  char *state;  /* MOE_POD_STATE, default .moe-pod: folder of the ledger, logs, known hosts */
  char
      *source; /* the repository that is sent: MOE_POD_SOURCE, else the folder above build/, or the working directory */
  char warning[256]; /* to be said once: a .env that others may read; "" */
} pod_settings;

/* Takes .env in the working directory (KEY=VALUE lines, quotes, comments, "export "; a file that others may read is said). Key
 * and token are taken out of the environment, so that no other program inherits them. */
MO_CHECKED mo_status pod_settings_read(pod_settings *settings);
void pod_settings_free(pod_settings *settings);
/* Replaces the key and the token wherever they occur in a text by "***", in place. Everything that is logged goes through it. */
void pod_redact(const pod_settings *settings, char *text);
enum { POD_MOST_SECRET = 512 }; /* characters of key and token */
/* MOE_POD_GRACE and so on, see docs/runpod.md. */
typedef enum {
  POD_GRACE,
  POD_LOOKUP,
  POD_MARGIN,
  POD_PATIENCE,
  POD_POLL,
  POD_REACH,
  POD_STALL,
  POD_SYNC,
  POD_TIMEOUT
} pod_span;
/* That variable of the environment (or .env) if it is a number of seconds above 0, else its default. */
double pod_seconds_of(pod_span span);

/* --- http.c: JSON over HTTPS with bounded patience --- */
typedef struct pod_http pod_http; /* of one thread */

typedef struct {
  long status;      /* 0: no answer came */
  json_t *body;     /* NULL: empty or no JSON; owned */
  char detail[512]; /* of an error: title, detail and errors of the RFC 9457 object, or what libcurl says */
  bool lost;        /* the request may have been carried out, but its answer did not come */
} pod_answer;

MO_CHECKED mo_status pod_http_open(pod_http **http, const pod_settings *settings);
void pod_http_close(pod_http *http);
/* One request, tried again on 429 (after Retry-After, or what the rate-limit headers say), 5xx, time-outs and dropped connections,
 * with exponential backoff and jitter, for at most MOE_POD_PATIENCE seconds (default 300). `once`: a dropped answer or a time-out
 * after sending is not tried again, answer->lost is set: for POST that creates. Every status of the server is MO_OK here; MO_FAILED if none came in time. */
MO_CHECKED mo_status pod_http_call(pod_http *http, const char *method, const char *path, const json_t *body, bool once,
                                   pod_answer *answer);
/* Calls that wait before they try again return MO_STOPPED when *stop gets true; NULL, the default: never. */
void pod_http_heed(pod_http *http, const volatile bool *stop);
/* GET of a stream of text: what comes within `seconds`, at most 1 MiB. *status as in pod_answer. Caller frees *text. */
MO_CHECKED mo_status pod_http_listen(pod_http *http, const char *path, double seconds, long *status, char **text);
void pod_answer_free(pod_answer *answer);

/* --- api.c: RunPod's REST API v2 --- */
typedef enum {
  POD_PROVISIONING,
  POD_STARTING,
  POD_RUNNING,
  POD_EXITED,
  POD_ERROR,
  POD_TERMINATED,
  POD_UNKNOWN
} pod_state;

typedef struct {
  char id[64], name[128], gpu[96], data_center[32], host[256], user[64];
  int gpus, port; /* port 0: ssh.direct is not there yet */
  pod_state state;
  double cost;      /* dollars per hour, now */
  double created;   /* seconds since 1970 */
  char cluster[64]; /* id of the cluster that it belongs to, "" */
  int rank;         /* in the cluster, -1 */
  char cluster_ip[64];
} pod_pod;

typedef struct {
  char id[64], name[128], gpu[96], host[256]; /* host: of the primary's sshEndpoint, "" until it is there */
  int port, pods, gpus_per_pod;
  double created;
} pod_cluster;

typedef struct {
  char id[96], name[96];
  int memory_gb;
  bool secure, community;
  double price_secure, price_community; /* of one GPU, dollars per hour */
  int most_secure, most_community;      /* GPUs of one pod */
  int available;                        /* 0 none .. 3 high; -1 not asked */
  char data_centers[16][32];            /* that have it, the best stocked first */
  int n_data_centers;
} pod_gpu_type;

typedef struct {
  const char *name, *gpu, *image, *data_center; /* data_center: NULL or "": any */
  int gpus, disk_gb, pods;                      /* pods: 1, more make a cluster */
  bool community, slurm;                        /* slurm: cluster type SLURM, else TRAINING */
  json_t *env;                                  /* object of strings; borrowed */
  const char *args;                             /* of the container's start; NULL: the image's own */
  const char *volume;                           /* id of a network volume, mounted at /workspace; NULL: none */
} pod_order;

/* Each is MO_FAILED with the server's own words for other statuses than those named. A list that is empty of its wrapper, not
 * JSON, or 410 is MO_FAILED, never "nothing is there". */
/* Those of NVIDIA that compute bf16. count: with the availability of that many, on the community cloud or the secure one, for
 * pods or clusters; 0: without. */
MO_CHECKED mo_status pod_api_gpus(pod_http *http, int count, bool community, bool cluster, pod_gpu_type **types,
                                  int *n);
MO_CHECKED mo_status pod_api_pods(pod_http *http, pod_pod **pods, int *n); /* those of clusters too */
MO_CHECKED mo_status pod_api_pod(pod_http *http, const char *id, pod_pod *pod, bool *found);
MO_CHECKED mo_status pod_api_clusters(pod_http *http, pod_cluster **clusters, int *n);
/* The last lines of its container's log, each with a newline; "" if there are none. Caller frees. */
MO_CHECKED mo_status pod_api_log(pod_http *http, const char *id, char **text);
MO_CHECKED mo_status pod_api_cluster(pod_http *http, const char *id, pod_cluster *cluster, bool *found);
MO_CHECKED mo_status pod_api_cluster_pods(pod_http *http, const char *id, pod_pod **pods, int *n);
MO_CHECKED mo_status pod_api_ssh_keys(pod_http *http, char ***keys, int *n);
/* *none: refused by 400 or 403, which is how no capacity shows (try another type or place; if all are refused, the words in
 * detail, NULL: not asked for, are the reason). *lost: no answer came or an error of the server's, it may exist: look it up by
 * its name; of MO_STOPPED also. */
MO_CHECKED mo_status pod_api_create(pod_http *http, const pod_order *order, char id[64], bool *none, bool *lost,
                                    char detail[512]);
/* DELETE and then GET until 404, for at most MOE_POD_PATIENCE. Of one that is gone already: MO_OK. */
MO_CHECKED mo_status pod_api_end(pod_http *http, const char *id, bool cluster);

/* --- estimate.c: what a config needs --- */
typedef struct {
  mo_config config;
  char path[512], key[64]; /* of the config as given; its file name without .cfg, the run's name in the ledger */
  int64_t weight_bytes;
  double flops;   /* of the whole run */
  int disk_gb;    /* at least deployment.container_disk_gb and what weights, cache and source need */
  bool synthetic; /* random weights: none to fetch */
  bool streamed;  /* weights come from the network while they are computed with, and need no disk */
} pod_need;
MO_CHECKED mo_status pod_need_read(pod_need *need, const char *path, const char *const *overrides, int n);
void pod_need_free(pod_need *need);
/* The container image: deployment.image, else MOE_POD_IMAGE, else RunPod's with CUDA. The need's or static. */
const char *pod_image(const pod_need *need);

/* --- choose.c: the cheapest that will do --- */
typedef struct {
  char gpu[96], name[96];
  bool community;
  int gpus, pods;                     /* gpus: of each pod */
  double price;                       /* dollars per hour of all */
  double minutes, dollars;            /* expected: the sum of the next four */
  double setup, download, run, fetch; /* minutes: start, set-up and build; the model; the run; the results */
  int memory_gb;                      /* of a GPU */
  int available;
  char data_centers[16][32];
  int n_data_centers;
} pod_choice;
typedef struct {
  double max_price; /* dollars per GPU and hour; 0: deployment.max_price, else no bound */
  bool community;
} pod_limits;
/* All acceptable, the cheapest expected dollars first, those without stock last. None: MO_INVALID that says what would do. */
MO_CHECKED mo_status pod_choose(const pod_need *need, const pod_gpu_type *types, int n_types, const pod_limits *limits,
                                pod_choice **choices, int *n);
/* The same with the catalog as it is now, asked for each number of GPUs and kind of cloud that may be chosen. */
MO_CHECKED mo_status pod_choose_now(pod_http *http, const pod_need *need, const pod_limits *limits,
                                    pod_choice **choices, int *n);

/* --- ledger.c: what exists, on disk --- */
/* The steps of a run, each done at most once or again without harm. */
typedef enum {
  STEP_NAMED,
  STEP_CREATED,
  STEP_REACHED,
  STEP_SENT,
  STEP_BUILT,
  STEP_FETCHED,
  STEP_STARTED,
  STEP_FINISHED,
  STEP_BROUGHT,
  STEP_ENDED
} pod_step;
typedef struct {
  char key[64], config[512], name[128]; /* name: of pod or cluster, unique: POD_PREFIX key "-" random */
  char id[64];                          /* "" until known */
  bool cluster;
  char gpu[96], host[256], user[64], data_center[32];
  int gpus, pods, port, attempts; /* attempts: pods that this run has had */
  pod_step step;
  double price, created, deadline,
      spent;         /* dollars per hour; seconds since 1970; dollars of the pods before this one */
  char error[512];   /* why it failed; "" */
  char result[512];  /* local path of the result */
  char remote[256];  /* folder on the pod, "" until it was reached */
  char sha256[72];   /* of the result on the pod, "" until it is there */
  char settings[72]; /* SHA-256 of the config as run, without the section deployment */
  bool slurm;        /* the cluster's type */
  double seen;       /* when the pod was last known to be there */
  double expected;   /* dollars of this pod when it was chosen */
  bool doubtful;     /* the answer to an order was lost: a second pod of this name may turn up */
  json_t *overrides; /* array of strings; of pod_ledger_put and _get borrowed, until the next put or close */
} pod_run;
typedef struct pod_ledger
    pod_ledger; /* thread-safe; file STATE/ledger.json, replaced atomically, locked by its process (flock) */
MO_CHECKED mo_status pod_ledger_open(pod_ledger **ledger, const pod_settings *settings, bool write);
void pod_ledger_close(pod_ledger *ledger);
MO_CHECKED mo_status pod_ledger_put(pod_ledger *ledger, const pod_run *run); /* by key; durable when it returns */
bool pod_ledger_get(pod_ledger *ledger, const char *key, pod_run *run);
MO_CHECKED mo_status pod_ledger_all(pod_ledger *ledger, pod_run **runs, int *n);
MO_CHECKED mo_status pod_ledger_forget(pod_ledger *ledger, const char *key);
/* Whether a process holds the ledger's lock: it drives the runs. */
MO_CHECKED mo_status pod_ledger_busy(const pod_settings *settings, bool *busy);

/* --- end.c --- */
/* For `terminate` and `cleanup`: as pod_api_end, but first notes in STATE/ended that it was asked for, so that the process that drives
 * the run does not take the pod for lost and create another one. Where that cannot be written it says so and goes on. */
MO_CHECKED mo_status pod_end_by_hand(const pod_settings *settings, pod_http *http, const char *id, bool cluster);

/* --- process.c: other programs --- */
typedef struct {
  int status; /* exit status; 128 + signal; -1: not started */
  bool timed_out;
  char *output; /* stdout and stderr, redacted, the last 64 KiB; owned */
} pod_result;
/* arguments: NULL-terminated. input: text for stdin, NULL: /dev/null. log: file to which the output is added too, NULL: none.
 * stop: looked at several times a second; when it gets true the program is ended. */
MO_CHECKED mo_status pod_process_run(const pod_settings *settings, char *const *arguments, const char *input,
                                     const char *log, double seconds, const volatile bool *stop, pod_result *result);
void pod_result_free(pod_result *result);

#endif
