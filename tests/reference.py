"""The formula once more, in float64 and NumPy alone, independent of the package: what every path is compared with."""

from dataclasses import dataclass

import numpy as np

# Largest difference from the reference that a type may show, relative to the tensor's scale.
TOLERANCE = {
    "float64": 1e-12,
    "complex128": 1e-12,
    "float32": 1e-5,
    "complex64": 1e-5,
    "float16": 2e-3,
    "bfloat16": 1.6e-2,
}


@dataclass(frozen=True)
class Layer:
    """What the formula gives for one layer: its norms, its rate and the rescaled gradient."""

    p_norm: float
    g_norm: float
    rate: float
    grad: np.ndarray


def lars(p, g, *, threshold=0.01, weight_decay=0.0, eps=1e-9):
    """Return the `Layer` for weights `p` and raw gradient `g`, any arrays that NumPy can read."""
    wide = np.complex128 if np.iscomplexobj(p) else np.float64
    p, g = np.asarray(p).astype(wide), np.asarray(g).astype(wide)
    p_norm, g_norm = float(np.sqrt(np.sum(np.abs(p) ** 2))), float(np.sqrt(np.sum(np.abs(g) ** 2)))
    rate = 1.0
    if p_norm > threshold and eps + g_norm + weight_decay * p_norm > 0:
        rate = p_norm / (eps + g_norm + weight_decay * p_norm)
    return Layer(p_norm, g_norm, rate, rate * (g + weight_decay * p))


def assert_close(actual, expected, dtype, *, factor=1.0):
    """Assert equality to the tolerance of `dtype`, relative to the largest entry of `expected`."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape} is not {expected.shape}"
    if expected.size == 0:
        return
    scale = np.max(np.abs(expected))
    assert np.isfinite(scale), "the reference is not finite: nothing can be compared with it"
    error = np.max(np.abs(actual.astype(expected.dtype) - expected))
    allowed = factor * TOLERANCE[str(dtype).removeprefix("torch.")] * max(scale, np.finfo(np.float64).tiny)
    # NaN compares as false, so that a NaN on either side fails too.
    assert error <= allowed, f"differs by {error:.3e}, allowed are {allowed:.3e} at scale {scale:.3e}"
