#!/usr/bin/env bash
# The speed of the forward pass on this machine's GPU beside the peer's and the machine's limits, all in one run.
set -euo pipefail

usage() {
  cat <<'END'
usage: bench/gpu.sh [OPTION]... RESULT.json

Measures on one GPU, with random weights of the models' published shapes, in bf16, on 16 x 2048 tokens: the machine's
limits (bench_limits), our forward pass (bench_forward) and the peer's (peer_transformers.py). Prints Markdown tables
for docs/performance.md and writes all raw numbers to RESULT.json, which must not exist. About 4 minutes on an H100.

  --all-peers   the peer on every model, not only on olmoe and qwen3-30b-a3b
  --reference   also the peer as a plain script would run it: eager experts, batch 1 (minutes more)
  --file PATH   read PATH for the rate from files to the GPU, also past the page cache; else a temporary 4 GiB file
                is read, through the page cache only
  -h, --help    this text

Environment:
  BENCH_BIN     folder with bench_forward and bench_limits (default: build/default; build them with
                cmake --build --preset default --target bench_forward bench_limits)
  BENCH_PYTHON  Python with torch and transformers (default: python3); without them the peer is left out
  BENCH_COMMIT  commit of the programs, where git cannot tell
  CUDA_VISIBLE_DEVICES  the GPU, if there are several (default: 0)
Exit status: 0 all measured, 1 something failed (shown as such in the table), 2 usage.
END
}

script=gpu.sh
# shellcheck source=bench/steps.sh
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

# Configuration name, layers wanted (0: all), MiB of one layer's weights, measured with the peer by default.
models=(
  "olmoe-1b-7b-0125 16 800 peer"
  "qwen3-30b-a3b 48 1190 peer"
  "mixtral-8x7b 6 2770 -"
  "glm-4.5-air 8 4470 -"
  "gpt-oss-120b 6 1670 -"
  "qwen3-next-80b-a3b 8 3140 -"
)
# MiB of GPU memory for activations and libraries, ours or the peer's, at 16 x 2048 tokens.
working_mib=16384
step_limit_s=150

original="bench/gpu.sh $*"
result=
all_peers=false
peer_options=()
file=
while (($#)); do
  case $1 in
    --all-peers) all_peers=true ;;
    --reference) peer_options+=(--reference) step_limit_s=400 ;;
    --file)
      (($# > 1)) || fail 2 "--file needs a path: see --help"
      file=$(realpath -e -- "$2") || fail 2 "no such file ($2): give a readable file"
      shift
      ;;
    -h | --help) usage && exit 0 ;;
    -*) fail 2 "unknown option ($1): see --help" ;;
    *)
      [[ -z $result ]] || fail 2 "one result file only ($1): see --help"
      result=$(realpath -m -- "$1")
      ;;
  esac
  shift
done
check_result "$result"

if [[ -n ${BENCH_BIN:-} ]]; then BENCH_BIN=$(realpath -m -- "$BENCH_BIN"); fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${BENCH_BIN:-build/default}
python=${BENCH_PYTHON:-python3}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} CUDA_DEVICE_ORDER=PCI_BUS_ID # numbered as by nvidia-smi
for program in "$bin/bench_forward" "$bin/bench_limits"; do
  [[ -x $program ]] || fail 2 "program missing ($program): build it or set BENCH_BIN, see --help"
done
command -v nvidia-smi >/dev/null || fail 2 "no nvidia-smi: this needs a machine with an NVIDIA GPU and its driver"
command -v "$python" >/dev/null || fail 2 "no Python ($python): set BENCH_PYTHON"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

describe_machine() {
  describe_gpu
  describe_run "$original"
  note free_mib "$free_mib"
}

measure_limits() {
  local files=()
  if [[ -n $file ]]; then
    cat -- "$file" >/dev/null # into the page cache
    files=("$file" --direct "$file")
  elif head -c 4G /dev/zero >"$work/zeros"; then
    files=("$work/zeros")
  fi
  step limits "$bin/bench_limits" "${files[@]}" || true
  rm -f "$work/zeros"
}

# Ours and the peer on the same layers, as many of those wanted as fit in the memory.
measure_model() {
  local name=$1 layers=$2 layer_mib=$3 with_peer=$4
  local fitting=$(((free_mib - working_mib) / layer_mib))
  if ((fitting < 1)); then
    echo "gpu.sh: $name left out: one layer does not fit in $free_mib MiB" >&2
    return
  fi
  ((layers <= fitting)) || layers=$fitting
  local config=configs/models/$name.json
  note "layers_$name" "$layers"
  step "forward-$name" "$bin/bench_forward" "$config" --layers "$layers" || true
  note "after_$name" "$(gpu clocks.sm,temperature.gpu,power.draw)"
  if $have_peer && { $all_peers || [[ $with_peer == peer ]]; }; then
    step "peer-$name" "$python" bench/peer_transformers.py "$config" --layers "$layers" "${peer_options[@]}" || true
  fi
}

free_mib=$(gpu memory.free)
[[ $free_mib =~ ^[0-9]+$ ]] || fail 1 "nvidia-smi does not say how much GPU memory is free ($free_mib)"
have_peer=true
if ! "$python" -c 'import torch, transformers' 2>"$work/error"; then
  echo "gpu.sh: no peer: $python has no torch and transformers ($(tail -n 1 "$work/error")): set BENCH_PYTHON" >&2
  have_peer=false
fi

describe_machine
measure_limits
for model in "${models[@]}"; do
  # shellcheck disable=SC2086 # four words
  measure_model $model
done
step dense-again "$bin/bench_limits" --dense || true # how much the machine changed meanwhile

"$python" bench/gpu_table.py "$work" "$result"
((failures == 0)) || fail 1 "$failures of the measurements failed: see above"
