# Two commands set everything up: `make demo` and `make test`. Only Python 3.11+ and make are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One process more than processors, because some tests wait for their subprocesses.
SPREAD = -n $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)') --dist worksteal $(ENDING)
# Print the stack of a hanging test and end its process; the other tests continue.
ENDING = -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

# What is compiled once is loaded by every later process: an import of torch then takes a third of the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test acceptance exhaustive quick lint docs bench platforms lowest clean browser servers

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "avdata needs Python 3.11 or newer. Use: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## prepare, verify and train on a generated audio-visual XOR dataset
	rm -rf demo
	$(BIN)/avdata prepare synthetic --output demo/synthetic
	$(BIN)/avdata verify demo/synthetic
	$(BIN)/avdata report demo/synthetic
	$(BIN)/snnergy train demo/synthetic --model nano --train-preset quick --steps 250 --output demo/run
	$(BIN)/snnergy report demo/run
	@echo; echo "shards    demo/synthetic"; echo "pages     demo/synthetic/report.html, demo/run/report.html"; echo "log       demo/run/metrics.csv, demo/run/curves.png"
	@$(BIN)/python -c 'import json; r = json.load(open("demo/run/result.json")); \
	print("accuracy ", r["test"]["accuracy"], "on the test split; chance is", 1 / r["num_classes"])'

# The report tests need a browser: the system's, Debian's package, or playwright's own.
browser: $(VENV)/.installed
	@command -v chromium-headless-shell >/dev/null || command -v google-chrome >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium-headless-shell; } >/dev/null 2>&1 \
	|| command -v chromium >/dev/null \
	|| $(BIN)/playwright install --with-deps --only-shell chromium

# The download tests run against real servers of other projects. RUNLEVEL=1: apt does not start them.
SERVERS = nginx tinyproxy microsocks git-lfs
servers:
	@missing=$$(PATH="$$PATH:/usr/sbin"; for program in $(SERVERS); do command -v $$program >/dev/null || echo $$program; done); \
	[ -z "$$missing" ] \
	|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends nginx-light tinyproxy-bin microsocks git-lfs; } >/dev/null 2>&1 \
	|| echo "not installed, their tests are skipped: "$$missing
	@[ -d build/s3rver/node_modules/@20minutes/s3rver ] || { command -v npm >/dev/null \
	&& npm install --prefix build/s3rver --no-audit --no-fund --silent @20minutes/s3rver@4.0.4; } >/dev/null 2>&1 \
	|| echo "npm is missing or failed; the tests with s3rver are skipped"

test: $(VENV)/.installed browser servers  ## run the test suite
	$(BIN)/python -m pytest $(SPREAD) -m 'not acceptance and not pages and not exhaustive'

acceptance: $(VENV)/.installed  ## train on the XOR task: CMQKA solves it, concatenation does not
	$(BIN)/python -m pytest -m acceptance

exhaustive: $(VENV)/.installed  ## run the further cases that `make test` leaves out
	$(BIN)/python -m pytest $(SPREAD) -m exhaustive

quick: $(VENV)/.installed  ## run the test suite without the slow tests
	$(BIN)/python -m pytest $(SPREAD) -m 'not slow and not acceptance and not pages and not exhaustive'

lint: $(VENV)/.installed  ## check style, types and spelling
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/codespell

docs: $(VENV)/.installed  ## run the commands of the pages, and build the site without warnings
	rm -rf build/docs
	SITE_DIR=build/docs $(BIN)/python -m pytest $(SPREAD) -m pages tests/e2e tests/cli

bench: $(VENV)/.installed  ## run the short form of every benchmark, and write benchmarks/results
	$(BIN)/python benchmarks/run.py --quick

LOWEST = build/lowest
LOWEST_TESTS = $(wildcard tests/sources/test_[!s]*.py) tests/storage/test_network.py tests/recipes tests/features/audio tests/media/test_video.py tests/media/test_audio.py \
tests/media/test_image.py tests/streaming/test_dataset.py tests/streaming/test_integrations.py tests/snnergy/test_cli.py tests/reporting/test_charts.py
lowest: $(VENV)/.installed  ## run a part of the tests with the lowest declared versions of the requirements
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --output-file $(LOWEST)/requirements.txt pyproject.toml
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python -r $(LOWEST)/requirements.txt 'hypothesis>=6.100' 'imageio-ffmpeg>=0.5' 'pytest>=9' 'trustme>=1.1'
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	$(LOWEST)/bin/python -m pytest -m 'not slow and not acceptance and not pages and not exhaustive' $(LOWEST_TESTS)

PLATFORMS = x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin x86_64-pc-windows-msvc
platforms: $(VENV)/.installed  ## resolve the requirements for every supported platform and version of Python
	@set -e; for version in 3.11 3.12 3.13; do for platform in $(PLATFORMS); do \
	MACOSX_DEPLOYMENT_TARGET=14.0 $(BIN)/uv pip compile --quiet --only-binary :all: --python-version $$version --python-platform $$platform --output-file /dev/null pyproject.toml >/dev/null; \
	echo "Python $$version $$platform: resolved"; done; done

clean:
	rm -rf $(VENV) demo build dist *.egg-info
