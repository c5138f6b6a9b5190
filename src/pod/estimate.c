/* What a config needs: from the plan of moe-outliers, so that both programs say the same. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "pipeline/plan_overview.h"
#include "pod/pod.h"

/* Of the container's disk beside the weights, in GB: CUDA, MPI and Python packages, build, source, results. */
static const double DISK_BESIDE = 15;

static mo_status check_cloud(const mo_config *config, const char *path) {
  static const char *const known[] = {"", "secure", "community", "all"};
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
    if (strcasecmp(known[i], config->deployment.cloud_type) == 0) return MO_OK;
  return MO_FAIL(MO_INVALID, "deployment.cloud_type is \"%s\" (%s): give secure, community or all",
                 config->deployment.cloud_type, path);
}

/* The run's name: the config's without folder and ending, of what may stand in a pod's name. */
static mo_status make_key(pod_need *need) {
  const char *slash = strrchr(need->path, '/'), *name = slash ? slash + 1 : need->path;
  size_t n = strlen(name);
  if (n > 4 && strcmp(name + n - 4, ".cfg") == 0) n -= 4;
  if (n == 0 || n >= sizeof need->key)
    return MO_FAIL(MO_INVALID, "file name of %zu characters (%s): give the config one of 1 to %zu", n, need->path,
                   sizeof need->key - 1);
  for (size_t i = 0; i < n; i++) {
    bool plain = strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.", name[i]) != NULL;
    need->key[i] = plain ? name[i] : '-';
  }
  return MO_OK;
}

/* A device that is left open is planned for GPUs, by sizes alone: what is asked for is not what fits where. */
static mo_status measure(pod_need *need) {
  const mo_plan_options options = {.n_ranks = 1, .vram_gb = 10000};
  mo_plan_overview overview = {.config = &need->config, .options = &options};
  mo_status status = mo_plan_overview_make(&overview, NULL);
  if (status == MO_OK) {
    need->synthetic = overview.files.synthetic;
    need->weight_bytes = overview.bytes_at_most;
    need->flops = overview.flops;
    need->streamed = mo_network_is_address(need->config.model.path);
    double weights = need->synthetic || need->streamed ? 0 : 1e-9 * (double)need->weight_bytes;
    need->disk_gb = (int)ceil(fmax(need->config.deployment.container_disk_gb, weights + DISK_BESIDE));
  }
  mo_plan_overview_free(&overview);
  return status;
}

static mo_status read_need(pod_need *need, const char *path) {
  if ((size_t)snprintf(need->path, sizeof need->path, "%s", path) >= sizeof need->path)
    return MO_FAIL(MO_INVALID, "path is too long (%.100s...): give a shorter one", path);
  MO_TRY(make_key(need));
  MO_TRY(check_cloud(&need->config, path));
  return measure(need);
}

mo_status pod_need_read(pod_need *need, const char *path, const char *const *overrides, int n) {
  *need = (pod_need){0};
  MO_TRY(mo_config_read(&need->config, path, overrides, n, true));
  mo_status status = read_need(need, path);
  if (status != MO_OK) pod_need_free(need);
  return status;
}

void pod_need_free(pod_need *need) {
  mo_config_free(&need->config);
  *need = (pod_need){0};
}

const char *pod_image(const pod_need *need) {
  const char *image = getenv("MOE_POD_IMAGE");
  if (need->config.deployment.image[0]) return need->config.deployment.image;
  return image && *image ? image : "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404";
}
