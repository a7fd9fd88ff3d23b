"""The one place where the formula is written down: floats, 0-d arrays and vectors of norms."""

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest

from gradient_lars import _formula
from reference import assert_close, lars

NORMS = [0.0, 2.0**-7, 0.25, 1.0, 3.0]
GRID = list(itertools.product(NORMS, NORMS, [0.0, 0.25, 2.0], [0.0, 0.125], [0.0, 1e-9, 0.5]))


def expected(p_norm, g_norm, **settings):
    return lars(np.array([p_norm]), np.array([g_norm]), **settings).rate


@pytest.mark.parametrize("make", [float, np.float64, np.array], ids=["float", "numpy scalar", "0-d array"])
def test_scalars(make):
    where = {} if make is float else {"where": np.where}
    for p_norm, g_norm, threshold, weight_decay, eps in GRID:
        settings = {"threshold": threshold, "weight_decay": weight_decay, "eps": eps}
        rate = _formula.rate(make(p_norm), make(g_norm), **settings, **where)
        assert np.shape(rate) == ()
        assert_close(rate, expected(p_norm, g_norm, **settings), "float64")


@pytest.mark.parametrize("threshold", [0.0, 0.25, 2.0])
@pytest.mark.parametrize("eps", [0.0, 1e-9, 0.5])
def test_vectors_with_a_decay_of_their_own(threshold, eps):
    rows = [(p, g, wd) for p, g, wd in itertools.product(NORMS, NORMS, [0.0, 0.125])]
    p_norm, g_norm, weight_decay = (np.array(column) for column in zip(*rows, strict=True))
    rate = _formula.rate(p_norm, g_norm, threshold=threshold, weight_decay=weight_decay, eps=eps, where=np.where)
    for actual, (p, g, wd) in zip(rate, rows, strict=True):
        assert_close(actual, expected(p, g, threshold=threshold, weight_decay=wd, eps=eps), "float64")


def test_the_threshold_is_strict():
    assert not _formula.adapted(0.25, threshold=0.25)
    assert _formula.adapted(0.25 + 2.0**-50, threshold=0.25)
    norms = np.array([0.25 - 2.0**-50, 0.25, 0.25 + 2.0**-50])
    np.testing.assert_array_equal(_formula.adapted(norms, threshold=0.25), [False, False, True])


def test_the_rate_is_one_where_there_is_nothing_to_scale():
    assert _formula.rate(3.0, 0.0, threshold=0.0, weight_decay=0.0, eps=0.0) == 1.0
    rate = _formula.rate(
        np.full(2, 3.0), np.array([0.0, 1.5]), threshold=0.0, weight_decay=0.0, eps=0.0, where=np.where
    )
    np.testing.assert_array_equal(rate, [1.0, 2.0])


def test_it_imports_nothing_but_the_names_of_types():
    tree = ast.parse(Path(_formula.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["from typing import Any"]
