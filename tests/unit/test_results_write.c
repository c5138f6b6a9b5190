/* What the result file holds, written by all ranks, together and in turns. ranks: 3 (layers dealt round robin, rank 0 reads back) */
#include <math.h>
#include <stdio.h>

#include "test_results_fixture.h"

#define PATH "written.h5"

static fixture shared;

/* --- names --- */

static void only_the_final_name_stays(void **state) {
  (void)state;
  mo_results *results = create(&shared, "name.h5");
  wait_for_all();
  assert_true(exists("name.h5.partial"));
  assert_false(exists("name.h5"));
  assert_ok(write_all(results, &shared));
  assert_false(exists("name.h5"));
  wait_for_all();
  assert_ok(mo_results_finish(results));
  assert_true(exists("name.h5"));
  assert_false(exists("name.h5.partial"));
  wait_for_all();
  if (is_root()) assert_int_equal(unlink("name.h5"), 0);
}

static void discard_leaves_nothing(void **state) {
  (void)state;
  mo_results *results = create(&shared, "given_up.h5");
  wait_for_all();
  mo_results_discard(results);
  assert_false(exists("given_up.h5.partial"));
  wait_for_all();
  results = create(&shared, "given_up.h5");
  assert_ok(write_all(results, &shared));
  wait_for_all();
  mo_results_discard(results);
  mo_results_discard(NULL);
  wait_for_all();
  assert_false(exists("given_up.h5.partial"));
  assert_false(exists("given_up.h5"));
}

static void an_older_result_is_replaced_at_the_end(void **state) {
  (void)state;
  if (is_root()) {
    FILE *old = fopen("old.h5", "w");
    assert_non_null(old);
    fputs("old", old);
    fclose(old);
  }
  wait_for_all();
  mo_results *results = create(&shared, "old.h5");
  assert_ok(write_all(results, &shared));
  wait_for_all();
  char text[4] = "";
  FILE *old = fopen("old.h5", "r");
  assert_non_null(old);
  assert_int_equal(fread(text, 1, 3, old), 3);
  fclose(old);
  assert_string_equal(text, "old");
  wait_for_all();
  assert_ok(mo_results_finish(results));
  assert_true(has("old.h5", "features"));
  wait_for_all();
  if (is_root()) assert_int_equal(unlink("old.h5"), 0);
}

static void a_file_that_appears_meanwhile_is_not_replaced(void **state) {
  (void)state;
  mo_results *results = create(&shared, "race.h5");
  assert_ok(write_all(results, &shared));
  if (is_root()) {
    FILE *other = fopen("race.h5", "w");
    assert_non_null(other);
    fclose(other);
  }
  wait_for_all();
  assert_int_equal(mo_results_finish(results), is_root() ? MO_FAILED : MO_PEER_FAILED);
  if (is_root()) {
    assert_error("appeared during the run (race.h5)");
    assert_true(has("race.h5.partial", "features"));
    assert_int_equal(unlink("race.h5"), 0);
    assert_int_equal(unlink("race.h5.partial"), 0);
  }
  wait_for_all();
}

/* --- contents --- */

static void reader_returns_what_was_written(void **state) {
  (void)state;
  mo_results_file file;
  assert_ok(mo_results_read(&file, PATH));
  assert_string_equal(file.path, PATH);
  assert_string_equal(file.model_name, "org/model-\xc3\xa9");
  assert_string_equal(file.architecture, "olmoe");
  assert_string_equal(file.precision, "bf16");
  assert_string_equal(file.device, "cpu");
  assert_string_equal(file.dataset, "a \"text\"");
  assert_int_equal(strlen(file.started), strlen("2024-01-01T00:00:00Z"));
  assert_true(strcmp(file.started, file.finished) <= 0);
  assert_int_equal(file.finished[strlen(file.finished) - 1], 'Z');
  assert_int_equal(file.n_layers, L);
  assert_int_equal(file.hidden_size, H);
  assert_int_equal(file.n_sequences, N);
  assert_int_equal(file.sequence_length, S);
  assert_int_equal(file.n_ranks, mo_comm_size(comm));
  assert_true(file.threshold == 6.0);
  assert_true(file.perplexity == 12.75);
  mo_analysis expected = {0};
  make_tables(&expected, true);
  assert_int_equal(file.n_features, expected.n_features);
  for (int i = 0; i < N_FEATURES; i++) {
    const mo_feature *a = &file.features[i], *b = &expected.features[i];
    assert_int_equal(a->feature, b->feature);
    assert_int_equal(a->sites_hit, b->sites_hit);
    assert_int_equal(a->layers_hit, b->layers_hit);
    assert_int_equal(a->positions_hit, b->positions_hit);
    assert_true(a->layer_percentage == b->layer_percentage && a->block_percentage == b->block_percentage);
    assert_true(a->seq_percentage == b->seq_percentage && a->max_magnitude == b->max_magnitude);
    assert_int_equal(a->total_occurrences, b->total_occurrences);
    assert_int_equal(a->positive, b->positive);
    assert_int_equal(a->negative, b->negative);
    assert_true(a->q1 == b->q1 && a->median == b->median && a->q3 == b->q3 && a->share == b->share);
    assert_int_equal(a->sequences_qualified, b->sequences_qualified);
    assert_int_equal(a->classification, b->classification);
  }
  assert_int_equal(file.summary.outlier_features, 2);
  assert_int_equal(file.summary.systematic_features, 1);
  assert_int_equal(file.summary.features_hit, 3);
  assert_int_equal(file.summary.sequence_rows, N_ROWS);
  assert_true(file.summary.mean_layer_percentage == 0.5 && file.summary.median_layer_percentage == 0.25);
  assert_true(file.summary.mean_seq_percentage == 0.75 && file.summary.median_seq_percentage == 0.125);
  assert_int_equal(file.summary.classification, MO_SYSTEMATIC);
  mo_results_file_free(&file);
  mo_analysis_free(&expected);
}

static hid_t site_row_type(void) {
  hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(mo_site_row));
#define PUT(name, kind) assert_true(H5Tinsert(type, #name, offsetof(mo_site_row, name), kind) >= 0)
  PUT(sequence, H5T_NATIVE_INT32);
  PUT(feature, H5T_NATIVE_INT32);
  PUT(count, H5T_NATIVE_INT32);
  PUT(positive, H5T_NATIVE_INT32);
  PUT(negative, H5T_NATIVE_INT32);
  PUT(min, H5T_NATIVE_FLOAT);
  PUT(max, H5T_NATIVE_FLOAT);
  PUT(max_abs, H5T_NATIVE_FLOAT);
  PUT(mean_abs, H5T_NATIVE_FLOAT);
  PUT(position, H5T_NATIVE_INT32);
  PUT(first, H5T_NATIVE_INT32);
#undef PUT
  return type;
}

static void compare_site(int64_t site) {
  char name[64];
  mo_site_row rows[N * H];
  hsize_t n_rows = 0;
  for (int64_t n = 0; n < N; n++)
    for (int64_t h = 0; h < H; h++) n_rows += outliers_at(site, n, h) > 0;
  snprintf(name, sizeof name, "/layers/%03d/%s", (int)site / 2, site % 2 ? "ln_mlp" : "ln_attn");
  hid_t type = site_row_type();
  read_dataset(PATH, name, type, n_rows, 0, rows);
  H5Tclose(type);
  mo_site_row *row = rows;
  for (int n = 0; n < N; n++)
    for (int h = 0; h < H; h++) {
      int count = outliers_at(site, n, h), positive = 0;
      float max_abs = 0;
      for (int i = 0; i < count; i++) {
        positive += value_at(site, n, h, i) > 0;
        max_abs = fmaxf(max_abs, fabsf(value_at(site, n, h, i)));
      }
      if (count == 0) continue;
      assert_int_equal(row->sequence, n);
      assert_int_equal(row->feature, h);
      assert_int_equal(row->count, count);
      assert_int_equal(row->positive, positive);
      assert_int_equal(row->negative, count - positive);
      assert_true(row->max_abs == max_abs);
      assert_int_equal(row->position, count - 1);
      assert_int_equal(row->first, 1);
      row++;
    }
  assert_int_equal(row - rows, n_rows);
}

static void every_site_has_its_rows(void **state) {
  (void)state;
  for (int64_t site = 0; site < 2 * L; site++) compare_site(site);
}

static void sites_without_outliers_have_empty_tables(void **state) {
  (void)state;
  read_dataset(PATH, "/layers/001/ln_mlp", H5T_NATIVE_INT32, 0, 0, NULL);
}

static void tables_without_rows_exist(void **state) {
  (void)state;
  fixture empty = shared;
  empty.analysis = (mo_analysis){0};
  if (is_root()) make_tables(&empty.analysis, false);
  empty.n_timing = 0;
  write_file(&empty, "no_rows.h5");
  read_dataset("no_rows.h5", "/features", H5T_NATIVE_INT32, 0, 0, NULL);
  read_dataset("no_rows.h5", "/sequence_features", H5T_NATIVE_INT32, 0, 0, NULL);
  read_dataset("no_rows.h5", "/timing", H5T_NATIVE_INT32, 0, 0, NULL);
  mo_results_file file;
  assert_ok(mo_results_read(&file, "no_rows.h5"));
  assert_int_equal(file.n_features, 0);
  mo_results_file_free(&file);
  mo_analysis_free(&empty.analysis);
  wait_for_all();
  if (is_root()) assert_int_equal(unlink("no_rows.h5"), 0);
}

static void plain_arrays_are_stored(void **state) {
  (void)state;
  int32_t ids[N * S];
  float nll[N * (S - 1)];
  uint64_t experts[L * E];
  read_dataset(PATH, "/tokens", H5T_NATIVE_INT32, N, S, ids);
  for (int i = 0; i < N * S; i++) assert_int_equal(ids[i], 7 * i);
  read_dataset(PATH, "/perplexity/nll", H5T_NATIVE_FLOAT, N, S - 1, nll);
  for (int i = 0; i < N * (S - 1); i++) assert_true(nll[i] == 0.25f * (float)i);
  read_dataset(PATH, "/routing/expert_tokens", H5T_NATIVE_UINT64, L, E, experts);
  for (int i = 0; i < L * E; i++) assert_true(experts[i] == ((uint64_t)1 << 40) + (uint64_t)i);
}

/* One column of a table. */
static void read_column(const char *table, const char *column, hid_t type, size_t size, hsize_t n_rows, void *data) {
  hid_t row = H5Tcreate(H5T_COMPOUND, size);
  assert_true(H5Tinsert(row, column, 0, type) >= 0);
  read_dataset(PATH, table, row, n_rows, 0, data);
  H5Tclose(row);
}

static void other_tables_are_stored(void **state) {
  (void)state;
  int64_t occurrences[N_ROWS], counts[2 * L];
  double std[2 * L];
  read_column("/sequence_features", "total_occurrences", H5T_NATIVE_INT64, 8, N_ROWS, occurrences);
  for (int i = 0; i < N_ROWS; i++) assert_true(occurrences[i] == (int64_t)1 << (33 + i));
  read_column("/sites", "count", H5T_NATIVE_INT64, 8, 2 * L, counts);
  read_column("/sites", "std", H5T_NATIVE_DOUBLE, 8, 2 * L, std);
  for (int i = 0; i < 2 * L; i++) assert_true(counts[i] == 10 * i && std[i] == 2.0);
}

static void timing_rows_come_in_rank_order(void **state) {
  (void)state;
  int32_t ranks[64], layers[64];
  double compute[64];
  int n = 0;
  for (int r = 0; r < mo_comm_size(comm); r++) n += r % 3;
  read_column("/timing", "rank", H5T_NATIVE_INT32, 4, (hsize_t)n, ranks);
  read_column("/timing", "layer", H5T_NATIVE_INT32, 4, (hsize_t)n, layers);
  read_column("/timing", "compute", H5T_NATIVE_DOUBLE, 8, (hsize_t)n, compute);
  for (int r = 0, at = 0; r < mo_comm_size(comm); r++)
    for (int i = 0; i < r % 3; i++, at++) {
      assert_int_equal(ranks[at], r);
      assert_int_equal(layers[at], i - 1);
      assert_true(compute[at] == 2.5);
    }
}

static void columns_are_enums_with_names(void **state) {
  (void)state;
  const struct {
    const char *table, *column, *names[3];
    int n;
  } cases[] = {{"/features", "classification", {"NONE", "PROBABILISTIC", "SYSTEMATIC"}, 3},
               {"/sites", "site", {"ln_attn", "ln_mlp"}, 2}};
  hid_t file = open_file(PATH, H5F_ACC_RDONLY);
  for (int c = 0; c < 2; c++) {
    hid_t dataset = H5Dopen2(file, cases[c].table, H5P_DEFAULT), row = H5Dget_type(dataset);
    int index = H5Tget_member_index(row, cases[c].column);
    assert_true(index >= 0);
    hid_t type = H5Tget_member_type(row, (unsigned)index);
    assert_int_equal(H5Tget_class(type), H5T_ENUM);
    assert_int_equal(H5Tget_nmembers(type), cases[c].n);
    for (int32_t v = 0; v < cases[c].n; v++) {
      char name[32];
      assert_true(H5Tenum_nameof(type, &v, name, sizeof name) >= 0);
      assert_string_equal(name, cases[c].names[v]);
    }
    H5Tclose(type);
    H5Tclose(row);
    H5Dclose(dataset);
  }
  H5Fclose(file);
}

static void optional_parts_are_absent(void **state) {
  (void)state;
  fixture bare = shared;
  bare.header.n_experts = 0;
  bare.analysis = (mo_analysis){0};
  if (is_root()) {
    make_tables(&bare.analysis, true);
    free(bare.analysis.nll);
    bare.analysis.nll = NULL;
    bare.analysis.perplexity = NAN;
  }
  write_file(&bare, "bare.h5");
  assert_false(has("bare.h5", "perplexity"));
  assert_false(has("bare.h5", "routing"));
  assert_false(has("bare.h5", "activations"));
  mo_results_file file;
  assert_ok(mo_results_read(&file, "bare.h5"));
  assert_true(isnan(file.perplexity));
  mo_results_file_free(&file);
  mo_analysis_free(&bare.analysis);
  wait_for_all();
  if (is_root()) assert_int_equal(unlink("bare.h5"), 0);
}

/* What H5Ovisit1 passes. */
#if H5_VERSION_GE(1, 12, 0)
typedef H5O_info1_t object_info;
#else
typedef H5O_info_t object_info;
#endif

static herr_t count_objects(hid_t root, const char *name, const object_info *info, void *count) {
  (void)root;
  (void)name;
  (void)info;
  ++*(int *)count;
  return 0;
}

/* Of the objects below a group. */
static int objects(hid_t file, const char *name) {
  int n = 0;
  hid_t group = H5Gopen2(file, name, H5P_DEFAULT);
  assert_true(group >= 0 && H5Ovisit1(group, H5_INDEX_NAME, H5_ITER_NATIVE, count_objects, &n) >= 0);
  H5Gclose(group);
  return n - 1;
}

/* A further threshold has a group with its own tables; recomputing by it begins with them. */
static void further_thresholds_have_groups(void **state) {
  (void)state;
  fixture other = shared;
  other.analysis = (mo_analysis){0};
  if (is_root()) make_tables(&other.analysis, true);
  if (is_root()) other.analysis.n_features = 1;
  const mo_results_part parts[] = {{6.0, shared.accumulator, &shared.analysis},
                                   {4.5, other.accumulator, &other.analysis},
                                   {0.1, other.accumulator, &other.analysis}};
  mo_results *results = create(&shared, "three.h5");
  assert_ok(mo_results_write(results, shared.owner, parts, 3, shared.timing, shared.n_timing));
  assert_ok(mo_results_finish(results));
  wait_for_all();
  float max_magnitude;
  hid_t file = open_file("three.h5", H5F_ACC_RDONLY), type = H5Tcreate(H5T_COMPOUND, sizeof max_magnitude);
  assert_int_equal(objects(file, "/thresholds"), 2 + 2 * (1 + L + 2 * L + 5 + 1 + 21));
  H5Fclose(file);
  assert_true(H5Tinsert(type, "max_magnitude", 0, H5T_NATIVE_FLOAT) >= 0);
  read_dataset("three.h5", "/thresholds/4.5/features", type, 1, 0, &max_magnitude);
  read_dataset("three.h5", "/thresholds/0.1/features", type, 1, 0, &max_magnitude);
  assert_true(max_magnitude == 7.5f);
  H5Tclose(type);
  mo_results_file read;
  mo_criteria criteria = {5.0, 0.25, 0.06, 1.0};
  mo_bootstrap bootstrap = {0, 0};
  assert_ok(mo_results_read(&read, "three.h5"));
  assert_int_equal(read.n_features, N_FEATURES);
  assert_int_equal(mo_results_recompute(&read, &criteria, &bootstrap), MO_INVALID);
  assert_error("analysis.threshold = 5 is not stored (three.h5: there is 6, 0.1, 4.5): run again with it");
  mo_results_file_free(&read);
  mo_analysis_free(&other.analysis);
  wait_for_all();
  if (is_root()) assert_int_equal(unlink("three.h5"), 0);
}

static herr_t visit(hid_t root, const char *name, const object_info *info, void *count) {
  (void)root;
  if (info->type != H5O_TYPE_DATASET && strcmp(name, ".") == 0) return 0;
  if (H5Aexists_by_name(root, name, "description", H5P_DEFAULT) <= 0) {
    print_error("%s has no description\n", name);
    return -1;
  }
  *(int *)count += info->type == H5O_TYPE_DATASET;
  return 0;
}

static void every_object_is_described(void **state) {
  (void)state;
  int n = 0;
  hid_t file = open_file(PATH, H5F_ACC_RDONLY);
  assert_true(H5Ovisit1(file, H5_INDEX_NAME, H5_ITER_NATIVE, visit, &n) >= 0);
  H5Fclose(file);
  assert_int_equal(n, 1 + 2 * L + 6 + 21 + 4 + 1); /* tokens, sites, tables, summary, perplexity, routing */
}

static void units_are_given(void **state) {
  (void)state;
  const char *const names[] = {"/timing", "/perplexity/nll"}, *const units[] = {"bytes_read: bytes; read: seconds",
                                                                                "nats"};
  hid_t file = open_file(PATH, H5F_ACC_RDONLY);
  for (int i = 0; i < 2; i++) {
    char *text = NULL;
    hid_t attribute = H5Aopen_by_name(file, names[i], "units", H5P_DEFAULT, H5P_DEFAULT);
    assert_true(attribute >= 0);
    hid_t type = H5Aget_type(attribute);
    assert_true(H5Tis_variable_str(type) > 0);
    assert_int_equal(H5Tget_cset(type), H5T_CSET_UTF8);
    assert_true(H5Aread(attribute, type, &text) >= 0);
    assert_int_equal(strncmp(text, units[i], strlen(units[i])), 0);
    H5free_memory(text);
    H5Tclose(type);
    H5Aclose(attribute);
  }
  H5Fclose(file);
}

/* --- activations --- */

static float activation(int64_t layer, int site, int64_t i) { return (float)(1000 * layer + 500 * site + i); }

static const int64_t activation_layers[] = {1, 4};

/* This rank's, sequence 2 first, then 0..1. */
static mo_status give_activations(void *context, mo_results *results) {
  float values[N * S * H];
  (void)context;
  for (int k = 0; k < 4; k++) {
    int64_t layer = activation_layers[k / 2];
    if (shared.owner[layer] != rank()) continue;
    for (int i = 0; i < N * S * H; i++) values[i] = activation(layer, k % 2, i);
    MO_TRY(mo_results_write_activations(results, layer, (mo_site)(k % 2), 2, 1, values + 2 * S * H));
    MO_TRY(mo_results_write_activations(results, layer, (mo_site)(k % 2), 0, 2, values));
  }
  return MO_OK;
}

static void activations_are_stored_by_their_owners(void **state) {
  (void)state;
  mo_results *results;
  float values[N * S * H], back[N * S * H];
  bool in_turns = together == MO_TOGETHER_OFF && mo_comm_size(comm) > 1;
  assert_ok(
      mo_results_create(&results, "act.h5", comm, together, &shared.header, &shared.tokens, activation_layers, 2));
  mo_results_set_activations(results, give_activations, NULL);
  assert_ok(give_activations(NULL, results));
  if (!in_turns) {
    assert_int_equal(mo_results_write_activations(results, 2, MO_SITE_LN_MLP, 0, 1, values), MO_FAILED);
    assert_error("/activations/002/ln_mlp");
  }
  assert_ok(write_all(results, &shared));
  assert_ok(mo_results_finish(results));
  wait_for_all();
  const char *const names[] = {"/activations/001/ln_attn", "/activations/001/ln_mlp", "/activations/004/ln_attn",
                               "/activations/004/ln_mlp"};
  hid_t file = open_file("act.h5", H5F_ACC_RDONLY);
  for (int k = 0; k < 4; k++) {
    hid_t dataset = H5Dopen2(file, names[k], H5P_DEFAULT);
    assert_int_equal(H5Dget_storage_size(dataset), sizeof back);
    assert_true(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, back) >= 0);
    for (int i = 0; i < N * S * H; i++) assert_true(back[i] == activation(activation_layers[k / 2], k % 2, i));
    H5Dclose(dataset);
  }
  H5Fclose(file);
  assert_false(has("act.h5", "/activations/002"));
  wait_for_all();
  if (is_root()) assert_int_equal(unlink("act.h5"), 0);
}

static void single_token_sequences(void **state) {
  (void)state;
  fixture f = shared;
  f.header.sequence_length = f.tokens.length = 1;
  write_file(&f, "single.h5");
  float none[1];
  hid_t file = open_file("single.h5", H5F_ACC_RDONLY), dataset = H5Dopen2(file, "/perplexity/nll", H5P_DEFAULT);
  hid_t space = H5Dget_space(dataset);
  assert_int_equal(H5Sget_simple_extent_npoints(space), 0);
  assert_true(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, none) >= 0);
  H5Sclose(space);
  H5Dclose(dataset);
  H5Fclose(file);
  wait_for_all();
  if (is_root()) assert_int_equal(unlink("single.h5"), 0);
}

static int prepare(void **state) {
  (void)state;
  fixture_new(&shared);
  write_file(&shared, PATH);
  return 0;
}

static int tidy(void **state) {
  (void)state;
  fixture_free(&shared);
  return is_root() ? unlink(PATH) : 0;
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(only_the_final_name_stays),
      cmocka_unit_test(discard_leaves_nothing),
      cmocka_unit_test(an_older_result_is_replaced_at_the_end),
      cmocka_unit_test(a_file_that_appears_meanwhile_is_not_replaced),
      cmocka_unit_test(reader_returns_what_was_written),
      cmocka_unit_test(every_site_has_its_rows),
      cmocka_unit_test(sites_without_outliers_have_empty_tables),
      cmocka_unit_test(tables_without_rows_exist),
      cmocka_unit_test(plain_arrays_are_stored),
      cmocka_unit_test(other_tables_are_stored),
      cmocka_unit_test(timing_rows_come_in_rank_order),
      cmocka_unit_test(columns_are_enums_with_names),
      cmocka_unit_test(optional_parts_are_absent),
      cmocka_unit_test(every_object_is_described),
      cmocka_unit_test(further_thresholds_have_groups),
      cmocka_unit_test(units_are_given),
      cmocka_unit_test(activations_are_stored_by_their_owners),
      cmocka_unit_test(single_token_sequences),
  };
  if (mo_comm_open(&comm, &argc, &argv) != MO_OK) return 1;
  int failed = 0;
  for (together = MO_TOGETHER_AUTO; together <= MO_TOGETHER_OFF; together++)
    failed += cmocka_run_group_tests(tests, prepare, tidy);
  mo_comm_close(comm);
  return failed;
}
