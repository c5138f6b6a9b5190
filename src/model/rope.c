#include "model/rope.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The parameters, wherever the config keeps them. */
typedef struct {
  const char *type;
  double theta, factor, original_length;
  mo_json scaling; /* the object that holds type-specific keys */
} rope_keys;

static mo_status read_type(rope_keys *keys) {
  const char *type = NULL, *old = NULL;
  MO_TRY(mo_json_string(&keys->scaling, "rope_type", &type));
  MO_TRY(mo_json_string(&keys->scaling, "type", &old)); /* before transformers 4.43 */
  keys->type = type ? type : old ? old : "default";
  return MO_OK;
}

static mo_status read_keys(const mo_architecture *architecture, const mo_json *config, const json_t *assumed,
                           rope_keys *keys) {
  MO_TRY(mo_json_object(config, "rope_scaling", &keys->scaling));
  if (!keys->scaling.object) MO_TRY(mo_json_object(config, "rope_parameters", &keys->scaling));
  keys->type = "default";
  if (architecture->default_yarn && !keys->scaling.object) keys->scaling.object = assumed;
  if (keys->scaling.object) MO_TRY(read_type(keys));
  MO_TRY(mo_json_number_or(config, "rope_theta", 1, 1e15, architecture->rope_theta, &keys->theta));
  if (keys->scaling.object) MO_TRY(mo_json_number_or(&keys->scaling, "rope_theta", 1, 1e15, keys->theta, &keys->theta));
  if (!(keys->theta > 1))
    return MO_FAIL(MO_INVALID, "key \"rope_theta\" is %g, expected more than 1 (%s): check config.json", keys->theta,
                   config->file);
  double longest;
  MO_TRY(mo_json_number_or(config, "max_position_embeddings", 1, 1e12, 2048, &longest));
  keys->original_length = longest;
  if (keys->scaling.object)
    MO_TRY(mo_json_number_or(&keys->scaling, "original_max_position_embeddings", 1, 1e12, longest,
                             &keys->original_length));
  return MO_OK;
}

static mo_status scale_linear(float *inv_freq, int64_t half, const rope_keys *keys) {
  for (int64_t j = 0; j < half; j++) inv_freq[j] /= (float)keys->factor;
  return MO_OK;
}

/* Llama 3.1: long wavelengths divided by the factor, short ones kept, a smooth passage between. */
static mo_status scale_llama3(float *inv_freq, int64_t half, const rope_keys *keys) {
  double low_factor, high_factor;
  MO_TRY(mo_json_number(&keys->scaling, "low_freq_factor", 1e-6, 1e6, &low_factor));
  MO_TRY(mo_json_number(&keys->scaling, "high_freq_factor", 1e-6, 1e6, &high_factor));
  if (!(high_factor > low_factor))
    return MO_FAIL(MO_INVALID, "rope key \"high_freq_factor\" is not above \"low_freq_factor\" (%s): check config.json",
                   keys->scaling.file);
  for (int64_t j = 0; j < half; j++) {
    double frequency = inv_freq[j], wavelength = 2 * M_PI / frequency;
    if (wavelength > keys->original_length / low_factor)
      inv_freq[j] = (float)(frequency / keys->factor);
    else if (wavelength >= keys->original_length / high_factor) {
      double smooth = (keys->original_length / wavelength - low_factor) / (high_factor - low_factor);
      inv_freq[j] = (float)((1 - smooth) * frequency / keys->factor + smooth * frequency);
    }
  }
  return MO_OK;
}

static double yarn_scale(double factor, double scale) { return factor <= 1 ? 1 : 0.1 * scale * log(factor) + 1; }

static mo_status yarn_factor(mo_model_spec *spec, const rope_keys *keys) {
  double given, scale, scale_all;
  MO_TRY(mo_json_number_or(&keys->scaling, "attention_factor", 0, 1e6, 0, &given));
  MO_TRY(mo_json_number_or(&keys->scaling, "mscale", 0, 1e6, 0, &scale));
  MO_TRY(mo_json_number_or(&keys->scaling, "mscale_all_dim", 0, 1e6, 0, &scale_all));
  if (given > 0)
    spec->rope.factor = (float)given;
  else if (scale > 0 && scale_all > 0)
    spec->rope.factor = (float)(yarn_scale(keys->factor, scale) / yarn_scale(keys->factor, scale_all));
  else
    spec->rope.factor = (float)yarn_scale(keys->factor, 1);
  return MO_OK;
}

/* YaRN (Peng et al. 2023, arXiv:2309.00071): interpolate slow dimensions, keep fast ones, a ramp between. */
static mo_status scale_yarn(mo_model_spec *spec, const rope_keys *keys) {
  double fast, slow;
  bool truncate;
  MO_TRY(mo_json_number_or(&keys->scaling, "beta_fast", 1e-6, 1e6, 32, &fast));
  MO_TRY(mo_json_number_or(&keys->scaling, "beta_slow", 1e-6, 1e6, 1, &slow));
  MO_TRY(mo_json_bool_or(&keys->scaling, "truncate", true, &truncate));
  MO_TRY(yarn_factor(spec, keys));
  double dim = (double)spec->rope.dim;
  double low = dim * log(keys->original_length / (fast * 2 * M_PI)) / (2 * log(keys->theta));
  double high = dim * log(keys->original_length / (slow * 2 * M_PI)) / (2 * log(keys->theta));
  if (truncate) low = floor(low), high = ceil(high);
  low = fmax(low, 0);
  high = fmin(high, dim - 1);
  if (low == high) high += 0.001;
  for (int64_t j = 0; j < spec->rope.dim / 2; j++) {
    double ramp = fmin(fmax(((double)j - low) / (high - low), 0), 1), frequency = spec->rope.inv_freq[j];
    spec->rope.inv_freq[j] = (float)(frequency / keys->factor * ramp + frequency * (1 - ramp));
  }
  return MO_OK;
}

static mo_status read_dim(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *config,
                          const rope_keys *keys) {
  double partial = 1;
  if (architecture->partial_rotary > 0) {
    MO_TRY(mo_json_number_or(config, "partial_rotary_factor", 0, 1, architecture->partial_rotary, &partial));
    if (keys->scaling.object)
      MO_TRY(mo_json_number_or(&keys->scaling, "partial_rotary_factor", 0, 1, partial, &partial));
  }
  spec->rope.dim = (int64_t)((double)spec->attention.head_dim * partial);
  if (spec->rope.dim < 2 || spec->rope.dim % 2)
    return MO_FAIL(MO_INVALID,
                   "%lld rotary dimensions of a head, expected an even number of at least 2 (%s): check head_dim "
                   "and partial_rotary_factor",
                   (long long)spec->rope.dim, config->file);
  return MO_OK;
}

static mo_status read_rope(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *config,
                           const json_t *assumed) {
  rope_keys keys = {0};
  MO_TRY(read_keys(architecture, config, assumed, &keys));
  MO_TRY(read_dim(spec, architecture, config, &keys));
  int64_t half = spec->rope.dim / 2;
  spec->rope.inv_freq = mo_alloc((size_t)half, sizeof(float));
  if (!spec->rope.inv_freq) return MO_FAILED;
  spec->rope.factor = 1;
  for (int64_t j = 0; j < half; j++) { /* in the reference's float32 steps */
    float exponent = (float)(2 * j) / (float)spec->rope.dim;
    spec->rope.inv_freq[j] = 1.0f / (float)pow(keys.theta, exponent);
  }
  if (strcmp(keys.type, "default") == 0) return MO_OK;
  bool linear = strcmp(keys.type, "linear") == 0, llama3 = strcmp(keys.type, "llama3") == 0;
  if (linear || llama3 || strcmp(keys.type, "yarn") == 0) {
    MO_TRY(mo_json_number(&keys.scaling, "factor", 1e-3, 1e6, &keys.factor));
    if (linear) return scale_linear(spec->rope.inv_freq, half, &keys);
    return llama3 ? scale_llama3(spec->rope.inv_freq, half, &keys) : scale_yarn(spec, &keys);
  }
  return MO_FAIL(MO_INVALID, "rope type \"%.40s\" is not supported (%s): supported are default, linear, llama3, yarn",
                 keys.type, config->file);
}

mo_status mo_rope_read(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *config) {
  /* GptOssConfig's own default, used where config.json says nothing about rotary scaling */
  json_t *assumed = json_pack("{s:s, s:f, s:f, s:f, s:b, s:i}", "rope_type", "yarn", "factor", 32.0, "beta_fast", 32.0,
                              "beta_slow", 1.0, "truncate", 0, "original_max_position_embeddings", 4096);
  mo_status status = assumed ? read_rope(spec, architecture, config, assumed)
                             : MO_FAIL(MO_FAILED, "out of memory (%s): use a larger machine", config->file);
  json_decref(assumed);
  return status;
}
