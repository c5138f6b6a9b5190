/* Ctrl-C: the first asks the command to come to an end, the second ends the process. */
#include <signal.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#include "moe_outliers/clock.h"
#include "pod/cli.h"
#include "pod/commands.h"

volatile bool pod_stop;

void pod_nap(double seconds) {
  double until = mo_seconds() + seconds;
  struct timespec time = {.tv_nsec = 100000000};
  while (mo_seconds() < until && !pod_stop) nanosleep(&time, NULL);
}

static void on_signal(int number) {
  static const char text[] = "moe-pod: pods may be left running: moe-pod list shows them\n";
  if (pod_stop && number == SIGINT) {
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) (void)signal(SIGINT, SIG_DFL); /* said or not, it ends */
    (void)signal(SIGINT, SIG_DFL);
    (void)raise(SIGINT);
  }
  pod_stop = true;
}

void pod_catch_signals(void) {
  static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
  struct sigaction action = {.sa_handler = on_signal}, before;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
    if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler == SIG_IGN) continue; /* nohup */
    (void)sigaction(numbers[i], &action, NULL);
  }
  (void)signal(SIGPIPE, SIG_IGN); /* a program that wants no more input is no reason to end */
}
