/* Threads and staging of a rank, as the config and its cores say. */
#include "moe_outliers/network.h"
#include "pipeline/run_plan.h"

int mo_run_threads(const mo_config *config, int cores) {
  return config->engine.threads > 0 ? (int)config->engine.threads : cores;
}

int mo_run_readers(const mo_config *config, int cores) {
  int most = cores < MO_STREAM_READERS ? cores : MO_STREAM_READERS;
  if (mo_network_is_address(config->model.path)) most = MO_NETWORK_READERS; /* they mostly wait */
  return config->engine.readers > 0 ? (int)config->engine.readers : most;
}

mo_stream_plan mo_run_stream(const mo_config *config, int readers, bool host_memory) {
  int64_t range = host_memory ? MO_NETWORK_CHUNK : MO_NETWORK_STAGED;
  return (mo_stream_plan){.n_readers = readers,
                          .chunk_bytes = mo_network_is_address(config->model.path) ? range : 0,
                          .host_bytes = (int64_t)(config->engine.host_memory_gb * 1e9),
                          .verify = config->engine.verify};
}

int64_t mo_run_staging(const mo_config *config, int readers, bool host_memory) {
  mo_stream_plan stream = mo_run_stream(config, readers, host_memory);
  int64_t bytes = mo_stream_host_bytes(&stream, host_memory);
  return mo_network_is_address(config->model.path) ? bytes + (int64_t)readers * MO_NETWORK_CONNECTION : bytes;
}
