/* Private to the pipeline: SIGTERM and SIGUSR1 ask a run to save what it has done and to end. */
#ifndef MO_PIPELINE_SIGNALS_H
#define MO_PIPELINE_SIGNALS_H

/* From now on the two signals are noted instead of ending the process. */
void mo_signals_note(void);
/* The first one that came, 0 if none did. */
int mo_signals_received(void);
const char *mo_signals_name(int number);

/* From now on a request to stop that has not ended the process after so many seconds ends it at once, with the status of a run that
 * was stopped; 0: no more. For phases in which nothing is lost by that. */
void mo_signals_patience(int seconds);

#endif
