/* Reports for programs: JSON, {"models": [{..., "features": [...]}], "finding": {...}}. */
#include <jansson.h>
#include <math.h>

#include "report.h"
#include "report_ablation.h"
#include "report_growth.h"

/* Setting a member fails if memory ran out for the object or the value; *ok then stays false to the end. */
static void put(json_t *object, const char *name, json_t *value, bool *ok) {
  if (json_object_set_new(object, name, value) != 0) *ok = false;
}

static void put_integer(json_t *object, const char *name, int64_t value, bool *ok) {
  put(object, name, json_integer((json_int_t)value), ok);
}

/* JSON has no NaN and no infinity. */
static void put_real(json_t *object, const char *name, double value, bool *ok) {
  put(object, name, isfinite(value) ? json_real(value) : json_null(), ok);
}

/* Numbers that older files lack are negative. */
static void put_size(json_t *object, const char *name, int64_t value, bool *ok) {
  put(object, name, value >= 0 ? json_integer((json_int_t)value) : json_null(), ok);
}

static void put_interval(json_t *object, const char *name, double low, double high, bool *ok) {
  char member[64];
  snprintf(member, sizeof member, "%s_low", name);
  put_real(object, member, low, ok);
  snprintf(member, sizeof member, "%s_high", name);
  put_real(object, member, high, ok);
}

/* Names that are not UTF-8 cannot be written. */
static void put_text(json_t *object, const char *name, const char *value, bool *ok) {
  json_t *text = json_string(value);
  put(object, name, text ? text : json_null(), ok);
}

static void put_class(json_t *object, int32_t classification, bool *ok) {
  put_text(object, "classification", mo_classification_name((mo_classification)classification), ok);
}

static json_t *feature_json(const mo_feature *f, bool *ok) {
  json_t *object = json_object();
  put_integer(object, "feature", f->feature, ok);
  put_class(object, f->classification, ok);
  put_real(object, "max_magnitude", f->max_magnitude, ok);
  put_real(object, "block_percentage", f->block_percentage, ok);
  put_real(object, "layer_percentage", f->layer_percentage, ok);
  put_real(object, "seq_percentage", f->seq_percentage, ok);
  put_integer(object, "total_occurrences", f->total_occurrences, ok);
  put_integer(object, "positive", f->positive, ok);
  put_integer(object, "negative", f->negative, ok);
  put_real(object, "q1", f->q1, ok);
  put_real(object, "median", f->median, ok);
  put_real(object, "q3", f->q3, ok);
  put_real(object, "share", f->share, ok);
  put_real(object, "first_token_share", f->first_token_share, ok);
  put_integer(object, "sequences_qualified", f->sequences_qualified, ok);
  put_interval(object, "block_percentage", f->block_percentage_low, f->block_percentage_high, ok);
  put_interval(object, "layer_percentage", f->layer_percentage_low, f->layer_percentage_high, ok);
  put_interval(object, "seq_percentage", f->seq_percentage_low, f->seq_percentage_high, ok);
  put_real(object, "qualifies_share", f->qualifies_share, ok);
  put_real(object, "systematic_share", f->systematic_share, ok);
  return object;
}

static json_t *features_json(const mo_report_model *model, bool *ok) {
  json_t *features = json_array();
  for (int64_t i = 0; i < model->n_shown; i++)
    if (json_array_append_new(features, feature_json(model->shown[i], ok)) != 0) *ok = false;
  return features;
}

static json_t *summary_json(const mo_summary *summary, bool *ok) {
  json_t *object = json_object();
  put_class(object, summary->classification, ok);
  put_integer(object, "outlier_features", summary->outlier_features, ok);
  put_integer(object, "systematic_features", summary->systematic_features, ok);
  put_integer(object, "features_hit", summary->features_hit, ok);
  put_integer(object, "sequence_rows", summary->sequence_rows, ok);
  put_real(object, "mean_layer_percentage", summary->mean_layer_percentage, ok);
  put_real(object, "median_layer_percentage", summary->median_layer_percentage, ok);
  put_real(object, "mean_seq_percentage", summary->mean_seq_percentage, ok);
  put_real(object, "median_seq_percentage", summary->median_seq_percentage, ok);
  const mo_summary *s = summary;
  put_interval(object, "outlier_features", s->outlier_features_low, s->outlier_features_high, ok);
  put_interval(object, "systematic_features", s->systematic_features_low, s->systematic_features_high, ok);
  put_interval(object, "mean_layer_percentage", s->mean_layer_percentage_low, s->mean_layer_percentage_high, ok);
  put_interval(object, "median_layer_percentage", s->median_layer_percentage_low, s->median_layer_percentage_high, ok);
  put_interval(object, "mean_seq_percentage", s->mean_seq_percentage_low, s->mean_seq_percentage_high, ok);
  put_interval(object, "median_seq_percentage", s->median_seq_percentage_low, s->median_seq_percentage_high, ok);
  return object;
}

static json_t *criteria_json(const mo_criteria *criteria, bool *ok) {
  json_t *object = json_object();
  put_real(object, "threshold", criteria->threshold, ok);
  put_real(object, "min_layer_fraction", criteria->min_layer_fraction, ok);
  put_real(object, "min_position_fraction", criteria->min_position_fraction, ok);
  put_real(object, "systematic_fraction", criteria->systematic_fraction, ok);
  return object;
}

static json_t *bootstrap_json(const mo_bootstrap *bootstrap, bool *ok) {
  json_t *object = json_object();
  put_size(object, "draws", bootstrap->draws, ok);
  put_size(object, "seed", bootstrap->seed, ok);
  put_real(object, "level", MO_BOOTSTRAP_LEVEL, ok);
  return object;
}

static json_t *agreement_json(const mo_report_model *model, bool *ok) {
  json_t *object = json_object(), *features = json_array();
  put_real(object, "layer_agreement", model->layer_agreement, ok);
  for (int64_t i = 0; i < model->n_strongest; i++)
    if (json_array_append_new(features, json_integer(model->shown[i]->feature)) != 0) *ok = false;
  put(object, "features", features, ok);
  return object;
}

/* [[layer, expert]] of the experts that got no token; null if the file does not say. */
static json_t *dead_experts_json(const mo_results_file *file, bool *ok) {
  if (!file->experts) return json_null();
  json_t *list = json_array();
  for (int64_t i = 0; i < file->n_expert_rows; i++) {
    const mo_expert *row = &file->experts[i];
    if (row->shared || row->tokens > 0) continue;
    if (json_array_append_new(list, json_pack("[ii]", (int)row->layer, (int)row->expert)) != 0) *ok = false;
  }
  return list;
}

static json_t *finding_json(const mo_report_finding *finding, bool *ok) {
  json_t *object = json_object();
  put(object, "comparable", json_boolean(finding->comparable), ok);
  put_integer(object, "systematic_models", finding->n_systematic, ok);
  put_integer(object, "probabilistic_models", finding->n_probabilistic, ok);
  put_integer(object, "models_without_outlier_features", finding->n_none, ok);
  put(object, "only_gpt_oss_is_systematic", json_boolean(finding->only_gpt_oss), ok);
  put(object, "architecture_matters_more_than_size", json_boolean(finding->architecture_decides), ok);
  put_text(object, "text", finding->text, ok);
  return object;
}

static json_t *model_json(const mo_report_model *model, bool *ok) {
  const mo_results_file *file = &model->file;
  json_t *object = json_object();
  put_text(object, "file", file->path, ok);
  put_text(object, "model_name", file->model_name, ok);
  put_text(object, "architecture", file->architecture, ok);
  if (file->dataset[0])
    put_text(object, "dataset", file->dataset, ok);
  else
    put(object, "dataset", json_null(), ok);
  put_integer(object, "n_layers", file->n_layers, ok);
  put_integer(object, "hidden_size", file->hidden_size, ok);
  put_integer(object, "n_sequences", file->n_sequences, ok);
  put_integer(object, "sequence_length", file->sequence_length, ok);
  put_real(object, "threshold", file->threshold, ok);
  put_text(object, "precision", file->precision, ok);
  put_text(object, "device", file->device, ok);
  put_integer(object, "n_ranks", file->n_ranks, ok);
  put_text(object, "started", file->started, ok);
  put_text(object, "finished", file->finished, ok);
  put_real(object, "perplexity", file->perplexity, ok);
  put_interval(object, "perplexity", file->perplexity_low, file->perplexity_high, ok);
  put_size(object, "parameters", file->parameters, ok);
  put_size(object, "active_parameters", file->active_parameters, ok);
  put_size(object, "n_experts", file->n_experts, ok);
  put_size(object, "experts_per_token", file->experts_per_token, ok);
  put(object, "dead_experts", dead_experts_json(file, ok), ok);
  put(object, "criteria", criteria_json(&file->criteria, ok), ok);
  put(object, "bootstrap", bootstrap_json(&file->bootstrap, ok), ok);
  put(object, "agreement", agreement_json(model, ok), ok);
  put(object, "summary", summary_json(&file->summary, ok), ok);
  put(object, "features", features_json(model, ok), ok);
  if (file->ablation.n_rows > 0) put(object, "ablation", mo_report_ablation_json(model), ok);
  if (file->ablation.n_growth > 0) put(object, "growth", mo_report_growth_json(model), ok);
  return object;
}

mo_status mo_report_print_json(const mo_report_model *models, int n, const mo_report_finding *finding, FILE *out) {
  bool ok = true;
  json_t *root = json_object(), *array = json_array();
  for (int i = 0; i < n; i++)
    if (json_array_append_new(array, model_json(&models[i], &ok)) != 0) ok = false;
  put(root, "models", array, &ok);
  put(root, "finding", finding_json(finding, &ok), &ok);
  if (ok && json_dumpf(root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) != 0) ok = false;
  if (ok) fputc('\n', out);
  json_decref(root);
  if (ok) return MO_OK;
  return MO_FAIL(MO_FAILED, "JSON report cannot be written (standard output): free some memory or disk space");
}
