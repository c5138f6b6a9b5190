# shellcheck shell=bash
# What scripts/sweep and slurm/ know of configs and results. They set PROGRAM, moe-outliers with its options, and read this file.

stem() {
  local name=${1##*/}
  printf '%s' "${name%.cfg}"
}

# Text of a config with what it includes.
flatten() {
  local line included folder
  folder=$(dirname "$1")
  while IFS= read -r line || [[ -n $line ]]; do
    if [[ $line =~ ^[[:space:]]*@include[[:space:]]+\"(.*)\" ]]; then
      included=${BASH_REMATCH[1]}
      [[ $included == /* ]] || included=$folder/$included
      [[ -r $included ]] && flatten "$included"
    else
      printf '%s\n' "$line"
    fi
  done <"$1"
}

# config_value CONFIG SECTION KEY [OPTION OF run]...: the value, the last -s SECTION.KEY=VALUE before that of the file.
config_value() {
  local config=$1 section=$2 key=$3 found='' given='' argument
  shift 3
  for argument in "$@"; do
    argument=${argument#-s} argument=${argument#--set=}
    [[ $argument == "$section.$key="* ]] && given=1 found=${argument#*=}
  done
  if [[ -n $given ]]; then
    printf '%s' "$found"
    return
  fi
  flatten "$config" | awk -v section="$section" -v key="$key" '
    { text = text $0 "\n" }
    END {  # words of the text: names, strings, signs; comments go
      while (length(text)) {
        if (match(text, /^([ \t\r\n]+|#[^\n]*|\/\/[^\n]*)/)) { text = substr(text, RLENGTH + 1); continue }
        if (match(text, /^"([^"\\]|\\.)*"/)) ;
        else if (match(text, /^[^ \t\r\n#"{}()=:;,\[\]]+/)) ;
        else { match(text, /^./); if (RLENGTH < 1) RLENGTH = 1 }
        word = substr(text, 1, RLENGTH); text = substr(text, RLENGTH + 1)
        if (word == "{") { depth++; inside[depth] = name }
        else if (word == "}") depth--
        else if ((word == "=" || word == ":") && last != "") { name = last; want = depth == 1 && inside[1] == section && name == key }
        else if (want) { value = word; want = 0 }
        last = word
      }
      if (value ~ /^"/) { value = substr(value, 2, length(value) - 2); gsub(/\\"/, "\"", value); gsub(/\\\\/, "\\", value) }
      printf "%s", value
    }'
}

# is_complete FILE: whether it is a whole result.
is_complete() { [[ -f $1 ]] && "${PROGRAM[@]}" report "$1" >/dev/null 2>&1; }
