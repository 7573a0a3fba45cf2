# Every target needs Python 3.10 or newer, and nothing else. `make check` is what CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# A Label Studio of one's own, for trying things and for its test: loopback address, SQLite, a fixed user.
STUDIO_VENV ?= build/label-studio
STUDIO_PORT ?= 8080
STUDIO_TOKEN ?= al-seg-env-local-token
STUDIO_ENV = LABEL_STUDIO_BASE_DATA_DIR=$(CURDIR)/build/label-studio-data COLLECT_ANALYTICS=0 \
	LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK=true \
	LABEL_STUDIO_USERNAME=labeller@localhost.local LABEL_STUDIO_PASSWORD=$(STUDIO_TOKEN) \
	LABEL_STUDIO_USER_TOKEN=$(STUDIO_TOKEN)

.PHONY: demo test test-fast check lint types docs pictures dist label-studio test-label-studio clean

demo: $(VENV)/.installed
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not (slow or ray or browser)"

check: lint types test

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The documentation site, in build/site.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The pictures in docs/pictures.
pictures: $(VENV)/.installed-dev
	$(BIN)/python docs/tools/pictures.py

# An sdist and a wheel in dist/, tried in a fresh environment.
dist: $(VENV)/.installed-dev
	rm -rf dist build/lib build/fresh
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv build/fresh
	build/fresh/bin/python -m pip install --quiet "$$(echo dist/*.whl)[examples]"
	cd build/fresh && bin/python $(CURDIR)/tests/support/smoke.py

# Starts it, and stays; its token is STUDIO_TOKEN. The first time takes minutes: it is about 1 GB.
label-studio: $(STUDIO_VENV)/.installed
	$(STUDIO_ENV) $(STUDIO_VENV)/bin/label-studio start --no-browser --enable-legacy-api-token --internal-host 127.0.0.1 \
		--port $(STUDIO_PORT)

# The test against a server that `make label-studio` runs in another terminal. CI leaves it out.
test-label-studio: $(VENV)/.installed-dev
	LABEL_STUDIO_URL=http://127.0.0.1:$(STUDIO_PORT) LABEL_STUDIO_API_KEY=$(STUDIO_TOKEN) \
		$(BIN)/python -m pytest -q -m label_studio tests/al_seg_env/labelling

$(STUDIO_VENV)/.installed:
	$(PYTHON) -m venv $(STUDIO_VENV)
	$(STUDIO_VENV)/bin/python -m pip install --quiet "label-studio>=1.20"
	touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[examples]"
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
