# make demo      train the digits with SGD and with GradientLARS: table, CSV and plot in demo/
# make test      all tests, with coverage      make check   format, lint, types, import rules
# make results   the committed results and README's tables made anew      make clean   remove what these made

PYTHON ?= python3.11
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check results clean

demo: .venv/.demo
	.venv/bin/gradient-lars compare --out demo --overwrite

test: .venv/.test
	.venv/bin/python -m coverage run -m pytest -m "not slow"
	@.venv/bin/python -m coverage combine --quiet
	.venv/bin/python -m coverage report

check: .venv/.test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -q -p no:cacheprovider tests/core/test_imports.py

results: .venv/.demo
	.venv/bin/gradient-lars compare --out benchmarks/results/compare-digits --overwrite
	.venv/bin/python benchmarks/make_readme.py

clean:
	rm -rf .venv demo build dist .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable ".[cli]"
	@touch $@

# Chainer 7.8.1 builds only with a setuptools that still has pkg_resources, outside pip's isolation.
.venv/.test: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) setuptools wheel numpy
	$(PIP) --editable ".[dev]"
	$(PIP) --no-build-isolation chainer==7.8.1
	@touch $@ .venv/.demo
