#!/usr/bin/env bash
# All checks, for laptops and CI: format, shell scripts, tests with warnings as errors, tests under sanitizers.
set -euo pipefail

if (($#)); then
  usage='usage: scripts/ci.sh

Runs all checks: format (clang-format 14), shell scripts (shellcheck), all tests of the preset cpu with compiler warnings as errors,
all tests under the address and undefined-behaviour sanitizers. Builds what is not built (see scripts/setup). What lacks its tool is
skipped with a line; the first failure ends it. Exit status: 0 all passed.'
  if [[ $1 == -h || $1 == --help ]]; then
    printf '%s\n' "$usage"
    exit 0
  fi
  echo "ci.sh: error: unknown argument ($1): see scripts/ci.sh --help" >&2
  exit 2
fi

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

say() { printf '== %s\n' "$*"; }

# Other versions of clang-format format differently.
clang_format=
for candidate in clang-format-14 clang-format; do
  if command -v "$candidate" >/dev/null && "$candidate" --version | grep -q 'version 14\.'; then
    clang_format=$candidate
    break
  fi
done
if [[ -n $clang_format ]]; then
  say "format"
  find include src tests bench -name '*.[ch]' -print0 | xargs -0 "$clang_format" --dry-run -Werror
else
  say "format: skipped, needs clang-format 14 (apt-get install clang-format-14)"
fi

if command -v shellcheck >/dev/null; then
  say "shell scripts"
  grep -rlE '^#!.*\bbash|^# shellcheck shell=bash' scripts bench slurm containers .ci | tr '\n' '\0' | xargs -0 shellcheck -x
else
  say "shell scripts: skipped, needs shellcheck (apt-get install shellcheck)"
fi

say "tests"
MO_WERROR=ON scripts/test cpu

say "tests under the address and undefined-behaviour sanitizers"
MO_WERROR=ON scripts/test asan
say "all passed"
