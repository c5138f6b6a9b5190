/* The catalogue: what the stages of a model need, found in a checkpoint and checked against its config. */
#include "moe_outliers/model.h"
#include "test_weights_fixture.h"

#define SINGLE "model.safetensors"
#define COMMON                                                                                              \
  "\"hidden_size\":16,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"         \
  "\"intermediate_size\":12,\"vocab_size\":31,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,\"max_position_" \
  "embeddings\":64"

static const char llama[] = "{\"model_type\":\"llama\",\"tie_word_embeddings\":true," COMMON "}";
static const char olmoe[] =
    "{\"model_type\":\"olmoe\",\"num_experts\":5,\"num_experts_per_tok\":2,"
    "\"tie_word_embeddings\":false," COMMON "}";

enum { MAX_TENSORS = 200 };

typedef struct {
  mo_model_spec spec;
  char *folder;
  fixture_tensor tensors[MAX_TENSORS];
  size_t n;
  mo_checkpoint *checkpoint;
} scene;

static fixture_tensor *find(scene *s, const char *name) {
  for (size_t i = 0; i < s->n; i++)
    if (strcmp(s->tensors[i].name, name) == 0) return &s->tensors[i];
  return NULL;
}

/* The tensors that the model implies, a tied embedding once, last stage first. */
static scene prepared(const char *config) {
  scene s = {0};
  expect_ok(mo_model_parse(&s.spec, config, strlen(config), "config.json"));
  s.folder = fixture_folder();
  for (int64_t stage = mo_model_stages(&s.spec) - 1; stage >= 0; stage--) {
    mo_tensor_need *needs;
    int64_t n;
    expect_ok(mo_model_tensors(&s.spec, stage, &needs, &n));
    for (int64_t i = 0; i < n; i++) {
      if (find(&s, needs[i].name)) continue;
      assert_true(s.n < MAX_TENSORS);
      fixture_tensor *t = &s.tensors[s.n++];
      *t = (fixture_tensor){.dtype = "BF16", .element = 2, .n_dims = needs[i].n_dims};
      memcpy(t->name, needs[i].name, sizeof t->name);
      memcpy(t->shape, needs[i].shape, sizeof t->shape);
    }
    free(needs);
  }
  return s;
}

static mo_status build(scene *s, mo_catalogue *catalogue) {
  fixture_safetensors(s->folder, SINGLE, s->tensors, s->n);
  mo_checkpoint_close(s->checkpoint);
  expect_ok(mo_checkpoint_open(&s->checkpoint, s->folder));
  return mo_catalogue_build(catalogue, &s->spec, s->checkpoint);
}

static void dispose(scene *s) {
  mo_checkpoint_close(s->checkpoint);
  mo_model_free(&s->spec);
  fixture_remove(s->folder);
}

/* Entries follow the file, do not overlap in the arena, and the sums agree. */
static void check_stage(const mo_stage_catalogue *stage) {
  int64_t bytes = 0, end = 0;
  for (int64_t i = 0; i < stage->n_entries; i++) {
    const mo_entry *e = &stage->entries[i];
    if (i > 0) assert_true(e->tensor->offset > stage->entries[i - 1].tensor->offset);
    assert_int_equal(e->arena_offset % 256, 0);
    assert_true(e->arena_offset >= end);
    end = e->arena_offset + e->tensor->bytes;
    bytes += e->tensor->bytes;
  }
  assert_int_equal(stage->bytes, bytes);
  assert_int_equal(stage->arena_bytes % 256, 0);
  assert_true(stage->arena_bytes >= end && stage->arena_bytes >= 256 && stage->arena_bytes < end + 256);
}

static void every_stage_is_found(void **state) {
  static const char *const configs[] = {llama, olmoe};
  (void)state;
  for (int c = 0; c < 2; c++) {
    scene s = prepared(configs[c]);
    mo_catalogue catalogue;
    expect_ok(build(&s, &catalogue));
    assert_int_equal(catalogue.n_stages, 4);
    assert_int_equal(catalogue.unused_tensors, 0);
    for (int64_t i = 0; i < catalogue.n_stages; i++) {
      mo_tensor_need *needs;
      int64_t n;
      expect_ok(mo_model_tensors(&s.spec, i, &needs, &n));
      free(needs);
      assert_int_equal(catalogue.stages[i].n_entries, n);
      check_stage(&catalogue.stages[i]);
    }
    mo_catalogue_free(&catalogue);
    dispose(&s);
  }
}

static const mo_entry *entry_of(const mo_stage_catalogue *stage, mo_role role) {
  for (int64_t i = 0; i < stage->n_entries; i++)
    if (stage->entries[i].role == role) return &stage->entries[i];
  return NULL;
}

static void tied_embedding_is_in_two_stages(void **state) {
  (void)state;
  scene s = prepared(llama);
  mo_catalogue catalogue;
  expect_ok(build(&s, &catalogue));
  const mo_entry *embed = entry_of(&catalogue.stages[0], MO_EMBED), *head = entry_of(&catalogue.stages[3], MO_LM_HEAD);
  assert_non_null(embed);
  assert_non_null(head);
  assert_ptr_equal(embed->tensor, head->tensor);
  mo_catalogue_free(&catalogue);
  dispose(&s);
}

static void expert_tensors_keep_their_expert(void **state) {
  (void)state;
  scene s = prepared(olmoe);
  mo_catalogue catalogue;
  expect_ok(build(&s, &catalogue));
  int seen[5] = {0};
  for (int64_t i = 0; i < catalogue.stages[2].n_entries; i++) {
    const mo_entry *e = &catalogue.stages[2].entries[i];
    if (e->role != MO_EXPERT_UP) continue;
    char part[40];
    snprintf(part, sizeof part, "layers.1.mlp.experts.%d.", e->expert);
    assert_non_null(strstr(e->tensor->name, part));
    seen[e->expert]++;
  }
  for (int e = 0; e < 5; e++) assert_int_equal(seen[e], 1);
  mo_catalogue_free(&catalogue);
  dispose(&s);
}

static void unused_tensors_are_counted_and_named(void **state) {
  (void)state;
  scene s = prepared(llama);
  s.tensors[s.n++] = (fixture_tensor){"model.layers.0.self_attn.rotary_emb.inv_freq", "F64", 8, 1, {2}};
  s.tensors[s.n++] = (fixture_tensor){"model.layers.9.extra", "I64", 8, 0, {0}};
  mo_catalogue catalogue;
  expect_ok(build(&s, &catalogue));
  assert_int_equal(catalogue.unused_tensors, 2);
  assert_string_equal(catalogue.unused[0]->name, "model.layers.0.self_attn.rotary_emb.inv_freq");
  assert_string_equal(catalogue.unused[1]->name, "model.layers.9.extra");
  mo_catalogue_free(&catalogue);
  dispose(&s);
}

static void refused(scene *s, const char *part) {
  mo_catalogue catalogue;
  mo_status status = build(s, &catalogue);
  assert_non_null(strstr(mo_error_message(), s->folder));
  expect_error(status, MO_INVALID, part);
  assert_null(catalogue.stages);
  assert_int_equal(catalogue.n_stages, 0);
}

static void missing_tensor(void **state) {
  (void)state;
  scene s = prepared(llama);
  fixture_tensor *t = find(&s, "model.layers.1.self_attn.k_proj.weight");
  assert_non_null(t);
  *t = s.tensors[--s.n];
  refused(&s, "tensor \"model.layers.1.self_attn.k_proj.weight\" is missing");
  dispose(&s);
}

static void wrong_shape(void **state) {
  (void)state;
  scene s = prepared(olmoe);
  fixture_tensor *t = find(&s, "model.layers.0.self_attn.k_proj.weight");
  assert_non_null(t);
  t->shape[0] = 9;
  refused(&s, "tensor \"model.layers.0.self_attn.k_proj.weight\" has shape [9, 16], config.json implies [8, 16] (");
  t->shape[0] = 16; /* as many elements in all, but transposed */
  t->shape[1] = 8;
  refused(&s, "has shape [16, 8], config.json implies [8, 16] (");
  t->n_dims = 1;
  t->shape[0] = 128;
  refused(&s, "has shape [128], config.json implies [8, 16] (");
  dispose(&s);
}

static void dtypes(void **state) {
  (void)state;
  static const struct {
    const char *name;
    int64_t bytes;
    bool usable;
  } all[] = {{"F32", 4, true}, {"F16", 2, true}, {"U8", 1, false}, {"F8_E4M3", 1, false}, {"F64", 8, false}};
  scene s = prepared(llama);
  fixture_tensor *t = find(&s, "model.norm.weight");
  assert_non_null(t);
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    t->dtype = all[i].name;
    t->element = all[i].bytes;
    if (all[i].usable) {
      mo_catalogue catalogue;
      expect_ok(build(&s, &catalogue));
      mo_catalogue_free(&catalogue);
    } else {
      char part[100];
      snprintf(part, sizeof part, "tensor \"model.norm.weight\" has dtype %s, needed is F32, BF16 or F16", all[i].name);
      refused(&s, part);
    }
  }
  dispose(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_stage_is_found),
      cmocka_unit_test(tied_embedding_is_in_two_stages),
      cmocka_unit_test(expert_tensors_keep_their_expert),
      cmocka_unit_test(unused_tensors_are_counted_and_named),
      cmocka_unit_test(missing_tensor),
      cmocka_unit_test(wrong_shape),
      cmocka_unit_test(dtypes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
