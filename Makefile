# Every target makes the virtual environment it needs and reuses it; all are safe to repeat.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install install-plan demo demo-generator demo-fsvideo notebooks site links test test-slow lint clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vidlatent needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@

# XLA takes its buffers anew at every step; as huge pages they cost a tenth less processor time.
demo demo-generator demo-fsvideo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# Trains a small FSAE on real clips, scores it, and restores one clip; DEMO_ARGS is passed on.
demo: install
	$(BIN)/python -m vidlatent.main --config=configs/fsae.py $(DEMO_ARGS)

# Trains a tokenizer and a generator on labelled shapes, and measures how often it does as told.
demo-generator: install
	$(BIN)/python -m experiments.generator_demo $(DEMO_ARGS)

# Trains all parts of FSVideo on labelled shapes: a picture and a label become a refined video.
demo-fsvideo: install
	$(BIN)/python -m experiments.fsvideo_demo $(DEMO_ARGS)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow' $(TEST_ARGS)

# Makes notebooks/*.ipynb from their sources; NOTEBOOK_ARGS=--execute runs them for their pictures.
notebooks: $(VENV)/.installed-plan
	$(BIN)/python -m notebooks.build $(NOTEBOOK_ARGS)

# The site in build/site; a broken link or a page that is on no menu is an error.
site: $(VENV)/.installed-plan
	$(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

# Asks every link out of the pages whether it answers; needs the network.
links:
	$(PYTHON) -m docs.links --check

# With the compiler for TPUs, which needs none: plans and tests look at the programs it makes. What
# runs notebooks, builds the site and opens pages in a browser comes along. The browser itself is the
# system's (apt-get install chromium); tests that need it are skipped without.
install-plan: $(VENV)/.installed-plan

$(VENV)/.installed-plan: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[test,plan,notebooks,docs,app,browser]'
	@touch $@

test-slow: $(VENV)/.installed-plan
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(TEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Leaves runs/ alone: what was trained stays.
clean:
	rm -rf $(VENV) build *.egg-info
