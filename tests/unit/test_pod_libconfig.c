/* The bundled subset of libconfig against libconfig itself: over the configs of the repository, and over texts made of
 * pieces of the language, whole and broken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>
#include <dirent.h>

/* Every name of the bundled one gets another. */
#define config_t own_config_t
#define config_setting own_config_setting
#define config_setting_t own_config_setting_t
#define config_init own_config_init
#define config_destroy own_config_destroy
#define config_set_include_dir own_config_set_include_dir
#define config_read_string own_config_read_string
#define config_error_text own_config_error_text
#define config_error_file own_config_error_file
#define config_error_line own_config_error_line
#define config_root_setting own_config_root_setting
#define config_setting_name own_config_setting_name
#define config_setting_type own_config_setting_type
#define config_setting_length own_config_setting_length
#define config_setting_get_elem own_config_setting_get_elem
#define config_setting_get_int own_config_setting_get_int
#define config_setting_get_int64 own_config_setting_get_int64
#define config_setting_get_float own_config_setting_get_float
#define config_setting_get_bool own_config_setting_get_bool
#define config_setting_get_string own_config_setting_get_string
#define config_setting_get_format own_config_setting_get_format
#define config_setting_source_file own_config_setting_source_file
#define config_setting_source_line own_config_setting_source_line
#include "pod/libconfig/libconfig.c"
#include "pod/libconfig/scanner.c"

static bool is_same_version(void);

/* The file of a setting; by its name alone where libconfig puts the folder of includes before it. */
static const char *shown(const char *file) {
  const char *slash = file && !is_same_version() ? strrchr(file, '/') : NULL;
  return slash ? slash + 1 : file ? file : "";
}

/* Prints a tree, or why there is none: the same lines for both. */
#define DUMP_FUNCTIONS(prefix)                                                                                         \
  static void prefix##_dump(FILE *out, const config_setting_t *setting, int depth) {                                   \
    int type = config_setting_type(setting), n = config_setting_length(setting);                                       \
    const char *name = config_setting_name(setting), *file = shown(config_setting_source_file(setting));               \
    fprintf(out, "%*s%s type %d", depth, "", name ? name : "-", type);                                                 \
    if (name) fprintf(out, " at %s:%d", file, (int)config_setting_source_line(setting));                               \
    if (type == 2) fprintf(out, " %d", config_setting_get_int(setting));                                               \
    if (type == 2 || type == 3)                                                                                        \
      fprintf(out, " %lld format %d", (long long)config_setting_get_int64(setting),                                    \
              config_setting_get_format(setting));                                                                     \
    if (type == 4) fprintf(out, " %a", config_setting_get_float(setting));                                             \
    if (type == 5) fprintf(out, " <%s>", config_setting_get_string(setting));                                          \
    if (type == 6) fprintf(out, " %d", config_setting_get_bool(setting));                                              \
    fprintf(out, " length %d\n", n);                                                                                   \
    for (int i = 0; i < n; i++) prefix##_dump(out, config_setting_get_elem(setting, (unsigned)i), depth + 1);          \
  }                                                                                                                    \
  static char *prefix##_read(const char *text, const char *folder) {                                                   \
    char *dump = NULL;                                                                                                 \
    size_t size = 0;                                                                                                   \
    config_t tree;                                                                                                     \
    config_init(&tree);                                                                                                \
    if (folder) config_set_include_dir(&tree, folder);                                                                 \
    FILE *out = open_memstream(&dump, &size);                                                                          \
    assert_non_null(out);                                                                                              \
    if (config_read_string(&tree, text) == 1)                                                                          \
      prefix##_dump(out, config_root_setting(&tree), 0);                                                               \
    else                                                                                                               \
      fprintf(out, "%s (%s:%d)\n", config_error_text(&tree), config_error_file(&tree) ? config_error_file(&tree) : "", \
              config_error_line(&tree));                                                                               \
    fclose(out);                                                                                                       \
    config_destroy(&tree);                                                                                             \
    return dump;                                                                                                       \
  }

DUMP_FUNCTIONS(own)

#undef config_t
#undef config_setting
#undef config_setting_t
#undef config_init
#undef config_destroy
#undef config_set_include_dir
#undef config_read_string
#undef config_error_text
#undef config_error_file
#undef config_error_line
#undef config_root_setting
#undef config_setting_name
#undef config_setting_type
#undef config_setting_length
#undef config_setting_get_elem
#undef config_setting_get_int
#undef config_setting_get_int64
#undef config_setting_get_float
#undef config_setting_get_bool
#undef config_setting_get_string
#undef config_setting_get_format
#undef config_setting_source_file
#undef config_setting_source_line
#include <libconfig.h>

DUMP_FUNCTIONS(real)

/* Versions after 1.5 take more (commas at the end of lists, other escapes) and count lines otherwise: there only what
 * is written in this repository is compared. */
static bool is_same_version(void) { return LIBCONFIG_VER_MAJOR == 1 && LIBCONFIG_VER_MINOR == 5; }

static void compare(const char *text, const char *folder) {
  char *own = own_read(text, folder), *real = real_read(text, folder);
  if (strcmp(own, real) != 0) fail_msg("text:\n%s\nlibconfig:\n%s\nbundled:\n%s", text, real, own);
  free(own);
  free(real);
}

/* --- files --- */

static char *load(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  char *text = calloc(1 << 16, 1);
  assert_non_null(text);
  size_t n = fread(text, 1, (1 << 16) - 1, file);
  text[n] = '\0';
  fclose(file);
  if (strlen(text) == n) return text;
  free(text); /* libconfig takes texts that end at a zero byte */
  return NULL;
}

/* Files of a folder; every one of them read as it is and cut short at several places. */
static int compare_folder(const char *name) {
  char folder[4096], path[8192];
  snprintf(folder, sizeof folder, "%s/%s", getenv("SOURCE_DIR"), name);
  DIR *list = opendir(folder);
  int n = 0;
  assert_non_null(list);
  for (struct dirent *entry; (entry = readdir(list));) {
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
    if (stat(path, &info) != 0 || !S_ISREG(info.st_mode)) continue;
    char *text = load(path);
    if (!text) continue;
    compare(text, folder);
    size_t length = strlen(text);
    for (int cut = 1; is_same_version() && cut < 8; cut++) {
      text[length - length * (size_t)cut / 8] = '\0';
      compare(text, folder);
    }
    free(text);
    n++;
  }
  closedir(list);
  return n;
}

static void test_configs(void **state) {
  (void)state;
  if (!getenv("SOURCE_DIR")) skip();
  assert_true(compare_folder("configs") > 10);
}

static void test_fuzz_corpus(void **state) {
  (void)state;
  if (!getenv("SOURCE_DIR") || !is_same_version()) skip();
  assert_true(compare_folder("tests/fuzz/corpus/config") > 0);
}

/* --- the language, case by case --- */

static const char *const cases[] = {
    "",
    "  \n",
    "a = 1;",
    "a = 1",
    "a = 1,",
    "a : -5; b = +7",
    "a=1 b=2",
    "a=1;;",
    ";",
    "a",
    "a =",
    "= 1",
    "a b = 1;",
    "a-b_c* = 1; *x = 2;",
    "1a = 2;",
    "_a = 1;",
    "-a = 1;",
    "a = b;",
    "true = 1;",
    "truex = TRUE; y = faLSe;",
    "a = 0x1F; b = 0X1fL; c = 0xffLL; d = 12L; e = 12LL; f = 0x;",
    "a = 0xg;",
    "a = -0x1;",
    "a = 007;",
    "a = 1.; b = .5; c = -1.5e3; d = 1e5; e = 1E-2; f = +.5E+1;",
    "a = 1.5.2;",
    "a = 1e;",
    "a = e5;",
    "a = 12abc;",
    "a = 1e400; b = 1e-400;",
    "a = 5L L;",
    "a = - 5;",
    "a = --5;",
    "s = \"x\"; t = \"\"; u = \"a\" \"b\"\n\"c\";",
    "s = \"a\\n\\r\\t\\f\\\\\\\"b\";",
    "s = \"\\x41\\X42\\x4\\xg\\q\\'\";",
    "s = \"two\nlines\"; t = 1;",
    "s = \"open",
    "s = \"open\\",
    "s = \"a\" b;",
    "s = 'a';",
    "s = \"\303\244\"; \303\244 = 1;",
    "s = \"a\\x00b\" \"c\";",
    "g = { a = 1; b = { c = 2; }; }; h : { };",
    "g { a = 1; };",
    "g = { a = 1; ",
    "g = { a = 1; };};",
    "g = { 1 };",
    "a = [1, 2, 3]; b = []; c = [\"x\", \"y\" \"z\"]; d = [true, false]; e = [1.5, 2.5];",
    "a = [1, 2.0];",
    "a = [1, \"x\"];",
    "a = [1, 2L];",
    "a = [1 2];",
    "a = [[1]];",
    "a = [{}];",
    "a = [,1];",
    "a = (1, \"x\", 2.5, true, (), [1], { b = 1; c = (2); }); d = ();",
    "a = (1 2);",
    "a = (a = 1);",
    "a = (1; 2);",
    "a = 1; a = 2;",
    "g = { a = 1; }; g = { };",
    "g = { a = 1; a = 1; };",
    "a = 1; A = 2;",
    "# one\n// two\na = 1; # three\n/* four\n */ b = 2; /* five */ c = 3; // six",
    "a = 1; /* open",
    "a = /* in */ 2;",
    "/",
    "a = 1 / 2;",
    "/* a */ */ b = 1;",
    "# only",
    "a = 1;\\",
    "@",
    "a = @include \"x\";",
    "a = 1; @include \"none.cfg\"",
    "@include \"none.cfg\"\n",
    " \t@include  \"none.cfg\"",
    "@include\"none.cfg\"",
    "@include none.cfg",
    "# @include \"none.cfg\"",
    "/*\n@include \"none.cfg\"\n*/ a = 1;",
    "s = \"\n@include \\\"none.cfg\\\"\n\";",
    "@include \"open",
    "@include \"a\\q\"",
    "a\v= 1;",
    "a = 1;\r\nb = 2;\r\nc = ;\r\n",
    "a\f=\f1;",
    "a = 1;\n\n\nb = }",
    "a = 1;\n\n\n\n",
    "g = {\n  a = 1\n  b = 2\n",
};

static void test_cases(void **state) {
  (void)state;
  if (!is_same_version()) skip();
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) compare(cases[i], NULL);
}

/* --- includes --- */

static void write_file(const char *path, const char *text) {
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fputs(text, file);
  assert_int_equal(fclose(file), 0);
}

static void test_includes(void **state) {
  (void)state;
  if (!is_same_version()) skip();
  (void)mkdir("included", 0777);
  write_file("included/one.cfg", "one = 1;\n@include \"two.cfg\"\nthree = 3;\n");
  write_file("included/two.cfg", "two = \"2\"");
  write_file("included/inside.cfg", "x = 1;\ny = ( 1, 2 )");
  write_file("included/bad.cfg", "ok = 1;\n\nbad = ;\n");
  write_file("included/again.cfg", "one = 1;");
  write_file("included/self.cfg", "@include \"self.cfg\"\n");
  write_file("included/empty.cfg", "");
  write_file("included/quote \".cfg", "q = 1;");
  static const char *const texts[] = {
      "@include \"one.cfg\"\nfour = 4;",
      "a = 0;\n\n@include \"one.cfg\"\n\nfour = ;",
      "g = {\n  @include \"inside.cfg\"\n};\nh = 1;",
      "g = {\n  @include \"inside.cfg\"\n  x = 2;\n};",
      "@include \"bad.cfg\"\n",
      "a = 1;\n@include \"one.cfg\"\n@include \"again.cfg\"\n",
      "@include \"self.cfg\"\n",
      "@include \"empty.cfg\"\na = 1;\n  @include \"empty.cfg\" b = 2;\nc = ;",
      "@include \"quote \\\".cfg\"\n",
      "a = (\n@include \"empty.cfg\"\n1, 2);",
  };
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) compare(texts[i], "included");
}

/* --- texts made of pieces --- */

static uint64_t random_state = 1;

static unsigned random_below(unsigned n) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (unsigned)(random_state >> 33) % n;
}

static void add(char *text, size_t size, const char *piece) {
  size_t n = strlen(text);
  snprintf(text + n, size - n, "%s", piece);
}

/* A value, of groups and lists down to some depth. */
static void add_value(char *text, size_t size, int depth);

static void add_setting(char *text, size_t size, int depth) {
  static const char *const names[] = {"a", "b", "name-2", "x_y", "*", "deep*", "Key", "k"};
  static const char *const ends[] = {";", ";", ";\n", ",", " ", "\n", "; # no\n", "; /* no */ "};
  add(text, size, names[random_below(8)]);
  add(text, size, random_below(2) ? " = " : ":");
  add_value(text, size, depth);
  add(text, size, ends[random_below(8)]);
}

static void add_value(char *text, size_t size, int depth) {
  static const char *const values[] = {"1",      "-20", "0x1f",           "12L",       "0xABL",    "1.5",
                                       "-.5e-3", "1e9", "true",           "False",     "\"text\"", "\"\"",
                                       "7",      "3.",  "\"a\" \"b\\n\"", "2147483647"};
  unsigned kind = depth > 0 ? random_below(8) : 3 + random_below(5);
  unsigned n = random_below(4);
  if (kind > 2) {
    add(text, size, values[random_below(16)]);
    return;
  }
  add(text, size, kind == 0 ? "{ " : kind == 1 ? "( " : "[ ");
  for (unsigned i = 0; i < n; i++) {
    if (kind == 0) {
      add_setting(text, size, depth - 1);
      continue;
    }
    add(text, size, i ? ", " : "");
    add_value(text, size, kind == 1 ? depth - 1 : 0);
  }
  add(text, size, kind == 0 ? " }" : kind == 1 ? " )" : " ]");
}

static void test_made_texts(void **state) {
  (void)state;
  if (!is_same_version()) skip();
  char text[1 << 14];
  for (int i = 0; i < 400; i++) {
    text[0] = '\0';
    for (unsigned n = 1 + random_below(5); n > 0; n--) add_setting(text, sizeof text, 3);
    compare(text, NULL);
    /* And broken: a character replaced, or one left out. Numbers are not, as what is beyond 32 bits differs between
     * versions of libconfig. */
    static const char characters[] = "={}[]();:,\"\\/*#@ \nxL.-";
    size_t length = strlen(text);
    for (int k = 0; k < 3; k++) {
      text[random_below((unsigned)length)] = characters[random_below(sizeof characters - 1)];
      compare(text, NULL);
    }
    size_t at = random_below((unsigned)length);
    memmove(text + at, text + at + 1, length - at);
    compare(text, NULL);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_configs),  cmocka_unit_test(test_fuzz_corpus), cmocka_unit_test(test_cases),
      cmocka_unit_test(test_includes), cmocka_unit_test(test_made_texts),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
