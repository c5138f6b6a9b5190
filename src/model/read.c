/* config.json -> mo_model_spec. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/architecture.h"
#include "model/json_keys.h"
#include "model/rope.h"

/* Bounds far above any model, so that products of two stay far below 2^63. */
enum {
  MOST_HIDDEN = 1 << 20,
  MOST_LAYERS = 4096,
  MOST_HEADS = 1 << 14,
  MOST_HEAD_DIM = 1 << 14,
  MOST_VOCAB = 1 << 24,
  MOST_EXPERTS = 1 << 14,
  MOST_WIDTH = 1 << 22,
};

static mo_status read_sizes(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *json) {
  double eps;
  MO_TRY(mo_json_int(json, "num_hidden_layers", 1, MOST_LAYERS, &spec->n_layers));
  MO_TRY(mo_json_int(json, "hidden_size", 1, MOST_HIDDEN, &spec->hidden));
  MO_TRY(mo_json_int(json, "vocab_size", 1, MOST_VOCAB, &spec->vocab));
  MO_TRY(mo_json_bool_or(json, "tie_word_embeddings", false, &spec->tied));
  MO_TRY(mo_json_number_or(json, "rms_norm_eps", 0, 1, architecture->rms_norm_eps, &eps));
  spec->norm = (mo_norm_spec){(float)eps, architecture->zero_centred_norm, architecture->norm_weight_in_float};
  const char *activation = NULL, *dtype = NULL;
  MO_TRY(mo_json_string(json, mo_json_has(json, "dtype") ? "dtype" : "torch_dtype", &dtype));
  spec->stored_bytes = dtype && strstr(dtype, "float32") ? 4 : 2;
  MO_TRY(mo_json_string(json, "hidden_act", &activation));
  if (activation && strcmp(activation, "silu") != 0)
    return MO_FAIL(MO_INVALID, "hidden_act \"%.40s\" is not supported (%s): only silu is", activation, json->file);
  return MO_OK;
}

static mo_status read_attention(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *json) {
  bool bias, normed = architecture->qk_norm != MO_QK_NORM_NONE;
  double clip = 0;
  MO_TRY(mo_json_int(json, "num_attention_heads", 1, MOST_HEADS, &spec->attention.heads));
  int64_t heads = spec->attention.heads, head_dim = architecture->head_dim;
  bool is_null = json_is_null(json_object_get(json->object, "num_key_value_heads"));
  int64_t kv_heads = architecture->kv_heads && !is_null ? architecture->kv_heads : heads;
  MO_TRY(mo_json_int_or(json, "num_key_value_heads", 1, heads, kv_heads, &spec->attention.kv_heads));
  if (!head_dim && !mo_json_has(json, "head_dim")) {
    if (spec->hidden % heads)
      return MO_FAIL(MO_INVALID,
                     "hidden_size %lld is not a multiple of num_attention_heads %lld (%s): check config.json",
                     (long long)spec->hidden, (long long)heads, json->file);
    head_dim = spec->hidden / heads;
  }
  MO_TRY(mo_json_int_or(json, "head_dim", 1, MOST_HEAD_DIM, head_dim, &spec->attention.head_dim));
  if (heads % spec->attention.kv_heads)
    return MO_FAIL(MO_INVALID,
                   "num_attention_heads %lld is not a multiple of num_key_value_heads %lld (%s): check config.json",
                   (long long)heads, (long long)spec->attention.kv_heads, json->file);
  MO_TRY(mo_json_bool_or(json, "attention_bias", architecture->bias_default, &bias));
  if (architecture->qk_norm_optional) MO_TRY(mo_json_bool_or(json, "use_qk_norm", false, &normed));
  if (architecture->clip_qkv) MO_TRY(mo_json_number_or(json, "clip_qkv", 1e-6, 1e9, 0, &clip));
  spec->attention.qkv_bias = bias && architecture->bias != MO_BIAS_NONE;
  spec->attention.o_bias = bias && architecture->bias == MO_BIAS_QKVO;
  spec->attention.qk_norm = normed ? architecture->qk_norm : MO_QK_NORM_NONE;
  spec->attention.output_gate = architecture->output_gate;
  spec->attention.sinks = architecture->sinks;
  spec->attention.softmax_bf16 = architecture->attention_softmax_bf16;
  spec->attention.clip = (float)clip;
  spec->attention.scale = (float)(1 / sqrt((double)spec->attention.head_dim));
  return MO_OK;
}

/* The window of sliding layers, 0 if the model has none. */
static mo_status read_window(const mo_architecture *architecture, const mo_json *json, int64_t *window) {
  bool used = true;
  int64_t most = INT32_MAX;
  *window = 0;
  if (architecture->window == MO_WINDOW_NONE) return MO_OK;
  if (architecture->window == MO_WINDOW_FLAG || architecture->window == MO_WINDOW_ABOVE)
    MO_TRY(mo_json_bool_or(json, "use_sliding_window", false, &used));
  return used ? mo_json_int_or(json, "sliding_window", 1, most, architecture->sliding_window, window) : MO_OK;
}

static mo_status layer_type(const mo_json *json, const json_t *types, int64_t layer, mo_layer_spec *spec,
                            int64_t window) {
  const char *type = json_string_value(json_array_get(types, (size_t)layer));
  if (type && strcmp(type, "full_attention") == 0)
    spec->window = 0;
  else if (type && strcmp(type, "sliding_attention") == 0 && window > 0)
    spec->window = window;
  else if (type && strcmp(type, "linear_attention") == 0)
    spec->mixer = MO_MIXER_DELTANET;
  else
    return MO_FAIL(MO_INVALID,
                   "layer_types[%lld] is \"%.40s\", which this architecture does not have (%s): check config.json",
                   (long long)layer, type ? type : "not a string", json->file);
  return MO_OK;
}

/* Mixer and window of each layer: by layer_types where the config has them, else by the architecture's rule. */
static mo_status read_mixers(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *json) {
  int64_t window, above = 0, interval = 0;
  MO_TRY(read_window(architecture, json, &window));
  if (architecture->window == MO_WINDOW_ABOVE)
    MO_TRY(mo_json_int_or(json, "max_window_layers", 0, INT32_MAX, 28, &above));
  if (architecture->delta_layers) MO_TRY(mo_json_int_or(json, "full_attention_interval", 1, MOST_LAYERS, 4, &interval));
  bool typed = architecture->window == MO_WINDOW_ABOVE || architecture->window == MO_WINDOW_ALTERNATE || interval;
  const json_t *types = typed ? mo_json_find(json, "layer_types") : NULL;
  if (types && (!json_is_array(types) || (int64_t)json_array_size(types) != spec->n_layers))
    return MO_FAIL(MO_INVALID, "key \"layer_types\" is not a list of %lld layer%s (%s): check config.json",
                   (long long)spec->n_layers, mo_plural(spec->n_layers), json->file);
  for (int64_t i = 0; i < spec->n_layers; i++) {
    mo_layer_spec *layer = spec->layers + i;
    if (types) {
      MO_TRY(layer_type(json, types, i, layer, window));
      if (layer->mixer == MO_MIXER_DELTANET && !interval)
        return MO_FAIL(MO_INVALID,
                       "layer_types[%lld] is linear_attention, which %s does not have (%s): check config.json",
                       (long long)i, spec->architecture, json->file);
      continue;
    }
    if (interval && (i + 1) % interval) layer->mixer = MO_MIXER_DELTANET;
    bool slides = architecture->window == MO_WINDOW_ABOVE       ? i >= above
                  : architecture->window == MO_WINDOW_ALTERNATE ? i % 2 == 0
                                                                : true;
    layer->window = slides ? window : 0;
  }
  return MO_OK;
}

static bool listed(const json_t *list, int64_t layer) {
  for (size_t i = 0; i < json_array_size(list); i++)
    if (json_integer_value(json_array_get(list, i)) == layer) return true;
  return false;
}

/* Which layers are dense. */
static mo_status read_mlps(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *json) {
  int64_t step = 1, first_dense = 0;
  const json_t *only = NULL;
  if (architecture->mlps == MO_MLPS_STEP) {
    MO_TRY(mo_json_int_or(json, "decoder_sparse_step", 1, MOST_LAYERS, 1, &step));
    only = mo_json_find(json, "mlp_only_layers");
    if (only && !json_is_array(only))
      return MO_FAIL(MO_INVALID, "key \"mlp_only_layers\" is not a list (%s): check config.json", json->file);
    for (size_t i = 0; i < json_array_size(only); i++)
      if (!json_is_integer(json_array_get(only, i)))
        return MO_FAIL(MO_INVALID,
                       "key \"mlp_only_layers\" has an entry that is no layer number (%s): check config.json",
                       json->file);
  }
  if (architecture->mlps == MO_MLPS_FIRST_DENSE)
    MO_TRY(mo_json_int_or(json, "first_k_dense_replace", 0, MOST_LAYERS, 1, &first_dense));
  for (int64_t i = 0; i < spec->n_layers; i++) {
    bool dense = architecture->mlps == MO_MLPS_DENSE || i < first_dense || (i + 1) % step != 0 || listed(only, i);
    spec->layers[i].mlp = dense ? MO_MLP_DENSE : MO_MLP_MOE;
  }
  return MO_OK;
}

static bool any_layer(const mo_model_spec *spec, mo_mlp_kind mlp) {
  for (int64_t i = 0; i < spec->n_layers; i++)
    if (spec->layers[i].mlp == mlp) return true;
  return false;
}

static mo_status read_groups(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *json) {
  spec->moe.groups = spec->moe.top_groups = 1;
  if (!architecture->groups) return MO_OK;
  MO_TRY(mo_json_int_or(json, "n_group", 1, spec->moe.experts, 1, &spec->moe.groups));
  MO_TRY(mo_json_int_or(json, "topk_group", 1, spec->moe.groups, 1, &spec->moe.top_groups));
  int64_t size = spec->moe.experts / spec->moe.groups;
  if (spec->moe.experts % spec->moe.groups || size < 2 || size * spec->moe.top_groups < spec->moe.top_k)
    return MO_FAIL(MO_INVALID,
                   "n_group %lld with topk_group %lld does not divide %lld experts into groups of at least 2 that hold "
                   "the chosen %lld (%s): check config.json",
                   (long long)spec->moe.groups, (long long)spec->moe.top_groups, (long long)spec->moe.experts,
                   (long long)spec->moe.top_k, json->file);
  return MO_OK;
}

static mo_status read_router(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *json) {
  double scale = 1, limit = 0;
  bool renormalise = architecture->renorm == MO_RENORM_ALWAYS || architecture->renorm == MO_RENORM_CONFIG_ON;
  if (architecture->renorm == MO_RENORM_CONFIG || architecture->renorm == MO_RENORM_CONFIG_ON)
    MO_TRY(mo_json_bool_or(json, "norm_topk_prob", renormalise, &renormalise));
  if (architecture->router == MO_ROUTER_SIGMOID)
    MO_TRY(mo_json_number_or(json, "routed_scaling_factor", -1e6, 1e6, 1, &scale));
  if (architecture->glu == MO_GLU_CLAMPED) MO_TRY(mo_json_number_or(json, "swiglu_limit", 1e-6, 1e9, 7, &limit));
  MO_TRY(read_groups(spec, architecture, json));
  spec->moe.router = architecture->router;
  spec->moe.renormalise = renormalise;
  spec->moe.router_float = architecture->router_float;
  spec->moe.softmax_bf16 = architecture->router_softmax_bf16;
  spec->moe.weights_bf16 = architecture->router_weights_bf16;
  spec->moe.router_bias = architecture->router_bias;
  spec->moe.correction = architecture->correction;
  spec->moe.routed_scale = (float)scale;
  spec->moe.glu = architecture->glu;
  spec->moe.glu_limit = (float)limit;
  spec->moe.glu_alpha = 1.702f;
  return MO_OK;
}

static mo_status read_shared(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *json) {
  int64_t count;
  spec->moe.shared = architecture->shared;
  if (architecture->shared == MO_SHARED_GATED)
    return mo_json_int_or(json, "shared_expert_intermediate_size", 1, MOST_WIDTH, 512, &spec->moe.shared_width);
  if (architecture->shared == MO_SHARED_PLAIN) {
    MO_TRY(mo_json_int_or(json, "n_shared_experts", 1, MOST_EXPERTS, 1, &count));
    spec->moe.shared_width = count * spec->moe.width;
  }
  return MO_OK;
}

/* Experts quantized by MXFP4 are the only quantized weights that are read. */
static mo_status read_quantization(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *json) {
  mo_json quantization;
  const char *method = NULL;
  MO_TRY(mo_json_object(json, "quantization_config", &quantization));
  if (!quantization.object) return MO_OK;
  MO_TRY(mo_json_string(&quantization, "quant_method", &method));
  if (!architecture->fused_experts || !method || strcmp(method, "mxfp4") != 0)
    return MO_FAIL(MO_INVALID, "quantization \"%.40s\" is not supported for %s (%s): use the unquantized checkpoint",
                   method ? method : "unnamed", spec->architecture, json->file);
  spec->moe.mxfp4 = true;
  return MO_OK;
}

static mo_status read_experts(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *json) {
  const char *key =
      mo_json_has(json, architecture->experts_key) ? architecture->experts_key : architecture->experts_alias;
  if (!mo_json_has(json, key)) key = architecture->experts_key;
  MO_TRY(mo_json_int(json, key, 1, MOST_EXPERTS, &spec->moe.experts));
  const char *top_key = mo_json_has(json, "num_experts_per_tok") ? "num_experts_per_tok" : "experts_per_token";
  if (!mo_json_has(json, top_key)) top_key = "num_experts_per_tok";
  MO_TRY(mo_json_int(json, top_key, 1, spec->moe.experts, &spec->moe.top_k));
  MO_TRY(mo_json_int(json, architecture->expert_width_key, 1, MOST_WIDTH, &spec->moe.width));
  spec->moe.fused = spec->moe.expert_bias = architecture->fused_experts;
  if (spec->moe.mxfp4 && (spec->hidden % 32 || spec->moe.width % 32))
    return MO_FAIL(MO_INVALID,
                   "hidden_size %lld or %s %lld is not a multiple of MXFP4's block of 32 (%s): check config.json",
                   (long long)spec->hidden, architecture->expert_width_key, (long long)spec->moe.width, json->file);
  MO_TRY(read_router(spec, architecture, json));
  MO_TRY(read_shared(spec, architecture, json));
  return MO_OK;
}

static mo_status read_delta(mo_model_spec *spec, const mo_json *json) {
  MO_TRY(mo_json_int_or(json, "linear_num_key_heads", 1, MOST_HEADS, 16, &spec->delta.k_heads));
  MO_TRY(mo_json_int_or(json, "linear_num_value_heads", 1, MOST_HEADS, 32, &spec->delta.v_heads));
  MO_TRY(mo_json_int_or(json, "linear_key_head_dim", 1, MOST_HEAD_DIM, 128, &spec->delta.k_dim));
  MO_TRY(mo_json_int_or(json, "linear_value_head_dim", 1, MOST_HEAD_DIM, 128, &spec->delta.v_dim));
  MO_TRY(mo_json_int_or(json, "linear_conv_kernel_dim", 1, 64, 4, &spec->delta.kernel));
  if (spec->delta.v_heads % spec->delta.k_heads)
    return MO_FAIL(MO_INVALID,
                   "linear_num_value_heads %lld is not a multiple of linear_num_key_heads %lld (%s): check config.json",
                   (long long)spec->delta.v_heads, (long long)spec->delta.k_heads, json->file);
  return MO_OK;
}

static mo_status read_prediction(mo_model_spec *spec, const mo_architecture *architecture, const mo_json *json) {
  const mo_prediction_rule *rule = &architecture->prediction;
  spec->prediction_layers = rule->count;
  if (!rule->count_key) return MO_OK;
  return mo_json_int_or(json, rule->count_key, 0, MOST_LAYERS, rule->count, &spec->prediction_layers);
}

/* Sizes that each make sense may together make none. */
static mo_status check_total(const mo_model_spec *spec, const mo_json *json) {
  double H = (double)spec->hidden, L = (double)spec->n_layers;
  double attention =
      (double)spec->attention.head_dim * (double)(2 * spec->attention.heads + 2 * spec->attention.kv_heads) * H;
  double delta = (double)spec->delta.v_heads * (double)(spec->delta.k_dim + spec->delta.v_dim) * 4 * H;
  double experts = 3 * H * (double)spec->moe.width * (double)spec->moe.experts;
  double dense = 3 * H * (double)(spec->dense.width + spec->moe.shared_width);
  double total = L * (attention + delta + experts + dense) + 2 * H * (double)spec->vocab;
  if (!(total < 1e14) || L * (double)spec->moe.experts > 4e6)
    return MO_FAIL(MO_INVALID, "the sizes together make a model of about %.1e parameters (%s): check config.json",
                   total, json->file);
  return MO_OK;
}

static mo_status read_model(mo_model_spec *spec, const mo_json *json) {
  const char *type = NULL;
  MO_TRY(mo_json_string(json, "model_type", &type));
  if (!type)
    return MO_FAIL(MO_INVALID, "key \"model_type\" is missing (%s): use the config.json of the hub", json->file);
  const mo_architecture *architecture = mo_architecture_find(type);
  if (!architecture)
    return MO_FAIL(MO_INVALID, "model_type \"%.60s\" is not supported (%s): supported are %s", type, json->file,
                   mo_architecture_list());
  snprintf(spec->architecture, sizeof spec->architecture, "%s", type);
  MO_TRY(read_sizes(spec, architecture, json));
  MO_TRY(read_attention(spec, architecture, json));
  MO_TRY(mo_rope_read(spec, architecture, json));
  spec->layers = mo_alloc((size_t)spec->n_layers, sizeof *spec->layers);
  if (!spec->layers) return MO_FAILED;
  MO_TRY(read_mixers(spec, architecture, json));
  MO_TRY(read_mlps(spec, architecture, json));
  if (architecture->delta_layers) MO_TRY(read_delta(spec, json));
  MO_TRY(read_quantization(spec, architecture, json));
  if (any_layer(spec, MO_MLP_MOE)) MO_TRY(read_experts(spec, architecture, json));
  if (any_layer(spec, MO_MLP_DENSE)) MO_TRY(mo_json_int(json, "intermediate_size", 1, MOST_WIDTH, &spec->dense.width));
  if (architecture->mlp_bias) MO_TRY(mo_json_bool_or(json, "mlp_bias", false, &spec->dense.bias));
  MO_TRY(read_prediction(spec, architecture, json));
  return check_total(spec, json);
}

mo_status mo_model_parse(mo_model_spec *spec, const char *text, size_t bytes, const char *name) {
  memset(spec, 0, sizeof *spec);
  json_error_t error;
  json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
  if (!root)
    return MO_FAIL(MO_INVALID, "not valid JSON: %s (%s:%d): fetch the file again", error.text, name, error.line);
  mo_json json = {root, name};
  mo_status status = MO_OK;
  if (!json_is_object(root))
    status = MO_FAIL(MO_INVALID, "not a JSON object (%s): use the config.json of the hub", name);
  else
    status = read_model(spec, &json);
  json_decref(root);
  if (status != MO_OK) mo_model_free(spec);
  return status;
}

static mo_status read_file(const char *path, char **text, size_t *bytes) {
  enum { MOST_BYTES = 16 << 20 };
  struct stat info;
  FILE *file = fopen(path, "rb");
  if (!file || fstat(fileno(file), &info) != 0 || !S_ISREG(info.st_mode) || info.st_size > MOST_BYTES) {
    const char *why = !file ? strerror(errno) : "not a file of at most 16 MiB";
    if (file) fclose(file);
    return MO_FAIL(MO_INVALID,
                   "cannot read the model's configuration: %s (%s): set model.path to a folder with config.json and "
                   "*.safetensors",
                   why, path);
  }
  *text = mo_alloc((size_t)info.st_size + 1, 1);
  *bytes = *text ? fread(*text, 1, (size_t)info.st_size, file) : 0;
  bool whole = *text && *bytes == (size_t)info.st_size;
  fclose(file);
  if (!*text) return MO_FAILED;
  if (whole) return MO_OK;
  free(*text);
  return MO_FAIL(MO_INVALID, "cannot read the whole file (%s): check the disk", path);
}

mo_status mo_model_read(mo_model_spec *spec, const char *directory) {
  char path[4096], *text = NULL;
  size_t bytes = 0, length = strlen(directory);
  bool is_json = length > 5 && strcmp(directory + length - 5, ".json") == 0;
  memset(spec, 0, sizeof *spec);
  if (snprintf(path, sizeof path, is_json ? "%s" : "%s/config.json", directory) >= (int)sizeof path)
    return MO_FAIL(MO_INVALID, "path too long (%.60s...): use a shorter model.path", directory);
  MO_TRY(read_file(path, &text, &bytes));
  mo_status status = mo_model_parse(spec, text, bytes, path);
  free(text);
  return status;
}

void mo_model_free(mo_model_spec *spec) {
  free(spec->layers);
  free(spec->rope.inv_freq);
  memset(spec, 0, sizeof *spec);
}
