PYTHON ?= python3
BIN := .venv/bin
SETUP = $(PYTHON) tests/harness/setup_venv.py

# The tests wait for workers most of the time. Each file keeps its servers to itself.
BESIDE = --numprocesses 2 --dist loadfile

export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help demo test test-slow lint type check bench soak docs matrix build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## replay the incident, without the guard and with it, and check each claim
	@$(SETUP) redis
	@$(BIN)/python -m tests.demo

test: ## run the tests on real workers and a Redis of their own
	@$(SETUP) redis ddtrace test docs
	@$(BIN)/python -m pytest -m "not slow" $(BESIDE) $(ARGS)

test-slow: ## run the tests that take minutes
	@$(SETUP) redis ddtrace test docs
	@$(BIN)/python -m pytest -m slow $(ARGS)

lint: ## check style and formatting
	@$(SETUP) lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

type: ## check types
	@$(SETUP) lint test docs matrix
	@$(BIN)/mypy

check: lint type test ## lint, type and test

bench: ## measure what the guard costs, as ratios within one run
	@$(SETUP) redis test bench
	@$(BIN)/python -m tests.bench

soak: ## an hour of load on workers of each pool, and what has grown; MINUTES=60
	@$(SETUP) redis test
	@$(BIN)/python -m tests.bench.soak $(MINUTES)

docs: ## build the documentation into docs/_build
	@$(SETUP) docs
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going -q docs docs/_build

matrix: ## run the tests on several releases of Celery and Python
	@$(SETUP) redis matrix
	@$(BIN)/nox --sessions releases pythons

build: ## build the wheel and the sdist into dist
	@$(SETUP) matrix
	@$(BIN)/python -m pip --quiet install build
	@$(BIN)/python -m build --outdir dist .

clean: ## remove what the other targets made
	rm -rf .venv .nox build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
