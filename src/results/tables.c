#include "results/tables.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/ablation.h"
#include "moe_outliers/analysis.h"
#include "moe_outliers/results.h"

#define COLUMN(row, kind, name, units, meaning) \
  { #name, MO_COLUMN_##kind, offsetof(row, name), units, meaning, false }
#define LATER(row, name, meaning) \
  { #name, MO_COLUMN_F64, offsetof(row, name), NULL, meaning, true }
#define LATER_I32(row, name, meaning) \
  { #name, MO_COLUMN_I32, offsetof(row, name), NULL, meaning, true }
/* The 95 % interval of another column. */
#define INTERVAL(row, name)                                                              \
  LATER(row, name##_low, "lower end of the 95 % interval of " #name "; NaN: not known"), \
      LATER(row, name##_high, "upper end of the 95 % interval of " #name "; NaN: not known")
#define TABLE(row, list, text) \
  { text, sizeof(row), list, (int)(sizeof(list) / sizeof(list)[0]) }

#define COL(...) COLUMN(mo_site_row, __VA_ARGS__)
static const mo_column site_rows[] = {
    COL(I32, sequence, NULL, "place of the sequence in /tokens"),
    COL(I32, feature, NULL, "hidden dimension"),
    COL(I32, count, NULL, "outlier values of the feature in this sequence at this site"),
    COL(I32, positive, NULL, "of them > 0"),
    COL(I32, negative, NULL, "of them < 0"),
    COL(F32, min, NULL, "smallest outlier value, signed"),
    COL(F32, max, NULL, "largest outlier value, signed"),
    COL(F32, max_abs, NULL, "largest magnitude"),
    COL(F32, mean_abs, NULL, "mean magnitude of the outlier values"),
    LATER_I32(mo_site_row, position,
              "position of the value of the largest magnitude; of equal ones a positive one, then the first"),
    LATER_I32(mo_site_row, first, "1: the value at position 0 is an outlier value, 0: it is not"),
};
#undef COL
const mo_table mo_table_site_rows = TABLE(
    mo_site_row, site_rows,
    "Outlier values (magnitude >= threshold) at one site, the output of one layer norm: a row per (sequence, feature) "
    "with at least one, sorted by sequence, then feature");

#define COL(...) COLUMN(mo_position_row, __VA_ARGS__)
static const mo_column positions[] = {
    COL(I32, sequence, NULL, "place of the sequence in /tokens"),
    COL(I32, feature, NULL, "hidden dimension"),
    COL(I32, positions_hit, NULL, "positions with an outlier value at any site, of S"),
};
#undef COL
const mo_table mo_table_positions = TABLE(
    mo_position_row, positions,
    "Positions that a feature hits: a row per (sequence, feature) with at least one outlier value at any site, sorted "
    "by sequence, then feature");

#define COL(...) COLUMN(mo_sequence_feature, __VA_ARGS__)
static const mo_column sequence_features[] = {
    COL(I32, sequence, NULL, "place of the sequence in /tokens"),
    COL(I32, feature, NULL, "hidden dimension"),
    COL(F64, layer_percentage, NULL, "fraction 0..1 of the 2L sites that the feature hits in this sequence"),
    COL(F64, seq_percentage, NULL, "fraction 0..1 of the S positions that it hits, each counted once over all sites"),
    COL(F32, max_magnitude, NULL, "largest magnitude of its outlier values in this sequence"),
    COL(I64, total_occurrences, NULL, "outlier values over all sites"),
    COL(I32, sites_hit, NULL, "sites with an outlier value, of 2L"),
    COL(I32, positions_hit, NULL, "positions with an outlier value at any site, of S"),
};
#undef COL
const mo_table mo_table_sequence_features = TABLE(
    mo_sequence_feature, sequence_features,
    "Per-sequence analysis: a row per (sequence, feature) that qualifies as an outlier feature in that sequence alone, "
    "sorted by sequence, then max_magnitude falling, then feature");

#define COL(...) COLUMN(mo_feature, __VA_ARGS__)
static const mo_column features[] = {
    COL(I32, feature, NULL, "hidden dimension"),
    COL(I32, sites_hit, NULL, "sites with an outlier value in any sequence, of 2L"),
    COL(I32, layers_hit, NULL, "layers with either site hit, of L"),
    COL(I64, positions_hit, NULL, "distinct (sequence, position) pairs with an outlier value at any site, of N*S"),
    COL(F64, layer_percentage, NULL, "fraction 0..1: sites_hit / 2L"),
    COL(F64, block_percentage, NULL, "fraction 0..1: layers_hit / L"),
    COL(F64, seq_percentage, NULL, "fraction 0..1: positions_hit / (N*S)"),
    COL(F32, max_magnitude, NULL, "largest magnitude of its outlier values"),
    COL(I64, total_occurrences, NULL, "outlier values over all sites and sequences"),
    COL(I64, positive, NULL, "of them > 0"),
    COL(I64, negative, NULL, "of them < 0"),
    COL(F32, q1, NULL, "first quartile of the signed outlier values, linear interpolation"),
    COL(F32, median, NULL, "median of the signed outlier values"),
    COL(F32, q3, NULL, "third quartile of the signed outlier values"),
    COL(F64, share, NULL, "fraction 0..1 of all outlier values of the model"),
    LATER(mo_feature, first_token_share,
          "fraction 0..1 of the feature's outlier values that are at position 0; NaN: not known"),
    COL(I32, sequences_qualified, NULL, "sequences in whose own analysis the feature qualifies, of N"),
    COL(CLASSIFICATION, classification, NULL,
        "SYSTEMATIC: qualifies and hits at least systematic_fraction of the layers; PROBABILISTIC: qualifies; NONE: "
        "not"),
    INTERVAL(mo_feature, layer_percentage),
    INTERVAL(mo_feature, block_percentage),
    INTERVAL(mo_feature, seq_percentage),
    LATER(mo_feature, qualifies_share, "fraction 0..1 of the bootstrap draws in which it qualifies; NaN: no draws"),
    LATER(mo_feature, systematic_share,
          "fraction 0..1 of the bootstrap draws in which it is SYSTEMATIC; NaN: no draws"),
};
#undef COL
const mo_table mo_table_features =
    TABLE(mo_feature, features,
          "Pooled analysis over all sequences: a row per feature (hidden dimension) with at least one outlier value, "
          "qualified or not, sorted by max_magnitude falling, then feature");

#define COL(...) COLUMN(mo_site_summary, __VA_ARGS__)
static const mo_column sites[] = {
    COL(I32, layer, NULL, "layer, from 0"),
    COL(SITE, site, NULL, "ln_attn: output of input_layernorm; ln_mlp: output of post_attention_layernorm"),
    COL(I64, count, NULL, "outlier values at this site"),
    COL(F32, max_abs, NULL, "largest magnitude of all values"),
    COL(F64, mean, NULL, "mean of all N*S*H values"),
    COL(F64, std, NULL, "population standard deviation of all N*S*H values"),
    COL(I32, features_hit, NULL, "features with an outlier value at this site in any sequence"),
};
#undef COL
const mo_table mo_table_sites =
    TABLE(mo_site_summary, sites, "A row per site (output of a layer norm), sorted by layer, then site");

#define COL(...) COLUMN(mo_top_value, __VA_ARGS__)
static const mo_column top_values[] = {
    COL(I32, feature, NULL, "hidden dimension"),
    COL(I32, layer, NULL, "layer, from 0"),
    COL(SITE, site, NULL, "ln_attn: output of input_layernorm; ln_mlp: output of post_attention_layernorm"),
    COL(I32, rank, NULL, "0: the largest magnitude; of equal ones the earlier sequence first"),
    COL(I32, sequence, NULL, "place of the sequence in /tokens; each once"),
    COL(I32, position, NULL, "position in the sequence"),
    COL(I32, token, NULL, "token id at that position"),
    COL(F32, value, NULL, "the sequence's outlier value of the largest magnitude, signed"),
};
#undef COL
const mo_table mo_table_top_values = TABLE(
    mo_top_value, top_values,
    "Where the largest values are: for each feature that qualifies in the pooled analysis, at each site that it hits, "
    "the largest value of each sequence, the five largest of these; sorted by feature, layer, site, rank");

#define COL(...) COLUMN(mo_expert, __VA_ARGS__)
static const mo_column experts[] = {
    COL(I32, layer, NULL, "layer, from 0"),
    COL(I32, expert, NULL, "expert, from 0; -1: the shared expert"),
    COL(I32, shared, NULL, "1: the shared expert, which gets every token; 0: one that tokens are sent to"),
    COL(I64, tokens, "tokens", "tokens that it got; 0: a dead expert"),
    COL(I64, outlier_values, NULL, "sum over its tokens of each token's outlier values at ln_mlp"),
    COL(I64, outlier_tokens, "tokens", "of its tokens: those with at least one outlier value at ln_mlp"),
    COL(F32, max_output, NULL,
        "largest magnitude of its down projection's output, before that is weighted; NaN does not count; 0 if it got "
        "no "
        "token"),
    COL(I32, max_sequence, NULL, "sequence of the token with that output, the first one; -1 if it got no token"),
    COL(I32, max_position, NULL, "its position; -1 likewise"),
    COL(I32, max_token, NULL, "its token id; -1 likewise"),
};
#undef COL
const mo_table mo_table_experts =
    TABLE(mo_expert, experts,
          "Experts of the layers that route, by layer, then expert, the shared one last; outlier values by the first "
          "threshold");

#define COL(...) COLUMN(mo_timing_row, __VA_ARGS__)
static const mo_column timing[] = {
    COL(I32, rank, NULL, "MPI rank"),
    COL(I32, layer, NULL, "layer; -1: embedding, L: final norm and output head"),
    COL(I64, bytes_read, "bytes", "bytes read from the checkpoint"),
    COL(F64, read, "seconds", "time in reads, summed over the rank's reader threads"),
    COL(F64, copy, "seconds", "time in copies to the device, summed over the rank's reader threads"),
    COL(F64, compute, "seconds", "time in computation"),
    COL(F64, wait, "seconds", "time waiting for weights or activations"),
};
#undef COL
const mo_table mo_table_timing = TABLE(
    mo_timing_row, timing,
    "Time spent: a row per rank and layer that it owns, sorted by rank; the one dataset that differs from run to run");

#define COL(...) COLUMN(mo_ablation_row, __VA_ARGS__)
static const mo_column ablation[] = {
    COL(VARIANT, variant, NULL,
        "INTACT: the model as it is; FEATURES: its outlier features zeroed; RANDOM: as many others, drawn at random"),
    COL(I32, draw, NULL, "of random features, from 0; -1: not drawn"),
    COL(I64, n_features, NULL, "features zeroed"),
    COL(F64, perplexity, NULL, "exp(nll_mean)"),
    COL(F64, nll_mean, "nats", "mean negative log-likelihood of the next tokens; NaN: not computed"),
    COL(F64, top1_attention, NULL,
        "largest probability (0..1) of an attention softmax, mean over tokens, heads and layers; NaN: no such layer"),
    COL(F64, top1_token, NULL,
        "probability (0..1) of the likeliest next token, mean over predictions; NaN: not computed"),
};
#undef COL
const mo_table mo_table_ablation = TABLE(mo_ablation_row, ablation,
                                         "The model with features zeroed at every site before the next matrix product: "
                                         "a row per variant; RANDOM rows in the "
                                         "order of the draws");

#define COL(...) COLUMN(mo_ablation_feature, __VA_ARGS__)
static const mo_column ablation_features[] = {
    COL(VARIANT, variant, NULL, "as in /ablation"),
    COL(I32, draw, NULL, "as in /ablation"),
    COL(I32, feature, NULL, "hidden dimension"),
};
#undef COL
const mo_table mo_table_ablation_features =
    TABLE(mo_ablation_feature, ablation_features,
          "Features that are zeroed in the variants of /ablation, in its order, then ascending");

#define COL(...) COLUMN(mo_growth_row, __VA_ARGS__)
static const mo_column growth[] = {
    COL(I32, layer, NULL, "decoder layer, from 0"),
    COL(I32, expert, NULL, "-1: the shared expert"),
    COL(I32, feature, NULL, "hidden dimension"),
    COL(F64, growth, NULL,
        "what the expert adds to the sum of the feature's squares in the residual stream over all tokens"),
    COL(F64, growth_of_layer, NULL, "what all experts of the layer add to it"),
    COL(F64, share, NULL, "growth over growth_of_layer; NaN: that is 0"),
};
#undef COL
const mo_table mo_table_growth = TABLE(
    mo_growth_row, growth,
    "Growth of the outlier features by the experts, in the model as it is: a row per layer, expert and feature; an "
    "expert that adds nothing has none");

#define COL(...) COLUMN(mo_summary, __VA_ARGS__)
static const mo_column summary[] = {
    COL(I64, outlier_features, NULL, "features that qualify as outlier features in the pooled analysis"),
    COL(I64, systematic_features, NULL, "of them SYSTEMATIC"),
    COL(I64, features_hit, NULL, "features with at least one outlier value"),
    COL(I64, sequence_rows, NULL, "rows of /sequence_features: qualified (sequence, feature) pairs"),
    COL(F64, mean_layer_percentage, NULL,
        "mean of layer_percentage (fraction 0..1) over the pooled features that qualify; NaN if none does"),
    COL(F64, median_layer_percentage, NULL,
        "median of layer_percentage (fraction 0..1) over the pooled features that qualify; NaN if none does"),
    COL(F64, mean_seq_percentage, NULL,
        "mean of seq_percentage (fraction 0..1) over the pooled features that qualify; NaN if none does"),
    COL(F64, median_seq_percentage, NULL,
        "median of seq_percentage (fraction 0..1) over the pooled features that qualify; NaN if none does"),
    COL(CLASSIFICATION, classification, NULL,
        "of the model: SYSTEMATIC if it has a SYSTEMATIC feature, else PROBABILISTIC if it has a PROBABILISTIC one, "
        "else NONE"),
    INTERVAL(mo_summary, outlier_features),
    INTERVAL(mo_summary, systematic_features),
    INTERVAL(mo_summary, mean_layer_percentage),
    INTERVAL(mo_summary, median_layer_percentage),
    INTERVAL(mo_summary, mean_seq_percentage),
    INTERVAL(mo_summary, median_seq_percentage),
};
#undef COL
const mo_table mo_table_summary = TABLE(mo_summary, summary, "The model in scalars; see the datasets' descriptions");

static const char *enum_name(mo_column_kind kind, int32_t value) {
  if (kind == MO_COLUMN_SITE) return mo_site_name((mo_site)value);
  if (kind == MO_COLUMN_VARIANT) return mo_variant_name((mo_variant_kind)value);
  return mo_classification_name((mo_classification)value);
}

void mo_part_path(char path[MO_PART_BYTES], double threshold) {
  for (int digits = 1; digits <= 17; digits++) {
    snprintf(path, MO_PART_BYTES, "%.*g", digits, threshold);
    if (strtod(path, NULL) == threshold) break;
  }
  char number[MO_PART_BYTES / 2];
  snprintf(number, sizeof number, "%.*s", (int)sizeof number - 1, path);
  snprintf(path, MO_PART_BYTES, "/thresholds/%s", number);
}

static hid_t enum_type(mo_column_kind kind, bool in_memory) {
  hid_t type = H5Tenum_create(in_memory ? H5T_NATIVE_INT32 : H5T_STD_I32LE);
  int n = kind == MO_COLUMN_SITE      ? MO_SITE_LN_MLP + 1
          : kind == MO_COLUMN_VARIANT ? MO_VARIANT_RANDOM + 1
                                      : MO_SYSTEMATIC + 1;
  /* H5Tenum_insert takes the member's value in the type's own byte order. */
  for (int32_t value = 0; type >= 0 && value < n; value++) {
    int32_t stored = value;
    const char *name = enum_name(kind, value);
    if ((!in_memory && H5Tconvert(H5T_NATIVE_INT32, H5T_STD_I32LE, 1, &stored, NULL, H5P_DEFAULT) < 0) ||
        H5Tenum_insert(type, name, &stored) < 0)
      return H5I_INVALID_HID;
  }
  return type;
}

mo_status mo_column_type(const mo_h5_file *file, const mo_column *column, bool in_memory, hid_t *type) {
  switch (column->kind) {
    case MO_COLUMN_I32:
      *type = H5Tcopy(in_memory ? H5T_NATIVE_INT32 : H5T_STD_I32LE);
      break;
    case MO_COLUMN_I64:
      *type = H5Tcopy(in_memory ? H5T_NATIVE_INT64 : H5T_STD_I64LE);
      break;
    case MO_COLUMN_F32:
      *type = H5Tcopy(in_memory ? H5T_NATIVE_FLOAT : H5T_IEEE_F32LE);
      break;
    case MO_COLUMN_F64:
      *type = H5Tcopy(in_memory ? H5T_NATIVE_DOUBLE : H5T_IEEE_F64LE);
      break;
    case MO_COLUMN_SITE:
    case MO_COLUMN_CLASSIFICATION:
    case MO_COLUMN_VARIANT:
      *type = enum_type(column->kind, in_memory);
      break;
  }
  return *type >= 0 ? MO_OK : mo_h5_fail(file, "create the type of column", column->name);
}

mo_status mo_table_type(const mo_h5_file *file, const mo_table *table, bool in_memory, hid_t *type) {
  mo_status status = MO_OK;
  *type = H5Tcreate(H5T_COMPOUND, table->row_bytes);
  if (*type < 0) return mo_h5_fail(file, "create", "a row type");
  size_t packed = 0;
  for (int c = 0; c < table->n_columns && status == MO_OK; c++) {
    const mo_column *column = &table->columns[c];
    hid_t member;
    MO_TRY_TO(done, mo_column_type(file, column, in_memory, &member));
    if (H5Tinsert(*type, column->name, in_memory ? column->offset : packed, member) < 0)
      status = mo_h5_fail(file, "create the type of column", column->name);
    packed += H5Tget_size(member);
    status = mo_h5_close(file, status, member);
  }
  if (status == MO_OK && !in_memory && H5Tset_size(*type, packed) < 0)
    status = mo_h5_fail(file, "create", "a packed row type");
done:
  if (status != MO_OK) {
    status = mo_h5_close(file, status, *type);
    *type = H5I_INVALID_HID;
  }
  return status;
}

/* A line per column: "name (units): meaning". */
static char *column_lines(const mo_table *table, bool units_only) {
  char *text = NULL;
  size_t size = 0;
  FILE *stream = open_memstream(&text, &size);
  if (!stream) return NULL;
  const char *gap = "";
  for (int c = 0; c < table->n_columns; c++) {
    const mo_column *column = &table->columns[c];
    if (units_only && !column->units) continue;
    if (units_only)
      fprintf(stream, "%s%s: %s", gap, column->name, column->units);
    else if (column->units)
      fprintf(stream, "%s%s (%s): %s", gap, column->name, column->units, column->meaning);
    else
      fprintf(stream, "%s%s: %s", gap, column->name, column->meaning);
    gap = units_only ? "; " : "\n";
  }
  if (fclose(stream) == 0) return text;
  free(text);
  return NULL;
}

mo_status mo_table_create(const mo_h5_file *file, const mo_table *table, const char *name, int64_t n_rows) {
  mo_status status = MO_OK;
  hid_t type;
  hsize_t rows = (hsize_t)n_rows;
  char *lines = column_lines(table, false), *units = column_lines(table, true);
  if (!lines || !units) {
    status = MO_FAIL(MO_FAILED, "out of memory (columns of %s): use a larger machine", name);
    goto done;
  }
  const mo_h5_text texts[] = {
      {"description", table->description}, {"units", units[0] ? units : NULL}, {"columns", lines}};
  MO_TRY_TO(done, mo_table_type(file, table, false, &type));
  status = mo_h5_dataset(file, name, type, 1, &rows, texts, 3);
  status = mo_h5_close(file, status, type);
done:
  free(lines);
  free(units);
  return status;
}

mo_status mo_table_write(const mo_h5_file *file, const mo_table *table, const char *name, int64_t first, int64_t n_rows,
                         const void *rows) {
  hid_t type;
  hsize_t start = (hsize_t)first, count = (hsize_t)n_rows;
  if (n_rows == 0) return MO_OK;
  MO_TRY(mo_table_type(file, table, true, &type));
  mo_status status = mo_h5_write(file, name, type, 1, &start, &count, rows);
  return mo_h5_close(file, status, type);
}
