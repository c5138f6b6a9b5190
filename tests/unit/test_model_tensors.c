/* The tensors of each stage, their names and shapes; parameters, bytes and operations; published totals of real
 * models. */
#include "test_model_fixture.h"

/* --- real models: the keys of the hub's config.json files that say something about sizes --- */

#define COMMON(type, layers, hidden, heads, kv_heads, vocab)                                         \
  "{\"model_type\":\"" type "\",\"num_hidden_layers\":" #layers ",\"hidden_size\":" #hidden          \
  ",\"num_attention_heads\":" #heads ",\"num_key_value_heads\":" #kv_heads ",\"vocab_size\":" #vocab \
  ",\"hidden_act\":\"silu\","
#define QWEN3(layers, hidden, heads, width, tied)                                   \
  COMMON("qwen3", layers, hidden, heads, 8, 151936)                                 \
  "\"head_dim\":128,\"intermediate_size\":" #width ",\"tie_word_embeddings\":" tied \
  ",\"rope_theta\":1000000,"                                                        \
  "\"rope_scaling\":null,\"use_sliding_window\":false,\"sliding_window\":null,\"torch_dtype\":\"bfloat16\"}"
#define GPT_OSS(layers, experts)                                                                                       \
  COMMON("gpt_oss", layers, 2880, 64, 8, 201088)                                                                       \
  "\"head_dim\":64,\"intermediate_size\":2880,\"num_local_experts\":" #experts                                         \
  ",\"num_experts_per_tok\":4,"                                                                                        \
  "\"attention_bias\":true,\"sliding_window\":128,\"swiglu_limit\":7.0,\"tie_word_embeddings\":false,"                 \
  "\"rope_theta\":150000,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":32.0,\"beta_fast\":32.0,\"beta_slow\":1." \
  "0,"                                                                                                                 \
  "\"original_max_position_embeddings\":4096,\"truncate\":false},\"max_position_embeddings\":131072,"                  \
  "\"quantization_config\":{\"quant_method\":\"mxfp4\"}}"

static const struct {
  const char *name, *json;
  int64_t total, active, active_no_embed, tensors, bytes;
  int64_t extra_tensors, extra_parameters, file_bytes; /* of the published file beyond the model; 0: it has no more */
} real[] = {
    {"OLMoE-1B-7B-0125",
     COMMON(
         "olmoe", 16, 2048, 16, 16,
         50304) "\"intermediate_size\":1024,\"num_experts\":64,\"num_experts_per_tok\":8,"
                "\"clip_qkv\":null,\"tie_word_embeddings\":false,\"rope_theta\":10000.0,\"torch_dtype\":\"float32\"}",
     6919161856, 1282017280, 1178994688, 3219, 27676647424, 0, 0, 27676647424},
    {"Qwen3-30B-A3B",
     COMMON("qwen3_moe", 48, 2048, 32, 4, 151936) "\"head_dim\":128,\"intermediate_size\":6144,"
                                                  "\"moe_intermediate_size\":768,\"num_experts\":128,\"num_experts_per_"
                                                  "tok\":8,\"decoder_sparse_step\":1,"
                                                  "\"mlp_only_layers\":[],\"tie_word_embeddings\":false,\"rope_theta\":"
                                                  "1000000.0,\"torch_dtype\":\"bfloat16\"}",
     30532122624, 3353032704, 3041867776, 18867, 61064245248, 0, 0, 61064245248},
    {"Mixtral-8x7B-v0.1",
     COMMON("mixtral", 32, 4096, 32, 8, 32000) "\"intermediate_size\":14336,\"num_local_experts\":8,"
                                               "\"num_experts_per_tok\":2,\"sliding_window\":null,\"tie_word_"
                                               "embeddings\":false,\"torch_dtype\":\"bfloat16\"}",
     46702792704, 12879925248, 12748853248, 995, 93405585408, 0, 0, 93405585408},
    {"Qwen3-Next-80B-A3B",
     COMMON("qwen3_next", 48, 2048, 16, 2, 151936) "\"head_dim\":256,\"intermediate_size\":5120,"
                                                   "\"moe_intermediate_size\":512,\"shared_expert_intermediate_size\":"
                                                   "512,\"num_experts\":512,\"num_experts_per_tok\":10,"
                                                   "\"full_attention_interval\":4,\"linear_num_key_heads\":16,\"linear_"
                                                   "num_value_heads\":32,\"linear_key_head_dim\":128,"
                                                   "\"linear_value_head_dim\":128,\"linear_conv_kernel_dim\":4,"
                                                   "\"partial_rotary_factor\":0.25,\"rope_theta\":10000000,"
                                                   "\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\"}",
     79674391296, 3874929408, 3563764480, 74391, 159348782592, 1553, 0, 162649725440},
    {"GLM-4.5-Air",
     COMMON("glm4_moe", 46, 4096, 96, 8,
            151552) "\"head_dim\":128,\"intermediate_size\":10944,"
                    "\"moe_intermediate_size\":1408,\"n_routed_experts\":128,\"n_shared_experts\":1,\"num_experts_per_"
                    "tok\":8,"
                    "\"first_k_dense_replace\":1,\"n_group\":1,\"topk_group\":1,\"attention_bias\":true,\"use_qk_"
                    "norm\":false,"
                    "\"partial_rotary_factor\":0.5,\"num_nextn_predict_layers\":1,\"tie_word_embeddings\":false,"
                    "\"torch_dtype\":\"bfloat16\"}",
     106852251264, 13424129664, 12803372672, 17925, 0, 404, 110468824832 - 106852251264, 220937661440},
    {"gpt-oss-20b", GPT_OSS(24, 32), 20914757184, 4187440704, 3608307264, 459, 13761264768, 0, 0, 13761264768},
    {"gpt-oss-120b", GPT_OSS(36, 128), 116829156672, 5711982912, 5132849472, 687, 65248815744, 0, 0, 65248815744},
    {"Qwen3-0.6B", QWEN3(28, 1024, 16, 3072, "true"), 596049920, 596049920, 440467456, 310, 0, 1, 155582464,
     1503264768},
    {"Qwen3-1.7B", QWEN3(28, 2048, 16, 6144, "true"), 1720574976, 1720574976, 1409410048, 310, 0, 1, 311164928,
     4063479808},
    {"Qwen3-4B", QWEN3(36, 2560, 32, 9728, "true"), 4022468096, 4022468096, 3633511936, 398, 8044936192, 0, 0, 0},
    {"Qwen3-8B", QWEN3(36, 4096, 32, 12288, "false"), 8190735360, 8190735360, 7568405504, 399, 16381470720, 0, 0,
     16381470720},
    {"Qwen3-14B", QWEN3(40, 5120, 40, 17408, "false"), 14768307200, 14768307200, 13990394880, 443, 29536614400, 0, 0,
     29536614400},
};
enum { N_REAL = sizeof real / sizeof real[0] };

static void expect_number(const char *name, const char *what, int64_t got, int64_t want) {
  if (got != want) fail_msg("%s: %s %" PRId64 ", published %" PRId64, name, what, got, want);
}

static void published_parameters(void **state) {
  (void)state;
  for (int i = 0; i < N_REAL; i++) {
    mo_model_spec spec = parsed(real[i].json);
    mo_parameter_count count;
    assert_int_equal(mo_model_parameters(&spec, &count), MO_OK);
    expect_number(real[i].name, "total", count.total, real[i].total);
    expect_number(real[i].name, "active", count.active, real[i].active);
    expect_number(real[i].name, "active without embedding", count.active_no_embed, real[i].active_no_embed);
    expect_number(real[i].name, "tensors", count.tensors, real[i].tensors);
    if (real[i].bytes) expect_number(real[i].name, "bytes", count.bytes, real[i].bytes);
    mo_model_free(&spec);
  }
}

/* What published files hold beyond the model: prediction layers, copies of tied embeddings. */
static void published_files(void **state) {
  (void)state;
  for (int i = 0; i < N_REAL; i++) {
    mo_model_spec spec = parsed(real[i].json);
    mo_extra_count extras[MO_EXTRA_COUNT], sum = {0};
    mo_parameter_count count;
    assert_int_equal(mo_model_parameters(&spec, &count), MO_OK);
    assert_int_equal(mo_model_extras(&spec, extras), MO_OK);
    for (int e = 0; e < MO_EXTRA_COUNT; e++) {
      sum.tensors += extras[e].tensors;
      sum.parameters += extras[e].parameters;
      sum.bytes += extras[e].bytes;
    }
    if (real[i].file_bytes) {
      expect_number(real[i].name, "extra tensors", sum.tensors, real[i].extra_tensors);
      expect_number(real[i].name, "bytes of the file", count.bytes + sum.bytes, real[i].file_bytes);
    }
    if (real[i].extra_parameters)
      expect_number(real[i].name, "extra parameters", sum.parameters, real[i].extra_parameters);
    mo_model_free(&spec);
  }
}

/* Stages read each tensor of the file once, but tied embeddings twice (as embedding and as head). */
static void stages_add_up(void **state) {
  (void)state;
  for (int i = 0; i < N_REAL; i++) {
    mo_model_spec spec = parsed(real[i].json);
    mo_parameter_count count;
    int64_t bytes = 0, twice = spec.tied ? spec.vocab * spec.hidden * spec.stored_bytes : 0;
    assert_int_equal(mo_model_parameters(&spec, &count), MO_OK);
    for (int64_t stage = 0; stage < mo_model_stages(&spec); stage++) {
      mo_stage_cost cost;
      assert_int_equal(mo_model_stage_cost(&spec, stage, spec.stored_bytes, 1, 1, &cost), MO_OK);
      bytes += cost.bytes;
    }
    expect_number(real[i].name, "bytes of the stages", bytes, count.bytes + twice);
    mo_model_free(&spec);
  }
}

/* --- small models: every name and shape --- */

/* "name 3x4" of each tensor of a stage, a line each. */
static void write_tensors(FILE *f, const mo_model_spec *spec, int64_t stage) {
  mo_tensor_need *needs;
  int64_t n;
  assert_int_equal(mo_model_tensors(spec, stage, &needs, &n), MO_OK);
  for (int64_t i = 0; i < n; i++) {
    fprintf(f, "%s ", needs[i].name);
    for (int d = 0; d < needs[i].n_dims; d++) fprintf(f, "%s%" PRId64, d ? "x" : "", needs[i].shape[d]);
    fprintf(f, "%s\n", needs[i].mxfp4 ? " U8" : "");
  }
  free(needs);
}

/* The lines may come in any order. */
static void expect_tensors(const char *json, int64_t stage, const char *prefix, const char *const *lines, int n) {
  mo_model_spec spec = parsed(json);
  char *text = NULL;
  size_t size = 0;
  int found = 0;
  FILE *f = open_memstream(&text, &size);
  assert_non_null(f);
  write_tensors(f, &spec, stage);
  assert_int_equal(fclose(f), 0);
  for (const char *c = text; *c; c++) found += *c == '\n';
  for (int i = 0; i < n; i++) {
    char line[200];
    snprintf(line, sizeof line, "%s%s\n", prefix, lines[i]);
    const char *at = strstr(text, line);
    if (!at || (at > text && at[-1] != '\n')) fail_msg("%s is missing among\n%s", line, text);
  }
  if (found != n) fail_msg("%d tensors, expected %d:\n%s", found, n, text);
  free(text);
  mo_model_free(&spec);
}

#define EXPECT(json, stage, prefix, ...)                                  \
  expect_tensors(json, stage, prefix, (const char *const[]){__VA_ARGS__}, \
                 (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *)))

static void embedding_and_head(void **state) {
  (void)state;
  EXPECT(llama, 0, "", "model.embed_tokens.weight 101x48");
  EXPECT(llama, 4, "", "model.norm.weight 48", "lm_head.weight 101x48");
  EXPECT(qwen3, 5, "", "model.norm.weight 40", "model.embed_tokens.weight 97x40"); /* tied */
}

static void dense_layers(void **state) {
  (void)state;
  EXPECT(llama, 3, "model.layers.2.", "input_layernorm.weight 48", "post_attention_layernorm.weight 48",
         "self_attn.q_proj.weight 48x48", "self_attn.k_proj.weight 24x48", "self_attn.v_proj.weight 24x48",
         "self_attn.o_proj.weight 48x48", "mlp.gate_proj.weight 80x48", "mlp.up_proj.weight 80x48",
         "mlp.down_proj.weight 48x80");
  EXPECT(qwen3, 1, "model.layers.0.", "input_layernorm.weight 40", "post_attention_layernorm.weight 40",
         "self_attn.q_proj.weight 64x40", "self_attn.k_proj.weight 32x40", "self_attn.v_proj.weight 32x40",
         "self_attn.o_proj.weight 40x64", "self_attn.q_norm.weight 16", "self_attn.k_norm.weight 16",
         "mlp.gate_proj.weight 72x40", "mlp.up_proj.weight 72x40", "mlp.down_proj.weight 40x72");
}

static void biases_of_a_dense_layer(void **state) {
  (void)state;
  char *text = edit(with(llama, "attention_bias", "true"), "mlp_bias", "true");
  EXPECT(text, 1, "model.layers.0.", "input_layernorm.weight 48", "post_attention_layernorm.weight 48",
         "self_attn.q_proj.weight 48x48", "self_attn.k_proj.weight 24x48", "self_attn.v_proj.weight 24x48",
         "self_attn.o_proj.weight 48x48", "self_attn.q_proj.bias 48", "self_attn.k_proj.bias 24",
         "self_attn.v_proj.bias 24", "self_attn.o_proj.bias 48", "mlp.gate_proj.weight 80x48",
         "mlp.up_proj.weight 80x48", "mlp.down_proj.weight 48x80", "mlp.gate_proj.bias 80", "mlp.up_proj.bias 80",
         "mlp.down_proj.bias 48");
  free(text);
}

static void experts_by_name(void **state) {
  (void)state;
  char *two = with(olmoe, "num_experts", "2");
  EXPECT(two, 2, "model.layers.1.", "input_layernorm.weight 48", "post_attention_layernorm.weight 48",
         "self_attn.q_proj.weight 48x48", "self_attn.k_proj.weight 24x48", "self_attn.v_proj.weight 24x48",
         "self_attn.o_proj.weight 48x48", "self_attn.q_norm.weight 48", "self_attn.k_norm.weight 24",
         "mlp.gate.weight 2x48", "mlp.experts.0.gate_proj.weight 20x48", "mlp.experts.0.up_proj.weight 20x48",
         "mlp.experts.0.down_proj.weight 48x20", "mlp.experts.1.gate_proj.weight 20x48",
         "mlp.experts.1.up_proj.weight 20x48", "mlp.experts.1.down_proj.weight 48x20");
  free(two);
  two = with(mixtral, "num_local_experts", "2");
  EXPECT(two, 1, "model.layers.0.", "input_layernorm.weight 48", "post_attention_layernorm.weight 48",
         "self_attn.q_proj.weight 48x48", "self_attn.k_proj.weight 24x48", "self_attn.v_proj.weight 24x48",
         "self_attn.o_proj.weight 48x48", "block_sparse_moe.gate.weight 2x48",
         "block_sparse_moe.experts.0.w1.weight 56x48", "block_sparse_moe.experts.0.w3.weight 56x48",
         "block_sparse_moe.experts.0.w2.weight 48x56", "block_sparse_moe.experts.1.w1.weight 56x48",
         "block_sparse_moe.experts.1.w3.weight 56x48", "block_sparse_moe.experts.1.w2.weight 48x56");
  free(two);
}

/* w1 is the gate, w3 the up, w2 the down projection; each expert has its number. */
static void roles_of_mixtral_experts(void **state) {
  (void)state;
  mo_model_spec spec = parsed(mixtral);
  mo_tensor_need *needs;
  int64_t n, seen = 0;
  assert_int_equal(mo_model_tensors(&spec, 1, &needs, &n), MO_OK);
  for (int64_t i = 0; i < n; i++) {
    const char *at = strstr(needs[i].name, ".experts.");
    if (!at) {
      assert_int_equal(needs[i].expert, -1);
      continue;
    }
    seen++;
    assert_int_equal(needs[i].expert, atoi(at + strlen(".experts.")));
    mo_role role = strstr(at, "w1") ? MO_EXPERT_GATE : strstr(at, "w3") ? MO_EXPERT_UP : MO_EXPERT_DOWN;
    assert_int_equal(needs[i].role, role);
  }
  assert_int_equal(seen, 15);
  free(needs);
  mo_model_free(&spec);
}

static void dense_layer_of_a_mixture_model(void **state) {
  (void)state;
  char *text = with(qwen3_moe, "mlp_only_layers", "[2]");
  EXPECT(text, 3, "model.layers.2.", "input_layernorm.weight 40", "post_attention_layernorm.weight 40",
         "self_attn.q_proj.weight 96x40", "self_attn.k_proj.weight 32x40", "self_attn.v_proj.weight 32x40",
         "self_attn.o_proj.weight 40x96", "self_attn.q_norm.weight 16", "self_attn.k_norm.weight 16",
         "mlp.gate_proj.weight 72x40", "mlp.up_proj.weight 72x40", "mlp.down_proj.weight 40x72");
  free(text);
}

/* 2 key heads of 8, 6 value heads of 10: q 16, k 16, v 60, z 60. */
static void delta_net_layer(void **state) {
  (void)state;
  char *one = edit(edit(with(qwen3_next, "num_experts", "1"), "num_experts_per_tok", "1"), "num_hidden_layers", "2");
  EXPECT(one, 1, "model.layers.0.", "input_layernorm.weight 40", "post_attention_layernorm.weight 40",
         "linear_attn.in_proj_qkvz.weight 152x40", "linear_attn.in_proj_ba.weight 12x40",
         "linear_attn.conv1d.weight 92x1x4", "linear_attn.A_log 6", "linear_attn.dt_bias 6",
         "linear_attn.norm.weight 10", "linear_attn.out_proj.weight 40x60", "mlp.gate.weight 1x40",
         "mlp.experts.0.gate_proj.weight 24x40", "mlp.experts.0.up_proj.weight 24x40",
         "mlp.experts.0.down_proj.weight 40x24", "mlp.shared_expert.gate_proj.weight 28x40",
         "mlp.shared_expert.up_proj.weight 28x40", "mlp.shared_expert.down_proj.weight 40x28",
         "mlp.shared_expert_gate.weight 1x40");
  EXPECT(one, 2, "model.layers.1.", "input_layernorm.weight 40", "post_attention_layernorm.weight 40",
         "self_attn.q_proj.weight 128x40", "self_attn.k_proj.weight 32x40", "self_attn.v_proj.weight 32x40",
         "self_attn.o_proj.weight 40x64", "self_attn.q_norm.weight 16", "self_attn.k_norm.weight 16",
         "mlp.gate.weight 1x40", "mlp.experts.0.gate_proj.weight 24x40", "mlp.experts.0.up_proj.weight 24x40",
         "mlp.experts.0.down_proj.weight 40x24", "mlp.shared_expert.gate_proj.weight 28x40",
         "mlp.shared_expert.up_proj.weight 28x40", "mlp.shared_expert.down_proj.weight 40x28",
         "mlp.shared_expert_gate.weight 1x40");
  free(one);
}

static void layer_with_plain_shared_experts(void **state) {
  (void)state;
  char *two = edit(edit(with(glm4_moe, "n_routed_experts", "2"), "n_group", "1"), "num_experts_per_tok", "1");
  EXPECT(two, 2, "model.layers.1.", "input_layernorm.weight 40", "post_attention_layernorm.weight 40",
         "self_attn.q_proj.weight 96x40", "self_attn.k_proj.weight 32x40", "self_attn.v_proj.weight 32x40",
         "self_attn.q_proj.bias 96", "self_attn.k_proj.bias 32", "self_attn.v_proj.bias 32",
         "self_attn.o_proj.weight 40x96", "mlp.gate.weight 2x40", "mlp.gate.e_score_correction_bias 2",
         "mlp.experts.0.gate_proj.weight 24x40", "mlp.experts.0.up_proj.weight 24x40",
         "mlp.experts.0.down_proj.weight 40x24", "mlp.experts.1.gate_proj.weight 24x40",
         "mlp.experts.1.up_proj.weight 24x40", "mlp.experts.1.down_proj.weight 40x24",
         "mlp.shared_experts.gate_proj.weight 48x40", "mlp.shared_experts.up_proj.weight 48x40",
         "mlp.shared_experts.down_proj.weight 40x48");
  free(two);
}

static void fused_experts(void **state) {
  (void)state;
#define OSS_ATTENTION                                                                                                 \
  "input_layernorm.weight 64", "post_attention_layernorm.weight 64", "self_attn.q_proj.weight 96x64",                 \
      "self_attn.k_proj.weight 32x64", "self_attn.v_proj.weight 32x64", "self_attn.o_proj.weight 64x96",              \
      "self_attn.q_proj.bias 96", "self_attn.k_proj.bias 32", "self_attn.v_proj.bias 32", "self_attn.o_proj.bias 64", \
      "self_attn.sinks 6", "mlp.router.weight 5x64", "mlp.router.bias 5", "mlp.experts.gate_up_proj_bias 5x192",      \
      "mlp.experts.down_proj_bias 5x64"
  EXPECT(gpt_oss, 1, "model.layers.0.", OSS_ATTENTION, "mlp.experts.gate_up_proj 5x64x192",
         "mlp.experts.down_proj 5x96x64");
  char *quantized = with(gpt_oss, "quantization_config", "{\"quant_method\":\"mxfp4\"}");
  EXPECT(quantized, 1, "model.layers.0.", OSS_ATTENTION, "mlp.experts.gate_up_proj_blocks 5x192x2x16 U8",
         "mlp.experts.gate_up_proj_scales 5x192x2 U8", "mlp.experts.down_proj_blocks 5x64x3x16 U8",
         "mlp.experts.down_proj_scales 5x64x3 U8");
  free(quantized);
}

/* A block of MXFP4 is 32 columns: other widths cannot be stored so. */
static void mxfp4_needs_multiples_of_32(void **state) {
  (void)state;
  static const char *const keys[] = {"hidden_size", "intermediate_size"};
  for (int i = 0; i < 2; i++) {
    char *text = edit(with(gpt_oss, "quantization_config", "{\"quant_method\":\"mxfp4\"}"), keys[i], "80");
    expect_refused(text, keys[i], "32");
    free(text);
  }
}

/* --- operations --- */

static double flops_of(const char *json, int64_t stage, int64_t sequences, int64_t length) {
  mo_model_spec spec = parsed(json);
  mo_stage_cost cost;
  assert_int_equal(mo_model_stage_cost(&spec, stage, 2, sequences, length, &cost), MO_OK);
  mo_model_free(&spec);
  return cost.flops;
}

/* Pairs (query, key) that causal attention with a window looks at. */
static double pairs(int64_t length, int64_t window) {
  double count = 0;
  for (int64_t s = 0; s < length; s++) count += (double)(window && s + 1 > window ? window : s + 1);
  return count;
}

static void operations_by_counting(void **state) {
  (void)state;
  int64_t N = 3, S = 11, T = N * S;
  double attention = 4.0 * (double)N * 6 * 8 * pairs(S, 0), products = 48 * 48 * 2 + 24 * 48 * 2 + 80 * 48 * 3;
  assert_true(flops_of(llama, 1, N, S) == 2.0 * (double)T * products + attention);
  assert_true(flops_of(llama, 0, N, S) == 0);
  assert_true(flops_of(llama, 4, N, S) == 2.0 * (double)T * 101 * 48);
  attention = 4.0 * (double)N * 4 * 12 * pairs(S, 0);
  products = 48 * 48 * 2 + 24 * 48 * 2 + 6 * 48 + 2 * 3 * 20 * 48; /* two of six experts */
  assert_true(fabs(flops_of(olmoe, 1, N, S) / (2.0 * (double)T * products + attention) - 1) < 1e-12);
  char *windowed = with(mixtral, "sliding_window", "4");
  double saved = flops_of(mixtral, 1, N, S) - flops_of(windowed, 1, N, S);
  assert_true(saved == 4.0 * (double)N * 4 * 12 * (pairs(S, 0) - pairs(S, 4)));
  free(windowed);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(published_parameters),
      cmocka_unit_test(published_files),
      cmocka_unit_test(stages_add_up),
      cmocka_unit_test(embedding_and_head),
      cmocka_unit_test(dense_layers),
      cmocka_unit_test(biases_of_a_dense_layer),
      cmocka_unit_test(experts_by_name),
      cmocka_unit_test(roles_of_mixtral_experts),
      cmocka_unit_test(dense_layer_of_a_mixture_model),
      cmocka_unit_test(delta_net_layer),
      cmocka_unit_test(layer_with_plain_shared_experts),
      cmocka_unit_test(fused_experts),
      cmocka_unit_test(mxfp4_needs_multiples_of_32),
      cmocka_unit_test(operations_by_counting),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
