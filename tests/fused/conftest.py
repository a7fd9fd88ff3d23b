"""The kernels on the GPU where there is one, else in Triton's interpreter, on the CPU."""

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """Have `fused=True` take the kernels on the CPU."""
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    # The interpreter computes with NumPy, which warns where a device is silent.
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def device():
    """Return the device that the kernels run on."""
    return "cuda" if torch.cuda.is_available() else "cpu"
