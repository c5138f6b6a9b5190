/* Driver for the fuzz targets where no libFuzzer is found: runs every input of the given folders, then seeded mutations
 * of them, and takes libFuzzer's options -max_total_time=SECONDS, -seed=N and -timeout=SECONDS (other options are
 * ignored). The mutations depend on the seed and the inputs alone, so that a failure can be repeated; the input that was
 * running when the program died is left in crash-input. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <sanitizer/common_interface_defs.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A target that aborts is reported like a memory error, with its stack. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "handle_abort=1"; }

enum { INPUT_LIMIT = 1 << 20, GROWTH_LIMIT = 4096, MUTATIONS = 200000 };

typedef struct {
  char *path;
  uint8_t *data;
  size_t size;
} input;

static struct {
  input *inputs;
  size_t n_inputs;
  unsigned timeout; /* seconds for one input */
  const uint8_t *running;
  size_t running_size;
  uint64_t random;
} state = {.timeout = 10, .random = 1};

static void fail(const char *what, const char *where) {
  fprintf(stderr, "standalone: %s (%s): %s\n", what, where, strerror(errno));
  exit(1);
}

/* Only async-signal-safe calls: it also runs in the alarm handler. */
static void keep_running_input(void) {
  int file = open("crash-input", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (file < 0) return;
  ssize_t written = write(file, state.running, state.running_size);
  static const char text[] = "standalone: the input is in crash-input\n";
  if (written >= 0) written = write(STDERR_FILENO, text, sizeof text - 1);
  close(file);
}

static void on_alarm(int signal_number) {
  (void)signal_number;
  static const char text[] = "standalone: one input took too long\n";
  ssize_t written = write(STDERR_FILENO, text, sizeof text - 1);
  (void)written;
  keep_running_input();
  _exit(70);
}

/* The target gets a heap block of exactly the input's size, so that the sanitizer sees reads beyond its end. */
static void run_one(const uint8_t *data, size_t size) {
  uint8_t *copy = malloc(size ? size : 1);
  if (!copy) fail("out of memory", "input");
  memcpy(copy, data, size);
  state.running = copy;
  state.running_size = size;
  alarm(state.timeout);
  (void)LLVMFuzzerTestOneInput(copy, size);
  alarm(0);
  state.running = NULL;
  state.running_size = 0;
  free(copy);
}

static void add_input(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) fail("cannot open", path);
  uint8_t *data = malloc(INPUT_LIMIT);
  input *inputs = realloc(state.inputs, (state.n_inputs + 1) * sizeof *inputs);
  char *name = strdup(path);
  if (!data || !inputs || !name) fail("out of memory", path);
  size_t size = fread(data, 1, INPUT_LIMIT, file);
  if (ferror(file)) fail("cannot read", path);
  fclose(file);
  state.inputs = inputs;
  state.inputs[state.n_inputs++] = (input){name, data, size};
}

static int not_hidden(const struct dirent *entry) { return entry->d_name[0] != '.'; }

/* Sorted, because the mutations depend on the order. */
static void add_folder(const char *folder) {
  struct dirent **entries;
  int n = scandir(folder, &entries, not_hidden, alphasort);
  if (n < 0) fail("cannot list", folder);
  for (int i = 0; i < n; i++) {
    char *path;
    struct stat status;
    if (asprintf(&path, "%s/%s", folder, entries[i]->d_name) < 0) fail("out of memory", folder);
    if (stat(path, &status) != 0) fail("cannot open", path);
    if (S_ISREG(status.st_mode)) add_input(path);
    free(path);
    free(entries[i]);
  }
  free(entries);
}

/* xorshift64*: Vigna 2016. */
static uint64_t next_random(void) {
  state.random ^= state.random >> 12;
  state.random ^= state.random << 25;
  state.random ^= state.random >> 27;
  return state.random * UINT64_C(2685821657736338717);
}

static size_t below(size_t limit) { return limit ? (size_t)(next_random() % limit) : 0; }

/* Replace `removed` bytes at `at` by `added` bytes of `source`; the buffer has room for `capacity` bytes. */
static size_t replace_range(uint8_t *data, size_t size, size_t capacity, size_t at, size_t removed,
                            const uint8_t *source, size_t added) {
  if (size - removed + added > capacity) return size;
  memmove(data + at + added, data + at + removed, size - at - removed);
  memcpy(data + at, source, added);
  return size - removed + added;
}

static size_t mutate_once(uint8_t *data, size_t size, size_t capacity) {
  static const char *const words[] = {"0",
                                      "-1",
                                      "1e999",
                                      "18446744073709551616",
                                      "9223372036854775807",
                                      "null",
                                      "true",
                                      "\"\"",
                                      "[]",
                                      "{}",
                                      "{",
                                      "]",
                                      ",",
                                      ":",
                                      "\"",
                                      "\\u0000"};
  static const uint64_t numbers[] = {0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fffffff, 0xffffffff, INT64_MAX, UINT64_MAX};
  size_t at = below(size + 1);
  switch (below(7)) {
    case 0: /* flip a bit */
      if (at < size) data[at] ^= (uint8_t)(1u << below(8));
      return size;
    case 1: /* set a byte */
      if (at < size) data[at] = (uint8_t)next_random();
      return size;
    case 2: /* remove a range */
      return replace_range(data, size, capacity, at, below(size - at + 1), data, 0);
    case 3: /* cut the end off */
      return at;
    case 4: { /* a word in place of a range */
      const char *word = words[below(sizeof words / sizeof *words)];
      size_t longest = size - at < 8 ? size - at : 8;
      return replace_range(data, size, capacity, at, below(longest + 1), (const uint8_t *)word, strlen(word));
    }
    case 5: { /* a little-endian number over the bytes there */
      uint64_t number = numbers[below(sizeof numbers / sizeof *numbers)];
      size_t width = (size_t)1 << below(4);
      for (size_t i = 0; i < width && at + i < size; i++) data[at + i] = (uint8_t)(number >> (8 * i));
      return size;
    }
    default: { /* a piece of another input */
      const input *other = &state.inputs[below(state.n_inputs)];
      size_t from = below(other->size + 1);
      size_t length = below(other->size - from + 1);
      return replace_range(data, size, capacity, at, 0, other->data + from, length);
    }
  }
}

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Returns how many were run: MUTATIONS, or fewer if the time is up. */
static int run_mutations(double end) {
  size_t capacity = INPUT_LIMIT + GROWTH_LIMIT;
  uint8_t *data = malloc(capacity);
  if (!data) fail("out of memory", "mutations");
  int n = 0;
  for (; n < MUTATIONS && seconds_now() < end; n++) {
    const input *start = &state.inputs[below(state.n_inputs)];
    size_t size = start->size;
    memcpy(data, start->data, size);
    for (size_t i = 1 + below(4); i > 0; i--) size = mutate_once(data, size, capacity);
    run_one(data, size);
  }
  free(data);
  return n;
}

int main(int argc, char **argv) {
  double seconds = 15;
  for (int i = 1; i < argc; i++) {
    if (sscanf(argv[i], "-max_total_time=%lf", &seconds) == 1) continue;
    if (sscanf(argv[i], "-seed=%" SCNu64, &state.random) == 1) continue;
    if (sscanf(argv[i], "-timeout=%u", &state.timeout) == 1) continue;
    if (argv[i][0] != '-') add_folder(argv[i]);
  }
  if (state.n_inputs == 0) {
    fprintf(stderr, "standalone: no inputs: give a folder that has some\n");
    return 1;
  }
  state.random = state.random * UINT64_C(0x9e3779b97f4a7c15) | 1; /* small seeds differ in all bits; 0 would stay 0 */
  signal(SIGALRM, on_alarm);
  __sanitizer_set_death_callback(keep_running_input);

  double end = seconds_now() + seconds;
  run_one((const uint8_t *)"", 0);
  for (size_t i = 0; i < state.n_inputs; i++) {
    printf("standalone: %s\n", state.inputs[i].path);
    fflush(stdout);
    run_one(state.inputs[i].data, state.inputs[i].size);
  }
  int n = run_mutations(end);
  printf("standalone: %zu inputs and %d mutations, no failure\n", state.n_inputs, n);
  for (size_t i = 0; i < state.n_inputs; i++) {
    free(state.inputs[i].path);
    free(state.inputs[i].data);
  }
  free(state.inputs);
  return 0;
}
