# shellcheck shell=bash
# What submit, status, sweep.sbatch and report.sbatch share. They set ROOT, the repository, and read this file.
# shellcheck source=scripts/lib.sh
source "$ROOT/scripts/lib.sh"

say() { printf 'slurm: %s\n' "$*" >&2; }

fail() {
  printf 'slurm: error: %s\n' "$*" >&2
  exit 2
}

# Reads the site's file, runs its setup and goes to the working directory.
load_site() {
  local file=${MO_SITE:-$ROOT/slurm/site.conf}
  PARTITION='' ACCOUNT='' QOS='' TIME='' SIGNAL_SECONDS=120 MAX_REQUEUES=20 SBATCH_OPTIONS=() GPU_REQUEST=auto
  GPU_MEMORY_GB='' CPUS_PER_TASK='' RANKS='' MEMORY=yes BANDWIDTH='' WORKDIR='' PROGRAM=() LAUNCHER=auto SRUN_MPI=auto
  MPIRUN=(mpirun) RANK_PROGRAM=() PYTHON=(python3) REPORT=report WATCH_SECONDS=15
  # shellcheck disable=SC2317 # called below
  site_setup() { :; }
  [[ -r $file ]] || fail "the site's file cannot be read ($file): see slurm/site.conf, or unset MO_SITE"
  bash -n "$file" || fail "the site's file is no valid bash ($file): mend the line that bash names above"
  # shellcheck source=slurm/site.conf
  source "$file"
  set +u # modules and Spack use unset variables
  site_setup || fail "site_setup ended with status $? ($file): try its commands by hand"
  set -u
  if [[ -n $WORKDIR ]]; then cd "$WORKDIR" || fail "no such folder (WORKDIR in $file): $WORKDIR"; fi
  if ((${#PROGRAM[@]} == 0)); then
    if [[ -x $ROOT/build/default/moe-outliers ]]; then
      PROGRAM=("$ROOT/build/default/moe-outliers")
    else
      PROGRAM=(moe-outliers)
    fi
  fi
  ((${#RANK_PROGRAM[@]})) || RANK_PROGRAM=("${PROGRAM[@]}")
  command -v "${PROGRAM[0]}" >/dev/null ||
    fail "${PROGRAM[0]} is not here ($(hostname)): build it with scripts/setup, or set PROGRAM in $file"
}

# expand FOLDER PATTERNS SEPARATORS: adds the files of the patterns, absolute, to CONFIGS; their paths may have blanks.
expand() {
  local folder=$1 path
  while IFS= read -r path; do
    [[ $path == /* ]] || path=$folder/$path
    CONFIGS+=("$path")
  done < <(
    cd "$folder" || exit
    IFS=$3
    for path in $2; do [[ ! -f $path ]] || printf '%s\n' "$path"; done
  )
}

# Sets CONFIGS to the absolute paths of the sweep's configs: those of SWEEP (moe, dense, or patterns that start at
# the working directory or else at the repository).
list_configs() {
  local sweep=${SWEEP:-moe} folder separator
  CONFIGS=()
  case $sweep in
    moe) CONFIGS=("$ROOT"/configs/0*.cfg) ;;
    dense) CONFIGS=("$ROOT"/configs/dense_*.cfg) ;;
    *)
      for separator in $'\n' $' \n'; do
        for folder in "$PWD" "$ROOT"; do
          ((${#CONFIGS[@]})) || expand "$folder" "$sweep" "$separator"
        done
      done
      ;;
  esac
  [[ ${#CONFIGS[@]} -gt 0 && -f ${CONFIGS[0]} ]] ||
    fail "no config matches (SWEEP=\"$sweep\"): give moe, dense, or files relative to $PWD or $ROOT"
}

# The result of a config: where its last start has said, else by the config.
result_of() {
  local path
  path=$(sed -n 's/^slurm: result: //p' "logs/$(stem "$1").log" 2>/dev/null | tail -n 1)
  printf '%s' "${path:-$(config_value "$1" output path)}"
}

# plan CONFIG [OPTION]...: JSON on stdout; the model's shapes come from the repository where the working directory has none.
plan() {
  local config=$1 shape
  shift
  shape=$(config_value "$config" model config "$@")
  if [[ -n $shape && $shape != /* && ! -f $shape && -f $ROOT/$shape ]]; then set -- "$@" -s "model.config=$ROOT/$shape"; fi
  "${PROGRAM[@]}" plan "$config" --json "$@"
}

# json NAME: the number of that name in the plan on stdin, the largest if there are several.
json() {
  awk -v name="\"$1\":" '$1 == name { v = $2 + 0; if (!n++ || v > most) most = v } END { if (n) printf "%.0f", most }'
}

# Sets LAUNCH to what starts RANKS ranks: the first launcher whose ranks see each other. An unknown command is refused once by
# all ranks together, but once by each of them if each is a rank 0 of 1.
choose_launcher() {
  local ranks=$1 kind kinds=() said ended lines refused=()
  if [[ $LAUNCHER != mpirun ]]; then
    if [[ $SRUN_MPI != auto ]]; then
      kinds=("$SRUN_MPI")
    else
      said=$(srun --mpi=list 2>&1)
      for kind in pmix pmi2; do
        [[ $said == *"$kind"* ]] && kinds+=("$kind")
      done
      ((${#kinds[@]})) || refused+=("srun offers neither pmix nor pmi2")
    fi
  fi
  [[ $LAUNCHER == srun ]] || kinds+=(mpirun)
  for kind in "${kinds[@]}"; do
    if [[ $kind == mpirun ]]; then
      LAUNCH=("${MPIRUN[@]}" -np "$ranks")
      if ((ranks > ${SLURM_NTASKS:-1})); then LAUNCH+=(--oversubscribe); fi
      kind=${MPIRUN[0]}
    else
      LAUNCH=(srun "--mpi=$kind" --ntasks="$ranks" --export=ALL --kill-on-bad-exit=1)
      [[ -n ${SLURM_CPUS_PER_TASK:-} ]] && LAUNCH+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
      if ((ranks > ${SLURM_NTASKS:-1})); then LAUNCH+=(--overcommit); fi
      kind="srun --mpi=$kind"
    fi
    for _ in 1 2; do # one start that fails proves nothing, unless it took all its time
      said=$(timeout 120 "${LAUNCH[@]}" "${RANK_PROGRAM[@]}" launch-check 2>&1 </dev/null)
      ended=$?
      lines=$(grep -c 'unknown command "launch-check"' <<<"$said")
      if ((lines || ended == 124)); then break; fi
    done
    if ((lines == 1)); then
      say "$ranks rank(s) by $kind${refused[*]:+; ${refused[*]}}"
      return
    elif ((lines > 1)); then
      refused+=("$kind starts $lines times rank 0 of 1 (the program's MPI does not know it)")
    else
      refused+=("$kind starts nothing ($(grep -m 1 -iE 'error|not|fail' <<<"$said" || head -n 1 <<<"$said"))")
    fi
  done
  fail "no launcher starts $ranks ranks that see each other: ${refused[*]}: see LAUNCHER, SRUN_MPI and MPIRUN in site.conf"
}

# job_of CONFIG INDEX: "ID STATE REASON" of its task in the queue, nothing if there is none. QUEUE is what read_queue has read.
job_of() {
  awk -F '\t' -v name="moe-$(stem "$1")" -v index_="$2" -v folder="$PWD" '
    $5 == folder && ($4 == name || ($4 == "moe-outliers" && $6 == index_)) { print $1, $2, $3; exit }' <<<"$QUEUE"
}

read_queue() {
  QUEUE=$(squeue --user "$(id -un)" --noheader --array --format $'%i\t%T\t%r\t%j\t%Z\t%K' 2>&1) || {
    say "squeue does not answer, so nothing is known about the queue: ${QUEUE%%$'\n'*}"
    QUEUE=
  }
}
