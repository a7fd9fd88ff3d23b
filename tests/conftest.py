"""Shared set-up: the real Chainer on NumPy 2, and a fixed seed for every test."""

import contextlib
import os

import numpy as np
import pytest
import torch

# Where there is no GPU, Triton's interpreter runs the kernels. Triton decides so when it is imported, which other tests
# cause as well: it is imported here, before them. The tests of the kernels then say for themselves that they want it.
if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        import gradient_lars.torch._triton
        import gradient_lars.torch._triton_hook  # noqa: F401
    del os.environ["TRITON_INTERPRET"]

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
