# make reproduce [CLAIM=lstm/table9/6a] · make test · make lint · make leaderboard · make browser · make picture
PYTHON ?= python3
VENV ?= .venv
CLAIM ?= lstm/table9/6a
READY := $(VENV)/.ready

.PHONY: reproduce test lint leaderboard browser picture clean

reproduce: $(READY)
	@$(VENV)/bin/repro claim $(CLAIM) --fresh

test: $(READY)
	@$(VENV)/bin/python -m pytest -n auto --maxprocesses 8

lint: $(READY)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" pre-commit run --all-files --show-diff-on-failure

leaderboard: $(READY)
	@$(VENV)/bin/repro board

# The page in Chromium, and the README's picture of it: tests/browser.py says what these need.
browser: $(READY)
	@$(VENV)/bin/python -m pytest -m browser

picture: $(READY)
	@$(VENV)/bin/python -m tests.browser

# Happens once, and again when the dependencies change.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=python3.12")'
	@echo "Setting up $(VENV) (once, a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs
