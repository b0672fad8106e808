# make demo      the method on its embedded data, from rendering to the result table
# make test      the tests, in two processes (WORKERS=N: in N)
# make test-all  the tests and what is long and rare
# make lint      the static checks only: ruff, mypy, vulture, directions of imports, the documents
# make docs      the documentation as a site, in build/docs
# make env       the environment only: source .venv/bin/activate
# Each makes its own environment in .venv first and uses it again the next time.

PYTHON ?= python3
VENV ?= .venv
DEMO_OUTPUT ?= logs/demo
SEED ?= 1
WORKERS ?= 2

READY := $(VENV)/.installed
RUN := $(VENV)/bin/python

.PHONY: demo test test-all lint docs env clean help

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

demo: $(READY)
	$(VENV)/bin/caureid demo --output $(DEMO_OUTPUT) --seed $(SEED)

# those that measure memory or wait for signals need the machine to themselves
test: $(READY)
	$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not alone" tests
	$(RUN) -m pytest -q -m "alone and not slow" tests

test-all: test
	$(RUN) -m pytest -q -m slow tests

lint: $(READY)
	$(RUN) -m pytest -q tests/test_static.py tests/test_structure.py tests/test_docs.py \
		tests/test_words.py

docs: $(READY)
	$(RUN) -m sphinx -W --keep-going -n -b html docs build/docs

env: $(READY)

$(READY): setup.py requirements-fastreid.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -e '.[faiss-cpu,test]'
	$(RUN) -m pip install --quiet --no-deps -r requirements-fastreid.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info logs
