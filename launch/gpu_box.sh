#!/usr/bin/env bash
# One machine, one process for all of its GPUs (or its CPU, if it has none).
#
#     CONFIG=configs/defenses.py WORKDIR=runs/defenses launch/gpu_box.sh \
#       --config.data.root=FOLDER [--config.NAME=VALUE ...]
#
# Stopped by SIGTERM, Ctrl-C or a crash, the same command goes on where it was.
set -euo pipefail
CONFIG=${CONFIG:-configs/demo.py}
WORKDIR=${WORKDIR:-runs/demo}
# Compiled programs: kept between runs.
CACHE=${CACHE:-.jax_cache}
PYTHON=${PYTHON:-.venv/bin/python}

cd "$(dirname "$0")/.."
# exec: signals reach Python itself.
exec "$PYTHON" -m launch.main --config "$CONFIG" --workdir "$WORKDIR" \
  --compilation_cache "$CACHE" "$@"
