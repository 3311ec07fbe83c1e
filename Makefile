# make book       generate a few pairs, execute every notebook, render the book
# make test       everything a change must pass
# make notebooks  set up and execute the committed notebooks again, in place; ONLY=08_sweep for one of them
# make figures    draw the committed figures again, after a change of the renderer or of the shipped weights
# All set up what they need in .venv; nothing else is touched. Generated files go to _build/.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
MATHJAX := book/_static/tex-svg-full.js
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
TESTED := _build/test/_build/html
ONLY := $(basename $(notdir $(wildcard notebooks/*.py)))
export PYDEVD_DISABLE_FILE_VALIDATION := 1# no debugger warnings from the notebooks' kernels

.PHONY: book test notebooks figures clean
.DELETE_ON_ERROR:

# The environment is made only when it is missing, and filled only when what it should hold has changed.
$(READY): requirements.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "installing what requirements.txt names, this can take some minutes"
	$(BIN)/pip install --quiet --editable ".[evaluation,book,test,demo]"
	touch $@

# The one file of MathJax that the pages need, so that they can be read with the network off.
$(MATHJAX): $(READY)
	mkdir -p $(@D)
	cp .venv/lib/python3*/site-packages/sphinx-mathjax-offline/static/mathjax/$(@F) $@

# Committed notebooks stay as they are: the book is rendered from a copy that holds freshly executed ones.
# Their settings are the full ones; DEFECTDIFFU_FAST=1 in the environment makes them small. A chapter that fails, such as
# one whose text is not true of what this machine computed, is shown as committed, and named at the end.
book: $(READY) $(MATHJAX)
	rm -rf _build/pairs _build/source _build/html
	$(BIN)/defectdiffu generate --weights book --product hazelnut --defect hole --num 4 --seed 0 --out _build/pairs
	mkdir -p _build/source/notebooks
	cp -r _config.yml _toc.yml book _build/source
	for notebook in $(NOTEBOOKS); do \
	  $(BIN)/papermill --cwd notebooks $$notebook _build/source/$$notebook || \
	    { cp $$notebook _build/source/$$notebook; echo "  $$notebook" >> _build/source/as_committed; }; \
	done
	$(BIN)/jupyter-book build _build/source --path-output . --all --quiet
	@echo "pairs: $(CURDIR)/_build/pairs"
	@echo "book:  $(CURDIR)/_build/html/index.html"
	@! test -e _build/source/as_committed || { echo "failed here (see above), so shown as committed:"; \
	  cat _build/source/as_committed; exit 1; }

# The book is built as committed, from scratch: a warning fails it. Then its pages are checked, in a browser too.
test: export DEFECTDIFFU_FAST := 1
test: $(READY) $(MATHJAX)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pytest
	rm -rf _build/test
	mkdir -p _build/test
	OMP_NUM_THREADS=1 $(MAKE) --jobs 2 $(NOTEBOOKS:notebooks/%=_build/test/%)
	$(BIN)/jupyter-book build . --path-output _build/test --all --warningiserror --keep-going --quiet
	DEFECTDIFFU_HTML=$(TESTED) $(BIN)/pytest tests/test_html.py tests/test_pages.py
	@cat _build/test/_build/pages.txt 2>/dev/null || true  # not written without a browser
	@echo "all checks passed"

# One notebook: it runs, and its marked outputs are those committed.
_build/test/%.ipynb: notebooks/%.ipynb
	@start=$$(date +%s); \
	{ $(BIN)/papermill --no-progress-bar --cwd notebooks $< $@ && $(BIN)/pytest --nbval-lax $<; } >$(@:.ipynb=.log) 2>&1 \
	  || { cat $(@:.ipynb=.log); exit 1; }; \
	echo "$*: $$(($$(date +%s) - start)) s"

notebooks: $(READY)
	$(BIN)/python book/set_up_notebooks.py $(ONLY)
	for name in $(ONLY); do \
	  $(BIN)/jupytext --quiet --sync notebooks/$$name.py && \
	  $(BIN)/jupyter execute --inplace notebooks/$$name.ipynb || exit 1; \
	done

figures: $(READY)
	$(BIN)/python -c 'from defectdiffu.drawn.procedural import contact_sheet; \
	  contact_sheet().save("book/figures/contact_sheet.webp", quality=80, method=6)'
	for weights in tiny book; do $(BIN)/python -c "from defectdiffu import DefectDiffuPipeline, viz; \
	  viz.weights_sheet(DefectDiffuPipeline.from_pretrained('$$weights')) \
	  .save('book/figures/$${weights}_sheet.webp', quality=80, method=6)" || exit 1; done
	$(BIN)/python book/draw_home.py
	$(BIN)/python book/draw_architecture.py

clean:
	rm -rf _build .venv $(MATHJAX)
