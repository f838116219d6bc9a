# Everything runs inside .venv, which `make setup` builds from requirements.lock.
PYTHON ?= python3
VENV   ?= .venv
STUDY  ?= compare
DATA   ?=
ARGS   ?=
DEVICE ?= cpu
JOBS   ?= 2
export OMP_WAIT_POLICY = PASSIVE
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: setup experiment test lint format bench report publish dashboard lock clean help

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14
	@echo
	@echo "make experiment STUDY=$(STUDY) DATA=fashion_mnist ARGS=\"seed=0,1 task.epochs=5\""

setup: $(STAMP) ## build .venv from the lock file

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Triptych needs Python 3.11 or newer; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m triptych.norms.kernels
	@touch $(STAMP)

experiment: $(STAMP) ## run the study STUDY (compare) and write outputs/STUDY/report.html
	@$(BIN)/python -m triptych study $(STUDY) $(if $(DATA),data=$(DATA)) $(ARGS)

test: $(STAMP) ## run the tests, JOBS files at a time
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

lint: $(STAMP) ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## let ruff put the code in order
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: $(STAMP) ## ratios against named baselines, on DEVICE
	@$(BIN)/python -m benchmarks --device $(DEVICE) $(ARGS)

report: $(STAMP) ## write the report of STUDY again, from its records
	@$(BIN)/python -m triptych report outputs/$(STUDY)

publish: $(STAMP) ## write the outcome of STUDY into experiments/STUDY/results
	@$(BIN)/python -m triptych publish outputs/$(STUDY)

dashboard: $(STAMP) ## build the W&B workspace of STUDY (needs an account)
	@$(BIN)/python -m triptych dashboard outputs/$(STUDY)

lock: $(STAMP) ## compile requirements.in into requirements.lock (needs uv)
	uv pip compile requirements.in --universal --generate-hashes --python-version 3.11 --no-header --output-file requirements.lock

clean: ## remove caches and .venv; outputs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
