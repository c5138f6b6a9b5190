/* The views that operations get of a stage's tensors in its arena block. */
#include "moe_outliers/model.h"
#include "test_weights_fixture.h"

static char arena[1 << 16];

typedef struct {
  mo_tensor tensors[8];
  mo_entry entries[8];
  mo_stage_catalogue stage;
  mo_model_spec spec;
} scene;

/* Add a tensor at the next multiple of 256; bytes from shape and dtype. */
static const char *add(scene *s, mo_role role, int32_t expert, mo_dtype dtype, int32_t n_dims, const int64_t *shape) {
  int64_t i = s->stage.n_entries++, bytes = (int64_t)mo_dtype_size(dtype);
  mo_tensor *t = &s->tensors[i];
  *t = (mo_tensor){.name = "t", .dtype = dtype, .dtype_name = mo_dtype_name(dtype), .n_dims = n_dims};
  for (int32_t d = 0; d < n_dims; d++) bytes *= t->shape[d] = shape[d];
  t->bytes = bytes;
  s->entries[i] = (mo_entry){.role = role, .expert = expert, .tensor = t, .arena_offset = s->stage.arena_bytes};
  s->stage.entries = s->entries;
  s->stage.arena_bytes += (bytes + 255) / 256 * 256;
  assert_true(s->stage.arena_bytes <= (int64_t)sizeof arena);
  return arena + s->entries[i].arena_offset;
}

#define ADD(scene, role, expert, dtype, ...)                                                     \
  add(scene, role, expert, dtype, (int32_t)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
      (int64_t[]){__VA_ARGS__})

static mo_stage_weights built(const scene *s) {
  mo_stage_weights w;
  expect_ok(mo_stage_weights_build(&w, &s->spec, &s->stage, arena));
  return w;
}

static void is_view(const mo_weight *w, const void *data, mo_dtype dtype, int64_t rows, int64_t cols,
                    const void *scales) {
  assert_ptr_equal(w->data, data);
  assert_int_equal(w->dtype, dtype);
  assert_int_equal(w->rows, rows);
  assert_int_equal(w->cols, cols);
  assert_ptr_equal(w->scales, scales);
}

static void single_tensors(void **state) {
  (void)state;
  scene s = {0};
  const char *norm = ADD(&s, MO_INPUT_NORM, -1, MO_F32, 5), *q = ADD(&s, MO_Q, -1, MO_BF16, 6, 5),
             *conv = ADD(&s, MO_DELTA_CONV, -1, MO_F16, 7, 1, 4);
  mo_stage_weights w = built(&s);
  is_view(&w.one[MO_INPUT_NORM], norm, MO_F32, 1, 5, NULL);
  is_view(&w.one[MO_Q], q, MO_BF16, 6, 5, NULL);
  is_view(&w.one[MO_DELTA_CONV], conv, MO_F16, 7, 4, NULL);
  assert_null(w.one[MO_K].data);
  assert_null(w.expert_gate);
  assert_null(w.expert_gate_up);
  mo_stage_weights_free(&w);
}

static void one_tensor_per_expert(void **state) {
  (void)state;
  scene s = {.spec.moe.experts = 2};
  const char *up1 = ADD(&s, MO_EXPERT_UP, 1, MO_BF16, 3, 4), *down0 = ADD(&s, MO_EXPERT_DOWN, 0, MO_BF16, 4, 3),
             *gate0 = ADD(&s, MO_EXPERT_GATE, 0, MO_F32, 3, 4), *gate1 = ADD(&s, MO_EXPERT_GATE, 1, MO_BF16, 3, 4),
             *up0 = ADD(&s, MO_EXPERT_UP, 0, MO_BF16, 3, 4), *down1 = ADD(&s, MO_EXPERT_DOWN, 1, MO_BF16, 4, 3);
  mo_stage_weights w = built(&s);
  is_view(&w.expert_gate[0], gate0, MO_F32, 3, 4, NULL);
  is_view(&w.expert_gate[1], gate1, MO_BF16, 3, 4, NULL);
  is_view(&w.expert_up[0], up0, MO_BF16, 3, 4, NULL);
  is_view(&w.expert_up[1], up1, MO_BF16, 3, 4, NULL);
  is_view(&w.expert_down[0], down0, MO_BF16, 4, 3, NULL);
  is_view(&w.expert_down[1], down1, MO_BF16, 4, 3, NULL);
  assert_null(w.expert_gate_up);
  mo_stage_weights_free(&w);
}

/* E = 3 experts, H = 64, F = 32, as gpt_oss stores them. */
static void fused_mxfp4_experts(void **state) {
  (void)state;
  scene s = {.spec.moe.experts = 3};
  const char *gate_up = ADD(&s, MO_EXPERTS_GATE_UP, -1, MO_U8, 3, 64, 2, 16),
             *gate_up_scales = ADD(&s, MO_EXPERTS_GATE_UP_SCALES, -1, MO_U8, 3, 64, 2),
             *gate_up_bias = ADD(&s, MO_EXPERTS_GATE_UP_BIAS, -1, MO_BF16, 3, 64),
             *down = ADD(&s, MO_EXPERTS_DOWN, -1, MO_U8, 3, 64, 1, 16),
             *down_scales = ADD(&s, MO_EXPERTS_DOWN_SCALES, -1, MO_U8, 3, 64, 1),
             *down_bias = ADD(&s, MO_EXPERTS_DOWN_BIAS, -1, MO_BF16, 3, 64);
  mo_stage_weights w = built(&s);
  for (int e = 0; e < 3; e++) {
    is_view(&w.expert_gate_up[e], gate_up + e * 64 * 32, MO_U8, 64, 64, gate_up_scales + e * 64 * 2);
    is_view(&w.expert_down[e], down + e * 64 * 16, MO_U8, 64, 32, down_scales + e * 64);
    is_view(&w.expert_gate_up_bias[e], gate_up_bias + e * 128, MO_BF16, 1, 64, NULL);
    is_view(&w.expert_down_bias[e], down_bias + e * 128, MO_BF16, 1, 64, NULL);
  }
  assert_null(w.expert_gate);
  mo_stage_weights_free(&w);
}

static void fused_plain_experts(void **state) {
  (void)state;
  scene s = {.spec.moe.experts = 2};
  const char *gate_up = ADD(&s, MO_EXPERTS_GATE_UP, -1, MO_BF16, 2, 6, 8);
  mo_stage_weights w = built(&s);
  is_view(&w.expert_gate_up[0], gate_up, MO_BF16, 8, 6, NULL); /* stored [in, out] */
  is_view(&w.expert_gate_up[1], gate_up + 96, MO_BF16, 8, 6, NULL);
  assert_true(w.expert_gate_up[0].transposed && w.expert_gate_up[1].transposed);
  mo_stage_weights_free(&w);
}

static void wrong_numbers_of_experts(void **state) {
  (void)state;
  mo_stage_weights w;
  scene fused = {.spec.moe.experts = 3};
  ADD(&fused, MO_EXPERTS_GATE_UP, -1, MO_BF16, 2, 6, 8);
  expect_error(mo_stage_weights_build(&w, &fused.spec, &fused.stage, arena), MO_INVALID,
               "holds 2 experts, the model has 3");
  scene beyond = {.spec.moe.experts = 3};
  ADD(&beyond, MO_EXPERT_UP, 3, MO_BF16, 6, 8);
  expect_error(mo_stage_weights_build(&w, &beyond.spec, &beyond.stage, arena), MO_INVALID, "belongs to expert 3");
  scene dense = {0};
  ADD(&dense, MO_EXPERTS_DOWN, -1, MO_BF16, 2, 6, 8);
  expect_error(mo_stage_weights_build(&w, &dense.spec, &dense.stage, arena), MO_INVALID, "the model has 0");
  assert_null(w.expert_down);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(single_tensors),           cmocka_unit_test(one_tensor_per_expert),
      cmocka_unit_test(fused_mxfp4_experts),      cmocka_unit_test(fused_plain_experts),
      cmocka_unit_test(wrong_numbers_of_experts),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
