#!/usr/bin/env bash
# Weights over HTTP on loopback, beside what curl takes for the same bytes from the same server, in one run.
set -euo pipefail

usage() {
  cat <<'END'
usage: bench/network.sh [OPTION]...

Writes a random checkpoint into memory, serves it by tests/e2e/hub_server.py (redirects to signed addresses, as on the hub) and
reads it in turns: by the streamer (bench_stream_reader hf://..., through an arena of --arena GB) and by curl over 1, 4 and 16
connections, to /dev/null and into a file in memory. Prints the rates in GB/s (1e9 bytes), and the streamer's best rate of a turn as a
share of curl's best of the same turn, the median of all turns: so it does not matter much what else the machine does.

  --model NAME    of configs/models (default: qwen3-0.6b)
  --layers L      only its first L layers (default: all)
  --arena GB      memory for weights (default: 0.4)
  --readers N,... connections at most (default: 4,8,32)
  --repeat R      (default: 5)
  --memory FOLDER on a tmpfs (default: /dev/shm)
  -h, --help      this text

Environment: BENCH_BIN, folder with moe-outliers and bench_stream_reader (default: build/default); BENCH_PYTHON (default: python3).
Exit status: 0 the streamer reaches 80 % of curl that keeps what comes, as it does itself, 1 it does not or something failed, 2 usage.
END
}

declare -A setting=([model]=qwen3-0.6b [layers]=0 [arena]=0.4 [readers]="4,8,32" [repeat]=5 [memory]=/dev/shm)
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --model | --layers | --arena | --readers | --repeat | --memory)
      (($# > 1)) || { echo "network.sh: error: $1 needs a value: see --help" >&2 && exit 2; }
      setting[${1#--}]=$2
      shift
      ;;
    *) echo "network.sh: error: unknown argument ($1): see --help" >&2 && exit 2 ;;
  esac
  shift
done
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
bin=${BENCH_BIN:-$root/build/default}
python=${BENCH_PYTHON:-python3}
folder=$(mktemp -d "${setting[memory]}/network-XXXXXX")
server=''
cleanup() {
  [[ -z $server ]] || kill "$server" 2>/dev/null || true
  rm -rf "$folder"
}
trap cleanup EXIT

synth=("$root/configs/models/${setting[model]}.json" -o "$folder/model")
if ((setting[layers] > 0)); then synth+=(--layers "${setting[layers]}"); fi
"$bin/moe-outliers" synth "${synth[@]}" >&2
"$python" "$root/tests/e2e/hub_server.py" "org/model=$folder/model" >"$folder/server" &
server=$!
for ((i = 0; i < 100; i++)); do
  if grep -q HF_ENDPOINT "$folder/server"; then break; fi
  sleep 0.1
done
HF_ENDPOINT=$(sed -n 's/^export HF_ENDPOINT=//p' "$folder/server")
export HF_ENDPOINT no_proxy='*'
bytes=$(stat -c %s "$folder/model/model.safetensors")

# by_curl N FILE: GB/s over N connections; FILE0, FILE1 ... or /dev/null
by_curl() {
  local n=$1 to=$2 i arguments=() begin end
  for ((i = 0; i < n; i++)); do
    arguments+=(-sSL -r "$((bytes * i / n))-$((bytes * (i + 1) / n - 1))" -o "$to$([[ $to == /dev/null ]] || echo "$i")"
      "$HF_ENDPOINT/org/model/resolve/main/model.safetensors" --next)
  done
  unset 'arguments[-1]'
  begin=$(date +%s%N)
  curl -s -Z --parallel-max "$n" "${arguments[@]}" 2>>"$folder/curl.err"
  end=$(date +%s%N)
  rm -f "$folder"/got*
  awk "BEGIN { printf \"%.3f\", $bytes / ($end - $begin) }"
}

# by_streamer N: GB/s with N readers; the bytes are those that it counted
by_streamer() {
  "$bin/bench_stream_reader" hf://org/model --device cpu --arena "${setting[arena]}" --chunk 32768 --readers "$1" |
    sed -n 's/.*"bytes": \([0-9]*\).*"s": \([0-9.]*\),.*/\1 \2/p' | awk '{ printf "%.3f", $1 / $2 / 1e9 }'
}

for ((turn = 0; turn < setting[repeat]; turn++)); do
  for n in 1 4 16; do
    printf 'curl %d %s\n' "$n" "$(by_curl "$n" /dev/null)"
    printf 'kept %d %s\n' "$n" "$(by_curl "$n" "$folder/got")"
  done
  for n in ${setting[readers]//,/ }; do printf 'streamer %d %s\n' "$n" "$(by_streamer "$n")"; done
done | tee "$folder/rates" >&2

awk '
  { rates[$1 " " $2] = rates[$1 " " $2] " " $3 }
  $1 == "curl" && $2 == 1 { turn++ }
  $3 > best[$1, turn] { best[$1, turn] = $3 }
  function median(text, n, i, j, v, x) {
    n = split(text, v, " ")
    for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j] + 0 < v[j - 1] + 0; j--) { x = v[j]; v[j] = v[j - 1]; v[j - 1] = x }
    return v[int((n + 1) / 2)]
  }
  END {
    print "| reader | connections | GB/s, median |\n|---|---:|---:|"
    for (key in rates) {
      split(key, part, " ")
      name = part[1] == "kept" ? "curl into a file" : part[1] == "curl" ? "curl to /dev/null" : part[1]
      printf "| %s | %d | %.2f |\n", name, part[2], median(rates[key]) | "sort -t \"|\" -k 2,2 -k 3,3n"
    }
    close("sort -t \"|\" -k 2,2 -k 3,3n")
    for (i = 1; i <= turn; i++) thrown = thrown " " best["streamer", i] / best["curl", i]
    for (i = 1; i <= turn; i++) kept = kept " " best["streamer", i] / best["kept", i]
    printf "\nthe streamer reaches %.0f %% of curl that throws away what comes, %.0f %% of curl that keeps it\n", 100 * median(thrown),
      100 * median(kept)
    exit median(kept) < 0.8
  }' "$folder/rates"
