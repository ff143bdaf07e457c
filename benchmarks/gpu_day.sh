#!/usr/bin/env bash
# The GPU day on a bare machine: Python with PyTorch, one GPU, no network, and prepared
# wheels in .gpu/ of the repository (or the folder that $WHEELS names). Arguments go to
# benchmarks/gpu_day.py; --rehearse runs all of it on the CPU with tiny sizes.
#
#     bash benchmarks/gpu_day.sh --folder runs/gpu-day --minutes 12.5
#     bash benchmarks/gpu_day.sh --rehearse
#
# benchmarks/mt50.sh says how the wheels are prepared; add hypothesis and
# sortedcontainers for the suite. A rehearsal in an environment with everything needs none.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${WHEELS:-.gpu}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G "$wheels/*.whl" > /dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --upgrade --target "$site" "$wheels"/*.whl
fi
export PYTHONPATH="$site:$PWD" HF_HUB_OFFLINE=1 EXCLUDE_TD_FROM_PYTREE=1
python3 benchmarks/gpu_day.py "$@"
