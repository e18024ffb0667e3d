# make demo   builds, starts, shows frames flowing; Ctrl-C ends it
# make test   all tests
# make verify the long tests: every instruction, storms, sanitizers, models, soak; 40 min
# make check  style, types, stubs
# make bench  benchmarks: a table, and JSON in benchmarks/results
# make bench-peers  pyhub beside what else there is: a table, and pictures; 20 min
# make targets  what pyhub promises itself, in ratios of one run; make growth: how cost grows
# make gates  instructions, system calls and ratios against benchmarks/budget.toml
# make conda  builds and tests the conda package, offline
#
# All of them need python3 >= 3.11 with venv, gcc and make; the rest goes into
# .venv. PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HEADERS := $(wildcard include/pyhub/*.h)
NATIVE := $(wildcard pyhub/*.pyx pyhub/*.pxd pyhub/hub/*.pyx)

.PHONY: demo test verify check bench bench-peers targets growth gates conda picture dist clean
.DELETE_ON_ERROR:

demo: $(VENV)/.built
	@$(BIN)/pyhub demo $(ARGS)

test: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

verify: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m pytest -m verify --durations=0 $(ARGS)

check: $(VENV)/.built $(VENV)/.test $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/cython-lint pyhub  # it calls pycodestyle by name
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest pyhub._core pyhub._codec pyhub._dlpack pyhub._datablock \
	    pyhub._reading pyhub._readers pyhub._writing pyhub._deadlines pyhub._handover \
	    pyhub._ears pyhub.hub._raw_socket --allowlist tests/stubtest-allowlist.txt --ignore-unused-allowlist
	$(BIN)/python -m pytest -q tests/test_floors.py

bench: $(VENV)/.built $(VENV)/.test
	$(BIN)/python benchmarks/report.py $(ARGS)

bench-peers: $(VENV)/.built $(VENV)/.peers
	$(BIN)/python benchmarks/peers/compare.py $(ARGS)

targets: $(VENV)/.built $(VENV)/.test $(VENV)/.peers
	$(BIN)/python benchmarks/targets.py $(ARGS)

growth: $(VENV)/.built $(VENV)/.test $(VENV)/.peers
	$(BIN)/python benchmarks/growth.py $(ARGS)

gates: $(VENV)/.built $(VENV)/.test
	$(BIN)/python benchmarks/instructions.py --check
	$(BIN)/python benchmarks/syscalls.py --check
	$(BIN)/python benchmarks/ratios.py --check

conda: $(VENV)/.built $(VENV)/.conda
	$(BIN)/python conda-recipe/offline.py

picture: $(VENV)/.built
	$(BIN)/pyhub demo --seconds 5 --picture docs/demo.svg
	sed -i 's/Fira Code/DejaVu Sans Mono/g' docs/demo.svg
	rsvg-convert -w 1100 docs/demo.svg | pngquant 64 - > docs/demo.png

dist: $(VENV)/.check
	$(BIN)/pip install -q build
	$(BIN)/python -m build

clean:
	rm -rf build dist *.egg-info pyhub/*.c pyhub/*.so pyhub/hub/*.c pyhub/hub/*.so conda-bld benchmarks/results $(VENV)

# The package, editable, and with what record, replay and a site's broker need.
# Built anew when a header or a native module changes.
$(VENV)/.built: pyproject.toml setup.py $(HEADERS) $(NATIVE) | $(VENV)/.made
	@echo "building pyhub into $(VENV): half a minute, once ..."
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[hdf5,site]'
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "pyhub needs python3 >= 3.11; this is $$($(PYTHON) --version)."; \
	      echo "Name another one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	    { echo "venv is missing. On Debian: apt install python3-venv python3-dev"; exit 1; }
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.built
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@

$(VENV)/.check: pyproject.toml | $(VENV)/.built
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[test,check]'
	@touch $@

# One by one: what cannot be installed here is named in the table.
$(VENV)/.peers: pyproject.toml | $(VENV)/.built
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb")) \
	    ["project"]["optional-dependencies"]["peers"], sep="\n")' | \
	    xargs -I{} sh -c '$(BIN)/pip install -q --disable-pip-version-check "{}" || true'
	@touch $@

$(VENV)/.conda: pyproject.toml | $(VENV)/.built
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[conda]'
	@touch $@
