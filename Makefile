# Two commands set everything up: `make demo` and `make test`. Only Python 3.11+ and make are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One process more than processors, because some tests wait for their subprocesses.
SPREAD = -n $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)') --dist worksteal $(ENDING)
# Print the stack of a hanging test and end its process; the other tests continue.
ENDING = -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

.PHONY: demo test acceptance exhaustive quick lint docs platforms clean browser

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
	$(BIN)/snnergy train demo/synthetic --model nano --train-preset quick --set model_options.alpha_init=1.0 --steps 250 --output demo/run
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

test: $(VENV)/.installed browser  ## run the test suite
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
	$(BIN)/python -m pytest $(SPREAD) -m pages
	$(BIN)/mkdocs build --strict --site-dir build/docs

PLATFORMS = x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin x86_64-pc-windows-msvc
platforms: $(VENV)/.installed  ## resolve the requirements for every supported platform and version of Python
	@set -e; for version in 3.11 3.12 3.13; do for platform in $(PLATFORMS); do \
	MACOSX_DEPLOYMENT_TARGET=14.0 $(BIN)/uv pip compile --quiet --only-binary :all: --python-version $$version --python-platform $$platform --output-file /dev/null pyproject.toml >/dev/null; \
	echo "Python $$version $$platform: resolved"; done; done

clean:
	rm -rf $(VENV) demo build dist *.egg-info
