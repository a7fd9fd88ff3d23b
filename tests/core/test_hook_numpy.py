"""The hook on NumPy arrays: the table in every type, and every layout of memory."""

import types

import numpy as np
import pytest

from core.cases import CASES
from gradient_lars import GradientLARS
from reference import assert_close, lars

# The reference computes in float64, and so does a long double's tolerance.
TYPES = {"float16": "float16", "float32": "float32", "float64": "float64", "longdouble": "float64"}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(case, dtype):
    data, grad = case.p.astype(dtype), case.g.astype(dtype)
    expected = lars(data, grad, **case.settings).grad
    param, start = types.SimpleNamespace(data=data, grad=grad), data.copy()
    assert GradientLARS(**case.settings)(None, param) is None
    assert param.grad is grad
    assert grad.dtype == dtype
    np.testing.assert_array_equal(data, start)
    assert_close(grad, expected, TYPES[dtype])


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize(
    "settings", [{}, {"weight_decay": 0.25, "eps": 0.5}, {"threshold": 64.0, "weight_decay": 0.25}]
)
def test_complex(dtype, settings, rng):
    data, grad = ((rng.standard_normal((3, 2)) + 1j * rng.standard_normal((3, 2))).astype(dtype) for _ in range(2))
    expected = lars(data, grad, **settings).grad
    GradientLARS(**settings)(None, types.SimpleNamespace(data=data, grad=grad))
    assert_close(grad, expected, dtype)


@pytest.mark.parametrize(
    "types_", [("float32", "float64"), ("float64", "float32"), ("float32", "float16"), ("float16", "float32")]
)
def test_weights_and_gradient_of_different_types(types_, rng):
    data, grad = (rng.standard_normal(5).astype(dtype) for dtype in types_)
    expected = lars(data, grad, weight_decay=0.25, eps=0.5).grad
    GradientLARS(weight_decay=0.25, eps=0.5)(None, types.SimpleNamespace(data=data, grad=grad))
    assert grad.dtype == types_[1]
    assert_close(grad, expected, "float16" if "float16" in types_ else "float32")


def strided(array):
    base = np.full((2 * array.shape[0], array.shape[1] + 3), 7.0, array.dtype)
    base[::2, 1:-2] = array
    return base[::2, 1:-2]


LAYOUTS = {
    "C": np.copy,
    "Fortran": np.asfortranarray,
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "strided view": strided,
    "reversed": lambda array: np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    "unaligned": lambda array: np.frombuffer(bytearray(b"x" + array.tobytes()), array.dtype, offset=1).reshape(
        array.shape
    ),
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("data_layout", LAYOUTS)
def test_layouts(data_layout, grad_layout, dtype, rng):
    p, g = (rng.standard_normal((4, 6)).astype(dtype) for _ in range(2))
    data, grad = LAYOUTS[data_layout](p), LAYOUTS[grad_layout](g)
    np.testing.assert_array_equal(grad, g)
    GradientLARS(weight_decay=0.25, eps=0.5)(None, types.SimpleNamespace(data=data, grad=grad))
    assert_close(grad, lars(p, g, weight_decay=0.25, eps=0.5).grad, dtype)
    np.testing.assert_array_equal(data, p)


def test_a_view_changes_its_base_and_nothing_beside_it(rng):
    p, g = rng.standard_normal((4, 6)), rng.standard_normal((4, 6))
    grad = strided(g)
    base = grad.base
    GradientLARS()(None, types.SimpleNamespace(data=p, grad=grad))
    assert_close(base[::2, 1:-2], lars(p, g).grad, "float64")
    for beside in (base[1::2], base[:, 0], base[:, -2:]):
        assert np.all(beside == 7.0)


def test_subclasses_of_ndarray(tmp_path, rng):
    class Mine(np.ndarray):
        pass

    p, g = rng.standard_normal(5), rng.standard_normal(5)
    grad = np.memmap(tmp_path / "grad", dtype="float64", mode="w+", shape=5)
    grad[...] = g
    GradientLARS()(None, types.SimpleNamespace(data=p.view(Mine), grad=grad))
    assert_close(np.asarray(grad), lars(p, g).grad, "float64")


def test_memory_that_is_read_only_may_hold_the_weights(rng):
    p, g = rng.standard_normal(5), rng.standard_normal(5)
    p.flags.writeable = False
    grad = g.copy()
    GradientLARS(weight_decay=0.25)(None, types.SimpleNamespace(data=p, grad=grad))
    assert_close(grad, lars(p, g, weight_decay=0.25).grad, "float64")
