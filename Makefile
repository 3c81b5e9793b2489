# Verbs: run, test, test-pythons, lint, bench, performance, fuzz, sanitize, test-vm, test-bochs, clean. Each does the set-up that it needs.
# PYTHON=/path/to/python chooses another interpreter (3.11 or newer).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find src/fpstate/_core programs -type f) CMakeLists.txt pyproject.toml
SANITIZED := build/sanitize

# Warnings of the C compiler are errors in CI, not on machines whose compilers we have not met.
STRICT := $(if $(CI),ON,OFF)
PIP := -m pip install --quiet --disable-pip-version-check

# What CI takes from the index, build requirements too, has to have the hashes that tools/lock.sh has written down.
# Elsewhere pip takes what pyproject.toml allows and the machine has.
LOCK := tools/locked.txt
locked = $(if $(CI),$(1) $(PIP) --require-hashes --requirement $(LOCK))
OURS := $(if $(CI),--no-build-isolation --no-deps)

.PHONY: run test test-pythons lint bench performance fuzz sanitize test-vm test-bochs clean

run: $(VENV)/installed
	$(BIN)/fpstate run

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

# The unit and the property tests on every other CPython from 3.11 on that is here, with one wheel.
test-pythons: $(VENV)/bin/python
	./tools/every_python.sh $(BIN)/python

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fpstate._core --allowlist tools/stubtest-allowed.txt --ignore-unused-allowlist
	$(BIN)/lint-imports

# Each of them says what it measures and may miss its target, or lack a tool; none may take longer than this.
BENCH_SECONDS := 600
ALL_BENCH_SECONDS := 1800
BENCHMARKS := $(sort $(wildcard tests/benchmarks/*.py))
bench: $(VENV)/installed-bench
	@failed=0; \
	timeout -k 10 $(ALL_BENCH_SECONDS) $(BIN)/fpstate bench || { [ $$? -eq 3 ] || failed=1; }; \
	for script in $(BENCHMARKS); do \
		echo "== $$script"; \
		timeout -k 10 $(BENCH_SECONDS) $(BIN)/python $$script || { code=$$?; echo "== $$script: exit code $$code"; \
			[ $$code -eq 3 ] || failed=1; }; \
	done; exit $$failed

# The measured part of docs/performance.md, and its picture; for a machine that does nothing else meanwhile.
performance: $(VENV)/installed-bench
	mkdir -p build
	$(BIN)/fpstate bench --json --plot docs/performance.svg > build/performance.json
	$(BIN)/python -m fpstate.bench.page build/performance.json docs/performance.md

# Every source under coverage-guided fuzzing, FUZZ_SECONDS in all, or FUZZ_INPUTS; what breaks is kept in build/fuzz.
FUZZ_SECONDS ?= 60
FUZZ_INPUTS ?= 0
FUZZ_SEED ?= 1
fuzz: $(VENV)/installed
	./tests/fuzz/run.sh $(BIN)/python --seconds $(FUZZ_SECONDS) --inputs $(FUZZ_INPUTS) --seed $(FUZZ_SEED)

# The core once more, with AddressSanitizer and UndefinedBehaviorSanitizer, under its own tests.
sanitize: $(SANITIZED)/installed
	./tools/sanitized.sh $(SANITIZED)/bin/python -m pytest tests/hardware -p no:cacheprovider

# The KVM tests on a KVM with hardware virtualization, and native guests on a processor with protection keys, in emulated
# machines; see tests/emulated/README.md.
test-vm: $(VENV)/bin/python
	./tests/emulated/run.sh kvm qemu $(BIN)/python
	./tests/emulated/run.sh keys qemu $(BIN)/python

# The KVM tests, then the engine and its tests, on an emulated processor with AVX-512; about twenty minutes.
test-bochs: $(VENV)/bin/python
	./tests/emulated/run.sh kvm bochs $(BIN)/python
	./tests/emulated/run.sh engine bochs $(BIN)/python

$(VENV)/bin/python:
	./tools/prepare.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(NATIVE) $(if $(CI),$(LOCK)) | $(VENV)/bin/python
	$(call locked,$(BIN)/python)
	$(BIN)/python $(PIP) $(OURS) --config-settings=cmake.define.FPSTATE_STRICT=$(STRICT) --editable .
	touch $@

$(VENV)/installed-test $(VENV)/installed-lint: $(VENV)/installed-%: $(VENV)/installed
	$(BIN)/python $(PIP) $(OURS) --config-settings=cmake.define.FPSTATE_STRICT=$(STRICT) --editable '.[$*]'
	touch $@

# A peer that cannot be had is named by fpstate bench, and left out.
$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/python $(PIP) --config-settings=cmake.define.FPSTATE_STRICT=$(STRICT) --editable '.[bench]' || \
		echo "bench: the peers of the extra 'bench' cannot be installed" >&2
	touch $@

$(SANITIZED)/installed: $(NATIVE) $(shell find src -name '*.py') | $(VENV)/bin/python
	$(PYTHON) -m venv $(SANITIZED)
	$(call locked,$(SANITIZED)/bin/python)
	$(SANITIZED)/bin/python $(PIP) $(OURS) --force-reinstall --no-deps --config-settings=build-dir=$(SANITIZED)/cmake \
		--config-settings=cmake.define.FPSTATE_STRICT=$(STRICT) --config-settings=cmake.define.FPSTATE_SANITIZE=address,undefined .
	$(SANITIZED)/bin/python $(PIP) $(OURS) '.[test]' --config-settings=build-dir=$(SANITIZED)/cmake \
		--config-settings=cmake.define.FPSTATE_SANITIZE=address,undefined
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
