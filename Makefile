# Each target works from a fresh checkout: without an active virtual environment it makes .venv and installs there.
PYTHON ?= python3
ifdef VIRTUAL_ENV
BIN := $(VIRTUAL_ENV)/bin
else
BIN := .venv/bin
endif

.PHONY: demo cascade test soak fuzz accept-serve soak-serve lint docs bench clean

# One stamp an extra, renewed when setup.py changes.
$(BIN)/.internvl-%: setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(BIN)/..
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

demo: $(BIN)/.internvl-demo
	$(BIN)/python -m launch.demo --workdir=demo_out

cascade: $(BIN)/.internvl-cascade
	$(BIN)/python -m launch.cascade --workdir=cascade_out

# PART=losses runs tests/losses alone.
test: $(BIN)/.internvl-test
	$(BIN)/python -m pytest tests/$(PART)

# What takes too long for `make test`: recorded answers on every mesh, and ten kills of each run in place of one.
soak: $(BIN)/.internvl-test
	INTERNVL_JAX_KILLS=10 $(BIN)/python -m pytest -m "soak or sigkill"

# Nearly right inputs for everything that reads from outside; INPUTS=2000 for a short run.
INPUTS ?= 20000
fuzz: $(BIN)/.internvl-test
	$(BIN)/python -m tests.fuzzing --inputs=$(INPUTS)

# A server under other people's clients and load generators, each in an environment of its own below accept_out (8 GB,
# most of it the PyTorch that guidellm brings), and worn out; the model of `make demo`, unless CHECKPOINT names another.
CHECKPOINT ?= demo_out/sft
accept-serve: $(BIN)/.internvl-test
	$(BIN)/python -m tests.acceptance --checkpoint=$(CHECKPOINT)

LOAD_SECONDS ?= 60
soak-serve: $(BIN)/.internvl-test
	$(BIN)/python -m tests.acceptance.soak --checkpoint=$(CHECKPOINT) --seconds=$(LOAD_SECONDS)

lint: $(BIN)/.internvl-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Public functions and classes, from docstrings.
docs:
	$(PYTHON) docs/make_api.py

bench: $(BIN)/.internvl-bench
	$(BIN)/python -m launch.bench_inference
	$(BIN)/python -m launch.bench_batch
	$(BIN)/python -m launch.bench_rollout
	$(BIN)/python -m launch.bench_stages
	$(BIN)/python -m launch.bench_train
	$(BIN)/python -m launch.bench_convert

clean:
	rm -rf demo_out cascade_out accept_out .venv
