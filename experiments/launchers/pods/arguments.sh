# Sourced by the pod scripts: takes --dry_run off their arguments, and asks for the
# variables in $needed and for the training's flags.
set -euo pipefail

dry_run=${DRY_RUN:-}
if [[ ${1:-} == --dry_run ]]; then
  dry_run=1
  shift
fi
missing=()
for name in $needed; do
  [[ -n ${!name:-} ]] || missing+=("$name")
done
if ((${#missing[@]})); then
  echo "error: set ${missing[*]}" >&2
  exit 2
fi
if (($# == 0)); then
  echo "error: give the training's flags, such as --config and --workdir" >&2
  exit 2
fi
