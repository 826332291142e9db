# Batchyard's commands. `make` prints them. Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOB ?= digits
BACKEND ?=
RUN ?= $(JOB)
ARGS ?=
# of make test: one more than the CPUs, at most 4, since tests also wait for the processes that they start
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n + 1 : 4)))
SUBMIT := $(BIN)/batchyard submit $(JOB) $(if $(BACKEND),--backend $(BACKEND)) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage test-all test-long test-slurm test-slurm-all test-docker test-browser test-gpu lint format check show submit status logs cancel report image

help:  ## print this list
	@echo "make TARGET [JOB=digits] [RUN=...] [BACKEND=local|docker|slurm] [ARGS='--set train.epochs=3']"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s%s\n", $$1, $$2}'

install: $(VENV)/installed  ## make .venv with the launcher, the trainer and the tests' tools

# torch is asked for by itself first, so that its version is chosen before anything else asks for it
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Batchyard needs Python 3.11 or later; make PYTHON=python3.x"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch>=2.9" "torchvision>=0.24"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[train,vision,dev]"
	@touch $@

demo: install  ## train digits on this machine: the whole path in half a minute
	@$(BIN)/batchyard submit digits --backend local
	@echo
	@echo "Try next:"
	@echo "  make show JOB=digits                        what ran, line by line"
	@echo "  make submit ARGS='--set train.epochs=30'    the same job, longer; stop it with Ctrl-C and submit again"
	@echo "  make status                                 where all runs stand"

test: install  ## the tests that need no daemon, no browser and no data set
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not long and not slurm and not docker and not browser and not gpu" $(ARGS)

coverage: install  ## how much of launch and trainer the tests of `make test` reach; takes twice as long
	$(MAKE) test ARGS="--cov --cov-report=term:skip-covered"

test-all:  ## all tests that this machine can run
	$(MAKE) test
	$(MAKE) lint test-long test-slurm test-docker test-browser

test-long: install  ## the tests of this machine alone that take longest: drills, sweeps, disks
	$(BIN)/python -m pytest -m "long and not slurm" $(ARGS)

test-slurm: install  ## the Slurm tests on a real cluster of its own (root, Debian's Slurm packages)
	$(BIN)/python -m pytest -m "slurm and not long" $(ARGS)

test-slurm-all: install  ## those and the long ones: drills, large sweeps, clusters of other settings
	$(BIN)/python -m pytest -m slurm $(ARGS)

test-docker: install  ## the container tests on a real engine of its own (root, dockerd)
	$(BIN)/python -m pytest -m docker $(ARGS)

test-browser: install  ## the report in a headless Chromium (Debian's package chromium)
	$(BIN)/python -m pytest -m browser $(ARGS)

test-gpu: install  ## the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

lint: install  ## ruff, ruff's format and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## format everything, and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: install  ## find every mistake in a job file
	@$(BIN)/batchyard check $(JOB) $(ARGS)

show: install  ## what a job would run, and where
	@$(BIN)/batchyard show $(JOB) $(if $(BACKEND),--backend $(BACKEND)) $(ARGS)

submit: install  ## run a job, or continue it
	@$(SUBMIT)

status: install  ## where the runs stand
	@$(BIN)/batchyard status $(ARGS)

logs: install  ## what a run printed
	@$(BIN)/batchyard logs $(RUN) $(ARGS)

cancel: install  ## stop a run after a checkpoint
	@$(BIN)/batchyard cancel $(RUN) $(ARGS)

report: install  ## make a run's report page
	@$(BIN)/batchyard report $(RUN) $(ARGS)

image:  ## build the container image: CUDA, or CPU=1 (docker/README.md)
	@CPU=$(CPU) docker/build
