# make book     generate a few pairs, execute every notebook, render the book
# make test     everything a change must pass
# make figures  draw the committed figures again, after a change of the renderer
# Both set up all they need in .venv; nothing else is touched. Generated files go to _build/.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
MATHJAX := book/_static/tex-svg.js
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
TESTED := _build/test/_build/html
export PYDEVD_DISABLE_FILE_VALIDATION := 1# no debugger warnings from the notebooks' kernels

.PHONY: book test figures clean
.DELETE_ON_ERROR:

# The environment is made only when it is missing, and filled only when what it should hold has changed.
$(READY): requirements.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "installing what requirements.txt names, this can take some minutes"
	$(BIN)/pip install --quiet --editable ".[evaluation,book,test]"
	touch $@

# The one file of MathJax that the pages need, so that they can be read with the network off.
$(MATHJAX): $(READY)
	mkdir -p $(@D)
	cp .venv/lib/python3*/site-packages/sphinx-mathjax-offline/static/mathjax/$(@F) $@

# Committed notebooks stay as they are: the book is rendered from a copy that holds freshly executed ones.
# Their settings are the full ones; DEFECTDIFFU_FAST=1 in the environment makes them small.
book: $(READY) $(MATHJAX)
	rm -rf _build/pairs _build/source _build/html
	$(BIN)/defectdiffu generate --weights tiny --product hazelnut --defect crack --num 4 --seed 0 --out _build/pairs
	mkdir -p _build/source/notebooks
	cp -r _config.yml _toc.yml book _build/source
	for notebook in $(NOTEBOOKS); do \
	  $(BIN)/papermill --cwd notebooks $$notebook _build/source/$$notebook || exit 1; \
	done
	$(BIN)/jupyter-book build _build/source --path-output . --all --quiet
	@echo "pairs: $(CURDIR)/_build/pairs"
	@echo "book:  $(CURDIR)/_build/html/index.html"

test: export DEFECTDIFFU_FAST := 1
test: $(READY) $(MATHJAX)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pytest
	rm -rf _build/test
	mkdir -p _build/test
	for notebook in $(NOTEBOOKS); do \
	  $(BIN)/papermill --no-progress-bar --cwd notebooks $$notebook _build/test/$$(basename $$notebook) || exit 1; \
	done
	$(BIN)/pytest --nbval-lax $(NOTEBOOKS)
	@# The book as committed, from scratch: no warning, every page of the contents, nothing loaded from elsewhere.
	$(BIN)/jupyter-book build . --path-output _build/test --all --warningiserror --keep-going --quiet
	@for page in index $$(sed -nE 's/.*(root|file): *//p' _toc.yml); do \
	  test -s $(TESTED)/$$page.html || { echo "the book lacks the page $$page"; exit 1; }; \
	done
	@if grep -rlE '<(script|link|img)[^>]*(src|href)="https?://' $(TESTED) --include='*.html'; then \
	  echo "these pages load something from a server"; exit 1; \
	fi
	@echo "all checks passed"

figures: $(READY)
	$(BIN)/python -c 'from defectdiffu.data.procedural import contact_sheet; \
	  contact_sheet().save("book/figures/contact_sheet.webp", quality=80, method=6)'

clean:
	rm -rf _build .venv $(dir $(MATHJAX))
