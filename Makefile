# The targets CI runs, and the one a newcomer starts with: make demo.
PYTHON ?= python3
BIN := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
LIGHT := .venv-light/$(BIN)
FULL := .venv/$(BIN)
PIP := -m pip --disable-pip-version-check install --quiet

# each worker of pytest has a core: torch's threads in all of them would stand in each other's way (4 times slower)
export OMP_NUM_THREADS ?= 1

MINUTES ?= 30

.PHONY: demo test test-all hub-oldest oldest check fuzz wild programs format index clean

demo: .venv-light/ready  ## convert a real SAT run with the light core (no torch), and look at the result
	$(LIGHT)/python docs/demo.py

test: .venv/ready  ## every kind of test, in the full environment: a few minutes
	$(FULL)/python -m pytest -n auto -m "not long"
	$(FULL)/python -m pytest -q -n auto plugins

test-all: .venv/ready  ## all tests, those marked `long` too
	$(FULL)/python -m pytest -n auto
	$(FULL)/python -m pytest -q -n auto plugins

hub-oldest: .venv-hub/ready  ## the tests of the Hub with the oldest client that is supported
	.venv-hub/$(BIN)/python -m pytest -q -n auto -m "not pipelines and not long" tests/hubs

oldest: .venv-oldest/ready  ## loraforge beside transformers 4 and Diffusers 0.35: the Hub, and adapters in pipelines
	.venv-oldest/$(BIN)/python -m pytest -q -n auto -m "not pipelines" tests/hubs
	LORAFORGE_OLDEST=1 .venv-oldest/$(BIN)/python -m pytest -q -n auto tests/programs/test_beside.py
	.venv-oldest/$(BIN)/python -m pytest -q tests/programs/test_results.py -k installed
	.venv-oldest/$(BIN)/python -m pytest -q -n auto tests/interop/test_load_into.py -k "not group"  # which needs a GPU in 0.35

programs: .venv/ready  ## what versions of Diffusers and PEFT do with files: tests/programs/results.json, docs/programs.md
	cd tests && ../$(FULL)/python -m programs.measure $(ONLY)

fuzz: .venv/ready  ## parsers, whole calls, chains and the Hub's answers on inputs changed at random, for MINUTES=30 of CPU
	for part in parsers calls chains hub; do PYTHONPATH=. $(FULL)/python tests/fuzz/run.py $$part \
	  --minutes $$(( ($(MINUTES) + 3) / 4 )) --keep fuzz-found --record tests/fuzz/runs.json || found=1; done; [ -z "$$found" ]

wild: .venv/ready  ## public adapters of the Hub: inspect, doctor, convert, verify (needs a network)
	$(FULL)/python tests/wild/wild.py

check: .venv/ready  ## format, lint, types, and the wheel in a clean environment
	$(FULL)/ruff format --check .
	$(FULL)/ruff check .
	$(FULL)/mypy
	rm -rf dist .venv-wheel
	$(FULL)/python -m hatchling build -t wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/$(BIN)/python $(PIP) --constraint tests/constraints.txt dist/*.whl
	cd dist && ../.venv-wheel/$(BIN)/loraforge formats
	rm -rf .venv-wheel

format: .venv/ready  ## put the code into the project's format
	$(FULL)/ruff check --fix .
	$(FULL)/ruff format .

index: .venv/ready  ## after a change in loraforge/names/architectures: the index of module names
	PYTHONPATH=. $(FULL)/python tests/helpers/index.py

clean:
	rm -rf .venv .venv-light .venv-hub .venv-oldest .venv-programs .venv-wheel dist

.venv-light/ready: pyproject.toml
	$(PYTHON) -m venv .venv-light
	$(LIGHT)/python $(PIP) --editable .
	touch $@

.venv-hub/ready: pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv .venv-hub
	grep -v huggingface_hub tests/constraints.txt > .venv-hub/constraints.txt
	.venv-hub/$(BIN)/python $(PIP) --constraint .venv-hub/constraints.txt --editable . huggingface_hub==0.34.0 pytest pytest-timeout pytest-xdist hypothesis
	touch $@

.venv-oldest/ready: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/$(BIN)/python $(PIP) --constraint tests/oldest.txt torch
	.venv-oldest/$(BIN)/python $(PIP) --constraint tests/oldest.txt --editable ".[pipeline]" accelerate pytest pytest-timeout pytest-xdist hypothesis
	touch $@

.venv/ready: pyproject.toml tests/constraints.txt $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv .venv
	$(FULL)/python $(PIP) --upgrade "pip>=25.1"
	$(FULL)/python $(PIP) --constraint tests/constraints.txt torch==2.13.0  # first: what depends on it would bring CUDA
	$(FULL)/python $(PIP) --constraint tests/constraints.txt --editable . --group dev
	$(FULL)/python $(PIP) --constraint tests/constraints.txt --no-deps $(foreach plugin,$(wildcard plugins/loraforge-*),--editable $(plugin))
	touch $@
