# Two commands: `make demo` and `make test`. Each sets up .venv on its first use and whenever the pins change.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: help install demo test lint clean
help:
	@echo "make demo   assimilate the rain of Hurricane Florence and write out/florence/report.html"
	@echo "make test   run the tests"
	@echo "make lint   ruff and mypy"

install: $(STAMP)

# torch goes first and alone: its pinned version decides which build (CPU or CUDA) the other packages then accept.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	@test -x $(BIN)/python || { echo "setting up $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing PyTorch"
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@echo "installing Assimilate and its tools"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/assimilate run florence

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache
