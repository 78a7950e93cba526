# Every target makes .venv itself; `make demo` and `make test` are all the set-up there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test lint bench rehearsal clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(READY) ## Ask eden-tiny, fine-tune it on real digits, ask again (a few minutes, offline)
	@rm -rf runs/demo
	$(BIN)/eden demo --out runs/demo

test: $(READY) ## Run the whole test suite, a process per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --max-worker-restart 0 \
		--dist loadfile --no-loadscope-reorder

lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## Time Eden on this machine, and write the table of docs/benchmarks.md
	$(BIN)/python -m bench

rehearsal: $(READY) ## Train the real shapes with random weights: 25 minutes, 20 GiB
	$(BIN)/python -m bench.rehearsal

clean: ## Remove what the other targets made
	rm -rf $(VENV) runs

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt torch -e '.[dev]'
	@touch $@
