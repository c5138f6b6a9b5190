#!/usr/bin/env bash
# setup.sh KEY TREE COMMIT: makes $DIR/program, a moe-outliers of the source that was sent. TREE: hash of that source.
# COMMIT: what its --version would say. Taken as they are: MOE_POD_PROGRAM of the container, a moe-outliers in PATH of
# the same commit, a former build of TREE for such a machine.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
key=$1 tree=$2 commit=$3
ssh_options=(-o BatchMode=yes -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR -o ConnectTimeout=20)
ssh_options+=(-i "$DIR/cluster/id_ed25519")

# take PROGRAM: it is the one. The other members of a cluster see the same folder, but have no libraries yet.
take() {
  local host
  ln -sfn "$1" "$DIR/program"
  "$DIR/program" --version | sed -n '1,/^backends/p'
  say "program: $1"
  [[ -f $DIR/hosts && -z ${MOE_POD_MEMBER:-} ]] || return 0
  flock -u 9 2>/dev/null || true
  while read -r host _; do
    say "setting up member $host"
    ssh -n "${ssh_options[@]}" "$host" "MOE_POD_MEMBER='$build' bash '$DIR/remote/setup.sh' '$key' '$tree' '$commit'"
  done < <(tail -n +2 "$DIR/hosts")
}

# machine: what a build is for beside the source: the GPUs' kind, the processor's instructions, the system's libraries.
machine() {
  local gpus
  gpus=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | tr '\n' '-') || gpus=
  printf '%s' "${gpus:-cpu-}"
  { uname -m && sed -nE '/^(flags|Features)/{p;q}' /proc/cpuinfo && cat /etc/os-release; } 2>/dev/null |
    sha256sum | cut -c 1-12
}
build=${MOE_POD_MEMBER:-} # of rank 0, on the other members of a cluster
build=${build:-$BASE/builds/${tree:0:16}-$(machine)}

given=$(variable MOE_POD_PROGRAM)
if [[ -n $given ]]; then
  [[ -x $given ]] || { say "error: no program at MOE_POD_PROGRAM ($given)"; exit 1; }
  take "$given"
  exit 0
fi
# A build without the GPUs' backend is no good where there are GPUs.
fits() {
  local version
  [[ $commit != *-dirty && $commit != unknown ]] &&
    version=$("$1" --version 2>/dev/null) && grep -qx "commit: *$commit" <<<"$version" &&
    { ! command -v nvidia-smi >/dev/null || grep -q '^backends:.*cuda' <<<"$version"; }
}
if there=$(command -v moe-outliers) && fits "$there"; then
  take "$there"
  exit 0
fi
mkdir -p "$BASE/builds"
exec 9>"$build.lock"
flock 9
program=$build/build/default/moe-outliers
[[ -d $DIR/source/build && ! -L $DIR/source/build ]] || ln -sfn "$build/build" "$DIR/source/build"
# On a network volume the build may be another container's, and this one lack its libraries: then scripts/setup brings
# them.
if [[ -e $build/.built ]] && "$program" --version >/dev/null 2>&1; then
  take "$program"
  exit 0
fi
if [[ ! -e $build/.built ]]; then
  mkdir -p "$build"
  rsync -a --files-from="$DIR/sent" "$DIR/source/" "$build/"
fi
cd "$build"
if [[ -d /usr/local/cuda/bin ]]; then export PATH=$PATH:/usr/local/cuda/bin; fi
scripts/setup --no-tests
if nvidia-smi -L >/dev/null 2>&1 && ! "$program" --version | grep -q '^backends:.*cuda'; then
  say "error: built without CUDA although there are GPUs: the image has no nvcc: choose another (MOE_POD_IMAGE)"
  exit 1
fi
touch .built
take "$program"
