#!/usr/bin/env bash
# state.sh KEY STEP OFFSET: "@moe-pod STATE EXIT SIZE" of a step, STATE being none, running, ended or gone (it ended
# without a status: killed), EXIT its exit status or -1, SIZE that of its log; then at most 32000 bytes of the log
# from OFFSET. state.sh KEY STEP OFFSET look: the same, from one who only looks and keeps no pod alive.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
at=$DIR/runs/$1/$2 offset=$3
[[ ${4:-} == look ]] || touch "$DIR/contact"
state=none status=-1 size=0
if alive "$at.pid"; then
  state=running
elif [[ -s $at.status ]]; then
  state=ended status=$(<"$at.status")
elif [[ -e $at.pid ]]; then
  state=gone
fi
[[ ! -e $at.log ]] || size=$(stat -c %s "$at.log")
echo "@moe-pod $state $status $size"
if ((size > offset)); then tail -c "+$((offset + 1))" "$at.log" | head -c 32000; fi || true
