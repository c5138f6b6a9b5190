/* Which command is meant, and how the program ends. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <curl/curl.h>

#include "moe_outliers/build_info.h"
#include "pod/cli.h"

/* Letters of the options as in cli_options.c. */
static const pod_command COMMANDS[] = {
    {"gpus", pod_command_gpus, "cjx", POD_NO_NAMES, NULL, false, true},
    {"plan", pod_command_plan, "smxcj", POD_SOME_NAMES, "config file", true, true},
    {"run", pod_command_run, "smxbhclktnj", POD_ONE_NAME, "config file", true, true},
    {"sweep", pod_command_sweep, "smpxbhclktnj", POD_ANY_NAMES, "config file", true, true},
    {"list", pod_command_list, "j", POD_NO_NAMES, NULL, false, true},
    {"status", pod_command_status, "wij", POD_ANY_NAMES, "model", false, false},
    {"logs", pod_command_logs, "f", POD_ONE_NAME, "model", false, false},
    {"fetch", pod_command_fetch, "oj", POD_ONE_NAME, "model", false, false},
    {"terminate", pod_command_terminate, "aj", POD_SOME_NAMES, "id", false, true},
    {"cleanup", pod_command_cleanup, "ynj", POD_NO_NAMES, NULL, false, true},
};
enum { N_COMMANDS = sizeof COMMANDS / sizeof COMMANDS[0] };

static int exit_status(mo_status status) { return status == MO_OK ? 0 : status == MO_INVALID ? 2 : 1; }

static void print_error(void) {
  const char *debug = getenv("MOE_OUTLIERS_DEBUG");
  int line;
  const char *file = mo_error_origin(&line);
  const char *message = mo_error_message();
  if (debug && strcmp(debug, "1") == 0)
    fprintf(stderr, "moe-pod: error: %s [%s:%d]\n", message, file, line);
  else
    fprintf(stderr, "moe-pod: error: %s\n", message);
}

static int finish(mo_status status) {
  errno = 0;
  if (fflush(stdout) != 0 || ferror(stdout)) {
    mo_status lost = MO_FAIL(MO_FAILED, "result cannot be written: %s (standard output): give it a place with room",
                             errno ? strerror(errno) : "write failed");
    if (status == MO_OK) status = lost;
  }
  if (status != MO_OK) print_error();
  return exit_status(status);
}

/* The key is left out of the error too, wherever it comes from. */
static mo_status redact_error(const pod_settings *settings, mo_status status) {
  char message[2048];
  snprintf(message, sizeof message, "%s", mo_error_message());
  pod_redact(settings, message);
  if (strcmp(message, mo_error_message()) == 0) return status;
  mo_error_clear();
  return MO_FAIL(status, "%s", message);
}

/* The error stays as it is. */
static mo_status tell_what_runs(const pod_settings *settings, mo_status status) {
  char message[2048];
  snprintf(message, sizeof message, "%s", mo_error_message());
  pod_say_what_runs(settings);
  if (status != MO_OK && strcmp(message, mo_error_message()) == 0) return status;
  mo_error_clear();
  return status == MO_OK ? MO_OK : MO_FAIL(status, "%s", message);
}

/* Where the settings make no sense the ledger may still be found. */
static mo_status tell_without_settings(mo_status status) {
  char *state = getenv("MOE_POD_STATE"), otherwise[] = ".moe-pod";
  const pod_settings settings = {.state = state && *state ? state : otherwise};
  return tell_what_runs(&settings, status);
}

static mo_status run_command(const pod_command *command, const pod_options *options) {
  pod_settings settings;
  mo_status read = pod_settings_read(&settings);
  if (read != MO_OK) return tell_without_settings(read);
  if (settings.warning[0]) pod_say(&settings, "%s", settings.warning);
  mo_status status = MO_OK;
  if (command->needs_key && !settings.api_key)
    status = MO_FAIL(MO_INVALID, "no API key (RUNPOD_API_KEY): set it in the environment or in .env, see .env.example");
  pod_catch_signals();
  if (status == MO_OK) status = command->run(&settings, options);
  if (status != MO_OK) status = redact_error(&settings, status);
  status = tell_what_runs(&settings, status);
  pod_settings_free(&settings);
  return status;
}

static int start_command(const pod_command *command, int argc, char **argv) {
  pod_arguments arguments;
  mo_status status = pod_arguments_read(&arguments, command, argc, argv);
  if (status == MO_OK && arguments.help)
    pod_print_usage(command->name, stdout);
  else if (status == MO_OK)
    status = run_command(command, &arguments.options);
  pod_arguments_free(&arguments);
  return finish(status);
}

static void print_version(void) {
  printf("moe-pod %s\ncommit:   %s\ncompiler: %s, %s\nlibraries:\n  %s\n  jansson %s\n", MO_VERSION, MO_GIT_COMMIT,
         MO_COMPILER, MO_BUILD_TYPE, curl_version(), jansson_version_str());
}

int pod_main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : NULL;
  for (int i = 0; name && i < N_COMMANDS; i++)
    if (strcmp(COMMANDS[i].name, name) == 0) return start_command(COMMANDS + i, argc - 1, argv + 1);
  if (name && (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)) {
    pod_print_usage(NULL, stdout);
    return finish(MO_OK);
  }
  if (name && strcmp(name, "--version") == 0) {
    print_version();
    return finish(MO_OK);
  }
  const char *commands =
      "use gpus, plan, run, sweep, list, status, logs, fetch, terminate or cleanup, or see moe-pod --help";
  if (!name) return finish(MO_FAIL(MO_INVALID, "no command (command line): %s", commands));
  return finish(MO_FAIL(MO_INVALID, "unknown %s \"%s\" (command line): %s", name[0] == '-' ? "option" : "command", name,
                        commands));
}
