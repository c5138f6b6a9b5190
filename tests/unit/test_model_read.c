/* config.json -> specification: key styles, defaults, layer patterns, nonsense. */
#include <sys/stat.h>
#include <unistd.h>

#include "test_model_fixture.h"

/* --- key styles --- */

/* The same model in the newer key style: rope_parameters for rope_theta and rope_scaling, dtype for torch_dtype. */
static char *in_new_style(const char *json) {
  bool is_yarn = json == gpt_oss;
  const char *theta = strstr(json, "\"rope_theta\":") + strlen("\"rope_theta\":");
  const char *dtype = strstr(json, "\"torch_dtype\":") + strlen("\"torch_dtype\":");
  char parameters[300], type[40];
  snprintf(parameters, sizeof parameters, "{\"rope_theta\":%.*s,\"rope_type\":\"%s\"%s}",
           (int)(value_end(theta) - theta), theta, is_yarn ? "yarn" : "default",
           is_yarn ? ",\"factor\":32.0,\"beta_fast\":32.0,\"beta_slow\":1.0,\"original_max_position_embeddings\":4096,"
                     "\"truncate\":false"
                   : "");
  snprintf(type, sizeof type, "%.*s", (int)(value_end(dtype) - dtype), dtype);
  char *text = copy_of(json);
  text = edit(text, "rope_theta", NULL);
  text = edit(text, "rope_scaling", NULL);
  text = edit(text, "torch_dtype", NULL);
  text = edit(text, "rope_parameters", parameters);
  return edit(text, "dtype", type);
}

static void both_key_styles_give_the_same_spec(void **state) {
  (void)state;
  for (int i = 0; i < N_CONFIGS; i++) {
    char *text = in_new_style(all_configs[i]);
    assert_null(strstr(text, "torch_dtype"));
    expect_same(all_configs[i], text);
    free(text);
  }
}

static void other_names_of_keys(void **state) {
  (void)state;
  static const struct {
    const char *json, *key, *alias, *value;
  } cases[] = {
      {olmoe, "num_experts", "num_local_experts", "6"},
      {qwen3_moe, "num_experts", "num_local_experts", "7"},
      {mixtral, "num_local_experts", "num_experts", "5"},
      {gpt_oss, "num_experts_per_tok", "experts_per_token", "2"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char *text = edit(with(cases[i].json, cases[i].key, NULL), cases[i].alias, cases[i].value);
    expect_same(cases[i].json, text);
    free(text);
  }
}

static void older_name_of_the_rope_type(void **state) {
  (void)state;
  char *one = with(llama, "rope_scaling", "{\"type\":\"linear\",\"factor\":4.0}");
  char *other = with(llama, "rope_scaling", "{\"rope_type\":\"linear\",\"factor\":4.0}");
  expect_same(one, other);
  free(one);
  free(other);
}

static void keys_of_no_interest_are_ignored(void **state) {
  (void)state;
  for (int i = 0; i < N_CONFIGS; i++) {
    char *text = with(all_configs[i], "architectures", "[\"Some\",{\"hidden_size\":[0]}]");
    expect_same(all_configs[i], text);
    free(text);
  }
}

static void stored_bytes_by_dtype(void **state) {
  (void)state;
  static const struct {
    const char *dtype;
    int bytes;
  } cases[] = {{"\"float32\"", 4}, {"\"bfloat16\"", 2}, {"\"float16\"", 2}, {NULL, 2}, {"null", 2}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char *text = with(llama, "torch_dtype", cases[i].dtype);
    mo_model_spec spec = parsed(text);
    assert_int_equal(spec.stored_bytes, cases[i].bytes);
    mo_model_free(&spec);
    free(text);
  }
}

/* --- defaults --- */

static void head_dim_where_the_key_is_absent(void **state) {
  (void)state;
  static const struct {
    const char *json;
    int64_t head_dim;
  } cases[] = {{llama, 8}, {olmoe, 12}, {mixtral, 12}, {qwen3, 128}, {qwen3_next, 256}, {gpt_oss, 64}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    for (int null = 0; null < 2; null++) {
      char *text = with(cases[i].json, "head_dim", null ? "null" : NULL);
      mo_model_spec spec = parsed(text);
      assert_int_equal(spec.attention.head_dim, cases[i].head_dim);
      assert_true(fabs((double)spec.attention.scale * sqrt((double)cases[i].head_dim) - 1) < 1e-6);
      mo_model_free(&spec);
      free(text);
    }
  char *uneven = with(qwen3_moe, "head_dim", NULL);
  expect_refused(uneven, "hidden_size", "num_attention_heads"); /* 40 / 6 */
  free(uneven);
}

static void attention_biases(void **state) {
  (void)state;
  char *text = with(llama, "attention_bias", "true");
  mo_model_spec with_bias = parsed(text), without = parsed(llama), glm = parsed(glm4_moe), oss = parsed(gpt_oss);
  assert_true(with_bias.attention.qkv_bias && with_bias.attention.o_bias);
  assert_false(without.attention.qkv_bias || without.attention.o_bias);
  assert_true(glm.attention.qkv_bias && !glm.attention.o_bias);
  assert_true(oss.attention.qkv_bias && oss.attention.o_bias);
  mo_model_free(&with_bias);
  mo_model_free(&without);
  mo_model_free(&glm);
  mo_model_free(&oss);
  free(text);
}

static void optional_parts_of_attention(void **state) {
  (void)state;
  char *clipped = with(olmoe, "clip_qkv", "8.5"), *normed = with(glm4_moe, "use_qk_norm", "true");
  mo_model_spec a = parsed(clipped), b = parsed(normed), c = parsed(glm4_moe), d = parsed(olmoe);
  assert_true(a.attention.clip == 8.5f && d.attention.clip == 0);
  assert_int_equal(a.attention.qk_norm, MO_QK_NORM_WHOLE);
  assert_int_equal(b.attention.qk_norm, MO_QK_NORM_HEAD);
  assert_int_equal(c.attention.qk_norm, MO_QK_NORM_NONE);
  mo_model_free(&a);
  mo_model_free(&b);
  mo_model_free(&c);
  mo_model_free(&d);
  free(clipped);
  free(normed);
}

static void renormalisation(void **state) {
  (void)state;
  static const struct {
    const char *json, *value;
    bool renormalise;
  } cases[] = {
      {olmoe, "false", false},    {olmoe, "true", true},    {olmoe, NULL, false},     {qwen3_moe, NULL, false},
      {mixtral, NULL, true},      {mixtral, "false", true}, {qwen3_next, NULL, true}, {qwen3_next, "false", false},
      {glm4_moe, "false", false}, {glm4_moe, NULL, true},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char *text = with(cases[i].json, "norm_topk_prob", cases[i].value);
    mo_model_spec spec = parsed(text);
    if (spec.moe.renormalise != cases[i].renormalise) fail_msg("renormalise %d in %s", spec.moe.renormalise, text);
    mo_model_free(&spec);
    free(text);
  }
}

/* --- layer patterns: one character a layer --- */

static void expect_pattern(const char *json, const char *key, const char *value, const char *mlps,
                           const char *windows) {
  char *text = key ? with(json, key, value) : copy_of(json);
  mo_model_spec spec = parsed(text);
  assert_int_equal(spec.n_layers, strlen(mlps));
  for (int64_t i = 0; i < spec.n_layers; i++) {
    char mlp = spec.layers[i].mlp == MO_MLP_MOE ? 'm' : 'd';
    char mixer = spec.layers[i].mixer == MO_MIXER_DELTANET ? 'l' : spec.layers[i].window ? 'w' : 'f';
    if (mlp != mlps[i] || mixer != windows[i])
      fail_msg("layer %" PRId64 " is %c%c, expected %c%c: %s", i, mlp, mixer, mlps[i], windows[i], text);
  }
  mo_model_free(&spec);
  free(text);
}

static void dense_and_mixture_layers(void **state) {
  (void)state;
  expect_pattern(qwen3, NULL, NULL, "dddd", "ffff");
  expect_pattern(olmoe, NULL, NULL, "mm", "ff");
  expect_pattern(qwen3_moe, NULL, NULL, "mmmmm", "fffff");
  expect_pattern(qwen3_moe, "decoder_sparse_step", "2", "dmdmd", "fffff");
  expect_pattern(qwen3_moe, "decoder_sparse_step", "3", "ddmdd", "fffff");
  expect_pattern(qwen3_moe, "decoder_sparse_step", NULL, "mmmmm", "fffff");
  expect_pattern(qwen3_moe, "mlp_only_layers", "[0,3,77]", "dmmdm", "fffff");
  expect_pattern(qwen3_moe, "mlp_only_layers", "null", "mmmmm", "fffff");
  expect_pattern(glm4_moe, NULL, NULL, "dmmm", "ffff");
  expect_pattern(glm4_moe, "first_k_dense_replace", "3", "dddm", "ffff");
  expect_pattern(glm4_moe, "first_k_dense_replace", "0", "mmmm", "ffff");
  char *both = edit(with(qwen3_moe, "decoder_sparse_step", "2"), "mlp_only_layers", "[1]");
  expect_pattern(both, NULL, NULL, "dddmd", "fffff");
  free(both);
}

/* A model without mixture layers needs none of their keys, one without dense layers none of theirs. */
static void keys_of_absent_layers_are_not_needed(void **state) {
  (void)state;
  char *dense = edit(with(qwen3_moe, "mlp_only_layers", "[0,1,2,3,4]"), "num_experts", NULL);
  expect_pattern(dense, NULL, NULL, "ddddd", "fffff");
  free(dense);
  expect_pattern(qwen3_moe, "intermediate_size", NULL, "mmmmm", "fffff");
}

static void sliding_windows(void **state) {
  (void)state;
  expect_pattern(mixtral, "sliding_window", "7", "mm", "ww");
  expect_pattern(llama, "sliding_window", "7", "ddd", "fff"); /* llama has none, whatever the key says */
  char *flagged = edit(with(qwen3_moe, "sliding_window", "7"), "use_sliding_window", "true");
  expect_pattern(flagged, NULL, NULL, "mmmmm", "wwwww");
  expect_pattern(flagged, "use_sliding_window", "false", "mmmmm", "fffff");
  char *above = edit(edit(with(qwen3, "sliding_window", "7"), "use_sliding_window", "true"), "max_window_layers", "3");
  expect_pattern(above, NULL, NULL, "dddd", "fffw");
  expect_pattern(above, "max_window_layers", "0", "dddd", "wwww");
  expect_pattern(above, "layer_types",
                 "[\"sliding_attention\",\"full_attention\",\"full_attention\",\"sliding_attention\"]", "dddd", "wffw");
  expect_pattern(gpt_oss, NULL, NULL, "mmmm", "wfwf");
  expect_pattern(gpt_oss, "layer_types",
                 "[\"full_attention\",\"full_attention\",\"sliding_attention\",\"full_attention\"]", "mmmm", "ffwf");
  free(flagged);
  free(above);
}

static void linear_attention_layers(void **state) {
  (void)state;
  expect_pattern(qwen3_next, NULL, NULL, "mmmmm", "lflfl");
  expect_pattern(qwen3_next, "full_attention_interval", NULL, "mmmmm", "lllfl");
  expect_pattern(qwen3_next, "full_attention_interval", "1", "mmmmm", "fffff");
  expect_pattern(
      qwen3_next, "layer_types",
      "[\"full_attention\",\"linear_attention\",\"full_attention\",\"linear_attention\",\"linear_attention\"]", "mmmmm",
      "flfll");
}

static void layer_types_that_do_not_fit(void **state) {
  (void)state;
  static const char *const lists[] = {"[\"full_attention\"]", "\"full_attention\"", "{}", "[]"};
  for (int i = 0; i < 4; i++) {
    char *text = with(gpt_oss, "layer_types", lists[i]);
    expect_refused(text, "layer_types", "list of 4 layers");
    free(text);
  }
  static const char *const kinds[] = {"\"linear_attention\"", "\"chunked\"", "3", "null"};
  for (int i = 0; i < 4; i++) {
    char list[200];
    snprintf(list, sizeof list, "[\"full_attention\",\"full_attention\",%s,\"full_attention\"]", kinds[i]);
    char *text = with(gpt_oss, "layer_types", list);
    expect_refused(text, "layer_types[2]", "");
    free(text);
  }
  char *unused = with(qwen3, "layer_types", /* sliding, but use_sliding_window is false */
                      "[\"sliding_attention\",\"full_attention\",\"full_attention\",\"full_attention\"]");
  expect_refused(unused, "layer_types[0]", "sliding_attention");
  free(unused);
}

/* transformers' configuration classes have a default of their own; null is as many as heads. */
static void key_value_heads_left_out(void **state) {
  (void)state;
  static const char format[] =
      "{\"model_type\": \"mixtral\", \"num_hidden_layers\": 1, \"hidden_size\": 64, \"vocab_size\": 9, "
      "\"intermediate_size\": 5, "
      "\"num_attention_heads\": 16, \"num_local_experts\": 2, \"num_experts_per_tok\": 1%s}";
  static const struct {
    const char *more;
    int64_t kv_heads;
  } cases[] = {{"", 8}, {", \"num_key_value_heads\": null", 16}, {", \"num_key_value_heads\": 4", 4}};
  for (int i = 0; i < 3; i++) {
    char text[512];
    mo_model_spec spec;
    snprintf(text, sizeof text, format, cases[i].more);
    assert_int_equal(mo_model_parse(&spec, text, strlen(text), "test"), MO_OK);
    assert_int_equal(spec.attention.kv_heads, cases[i].kv_heads);
    mo_model_free(&spec);
  }
}

/* --- nonsense --- */

static void refuse_each(const char *json, const char *key, const char *const *values, int n) {
  for (int i = 0; i < n; i++) {
    char *text = with(json, key, values[i]);
    expect_refused(text, key, "");
    free(text);
  }
}

static void sizes_that_make_no_sense(void **state) {
  (void)state;
  static const char *const nonsense[] = {
      "0",  "-1", "9223372036854775807", "-9223372036854775808", "1000000000000", "1e3", "2.5", "\"64\"", "true",
      "[]", "{}"};
  static const char *const keys[] = {"num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads",
                                     "num_key_value_heads"};
  for (int i = 0; i < N_CONFIGS; i++)
    for (int k = 0; k < 5; k++) refuse_each(all_configs[i], keys[k], nonsense, 11);
  static const struct {
    const char *json, *key;
  } cases[] = {
      {llama, "intermediate_size"},
      {qwen3, "intermediate_size"},
      {qwen3, "head_dim"},
      {qwen3_moe, "head_dim"},
      {qwen3_moe, "num_experts"},
      {qwen3_moe, "num_experts_per_tok"},
      {qwen3_moe, "moe_intermediate_size"},
      {qwen3_moe, "decoder_sparse_step"},
      {olmoe, "num_experts"},
      {olmoe, "intermediate_size"},
      {mixtral, "num_local_experts"},
      {mixtral, "num_experts_per_tok"},
      {mixtral, "intermediate_size"},
      {mixtral, "sliding_window"},
      {qwen3_next, "linear_num_key_heads"},
      {qwen3_next, "linear_num_value_heads"},
      {qwen3_next, "linear_key_head_dim"},
      {qwen3_next, "linear_value_head_dim"},
      {qwen3_next, "linear_conv_kernel_dim"},
      {qwen3_next, "full_attention_interval"},
      {qwen3_next, "shared_expert_intermediate_size"},
      {glm4_moe, "n_routed_experts"},
      {glm4_moe, "n_shared_experts"},
      {glm4_moe, "n_group"},
      {glm4_moe, "topk_group"},
      {gpt_oss, "sliding_window"},
      {gpt_oss, "num_local_experts"},
      {gpt_oss, "num_experts_per_tok"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) refuse_each(cases[i].json, cases[i].key, nonsense, 11);
}

static void numbers_that_make_no_sense(void **state) {
  (void)state;
  static const char *const eps[] = {"-1e-6", "2", "\"1e-5\"", "true", "[]"};
  static const char *const theta[] = {"0", "-1", "0.5", "1", "1e300", "\"1e4\"", "[]"};
  static const char *const limit[] = {"0", "-7", "1e30", "\"7\""};
  for (int i = 0; i < N_CONFIGS; i++) {
    refuse_each(all_configs[i], "rms_norm_eps", eps, 5);
    refuse_each(all_configs[i], "rope_theta", theta, 7);
  }
  refuse_each(gpt_oss, "swiglu_limit", limit, 4);
  refuse_each(olmoe, "clip_qkv", limit, 4);
  static const char *const scale[] = {"1e30", "\"1\"", "[]"};
  refuse_each(glm4_moe, "routed_scaling_factor", scale, 3);
}

static void flags_and_names_that_make_no_sense(void **state) {
  (void)state;
  static const char *const flags[] = {"1", "\"true\"", "[]"};
  refuse_each(llama, "tie_word_embeddings", flags, 3);
  refuse_each(llama, "attention_bias", flags, 3);
  refuse_each(llama, "mlp_bias", flags, 3);
  refuse_each(qwen3_moe, "norm_topk_prob", flags, 3);
  refuse_each(qwen3_moe, "use_sliding_window", flags, 3);
  refuse_each(glm4_moe, "use_qk_norm", flags, 3);
  static const char *const names[] = {"1", "[]", "true"};
  refuse_each(llama, "model_type", names, 3);
  refuse_each(llama, "hidden_act", names, 3);
  refuse_each(llama, "torch_dtype", names, 3);
  static const char *const activations[] = {"\"gelu\"", "\"relu\"", "\"\""};
  for (int i = 0; i < N_CONFIGS; i++) refuse_each(all_configs[i], "hidden_act", activations, 3);
  static const char *const lists[] = {"3", "{}", "[\"1\"]", "[1.5]", "[null]"};
  refuse_each(qwen3_moe, "mlp_only_layers", lists, 5);
}

static void sizes_that_disagree(void **state) {
  (void)state;
  static const struct {
    const char *json, *key, *value, *part, *other;
  } cases[] = {
      {llama, "hidden_size", "50", "hidden_size 50", "num_attention_heads 6"},
      {llama, "num_key_value_heads", "4", "num_attention_heads 6", "num_key_value_heads 4"},
      {llama, "num_key_value_heads", "7", "num_key_value_heads", "expected 1 to 6"},
      {mixtral, "num_experts_per_tok", "6", "num_experts_per_tok", "expected 1 to 5"},
      {qwen3, "head_dim", "15", "rotary dimensions", "head_dim"},
      {qwen3, "head_dim", "1", "rotary dimensions", "head_dim"},
      {qwen3_next, "partial_rotary_factor", "0.01", "rotary dimensions", "partial_rotary_factor"},
      {qwen3_next, "linear_num_value_heads", "5", "linear_num_value_heads 5", "linear_num_key_heads 2"},
      {glm4_moe, "n_group", "3", "n_group 3", "8 experts"},
      {glm4_moe, "n_group", "8", "n_group 8", "at least 2"},
      {glm4_moe, "num_experts_per_tok", "5", "topk_group 1", "chosen 5"},
      {llama, "quantization_config", "{\"quant_method\":\"gptq\"}", "quantization", "gptq"},
      {llama, "quantization_config", "{}", "quantization", "unnamed"},
      {olmoe, "quantization_config", "{\"quant_method\":\"mxfp4\"}", "quantization", "mxfp4"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char *text = with(cases[i].json, cases[i].key, cases[i].value);
    expect_refused(text, cases[i].part, cases[i].other);
    free(text);
  }
}

/* Each size within its bounds, but the model they make is not. */
static void sizes_that_are_huge_together(void **state) {
  (void)state;
  char *text = edit(with(llama, "num_hidden_layers", "4096"), "intermediate_size", "4194304");
  text = edit(edit(text, "hidden_size", "1048320"), "head_dim", "8");
  expect_refused(text, "parameters", "the sizes together");
  free(text);
  text = edit(with(mixtral, "num_local_experts", "16384"), "num_hidden_layers", "4096");
  expect_refused(text, "parameters", "the sizes together");
  free(text);
}

static void missing_keys(void **state) {
  (void)state;
  static const char *const keys[] = {"model_type", "num_hidden_layers", "hidden_size", "vocab_size",
                                     "num_attention_heads"};
  for (int i = 0; i < N_CONFIGS; i++)
    for (int k = 0; k < 5; k++)
      for (int null = 0; null < 2; null++) {
        char *text = with(all_configs[i], keys[k], null ? "null" : NULL);
        expect_refused(text, keys[k], "is missing");
        free(text);
      }
  static const struct {
    const char *json, *key;
  } cases[] = {{llama, "intermediate_size"},         {olmoe, "num_experts"},         {mixtral, "num_local_experts"},
               {qwen3_moe, "moe_intermediate_size"}, {glm4_moe, "n_routed_experts"}, {gpt_oss, "num_experts_per_tok"},
               {glm4_moe, "intermediate_size"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char *text = with(cases[i].json, cases[i].key, NULL);
    expect_refused(text, cases[i].key, "is missing");
    free(text);
  }
}

static void unknown_architectures(void **state) {
  (void)state;
  char *text = with(llama, "model_type", "\"gemma\"");
  expect_refused(text, "gemma", "llama, qwen3, qwen3_moe, olmoe, mixtral");
  free(text);
  text = with(llama, "model_type", "\"\"");
  expect_refused(text, "model_type", "supported are");
  free(text);
}

static void text_that_is_no_object(void **state) {
  (void)state;
  static const char *const texts[] = {"",
                                      "{",
                                      "[]",
                                      "null",
                                      "3",
                                      "\"llama\"",
                                      "{\"model_type\":\"llama\",}",
                                      "{} {}",
                                      "{\"a\":1,\"a\":2}",
                                      "\xff\xfe",
                                      "{\"a\":1e999}"};
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) expect_refused(texts[i], "", "");
  for (size_t cut = 1; cut < strlen(olmoe); cut++) {
    char *text = strndup(olmoe, cut);
    assert_non_null(text);
    expect_refused(text, "not valid JSON", "");
    free(text);
  }
}

/* --- files --- */

static void write_file(const char *path, const char *text) {
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_true(fputs(text, f) >= 0);
  assert_int_equal(fclose(f), 0);
}

static void files(void **state) {
  (void)state;
  char folder[] = "model-XXXXXX", path[64], empty[64];
  mo_model_spec spec;
  assert_non_null(mkdtemp(folder));
  snprintf(path, sizeof path, "%s/config.json", folder);
  write_file(path, mixtral);
  assert_int_equal(mo_model_read(&spec, folder), MO_OK);
  assert_string_equal(spec.architecture, "mixtral");
  mo_model_free(&spec);
  assert_int_equal(mo_model_read(&spec, path), MO_OK);
  assert_int_equal(spec.moe.experts, 5);
  mo_model_free(&spec);

  assert_int_equal(truncate(path, 17 << 20), 0);
  assert_int_equal(mo_model_read(&spec, folder), MO_INVALID);
  assert_non_null(strstr(mo_error_message(), "16 MiB"));
  mo_error_clear();
  assert_int_equal(unlink(path), 0);
  assert_int_equal(mo_model_read(&spec, folder), MO_INVALID);
  assert_non_null(strstr(mo_error_message(), path));
  mo_error_clear();
  assert_int_equal(mkdir(path, 0700), 0);
  assert_int_equal(mo_model_read(&spec, path), MO_INVALID);
  mo_error_clear();
  snprintf(empty, sizeof empty, "%s/none", folder);
  assert_int_equal(mo_model_read(&spec, empty), MO_INVALID);
  assert_non_null(strstr(mo_error_message(), "model.path"));
  mo_error_clear();
  assert_int_equal(rmdir(path), 0);
  assert_int_equal(rmdir(folder), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(key_value_heads_left_out),
      cmocka_unit_test(both_key_styles_give_the_same_spec),
      cmocka_unit_test(other_names_of_keys),
      cmocka_unit_test(older_name_of_the_rope_type),
      cmocka_unit_test(keys_of_no_interest_are_ignored),
      cmocka_unit_test(stored_bytes_by_dtype),
      cmocka_unit_test(head_dim_where_the_key_is_absent),
      cmocka_unit_test(attention_biases),
      cmocka_unit_test(optional_parts_of_attention),
      cmocka_unit_test(renormalisation),
      cmocka_unit_test(dense_and_mixture_layers),
      cmocka_unit_test(keys_of_absent_layers_are_not_needed),
      cmocka_unit_test(sliding_windows),
      cmocka_unit_test(linear_attention_layers),
      cmocka_unit_test(layer_types_that_do_not_fit),
      cmocka_unit_test(sizes_that_make_no_sense),
      cmocka_unit_test(numbers_that_make_no_sense),
      cmocka_unit_test(flags_and_names_that_make_no_sense),
      cmocka_unit_test(sizes_that_disagree),
      cmocka_unit_test(sizes_that_are_huge_together),
      cmocka_unit_test(missing_keys),
      cmocka_unit_test(unknown_architectures),
      cmocka_unit_test(text_that_is_no_object),
      cmocka_unit_test(files),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
