#!/usr/bin/env bash
# One training on several Kubernetes pods with GPUs: fills in and applies kubernetes.yaml.
#
#   IMAGE=registry.example.org/optlab:1 CLAIM=runs PODS=2 GPUS=8 \
#       bash experiments/launchers/pods/kubernetes.sh --config=configs/c4_llama.py \
#       --workdir=/runs/a --config.mesh.data=-1
#
# IMAGE is what the repository's Dockerfile builds with ACCELERATOR=gpu. CLAIM is a volume
# that many pods may write, mounted at /runs. NAME (optlab) names the Job. --dry_run as
# the first word, or DRY_RUN=1, prints the manifest and applies nothing.
needed="IMAGE CLAIM PODS GPUS"
source "$(dirname "$0")/arguments.sh"

NAME=${NAME:-optlab}
# What the manifest holds in quotes needs no escapes then.
check() {
  local allowed=$2
  if [[ ! ${!1} =~ ^$allowed$ ]]; then
    echo "error: $1: given '${!1}', allowed $3" >&2
    exit 2
  fi
}
check NAME '[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?' "a name of small letters, digits and -"
check CLAIM '[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?' "a name of small letters, digits, - and ."
check IMAGE '[A-Za-z0-9._:/@-]+' "the name of an image"
check PODS '[1-9][0-9]*' "a number of pods"
check GPUS '[1-9][0-9]*' "a number of GPUs in a pod"
# A list of JSON strings is one of YAML's; Kubernetes reads $$ as a plain $.
FLAGS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:])[1:-1])' "${@//\$/\$\$}")
manifest=$(grep -v '^#' "$(dirname "$0")/kubernetes.yaml")
for name in NAME IMAGE CLAIM PODS GPUS FLAGS; do
  manifest=${manifest//"\$$name"/"${!name}"}
done
if [[ -n $dry_run ]]; then
  echo "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
