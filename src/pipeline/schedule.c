#include "pipeline/schedule.h"

#include <stdlib.h>
#include <string.h>

mo_status mo_schedule_open(mo_schedule *s, int64_t n_stages, int64_t n_micro) {
  *s = (mo_schedule){.n_micro = n_micro,
                     .next = mo_alloc((size_t)n_micro, sizeof *s->next),
                     .here = mo_alloc((size_t)n_micro, sizeof *s->here),
                     .through = mo_alloc((size_t)n_stages, sizeof *s->through)};
  return s->next && s->here && s->through ? MO_OK : MO_FAILED;
}

void mo_schedule_close(mo_schedule *s) {
  free(s->next);
  free(s->here);
  free(s->through);
}

void mo_schedule_begin(mo_schedule *s, int64_t first_stage, int64_t end_stage, const int64_t *start) {
  s->first_stage = first_stage;
  s->end_stage = end_stage;
  s->n_left = s->handed_on = 0;
  memset(s->through, 0, (size_t)(end_stage - first_stage) * sizeof *s->through);
  for (int64_t micro = 0; micro < s->n_micro; micro++) {
    int64_t next = start[micro] < first_stage ? first_stage : start[micro];
    if (next > end_stage) next = end_stage;
    s->next[micro] = next;
    s->here[micro] = false;
    s->n_left += next < end_stage;
    for (int64_t stage = first_stage; stage < next; stage++) s->through[stage - first_stage]++;
  }
}

int64_t mo_schedule_pick(const mo_schedule *s, int64_t loaded) {
  for (int64_t micro = s->handed_on; micro < s->n_micro; micro++)
    if (s->here[micro] && s->next[micro] < s->end_stage && s->next[micro] < loaded) return micro;
  return -1;
}

int64_t mo_schedule_awaited(const mo_schedule *s) {
  for (int64_t micro = s->handed_on; micro < s->n_micro; micro++)
    if (!s->here[micro] && s->next[micro] < s->end_stage) return micro;
  return -1;
}

void mo_schedule_done(mo_schedule *s, int64_t micro) {
  s->through[s->next[micro]++ - s->first_stage]++;
  s->n_left -= s->next[micro] == s->end_stage;
}

bool mo_schedule_is_through(const mo_schedule *s, int64_t stage) {
  return s->through[stage - s->first_stage] == s->n_micro;
}

int64_t mo_schedule_hand_on(mo_schedule *s) {
  if (s->handed_on == s->n_micro || s->next[s->handed_on] < s->end_stage) return -1;
  return s->handed_on++;
}
