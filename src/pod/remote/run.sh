#!/usr/bin/env bash
# run.sh KEY RANKS OUTPUT HOW EACH: moe-outliers on RANKS ranks, EACH on a machine, whose working directory is
# $DIR/source. HOW: alone, hosts (mpirun over ssh to those of $DIR/hosts) or slurm. One run at a time. A journal of
# another pod that does not fit is given up: the run starts over.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
key=$1 ranks=$2 output=$3 how=$4 each=$5
file=$(variable MOE_POD_SHM)
file=${file:-/dev/shm}/moe-outliers-$key.token
if [[ -f $file ]]; then # of a model that is read from the network
  HF_TOKEN=$(<"$file")
  rm -f "$file"
  export HF_TOKEN
fi
cd "$DIR/source"
config=$DIR/runs/$key/$key.cfg
mkdir -p "$(dirname "$output")"
exec 9>"$DIR/run.lock"
flock 9
# A result may be here: of this run, whose status could not be kept; or on a network volume, of this one or another.
identity=$(sha256sum <"$config")
if [[ -f $output && $(cat "$DIR/runs/$key/begun" 2>/dev/null) == "$identity" ]]; then
  say "the result is here: $output"
  exit 0
fi
rm -f "$output"
printf '%s\n' "$identity" >"$DIR/runs/$key/begun"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
case $how in
  alone)
    launch=()
    if ((ranks > 1)); then launch=(mpirun -np "$ranks" --oversubscribe --bind-to none); fi
    ;;
  hosts)
    by_ssh="-o StrictHostKeyChecking=accept-new -o BatchMode=yes -o LogLevel=ERROR -i $DIR/cluster/id_ed25519"
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-ens1}
    launch=(mpirun -np "$ranks" --hostfile "$DIR/hosts" --bind-to none --wdir "$DIR/source" -x NCCL_SOCKET_IFNAME
      --mca plm_rsh_agent ssh
      --mca plm_rsh_args "$by_ssh")
    # The interface of the overlay, if rank 0 has it; in a test there is only loopback.
    if [[ -d /sys/class/net/$NCCL_SOCKET_IFNAME ]]; then
      launch+=(--mca oob_tcp_if_include "$NCCL_SOCKET_IFNAME" --mca btl_tcp_if_include "$NCCL_SOCKET_IFNAME")
    fi
    if [[ -n ${HF_TOKEN:-} ]]; then launch+=(-x HF_TOKEN); fi
    ;;
  slurm) launch=() ;;
esac

log=$DIR/runs/$key/run.log
# run [OPTION]...
run() {
  local child status=0
  if [[ $how == slurm ]]; then
    local request=(--ntasks="$ranks" --ntasks-per-node="$each")
    if sinfo --noheader --format %G | grep -q gpu; then request+=(--gres="gpu:$each"); fi
    request+=(--array=1 --output="$log" --open-mode=append --job-name="moe-$key")
    MO_ROOT=$DIR/source sbatch --wait --parsable "${request[@]}" \
      --chdir="$DIR/source" slurm/sweep.sbatch --site "$DIR/runs/$key/site.conf" --config "$config" "$@" &
  else
    "${launch[@]}" "$DIR/program" run "$config" "$@" &
  fi
  child=$!
  # shellcheck disable=SC2064 # this child
  trap "stop $child" USR1 TERM
  while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  return "$status"
}

# shellcheck disable=SC2317 # called by the trap
stop() {
  if [[ $how == slurm ]]; then
    scancel --name="moe-$key" --signal=USR1 --batch 2>/dev/null || true
  else
    kill -USR1 "$1" 2>/dev/null || true
  fi
}

before=$(stat -c %s "$log" 2>/dev/null || echo 0)
status=0
run || status=$?
said() { tail -c "+$((before + 1))" "$log" | grep -q "$1"; }
if ((status == 2)) && [[ -d $output.resume ]] && said 'start over with --fresh'; then
  say "what was saved on another pod cannot be continued here, so the run starts over"
  status=0
  run --fresh || status=$?
fi
exit "$status"
