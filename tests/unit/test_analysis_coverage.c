/* How often the 95 % intervals hold the truth, for models whose truth is known: 16 sequences at a time from populations
 * made up so that many features are near the criteria. The truth of a statistic is its mean over many sets of 16. */
#include "test_analysis_made.h"

enum { LAYERS = 12, SITES = 2 * LAYERS, SEQUENCES = 16, TOKENS = 256, FEATURES = 60 };
enum { POPULATIONS = 12, TRUTH_SETS = 700, SETS = 60, DRAWS = 800 };

/* Sequences differ: a feature's sites and positions of one sequence go up and down together. */
#define TOGETHER 0.3 /* correlation of the sites of a sequence */

typedef struct {
  double cut[FEATURES][SITES]; /* the site is hit where a normal number is below */
  double positions[FEATURES];  /* typical fraction of positions */
  double loss;                 /* spread of the sequences' mean losses */
} population;

/* Normal quantile by bisection. */
static double normal_cut(double p) {
  double low = -8, high = 8;
  for (int i = 0; i < 60; i++) {
    double middle = (low + high) / 2;
    if (0.5 * erfc(-middle / sqrt(2)) < p)
      low = middle;
    else
      high = middle;
  }
  return low;
}

static population population_new(uint64_t *random) {
  population p = {.loss = 0.1 + 0.3 * unit(random)};
  for (int h = 0; h < FEATURES; h++) {
    double reach = unit(random); /* share of the sites that can be hit */
    p.positions[h] = pow(10, -1.7 + 1.2 * unit(random));
    for (int site = 0; site < SITES; site++) {
      double chance = 0, u = unit(random);
      if (h % 6 == 0)
        chance = u < 0.9 ? 0.99 : 0.3;
      else if (u < reach)
        chance = unit(random) < 0.5 ? 0.97 : pow(10, -2 + 1.9 * unit(random));
      p.cut[h][site] = chance > 0 ? normal_cut(chance) : -99;
    }
  }
  return p;
}

/* One set of sequences; nll [SEQUENCES, TOKENS - 1], the same loss for all tokens of a sequence. */
static void sample(made *m, float *nll, const population *p, uint64_t *random) {
  memset(m->hit, 0, SEQUENCES * FEATURES * SITES * sizeof *m->hit);
  for (int n = 0; n < SEQUENCES; n++) {
    double skewed = exp(normal(random) / 2);
    for (int s = 0; s < TOKENS - 1; s++) nll[n * (TOKENS - 1) + s] = (float)(3 + p->loss * skewed);
    for (int h = 0; h < FEATURES; h++) {
      double own = normal(random);
      bool any = false;
      for (int site = 0; site < SITES; site++) {
        double z = sqrt(TOGETHER) * own + sqrt(1 - TOGETHER) * normal(random);
        any |= *hit_at(m, n, h, site) = z < p->cut[h][site];
      }
      double share = p->positions[h] * exp(0.5 * (0.86 * normal(random) - 0.5 * own) - 0.125);
      int positions = (int)(share * TOKENS + unit(random));
      m->positions[n * FEATURES + h] = !any ? 0 : positions < 1 ? 1 : positions > TOKENS ? TOKENS : positions;
    }
  }
}

/* --- statistics of an analysis --- */

enum { OUTLIERS, SYSTEMATIC, MEAN_LAYER, MEDIAN_LAYER, MEAN_SEQ, MEDIAN_SEQ, PERPLEXITY, OF_MODEL };
enum { LAYER = OF_MODEL, BLOCK, POSITION, KINDS };

static const char *const NAMES[] = {"outlier_features",    "systematic_features",   "mean_layer_percentage",
                                    "median_layer_percentage", "mean_seq_percentage", "median_seq_percentage",
                                    "perplexity",          "layer_percentage",      "block_percentage",
                                    "seq_percentage"};

typedef struct {
  double value, low, high;
} triple;

#define TRIPLE(where, name) \
  { (double)(where)->name, (where)->name##_low, (where)->name##_high }

static void of_model(const mo_analysis *a, triple t[OF_MODEL]) {
  const mo_summary *s = &a->summary;
  const triple found[OF_MODEL] = {TRIPLE(s, outlier_features),       TRIPLE(s, systematic_features),
                                  TRIPLE(s, mean_layer_percentage),  TRIPLE(s, median_layer_percentage),
                                  TRIPLE(s, mean_seq_percentage),    TRIPLE(s, median_seq_percentage),
                                  TRIPLE(a, perplexity)};
  memcpy(t, found, sizeof found);
}

static void of_feature(const mo_feature *row, triple t[3]) {
  const triple found[3] = {TRIPLE(row, layer_percentage), TRIPLE(row, block_percentage), TRIPLE(row, seq_percentage)};
  memcpy(t, found, sizeof found);
}

typedef struct {
  double model[OF_MODEL];
  double feature[FEATURES][3], deviation[FEATURES][3];
} truth;

static truth truth_of(made *m, float *nll, const population *p, uint64_t *random) {
  truth t = {0};
  double squares[FEATURES][3] = {0}, log_perplexity = 0;
  m->shape.bootstrap.draws = 0;
  for (int k = 0; k < TRUTH_SETS; k++) {
    triple found[OF_MODEL];
    sample(m, nll, p, random);
    mo_analysis a = analyse_made(m, nll);
    of_model(&a, found);
    for (int i = 0; i < OF_MODEL; i++) t.model[i] += found[i].value / TRUTH_SETS;
    log_perplexity += log(a.perplexity) / TRUTH_SETS;
    for (int64_t f = 0; f < a.n_features; f++) {
      of_feature(&a.features[f], found);
      for (int i = 0; i < 3; i++) {
        t.feature[a.features[f].feature][i] += found[i].value / TRUTH_SETS;
        squares[a.features[f].feature][i] += found[i].value * found[i].value / TRUTH_SETS;
      }
    }
    mo_analysis_free(&a);
  }
  t.model[PERPLEXITY] = exp(log_perplexity);
  for (int h = 0; h < FEATURES; h++)
    for (int i = 0; i < 3; i++) t.deviation[h][i] = sqrt(squares[h][i] - t.feature[h][i] * t.feature[h][i]);
  m->shape.bootstrap.draws = DRAWS;
  return t;
}

typedef struct {
  int64_t held[KINDS], all[KINDS];
} tally;

static void take(tally *tally_, int kind, triple found, double value) {
  tally_->all[kind]++;
  tally_->held[kind] += found.low <= value && value <= found.high;
}

/* A number of sites or layers that hardly ever changes is no random number: those that differ by half a site are
 * taken. */
static void compare(tally *counted, const mo_analysis *a, const truth *t) {
  const double least[3] = {0.5 / SITES, 0.5 / LAYERS, 0};
  triple found[OF_MODEL];
  of_model(a, found);
  for (int i = 0; i < OF_MODEL; i++) take(counted, i, found[i], t->model[i]);
  for (int64_t f = 0; f < a->n_features; f++) {
    int32_t h = a->features[f].feature;
    of_feature(&a->features[f], found);
    for (int i = 0; i < 3; i++)
      if (t->deviation[h][i] > least[i]) take(counted, LAYER + i, found[i], t->feature[h][i]);
  }
}

static void nominal_95_percent(void **state) {
  (void)state;
  made m = made_new(LAYERS, SEQUENCES, TOKENS, FEATURES, DRAWS);
  float *nll = calloc(SEQUENCES * (TOKENS - 1), sizeof *nll);
  tally counted = {0};
  uint64_t random = 20221115;
  bool good = true;
  assert_non_null(nll);
  for (int k = 0; k < POPULATIONS; k++) {
    population p = population_new(&random);
    truth t = truth_of(&m, nll, &p, &random);
    for (int i = 0; i < SETS; i++) {
      m.shape.bootstrap.seed = k * SETS + i;
      sample(&m, nll, &p, &random);
      mo_analysis a = analyse_made(&m, nll);
      compare(&counted, &a, &t);
      mo_analysis_free(&a);
    }
  }
  for (int i = 0; i < KINDS; i++) {
    double share = (double)counted.held[i] / (double)counted.all[i];
    print_message("%-24s %5.1f %% of %lld\n", NAMES[i], 100 * share, (long long)counted.all[i]);
    if (!(share >= 0.92 && share <= 0.98)) good = false;
  }
  assert_true(good);
  free(nll);
  made_free(&m);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(nominal_95_percent)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
