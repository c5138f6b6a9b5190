/* What the files of the JSON export share; no other room includes it.
 *
 * export.c makes the files and gives them their names, export_source.c reads the result file a sequence at a time, and
 * export_text.c writes the texts. Nothing here grows with the number of sequences or of rows: the tables are sorted by
 * sequence, and a sequence needs a few words per feature and a slice per site. */
#ifndef MOE_OUTLIERS_RESULTS_EXPORT_H
#define MOE_OUTLIERS_RESULTS_EXPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "moe_outliers/results.h"
#include "results/table_cursor.h"

#define MO_EXPORT_REMEDY "give a finished result file of moe-outliers run"
#define MO_EXPORT_EXAMPLES 5

/* A site of the current sequence. */
typedef struct {
  char name[40]; /* layer_LAYER_SITE */
  int64_t count; /* outlier values */
  float max_abs; /* largest magnitude of an outlier value, 0 if there is none */
  mo_table_cursor rows;
} mo_export_site;

/* A feature that qualifies in the current sequence. */
typedef struct {
  mo_sequence_feature row;
  int64_t occurrences;                /* outlier values found at the sites */
  float examples[MO_EXPORT_EXAMPLES]; /* stored outlier values */
  int n_examples;
} mo_export_feature;

/* A feature that qualifies in any sequence. */
typedef struct {
  int32_t feature, occurrences; /* occurrences: sequences in which it qualifies */
  float max_magnitude;
  int64_t first; /* place of its first row: what is equally large keeps this order */
} mo_export_top;

typedef struct {
  mo_results_file result;
  mo_h5_file file;
  char *config, *config_json;
  char *dataset; /* data.tokens of the config */
  int64_t skip;  /* data.skip */
  bool perplexity;

  mo_table_cursor rows; /* /sequence_features */
  mo_export_site *sites;
  int64_t n_sites;
  int64_t *sorted_sites; /* [n_sites] places in sites, sorted by name */

  /* The current sequence. */
  int64_t load;   /* counts mo_export_load: what it marks in `seen` */
  int64_t *seen;  /* [H] the load that met the feature last */
  int32_t *slots; /* [H] place in features, plus 1; 0: none */
  mo_export_feature *features;
  int64_t n_features, capacity;
  uint64_t *hits; /* [capacity, hit_words] bit s: the feature has outlier values at site s */
  int64_t hit_words, features_hit;
} mo_export_source;

/* --- export_source.c --- */
/* Open a finished result file. On failure there is nothing to close. */
MO_CHECKED mo_status mo_export_open(mo_export_source *source, const char *path);
/* Returns `status`, or the failure to close if that is MO_OK. */
MO_CHECKED mo_status mo_export_close(mo_export_source *source, mo_status status);

/* The features that qualify in any sequence, by magnitude falling. Caller frees *top. */
MO_CHECKED mo_status mo_export_read_top(mo_export_source *source, mo_export_top **top, int64_t *n);

/* Begin with sequence 0 (again); then load the sequences one after the other. */
void mo_export_rewind(mo_export_source *source);
MO_CHECKED mo_status mo_export_load(mo_export_source *source, int64_t sequence);
/* After the last sequence: MO_INVALID if rows are left. */
MO_CHECKED mo_status mo_export_check_end(mo_export_source *source);

static inline bool mo_export_hits(const mo_export_source *source, int64_t feature, int64_t site) {
  return source->hits[feature * source->hit_words + site / 64] >> (site % 64) & 1;
}

/* Mean of the negative log-likelihoods of a sequence. */
MO_CHECKED mo_status mo_export_mean_nll(mo_export_source *source, int64_t sequence, double *mean);

/* --- export_text.c --- */
/* A file being written. */
typedef struct {
  FILE *out;
  const char *path; /* its final name, for errors */
} mo_export_text;

/* The three texts. *characters: written up to the key "batch_results", which the reference's reader needs to see. */
MO_CHECKED mo_status mo_export_analysis(mo_export_source *source, const mo_export_text *text, int64_t *characters);
MO_CHECKED mo_status mo_export_perplexity(mo_export_source *source, const mo_export_text *text);
MO_CHECKED mo_status mo_export_config(const mo_export_source *source, const mo_export_text *text);

/* MO_FAILED if a write to the file failed since; errno is then that of the last call. */
MO_CHECKED mo_status mo_export_check(const mo_export_text *text);

#endif
