#!/usr/bin/env bash
# How fast runs are whose weights come from files, beside the limits of this machine and the peer, in one run.
set -euo pipefail

usage() {
  cat <<'END'
usage: bench/stream.sh [OPTION]... RESULT.json [PART]...

Measures `moe-outliers run` from checkpoints of published shapes with random weights, which it writes with `synth` and
removes at the end. Prints Markdown tables for docs/performance.md and writes all raw numbers to RESULT.json, which must
not exist. Parts, done in this order (without any: limits forward run budget peer):

  limits    files in memory to the GPU with a plain reader (bench_limits --files)
  forward   the pass with resident weights (bench_forward), at the run's micro-batch
  run       the run, from files in memory
  budget    the same within --budget GB of GPU memory
  peer      the peer loads the same files, then its first pass (peer_transformers.py)
  two       two GPUs: without a budget, and within --two-budget GB with contiguous and interleaved blocks: with all readers,
            and with --two-readers a rank, so that the storage of a rank is the limit
  large     --large with as many layers as --large-gb hold, within --large-budget GB, and the plain reader on it
  disk      --disk-model from --disk with an empty page cache, and the plain reader past the page cache

  --model NAME         of configs/models, or a config.json (default: qwen3-30b-a3b)
  --layers L           only its first L layers
  --budget GB          (default: 12)      --two-budget GB      (default: 12)      --two-readers R   (default: 2)
  --large NAME         (default: glm-4.5-air)
  --large-gb GB        size of its checkpoint (default: 80 % of the free space of --memory)
  --large-budget GB    (default: 24)
  --disk-model NAME    (default: olmoe-1b-7b-0125)
  --disk FOLDER        on a local disk (default: the folder of RESULT.json)
  --memory FOLDER      on a tmpfs (default: /dev/shm)
  --sequences N        (default: 16)      --length S           (default: 2048)
  --repeat R           runs of each kind; the table has their median (default: 3)
  --keep               leave the checkpoints, and use those that an earlier call left
  --device cuda|cpu    cpu: without limits and without GPU memory, to try the script (default: cuda)
  -h, --help           this text

Environment:
  BENCH_BIN     folder with moe-outliers, bench_forward and bench_limits (default: build/default)
  BENCH_PYTHON  Python 3, for `peer` with torch, transformers and accelerate (default: python3)
  BENCH_MPIRUN  the launcher of two ranks (default: "mpirun -np 2 --bind-to none")
  BENCH_COMMIT  commit of the programs, where git cannot tell
  CUDA_VISIBLE_DEVICES  the GPUs (default: 0,1); all parts but `two` use the first
Exit status: 0 all measured, 1 something failed (shown as such in the table), 2 usage.
END
}

script=stream.sh
# shellcheck source=bench/steps.sh
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

all_parts=(limits forward run budget peer two large disk)
original="bench/stream.sh $*"
result='' wanted=() keep=false device=cuda
declare -A setting=([model]=qwen3-30b-a3b [layers]=0 [budget]=12 [two-budget]=12 [two-readers]=2 [large]=glm-4.5-air [large-gb]=0
  [large-budget]=24 [disk-model]=olmoe-1b-7b-0125 [disk]='' [memory]=/dev/shm [sequences]=16 [length]=2048 [repeat]=3)
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --keep) keep=true ;;
    --device)
      [[ ${2:-} == cuda || ${2:-} == cpu ]] || fail 2 "--device needs cuda or cpu: see --help"
      device=$2
      shift
      ;;
    --*)
      [[ -n ${setting[${1#--}]+known} ]] || fail 2 "unknown option ($1): see --help"
      (($# > 1)) || fail 2 "$1 needs a value: see --help"
      setting[${1#--}]=$2
      shift
      ;;
    *)
      if [[ -z $result ]]; then
        result=$(realpath -m -- "$1")
      else
        [[ " ${all_parts[*]} " == *" $1 "* ]] || fail 2 "unknown part ($1): see --help"
        wanted+=("$1")
      fi
      ;;
  esac
  shift
done
check_result "$result"
((${#wanted[@]})) || wanted=(limits forward run budget peer)
[[ -n ${setting[disk]} ]] || setting[disk]=$(dirname "$result")
setting[disk]=$(realpath -m -- "${setting[disk]}")
setting[memory]=$(realpath -m -- "${setting[memory]}")
for name in model large disk-model; do
  if [[ -e ${setting[$name]} ]]; then setting[$name]=$(realpath -- "${setting[$name]}"); fi
done

if [[ -n ${BENCH_BIN:-} ]]; then BENCH_BIN=$(realpath -m -- "$BENCH_BIN"); fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${BENCH_BIN:-build/default}
python=${BENCH_PYTHON:-python3}
read -ra mpirun <<<"${BENCH_MPIRUN:-mpirun -np 2 --bind-to none}"
gpus=${CUDA_VISIBLE_DEVICES:-0,1}
export CUDA_VISIBLE_DEVICES=${gpus%%,*} CUDA_DEVICE_ORDER=PCI_BUS_ID # numbered as by nvidia-smi
programs=(moe-outliers bench_forward)
if [[ $device == cuda ]]; then programs+=(bench_limits); fi
for program in "${programs[@]}"; do
  [[ -x $bin/$program ]] || fail 2 "program missing ($bin/$program): build it or set BENCH_BIN, see --help"
done
command -v "$python" >/dev/null || fail 2 "no Python ($python): set BENCH_PYTHON"
[[ $device == cpu ]] || command -v nvidia-smi >/dev/null || fail 2 "no nvidia-smi: this needs an NVIDIA GPU"

work=$(mktemp -d)
made=() # checkpoints to remove
clean_up() {
  rm -rf "$work"
  if ! $keep && ((${#made[@]})); then rm -rf "${made[@]}"; fi
}
trap clean_up EXIT
step_limit_s=300

wants() { [[ " ${wanted[*]} " == *" $1 "* ]]; }

config_of() { if [[ -f $1 ]]; then echo "$1"; else echo "configs/models/$1.json"; fi; }

# measured NAME GPUS COMMAND...: a step with its seconds and memory in NAME.json
measured() {
  local name=$1 sample=()
  if [[ $device == cuda ]]; then sample=(--gpus "$2"); fi
  shift 2
  step "$name" "$python" bench/measured.py "$work/$name.json" "${sample[@]}" -- "$@"
}

# checkpoint KEY FOLDER MODEL LAYERS: a random checkpoint, its bytes noted as bytes_KEY
checkpoint() {
  local key=$1 folder=$2 options=()
  if (($4)); then options=(--layers "$4"); fi
  if [[ ! -e $folder/config.json ]]; then # written last
    made+=("$folder")
    measured "synth-$key" "$CUDA_VISIBLE_DEVICES" "$bin/moe-outliers" synth "$(config_of "$3")" -o "$folder" \
      "${options[@]}" || { rm -rf "$folder" && return 1; }
  fi
  note "bytes_$key" "$(du -cb "$folder"/*.safetensors | tail -n 1 | cut -f 1)"
  note "model_$key" "$3"
  note "layers_$key" "$(layers_of "$folder/config.json")"
}

layers_of() { "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["num_hidden_layers"])' "$1"; }

drop_checkpoint() { if ! $keep; then rm -rf "$1"; fi; }

# write_config FOLDER: a run's config for a checkpoint
write_config() {
  cat >"$work/run.cfg" <<END
model: { path = "$1"; };
data: { tokens = "synthetic:1"; sequences = ${setting[sequences]}; length = ${setting[length]}; };
engine: { device = "$device"; };
output: { path = "$work/result.h5"; overwrite = true; };
END
}

# runs NAME FOLDER RANKS [KEY=VALUE]...: the run, --repeat times, as NAME-1, NAME-2, ...
runs() {
  local name=$1 folder=$2 ranks=$3 launcher=() options=() sampled=$CUDA_VISIBLE_DEVICES value i
  shift 3
  for value; do options+=(-s "$value"); done
  if ((ranks > 1)); then launcher=(env CUDA_VISIBLE_DEVICES="$gpus" "${mpirun[@]}") sampled=$gpus; fi
  write_config "$folder"
  for ((i = 1; i <= setting[repeat]; i++)); do
    if [[ $name == disk ]]; then forget "$folder"; fi
    rm -rf "$work"/result.h5* # also what a failed run left to go on from
    measured "$name-$i" "$sampled" "${launcher[@]}" "$bin/moe-outliers" run "$work/run.cfg" "${options[@]}" || return 0
  done
}

# plain_reader NAME FILE...: nothing without a GPU
plain_reader() {
  if [[ $device == cuda ]]; then step "$1" "$bin/bench_limits" --files "${@:2}" || true; fi
}

# Write a checkpoint's pages to the disk and take them from the page cache.
forget() {
  local file
  for file in "$1"/*.safetensors; do
    dd of="$file" oflag=nocache conv=notrunc,fdatasync count=0 status=none
  done
  { echo 1 >/proc/sys/vm/drop_caches; } 2>/dev/null || true # where we may
  if command -v fincore >/dev/null; then
    note cached_bytes "$(fincore -bno RES "$1"/*.safetensors | awk '{sum += $1} END {print sum}')"
  fi
}

measure_model() {
  local folder=${setting[memory]}/stream-model
  checkpoint model "$folder" "${setting[model]}" "${setting[layers]}" || return 0
  local files=("$folder"/*.safetensors)
  if wants limits; then plain_reader limits "${files[@]}"; fi
  if wants forward; then
    step forward "$bin/bench_forward" "$folder/config.json" --device "$device" --sequences "${setting[sequences]}" \
      --length "${setting[length]}" --micro $(((setting[sequences] + 3) / 4)) || true
  fi
  if wants run; then runs run "$folder" 1; fi
  if wants budget; then runs budget "$folder" 1 "engine.device_memory_gb=${setting[budget]}"; fi
  if wants peer; then
    step peer "$python" bench/peer_transformers.py "$folder" --device "$device" --sequences "${setting[sequences]}" \
      --length "${setting[length]}" || true
  fi
  if wants two; then
    runs two-free "$folder" 2
    local budget="engine.device_memory_gb=${setting[two-budget]}" readers="engine.readers=${setting[two-readers]}" kind
    for kind in contiguous interleaved; do
      runs "two-$kind" "$folder" 2 "$budget" "engine.partition=$kind"
      runs "two-few-$kind" "$folder" 2 "$budget" "$readers" "engine.partition=$kind"
    done
  fi
  drop_checkpoint "$folder"
}

# layers_within CONFIG GB: how many layers a checkpoint of GB (0: 80 % of the free space of --memory) has
layers_within() {
  local config
  config=$(realpath -- "$(config_of "$1")")
  printf 'model: { path = "%s"; };\n' "$config" >"$work/plan.cfg"
  "$bin/moe-outliers" plan "$work/plan.cfg" --json >"$work/plan.json"
  "$python" - "$work/plan.json" "$2" "${setting[memory]}" <<'END'
import json, shutil, sys

stages = json.load(open(sys.argv[1]))["stage_bytes"]
left = float(sys.argv[2]) * 1e9 or 0.8 * shutil.disk_usage(sys.argv[3]).free
left -= stages[0] + stages[-1]
layers = 0
for size in stages[1:-1]:
    left -= size
    layers += left >= 0
print(layers)
END
}

measure_large() {
  local folder=${setting[memory]}/stream-large layers
  layers=$(layers_within "${setting[large]}" "${setting[large-gb]}")
  if ((layers < 1)); then
    echo "$script: large left out: one layer does not fit" >&2
    failures=$((failures + 1))
    return
  fi
  checkpoint large "$folder" "${setting[large]}" "$layers" || return 0
  plain_reader large-limits "$folder"/*.safetensors
  runs large "$folder" 1 "engine.device_memory_gb=${setting[large-budget]}"
  drop_checkpoint "$folder"
}

measure_disk() {
  local folder=${setting[disk]}/stream-disk
  checkpoint disk "$folder" "${setting[disk-model]}" 0 || return 0
  forget "$folder"
  plain_reader disk-limits --direct "$folder"/*.safetensors
  runs disk "$folder" 1
  drop_checkpoint "$folder"
}

if [[ $device == cuda ]]; then describe_gpu; fi
describe_run "$original"
for name in sequences length budget two-budget two-readers large-budget; do note "$name" "${setting[$name]}"; done
for part in limits forward run budget peer two; do
  if wants "$part"; then
    measure_model
    break
  fi
done
if wants large; then measure_large; fi
if wants disk; then measure_disk; fi

"$python" bench/stream_table.py "$work" "$result"
((failures == 0)) || fail 1 "$failures of the measurements failed: see above"
