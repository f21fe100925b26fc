# Everything runs in .venv, which is made on first use. `make` alone lists what there is.
SUBJECT ?= photonet
IMAGES ?=
WEIGHTS ?=
BUDGET ?=
WHOLE = book/_toc.yml
TOC ?= $(WHOLE)
PYTHON ?= python3
TORCH_INDEX ?=
PORT ?= 8000
# Of tests: one more than two processors, because some wait for a browser, a server or a kernel.
JOBS ?= 3

export FEATVIS_SUBJECT = $(SUBJECT)
# A notebook runs in its own folder, so paths have to be absolute there.
ABSOLUTE = $(shell [ -e "$(1)" ] && realpath "$(1)" || echo "$(1)")
export FEATVIS_IMAGES := $(call ABSOLUTE,$(IMAGES))
export FEATVIS_WEIGHTS := $(call ABSOLUTE,$(WEIGHTS))
export FEATVIS_BUDGET = $(BUDGET)
ifneq ($(FEATVIS_SHELF),)
export FEATVIS_SHELF := $(abspath $(FEATVIS_SHELF))
endif

BIN = .venv/bin
READY = .venv/ready
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
HAS_CHROMIUM = { command -v chromium || command -v google-chrome; } >/dev/null && command -v chromedriver >/dev/null

.PHONY: help book test lab serve fresh bench strip clean FORCE
.DELETE_ON_ERROR:

help:  ## this list
	@echo "make ..."; sed -n 's/^\([a-z]*\):.*## /  \1|/p' Makefile | awk -F'|' '{ printf "%-10s %s\n", $$1, $$2 }'
	@echo; echo "SUBJECT=googlenet IMAGES=/data/imagenet/val BUDGET=quick make book   another network: does everything run?"
	@echo "SUBJECT=googlenet IMAGES=/data/imagenet/val make lab                 run its chapters once, for hours; then make book"
	@echo "SUBJECT=googlenet WEIGHTS=mine.pth make book                         with weights of your own"
	@echo "BUDGET=quick TOC=some.yml make book                                 some chapters, in minutes; numbers mean nothing"
	@echo "TORCH_INDEX=URL make book                                           take torch from this package index (its CPU build)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) $(TORCH_INDEX:%=--index-url %) torch torchvision
	$(PIP) -e ".[lab,book,experiment,test]"
	touch $@

book: $(READY) _build/html/.done  ## build the book into _build/html
	@echo "The book is up to date: _build/html/index.html"

# The myst-nb cache sees a changed notebook but not a changed package, shelf or benchmark, so those drop the cache.
# Sums of contents, not times, decide: a fresh checkout, a touched or a deleted file does the right thing.
SUM = find $(1) -type f ! -path '*/__pycache__/*' ! -path '*/.ipynb_checkpoints/*' -exec cksum {} + | LC_ALL=C sort
_build/package.sum: FORCE
	@mkdir -p _build
	@{ echo "$(SUBJECT) $(IMAGES) $(WEIGHTS) $(BUDGET)"; $(call SUM,featvis results $(FEATVIS_WEIGHTS) $(FEATVIS_SHELF) benchmarks/*.json constraints.txt); } > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else rm -rf _build/.jupyter_cache && mv $@.new $@; fi
_build/pages.sum: FORCE
	@mkdir -p _build
	@{ echo "$(TOC)"; $(call SUM,book notebooks $(TOC) _config.yml CHANGELOG.md CITATION.cff); } > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# Under -W a failed page would pass in the next, incremental run; so every build reads every page (--all).
# A part of the book has links to pages that are not there, so only the whole one must build without a warning.
STRICT = $(if $(filter $(WHOLE),$(TOC)),-nW --keep-going)
_build/html/.done: $(READY) _build/package.sum _build/pages.sum
	rm -rf _build/html
	$(BIN)/jupyter-book build . --toc $(TOC) --all $(STRICT)
	@touch $@

test: $(READY)  ## style, types, tests with coverage, the built page in Chromium (JOBS=3 side by side, one thread each)
	@$(HAS_CHROMIUM) || ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] || \
	  { apt-get update -q && apt-get install -y -q --no-install-recommends chromium chromium-driver; } || true
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest --cov -n $(JOBS) --dist loadfile --no-loadscope-reorder

lab: $(READY)  ## JupyterLab on the chapters
	$(BIN)/jupyter lab notebooks

serve: book  ## the built book on http://127.0.0.1:8000 (PORT=...)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

fresh: $(READY)  ## recompute every finished result in a scratch folder and compare it with the shelf
	$(BIN)/python -m featvis.fresh

bench: $(READY)  ## speed and memory against peers, as ratios
	$(PIP) -e ".[bench]"
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps torch-lucent==0.1.8
	$(BIN)/python -m benchmarks

strip: $(READY)  ## remove outputs and execution counts from the notebooks, as git wants them
	$(BIN)/jupyter nbconvert --clear-output --inplace notebooks/*.ipynb

clean:  ## remove what was built; the environment stays
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache .coverage
