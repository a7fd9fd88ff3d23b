"""Shared set-up: the real Chainer on NumPy 2, and a fixed seed for every test."""

import numpy as np
import pytest

# Chainer 7.8.1 reads np.sctypes, which NumPy 2 no longer has, when it is imported.
if not hasattr(np, "sctypes"):
    np.sctypes = {
        "int": [np.int8, np.int16, np.int32, np.int64],
        "float": [np.float16, np.float32, np.float64, np.longdouble],
    }


@pytest.fixture
def rng():
    """A NumPy generator with a fixed seed."""
    return np.random.default_rng(20171003)
