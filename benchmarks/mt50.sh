#!/usr/bin/env bash
# MT50 on a bare machine: Python with PyTorch, no network, and prepared wheels in .gpu/ of
# the repository. Arguments go to benchmarks/mt50.py; --quick tries the installation.
#
#     bash benchmarks/mt50.sh --minutes 14
#
# Prepare the wheels beforehand, for that machine's Python (here 3.12 on x86-64 Linux):
#
#     python3 -m pip download -d .gpu --no-deps --only-binary=:all: --python-version 3.12 \
#         --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
#         --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
#         tensordict==0.14.3 torchrl==0.14.1 pyvers orjson importlib-metadata cloudpickle \
#         gymnasium==1.4.0 farama-notifications tyro docstring-parser typeguard shtab \
#         tqdm metaworld==3.1.1 mujoco==3.3.0 glfw PyOpenGL etils
#
# Add numpy, scipy, imageio and packaging where PyTorch stands really alone.
set -euo pipefail
cd "$(dirname "$0")/.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
    --disable-pip-version-check --target "$site" .gpu/*.whl
PYTHONPATH="$site:$PWD" MUJOCO_GL=egl python3 benchmarks/mt50.py --workers "$(nproc)" "$@"
