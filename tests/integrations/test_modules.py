"""The modules of `gradient_lars.integrations`: what they import, what they say without it, their examples."""

import doctest
import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import gradient_lars

FRAMEWORKS = ("lightning", "pytorch_lightning", "transformers", "accelerate", "timm")


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import gradient_lars.torch, gradient_lars.integrations, gradient_lars.integrations.timm, sys\n"
    code += f"print([name for name in {FRAMEWORKS} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(gradient_lars.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.filterwarnings("ignore")  # the frameworks' own
@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_examples_of_the_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(f"gradient_lars.integrations.{name}"))
    assert result.attempted > 3
    assert result.failed == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "absent", "message"),
    [
        ("lightning", ("lightning", "pytorch_lightning"), "needs Lightning, which is not installed. `pip install lig"),
        ("transformers", ("transformers",), "needs transformers with its Trainer. `pip install"),
    ],
)
def test_without_the_framework(name, absent, message, monkeypatch):
    for module in absent:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        runpy.run_module(f"gradient_lars.integrations.{name}")


@pytest.mark.filterwarnings("ignore")
def test_lightning_under_its_older_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    found = runpy.run_module("gradient_lars.integrations.lightning")
    assert found["pl"].__name__ == "pytorch_lightning"
