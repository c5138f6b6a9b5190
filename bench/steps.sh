# shellcheck shell=bash disable=SC2154
# What gpu.sh, stream.sh and scaling share; sourced by them. They set: script (their name), work (folder of the outputs),
# bin, python, step_limit_s. It sets: failures.
: "${script:?}"
failures=0

fail() {
  echo "$script: error: $2" >&2
  exit "$1"
}

# check_result PATH: refuses one that no result can be written to
check_result() {
  [[ -n $1 ]] || fail 2 "no result file given: see --help"
  [[ ! -e $1 ]] || fail 2 "result file exists ($1): give another path, results are never overwritten"
  [[ -d $(dirname "$1") ]] || fail 2 "no such folder ($(dirname "$1")): make it"
}

# gpu FIELD...: what nvidia-smi says of the first GPU used, without units; empty where it cannot tell
gpu() { nvidia-smi --id="${CUDA_VISIBLE_DEVICES%%,*}" --query-gpu="$1" --format=csv,noheader,nounits || true; }

note() { printf '%s\t%s\n' "$1" "$2" >>"$work/environment"; }

describe_gpu() {
  note device "$(gpu name)"
  note driver "$(gpu driver_version)"
  note memory_mib "$(gpu memory.total)"
  note power_limit_w "$(gpu power.limit)"
  note max_sm_clock_mhz "$(gpu clocks.max.sm)"
}

# describe_run COMMAND_LINE
describe_run() {
  note date "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  note processors "$(nproc)"
  note commit "${BENCH_COMMIT:-$(git describe --always --abbrev=12 --dirty 2>/dev/null || echo unknown)}"
  note command_line "$1"
}

# step NAME COMMAND...: output to $work/NAME, error output to $work/NAME.err, the command line to $work/commands without
# the folders of this machine; the end of the error output of a failure is shown
step() {
  local name=$1 begin=$SECONDS
  shift
  local line="$* "
  line=${line//"$bin/"/}
  line=${line//"$work/"/}
  line=${line/#"$python "/python3 }
  line=${line#*bench/measured.py * -- }
  printf '%s\t%s\n' "$name" "${line% }" >>"$work/commands"
  if timeout "$step_limit_s" "$@" >"$work/$name" 2>"$work/$name.err"; then
    printf '%s: %-32s %3d s\n' "$script" "$name" $((SECONDS - begin)) >&2
  else
    printf '%s: %-32s FAILED (%d) after %d s\n' "$script" "$name" $? $((SECONDS - begin)) >&2
    tail -n 3 "$work/$name.err" >&2
    note "error_$name" "$(tail -n 1 "$work/$name.err")"
    failures=$((failures + 1))
    return 1
  fi
}
