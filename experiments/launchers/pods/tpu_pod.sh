#!/usr/bin/env bash
# One training on all hosts of a TPU slice: the same command on each.
#
#   TPU_NAME=v5p-64 ZONE=europe-west4-b PROJECT=ours FOLDER=/mnt/shared/optlab \
#       bash experiments/launchers/pods/tpu_pod.sh --config=configs/c4_llama.py \
#       --workdir=/mnt/shared/runs/a --config.mesh.data=-1
#
# FOLDER holds the repository and its .venv on every host, which `make .venv` makes with
# what jax needs for the TPU; the workdir lies on a disk that they share.
# --dry_run as the first word, or DRY_RUN=1, prints the command and runs nothing.
needed="TPU_NAME ZONE PROJECT FOLDER"
source "$(dirname "$0")/arguments.sh"

# What the hosts' shells read must be quoted once more than what this one reads.
training=$(printf ' %q' .venv/bin/python -m experiments.train --multihost "$@")
command=(
  gcloud compute tpus tpu-vm ssh "$TPU_NAME"
  --project="$PROJECT" --zone="$ZONE" --worker=all
  --command="cd $(printf %q "$FOLDER") && exec$training"
)
if [[ -n $dry_run ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
