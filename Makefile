# Each target sets up what it needs. PYTHON chooses the interpreter (3.10 to 3.13).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

# uv when it is there, plain venv + pip when it is not.
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
CREATE = uv venv --quiet --python $(PYTHON) $(VENV)
INSTALL = uv pip install --quiet --python $(BIN)/python -c constraints.txt
else
CREATE = $(PYTHON) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
endif

.PHONY: demo demo-metaworld test test-lerobot lint format docs bench clean

demo: $(VENV)/.core
	$(BIN)/torchrl-vla demo --folder $(OUT)

demo-metaworld: $(VENV)/.all
	$(BIN)/torchrl-vla demo --env metaworld --folder $(OUT)-metaworld

# One thread per worker: small networks on two threads each wait for one another.
test: $(VENV)/.all lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup
	$(MAKE) test-lerobot

# LeRobot 0.6 and 0.4.4, each where there is a Python for it; says which ran.
test-lerobot:
	PYTHON=$(PYTHON) bash test/lerobot_lanes.sh

lint: $(VENV)/.all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.all
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# Those with LeRobot as peer run where it is: in the environments of test-lerobot.
bench: $(VENV)/.all
	for script in benchmarks/bench_*.py; do \
		case $$script in *lerobot*) continue;; esac; \
		$(BIN)/python $$script || exit 1; \
	done

$(VENV)/.venv:
	$(CREATE)
	touch $@

$(VENV)/.core: $(VENV)/.venv pyproject.toml constraints.txt
	$(INSTALL) -e .
	touch $@

$(VENV)/.all: $(VENV)/.venv pyproject.toml constraints.txt
	$(INSTALL) -e '.[metaworld,video,datasets,pusht,aloha,tensorboard,test,docs,dev]'
	touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) .venv-lerobot-* runs docs/_build docs/auto_tutorials
