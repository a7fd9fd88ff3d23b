"""The fused path takes part in every test of the paths: in Triton's interpreter, on the CPU."""

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def interpreter(request, monkeypatch):
    """Have `path="fused"` take the kernel on the CPU."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is None or callspec.params.get("path") != "fused" or request.node.get_closest_marker("gpu"):
        yield
        return
    if torch.cuda.is_available():
        pytest.skip("the kernels have been compiled for the GPU: tests/fused tries them there")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # The interpreter computes with NumPy, which warns where a device is silent.
    with np.errstate(all="ignore"):
        yield
