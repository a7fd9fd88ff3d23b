# make demo      train the digits with SGD and with GradientLARS: table, CSV and plot in demo/
# make test      all tests but the slow ones, with coverage      make test-slow   those
# make check     format, lint, types, import rules
# make docs      the documentation, in docs/_build/html; a warning is an error
# make results   the committed comparison made anew, and README's tables      make clean   remove what these made
# make study-small   LARS, SGD and Nesterov SGD at large batches, 10 minutes on the CPU (docs/study.md)
# make study-cpu   the same on Fashion-MNIST, two hours    make study   with a VGG-like network on a CUDA device
# make parity    how far LARS is from the published variants, 10 minutes, and the plots of docs/variants.md
# make traffic   what a step sends under FSDP2, 4 processes on the CPU, 2 minutes
# make bench     time the step beside SGD's and other LARS, CPU, 3 minutes      make bench-gpu   the same on a CUDA device

PYTHON ?= python3.11
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

STUDY ?= build/study

.PHONY: demo test test-slow check docs results study-small study-cpu study parity traffic bench bench-gpu clean

demo: .venv/.demo
	.venv/bin/gradient-lars compare --out demo --overwrite

test: .venv/.test
	@rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 .venv/bin/python -m coverage run -m pytest --numprocesses 2 --dist worksteal -m "not slow"
	@.venv/bin/python -m coverage combine --quiet
	.venv/bin/python -m coverage report

test-slow: .venv/.test
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist worksteal -m slow

check: .venv/.test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -q -p no:cacheprovider tests/core/test_imports.py

docs: .venv/.docs
	.venv/bin/python -m sphinx -W --keep-going -q docs docs/_build/html

results: .venv/.demo
	.venv/bin/gradient-lars compare --out benchmarks/results/compare-digits --overwrite
	.venv/bin/python benchmarks/make_readme.py

# What the page shows was made with STUDY=study/results, and then study/make_page.py.
study-small: .venv/.demo
	OMP_NUM_THREADS=1 .venv/bin/python study/run.py small --jobs 2 --out $(STUDY)

study-cpu: .venv/.demo
	OMP_NUM_THREADS=1 .venv/bin/python study/run.py cpu --jobs 3 --out $(STUDY)

study: .venv/.demo
	.venv/bin/python study/run.py gpu --out $(STUDY)

parity: .venv/.test
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/parity.py --out benchmarks/results/parity.csv
	.venv/bin/gradient-lars variants --out docs/variants-matrix.png
	.venv/bin/gradient-lars variants --out docs/variants-bias.png --bias
	.venv/bin/python benchmarks/make_readme.py

traffic: .venv/.bench
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/traffic.py --out benchmarks/results/traffic.csv
	.venv/bin/python benchmarks/make_readme.py

# Both add their rows to the committed results; the plot is drawn from these.
bench: .venv/.bench
	.venv/bin/gradient-lars bench --out benchmarks/results/step-cpu.csv --plot benchmarks/results/step-cpu.png
	.venv/bin/python benchmarks/make_readme.py

bench-gpu: .venv/.bench
	.venv/bin/gradient-lars bench --device cuda --seconds 120 --out benchmarks/results/step-cuda.csv --plot benchmarks/results/step-cuda.png
	.venv/bin/python benchmarks/make_readme.py

clean:
	rm -rf .venv demo build dist docs/_build .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable ".[cli]"
	@touch $@

.venv/.bench: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable ".[bench]"
	@touch $@ .venv/.demo

# autodoc imports what it documents.
.venv/.docs: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable ".[docs,torch,optax]"
	@touch $@

# Chainer 7.8.1 builds only with a setuptools that still has pkg_resources, outside pip's isolation.
.venv/.test: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) setuptools wheel numpy
	$(PIP) --editable ".[dev]"
	$(PIP) --no-build-isolation chainer==7.8.1
	@touch $@ .venv/.demo .venv/.docs
