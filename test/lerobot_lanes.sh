#!/usr/bin/env bash
# Run the tests of LeRobot on each of its two versions that an interpreter is there for:
# 0.6 needs Python 3.12 or later, 0.4.4 serves the earlier ones. Each has its own
# environment (5 to 9 GB), because they need other versions of torch than the rest of
# the suite, and torchvision, which brings CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."

# Print the first interpreter within [$1, $2], e.g. find_python 3.12 3.13; fail if none.
find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11 \
        python3.10 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python; do
        if "$candidate" - "$1" "$2" 2>/dev/null <<'PY'; then
import sys
low, high = ([int(n) for n in a.split(".")] for a in sys.argv[1:])
sys.exit(not low <= list(sys.version_info[:2]) <= high)
PY
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# Make the environment $2 with the interpreter $1, unless it is there and up to date.
# No download is kept: beside the environment itself a copy of it would fill a small disk.
install() {
    local python=$1 venv=$2
    if [ "$venv/.done" -nt pyproject.toml ] \
        && [ "$venv/.done" -nt constraints-lerobot.txt ]; then
        return 0
    fi
    rm -rf "$venv"
    if command -v uv >/dev/null; then
        uv venv --quiet --python "$python" "$venv"
        uv pip install --quiet --python "$venv/bin/python" \
            -c constraints-lerobot.txt -e '.[lerobot,serving,test]'
    else
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --no-cache-dir \
            --disable-pip-version-check -c constraints-lerobot.txt -e '.[lerobot,serving,test]'
    fi
    touch "$venv/.done"
}

free_gigabytes() { df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }'; }

# One after the other, so that the disk holds the downloads of one at a time. Where it
# could not hold the next one, the environment that has done its work makes room.
summary=() used=""
for lane in "0.6 3.12 3.13" "0.4.4 3.10 3.11"; do
    read -r lerobot low high <<<"$lane"
    if ! python=$(find_python "$low" "$high"); then
        echo "LeRobot $lerobot: NOT RUN, no Python $low to $high on this machine"
        summary+=("did not run $lerobot")
        continue
    fi
    venv=".venv-lerobot-$lerobot"
    if [ -n "$used" ] && [ ! -e "$venv/.done" ] && [ "$(free_gigabytes)" -lt 16 ]; then
        echo "LeRobot $lerobot: less than 16 GB of disk free, removing $used"
        rm -rf "$used"
    fi
    install "$python" "$venv"
    echo "LeRobot $lerobot: running on $("$venv/bin/python" --version)"
    OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -n 2 --dist loadfile \
        -m lerobot test/lerobot
    summary+=("ran $lerobot") used=$venv
done
echo "LeRobot lanes: ${summary[*]}"
[ -n "$used" ]
