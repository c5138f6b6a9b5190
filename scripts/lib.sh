# shellcheck shell=bash
# What scripts/sweep and slurm/ know of configs and results. They set PROGRAM, moe-outliers with its options, and read this file.

stem() {
  local name=${1##*/}
  printf '%s' "${name%.cfg}"
}

# settings ARGUMENT...: sets SETTINGS to the -s of a run's arguments.
settings() {
  SETTINGS=()
  while (($#)); do
    case $1 in
      -s | --set) (($# < 2)) || SETTINGS+=(-s "$2") && shift ;;
      -s* | --set=*) SETTINGS+=("$1") ;;
    esac
    (($# == 0)) || shift
  done
}

# config_value CONFIG SECTION KEY [ARGUMENT OF run]...: the value of a run, a default if nothing else is said; nothing, and the program's
# error, if the config is wrong.
config_value() {
  settings "${@:4}"
  "${PROGRAM[@]}" config "$1" "$2.$3" "${SETTINGS[@]}"
}

# is_complete FILE: whether it is a whole result.
is_complete() { [[ -f $1 ]] && "${PROGRAM[@]}" report "$1" >/dev/null 2>&1; }

# is_result_of CONFIG FILE [ARGUMENT OF run]...: whether a whole result is that of such a run; else the program says what differs.
is_result_of() {
  settings "${@:3}"
  "${PROGRAM[@]}" config "$1" --result "$2" "${SETTINGS[@]}"
}
