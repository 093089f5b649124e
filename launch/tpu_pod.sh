#!/usr/bin/env bash
# A Cloud TPU pod slice: the same command on every machine of it, each one process.
#
#     TPU=my-pod ZONE=us-central2-b CONFIG=configs/defenses.py WORKDIR=/shared/runs/defenses \
#       launch/tpu_pod.sh --config.data.root=/shared/data [--config.NAME=VALUE ...]
#
# The checkout with its environment stands in the same folder on every machine, and WORKDIR and
# CACHE are on storage that all of them have mounted (see launch/README.md). After a pre-emption,
# make the slice again and give the same command: it goes on where it was.
set -euo pipefail
TPU=${TPU:?name of the TPU slice}
ZONE=${ZONE:?zone of the TPU slice}
CONFIG=${CONFIG:-configs/demo.py}
WORKDIR=${WORKDIR:?folder of the run, on shared storage}
CACHE=${CACHE:-$(dirname "$WORKDIR")/.jax_cache}
CHECKOUT=${CHECKOUT:-saat_jax}
PYTHON=${PYTHON:-.venv/bin/python}

# Quoted for the shells of the pod, which read the command once more.
command=$(printf '%q ' "$PYTHON" -m launch.main --config "$CONFIG" --workdir "$WORKDIR" \
  --compilation_cache "$CACHE" --distributed "$@")
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
  --command "cd $(printf '%q' "$CHECKOUT") && exec $command"
