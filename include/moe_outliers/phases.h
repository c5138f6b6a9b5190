/* Where the time of a run goes beside the stream of weights: what the main thread does, one phase after the other, and what
 * goes on beside it on other threads. One account per process, like the error record. */
#ifndef MOE_OUTLIERS_PHASES_H
#define MOE_OUTLIERS_PHASES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  MO_PHASE_LAUNCH, /* before main: the loader and libraries' constructors */
  MO_PHASE_MPI,
  MO_PHASE_DEVICE,
  MO_PHASE_INPUT, /* what of it the phases before did not hide */
  MO_PHASE_PLAN,
  MO_PHASE_RESUME,
  MO_PHASE_ANALYSIS,
  MO_PHASE_RESULT,
  MO_PHASE_CLOSE, /* what of it the two before did not hide */
  MO_PHASE_PARTING,
  MO_PHASE_OPEN, /* of the stream: from the first read on, until the first task may begin */
  MO_PHASE_STREAM,
  /* on other threads */
  MO_PHASE_HEADERS,
  MO_PHASE_LIBRARIES,
  MO_PHASE_FREEING,
  MO_PHASE_COUNT
} mo_phase;

/* The first line of main. */
void mo_phases_begin(void);
/* The time since the phase before ended was this one's. Phases may be told of repeatedly. Main thread only. */
void mo_phase_ends(mo_phase phase);
/* A phase of another thread, which is joined before the account is read. */
void mo_phase_took(mo_phase phase, double seconds);

/* The account in microseconds [MO_PHASE_COUNT], for a reduction over ranks in place. */
int64_t *mo_phases(void);

/* One line without a newline: the phases that took at least a millisecond, and the time since the process was started. */
void mo_phases_describe(char *text, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
