# make demo   set everything up, probe this machine, run a mock rack through its whole life, show the real plugins at work
# make test   set everything up and run the whole suite
# make lab    boot a Debian kernel in QEMU with NVDIMMs, soft-RoCE, NVMe and CXL, and run the real plugins inside
# make nightly  the random tests with many more examples: a million instances for the allocator's oracle, 16,000 seeds
# make bench  the benchmarks of tests/bench, with ratios
# make check  ruff, mypy --strict, import-linter

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
WHEELS := mocks $(wildcard plugins/*)
JOBS   ?= 2

.PHONY: demo test nightly lab bench check setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml $(addsuffix /pyproject.toml,$(WHEELS))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hal needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --group dev -e . $(foreach wheel,$(WHEELS),-e ./$(wheel))
	@touch $@

demo: setup
	@echo "== This machine (hal-probe)"
	@$(BIN)/hal-probe || [ $$? -le 3 ]
	@echo
	@echo "== A mock rack (python -m hal_mocks.demo)"
	@$(BIN)/python -m hal_mocks.demo
	@echo
	@echo "== The real plugins without their hardware: a region in a file, an RDMA NIC over shared memory"
	@mkdir -p build/demo
	@HAL_PMEM_FILES=$(CURDIR)/build/demo/scratch.pmem=64M HAL_RDMA_SOFTWARE=shm $(BIN)/hal-probe --kind pmem,rnic
	@echo
	@echo "== The real nvidia plugin in a mock machine, one GPU lost (hal mock run dgx-h100)"
	@$(BIN)/hal-mock run dgx-h100 -- sh -c '$(BIN)/hal-mock fault gpu3 lost; $(BIN)/hal-probe --kind gpu' || [ $$? -ne 64 ]
	@rm -rf build/demo

test: setup check
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

nightly: setup
	HAL_TEST_PROFILE=nightly $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --timeout 36000 tests/unit tests/simulation

lab: setup
	$(BIN)/python -m tests.lab

bench: setup
	$(BIN)/python -m tests.bench

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
