"""The examples in the docstrings print what they say."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["_monitor", "_records", "_csv", "_plot", "_summary"])
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"gradient_lars.monitor.{module}"))
    assert result.failed == 0
    assert result.attempted > 0 or module != "_monitor"
