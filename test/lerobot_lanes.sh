#!/usr/bin/env bash
# Run the tests of LeRobot on each of its two versions that an interpreter is there for:
# 0.6 needs Python 3.12 or later, 0.4.4 serves the earlier ones. Each has its own
# environment, because they need other versions of torch than the rest of the suite.
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

install() {
    local python=$1 venv=$2
    if command -v uv >/dev/null; then
        uv venv --quiet --python "$python" "$venv"
        uv pip install --quiet --python "$venv/bin/python" \
            -c constraints-lerobot.txt -e '.[lerobot,test]'
    else
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            -c constraints-lerobot.txt -e '.[lerobot,test]'
    fi
}

run_lane() {
    local lerobot=$1 low=$2 high=$3 python venv
    if ! python=$(find_python "$low" "$high"); then
        echo "LeRobot $lerobot: NOT RUN, no Python $low to $high on this machine"
        return 1
    fi
    venv=".venv-lerobot-$lerobot"
    if [ ! "$venv/.done" -nt pyproject.toml ] \
        || [ ! "$venv/.done" -nt constraints-lerobot.txt ]; then
        rm -rf "$venv"
        install "$python" "$venv" || exit 1
        touch "$venv/.done"
    fi
    echo "LeRobot $lerobot: running on $("$venv/bin/python" --version)"
    OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -n 2 --dist loadfile \
        -m lerobot test/lerobot || exit 1
    ran=$((ran + 1))
}

ran=0
summary=()
for lane in "0.6 3.12 3.13" "0.4.4 3.10 3.11"; do
    # shellcheck disable=SC2086
    if run_lane $lane; then summary+=("ran ${lane%% *}"); else summary+=("not ${lane%% *}"); fi
done
echo "LeRobot lanes: ${summary[*]}"
[ "$ran" -gt 0 ]
