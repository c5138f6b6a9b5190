/* The study's key finding, said only as far as the given files show it. */
#include <stdlib.h>
#include <string.h>

#include "report.h"

#define SYSTEMATIC_ARCHITECTURE "gpt_oss"

static int32_t class_of(const mo_report_model *model) { return model->file.summary.classification; }

static bool is_gpt_oss(const mo_report_model *model) {
  return strcmp(model->file.architecture, SYSTEMATIC_ARCHITECTURE) == 0;
}

static bool same_criteria(const mo_report_model *a, const mo_report_model *b) {
  const mo_criteria *x = &a->file.criteria, *y = &b->file.criteria;
  return x->threshold == y->threshold && x->min_layer_fraction == y->min_layer_fraction &&
         x->min_position_fraction == y->min_position_fraction && x->systematic_fraction == y->systematic_fraction;
}

/* No architecture in two classes, and a systematic model smaller than a probabilistic one. */
static bool architecture_decides(const mo_report_model *models, int n) {
  bool against_size = false;
  for (int i = 0; i < n; i++)
    for (int k = 0; k < n; k++) {
      const mo_report_model *a = &models[i], *b = &models[k];
      if (class_of(a) != class_of(b) && strcmp(a->file.architecture, b->file.architecture) == 0) return false;
      if (class_of(a) == MO_SYSTEMATIC && class_of(b) == MO_PROBABILISTIC && a->file.parameters >= 0 &&
          a->file.parameters < b->file.parameters)
        against_size = true;
    }
  return against_size;
}

static void print_names(FILE *out, const mo_report_model *models, int n, int32_t classification) {
  bool first = true;
  for (int i = 0; i < n; i++) {
    if (class_of(&models[i]) != classification) continue;
    fputs(first ? "" : ", ", out);
    mo_print_clean(mo_report_name(&models[i]), out);
    first = false;
  }
}

static void print_classes(FILE *out, const mo_report_model *models, int n, const mo_report_finding *finding) {
  fputs("SYSTEMATIC: ", out);
  print_names(out, models, n, MO_SYSTEMATIC);
  fputs("; PROBABILISTIC: ", out);
  print_names(out, models, n, MO_PROBABILISTIC);
  if (finding->n_none > 0) {
    fputs("; without outlier features: ", out);
    print_names(out, models, n, MO_NONE);
  }
  fputs(". ", out);
}

static void print_finding(FILE *out, const mo_report_model *models, int n, const mo_report_finding *f) {
  if (!f->comparable) {
    fputs("Not comparable: the files have different criteria; give -s analysis.KEY=VALUE for all of them.", out);
  } else if (f->n_systematic == 0 || f->n_probabilistic == 0) {
    fprintf(out, "The files do not show whether architecture or size makes a model systematic: a %s model is missing.",
            f->n_systematic == 0 && f->n_probabilistic == 0 ? "systematic and a probabilistic"
            : f->n_systematic == 0                          ? "systematic"
                                                            : "probabilistic");
  } else {
    print_classes(out, models, n, f);
    fputs(f->only_gpt_oss ? "Only the gpt_oss models are systematic. "
                          : "That only gpt_oss models are systematic does not hold here. ",
          out);
    fputs(
        f->architecture_decides
            ? "Architecture matters more than size: no architecture has models of two classes, and a systematic model "
              "is smaller than a probabilistic one."
            : "That architecture matters more than size is not shown: it takes architectures that are each of one "
              "class, and a systematic model smaller than a probabilistic one.",
        out);
  }
}

mo_status mo_report_find(mo_report_finding *finding, const mo_report_model *models, int n) {
  *finding = (mo_report_finding){.comparable = true};
  bool only_gpt_oss = true;
  for (int i = 0; i < n; i++) {
    int32_t c = class_of(&models[i]);
    finding->n_systematic += c == MO_SYSTEMATIC;
    finding->n_probabilistic += c == MO_PROBABILISTIC;
    finding->n_none += c == MO_NONE;
    finding->comparable = finding->comparable && same_criteria(&models[0], &models[i]);
    only_gpt_oss = only_gpt_oss && (c == MO_SYSTEMATIC) == is_gpt_oss(&models[i]);
  }
  bool both = finding->comparable && finding->n_systematic > 0 && finding->n_probabilistic > 0;
  finding->only_gpt_oss = both && only_gpt_oss;
  finding->architecture_decides = both && architecture_decides(models, n);
  size_t size;
  FILE *out = open_memstream(&finding->text, &size);
  if (out) print_finding(out, models, n, finding);
  if (out && fclose(out) == 0) return MO_OK;
  mo_report_finding_free(finding);
  return MO_FAIL(MO_FAILED, "out of memory (report): free some memory");
}

void mo_report_finding_free(mo_report_finding *finding) {
  free(finding->text);
  finding->text = NULL;
}
