# shellcheck shell=bash
# What scripts/demo, scripts/sweep and slurm/ know of mpirun, configs and results. They read this file; PROGRAM is moe-outliers with
# its options.

# Open MPI refuses more ranks than cores, and root (as in containers), unless told (PRTE_: version 5); quiet: the program prints its
# own error line.
let_mpirun() {
  export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_orte_execute_quiet=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
  if ((EUID == 0)); then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
}

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
