/* For the tests of the model room: a small config.json of each architecture, edits of its keys, and a spec written
 * out as text so that two can be compared. */
#ifndef TEST_MODEL_FIXTURE_H
#define TEST_MODEL_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/model.h"

/* Old key style. No size equals another where they could be confused. */
static const char llama[] =
    "{\"model_type\":\"llama\",\"hidden_size\":48,\"num_hidden_layers\":3,\"num_attention_heads\":6,"
    "\"num_key_value_heads\":3,\"intermediate_size\":80,\"vocab_size\":101,\"rms_norm_eps\":1e-05,\"rope_theta\":"
    "500000.0,"
    "\"max_position_embeddings\":256,\"torch_dtype\":\"bfloat16\",\"hidden_act\":\"silu\",\"tie_word_embeddings\":"
    "false}";
static const char qwen3[] =
    "{\"model_type\":\"qwen3\",\"hidden_size\":40,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"head_dim\":16,"
    "\"num_key_value_heads\":2,\"intermediate_size\":72,\"vocab_size\":97,\"rms_norm_eps\":1e-06,\"rope_theta\":"
    "1000000,"
    "\"max_position_embeddings\":256,\"max_window_layers\":4,\"use_sliding_window\":false,\"sliding_window\":null,"
    "\"torch_dtype\":\"bfloat16\",\"hidden_act\":\"silu\",\"tie_word_embeddings\":true,\"attention_bias\":false}";
static const char qwen3_moe[] =
    "{\"model_type\":\"qwen3_moe\",\"hidden_size\":40,\"num_hidden_layers\":5,\"num_attention_heads\":6,\"head_dim\":"
    "16,"
    "\"num_key_value_heads\":2,\"intermediate_size\":72,\"moe_intermediate_size\":24,\"num_experts\":7,"
    "\"num_experts_per_tok\":3,\"norm_topk_prob\":true,\"decoder_sparse_step\":1,\"mlp_only_layers\":[],\"vocab_size\":"
    "97,"
    "\"rms_norm_eps\":1e-06,\"rope_theta\":1000000.0,\"rope_scaling\":null,\"max_position_embeddings\":256,"
    "\"use_sliding_window\":false,\"sliding_window\":null,\"torch_dtype\":\"bfloat16\",\"hidden_act\":\"silu\","
    "\"tie_word_embeddings\":false,\"attention_bias\":false}";
static const char olmoe[] =
    "{\"model_type\":\"olmoe\",\"hidden_size\":48,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
    "\"num_key_value_heads\":2,\"intermediate_size\":20,\"num_experts\":6,\"num_experts_per_tok\":2,"
    "\"norm_topk_prob\":false,\"clip_qkv\":null,\"vocab_size\":89,\"rms_norm_eps\":1e-05,\"rope_theta\":10000.0,"
    "\"max_position_embeddings\":128,\"torch_dtype\":\"float32\",\"hidden_act\":\"silu\",\"tie_word_embeddings\":false,"
    "\"attention_bias\":false}";
static const char mixtral[] =
    "{\"model_type\":\"mixtral\",\"hidden_size\":48,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
    "\"num_key_value_heads\":2,\"intermediate_size\":56,\"num_local_experts\":5,\"num_experts_per_tok\":2,"
    "\"vocab_size\":83,\"rms_norm_eps\":1e-05,\"rope_theta\":1000000.0,\"sliding_window\":null,"
    "\"max_position_embeddings\":128,\"torch_dtype\":\"bfloat16\",\"hidden_act\":\"silu\",\"tie_word_embeddings\":"
    "false}";
static const char qwen3_next[] =
    "{\"model_type\":\"qwen3_next\",\"hidden_size\":40,\"num_hidden_layers\":5,\"num_attention_heads\":4,\"head_dim\":"
    "16,"
    "\"num_key_value_heads\":2,\"partial_rotary_factor\":0.25,\"full_attention_interval\":2,\"linear_num_key_heads\":2,"
    "\"linear_num_value_heads\":6,\"linear_key_head_dim\":8,\"linear_value_head_dim\":10,\"linear_conv_kernel_dim\":4,"
    "\"intermediate_size\":72,\"moe_intermediate_size\":24,\"shared_expert_intermediate_size\":28,\"num_experts\":7,"
    "\"num_experts_per_tok\":3,\"norm_topk_prob\":true,\"decoder_sparse_step\":1,\"mlp_only_layers\":[],\"vocab_size\":"
    "97,"
    "\"rms_norm_eps\":1e-06,\"rope_theta\":10000000.0,\"max_position_embeddings\":256,\"torch_dtype\":\"bfloat16\","
    "\"hidden_act\":\"silu\",\"tie_word_embeddings\":false}";
static const char glm4_moe[] =
    "{\"model_type\":\"glm4_moe\",\"hidden_size\":40,\"num_hidden_layers\":4,\"num_attention_heads\":6,\"head_dim\":16,"
    "\"num_key_value_heads\":2,\"partial_rotary_factor\":0.5,\"attention_bias\":true,\"use_qk_norm\":false,"
    "\"intermediate_size\":72,\"moe_intermediate_size\":24,\"n_routed_experts\":8,\"n_shared_experts\":2,"
    "\"num_experts_per_tok\":3,\"first_k_dense_replace\":1,\"n_group\":2,\"topk_group\":1,\"norm_topk_prob\":true,"
    "\"routed_scaling_factor\":2.5,\"num_nextn_predict_layers\":1,\"vocab_size\":97,\"rms_norm_eps\":1e-05,"
    "\"rope_theta\":1000000.0,\"max_position_embeddings\":256,\"torch_dtype\":\"bfloat16\",\"hidden_act\":\"silu\","
    "\"tie_word_embeddings\":false}";
static const char gpt_oss[] =
    "{\"model_type\":\"gpt_oss\",\"hidden_size\":64,\"num_hidden_layers\":4,\"num_attention_heads\":6,\"head_dim\":16,"
    "\"num_key_value_heads\":2,\"attention_bias\":true,\"sliding_window\":9,\"intermediate_size\":96,"
    "\"num_local_experts\":5,\"num_experts_per_tok\":2,\"swiglu_limit\":7.0,\"vocab_size\":97,\"rms_norm_eps\":1e-05,"
    "\"rope_theta\":150000.0,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":32.0,\"beta_fast\":32.0,\"beta_slow\":"
    "1.0,"
    "\"original_max_position_embeddings\":4096,\"truncate\":false},\"max_position_embeddings\":131072,"
    "\"torch_dtype\":\"bfloat16\",\"hidden_act\":\"silu\",\"tie_word_embeddings\":false}";

static const char *const all_configs[] = {llama, qwen3, qwen3_moe, olmoe, mixtral, qwen3_next, glm4_moe, gpt_oss};
enum { N_CONFIGS = sizeof all_configs / sizeof all_configs[0] };

/* Where the value ends that begins at `at`. */
static inline const char *value_end(const char *at) {
  int depth = 0;
  for (; depth > 0 || (*at != ',' && *at != '}'); at++)
    depth += (*at == '[' || *at == '{') - (*at == ']' || *at == '}');
  return at;
}

/* `json` with a top-level key set to `value`; NULL takes the key away. The caller frees. Not inline: gcc 12 would warn
 * of truncation that cannot happen. */
static __attribute__((noinline, unused)) char *with(const char *json, const char *key, const char *value) {
  size_t room = strlen(json) + strlen(key) + (value ? strlen(value) : 0) + 8;
  char *text = malloc(room), *name = malloc(room);
  assert_true(text && name);
  snprintf(name, room, "\"%s\":", key);
  const char *begin = strstr(json, name), *rest = begin ? value_end(begin + strlen(name)) : json + 1;
  int kept = begin ? (int)(begin - json) : 1;
  bool comma = *rest == ',';
  if (value)
    snprintf(text, room, "%.*s%s%s%s%s", kept, json, name, value, begin ? "" : ",", rest);
  else
    snprintf(text, room, "%.*s%s", kept - (begin && !comma), json, begin ? rest + comma : rest);
  free(name);
  return text;
}

/* As `with`, freeing `json`, so that edits can follow one another. */
static inline char *edit(char *json, const char *key, const char *value) {
  char *text = with(json, key, value);
  free(json);
  return text;
}

static inline char *copy_of(const char *json) {
  char *text = strdup(json);
  assert_non_null(text);
  return text;
}

static inline mo_model_spec parsed(const char *json) {
  mo_model_spec spec;
  mo_status status = mo_model_parse(&spec, json, strlen(json), "test.json");
  if (status != MO_OK) fail_msg("%s in %s", mo_error_message(), json);
  return spec;
}

/* Refused with an error line that holds all of the given texts and the file's name. */
static inline void expect_refused(const char *json, const char *part, const char *other) {
  mo_model_spec spec;
  mo_error_clear();
  mo_status status = mo_model_parse(&spec, json, strlen(json), "test.json");
  if (status == MO_OK) fail_msg("accepted: %s", json);
  assert_int_equal(status, MO_INVALID);
  const char *message = mo_error_message();
  if (!strstr(message, part) || !strstr(message, other) || !strstr(message, "(test.json"))
    fail_msg("\"%s\" lacks \"%s\", \"%s\" or the file", message, part, other);
  assert_null(spec.layers);
  assert_null(spec.rope.inv_freq);
  mo_error_clear();
}

static inline void write_spec(FILE *f, const mo_model_spec *s) {
  fprintf(f, "%s L%" PRId64 " H%" PRId64 " V%" PRId64 " tied%d bytes%d norm %.9g %d %d\n", s->architecture, s->n_layers,
          s->hidden, s->vocab, s->tied, s->stored_bytes, (double)s->norm.eps, s->norm.zero_centred,
          s->norm.weight_in_float);
  for (int64_t i = 0; i < s->n_layers; i++)
    fprintf(f, "layer %d %d %" PRId64 "\n", s->layers[i].mixer, s->layers[i].mlp, s->layers[i].window);
  fprintf(f, "attention %" PRId64 " %" PRId64 " %" PRId64 " %d %d %d %d %d %d %.9g %.9g\n", s->attention.heads,
          s->attention.kv_heads, s->attention.head_dim, s->attention.qk_norm, s->attention.qkv_bias,
          s->attention.o_bias, s->attention.output_gate, s->attention.sinks, s->attention.softmax_bf16,
          (double)s->attention.clip, (double)s->attention.scale);
  fprintf(f, "rope %" PRId64 " %.9g", s->rope.dim, (double)s->rope.factor);
  for (int64_t j = 0; j < s->rope.dim / 2; j++) fprintf(f, " %.9g", (double)s->rope.inv_freq[j]);
  fprintf(f, "\ndelta %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " dense %" PRId64 " %d\n",
          s->delta.k_heads, s->delta.v_heads, s->delta.k_dim, s->delta.v_dim, s->delta.kernel, s->dense.width,
          s->dense.bias);
  fprintf(f, "moe %" PRId64 " %" PRId64 " %" PRId64 " %d %d %d %d %d", s->moe.experts, s->moe.top_k, s->moe.width,
          s->moe.router, s->moe.renormalise, s->moe.router_float, s->moe.softmax_bf16, s->moe.weights_bf16);
  fprintf(f, " %d %d %d %d %d %.9g %" PRId64 " %" PRId64 " %d %.9g %.9g %d %" PRId64 "\n", s->moe.router_bias,
          s->moe.correction, s->moe.expert_bias, s->moe.fused, s->moe.mxfp4, (double)s->moe.routed_scale, s->moe.groups,
          s->moe.top_groups, s->moe.glu, (double)s->moe.glu_limit, (double)s->moe.glu_alpha, s->moe.shared,
          s->moe.shared_width);
}

/* The whole spec as text; the caller frees. */
static inline char *described(const char *json) {
  mo_model_spec spec = parsed(json);
  char *text = NULL;
  size_t size = 0;
  FILE *f = open_memstream(&text, &size);
  assert_non_null(f);
  write_spec(f, &spec);
  assert_int_equal(fclose(f), 0);
  mo_model_free(&spec);
  return text;
}

static inline void expect_same(const char *json, const char *other) {
  char *a = described(json), *b = described(other);
  assert_string_equal(a, b);
  free(a);
  free(b);
}

#endif
