"""CuPy and ChainerX by stand-ins: the right module is used, on the right device, without waiting for it."""

import sys
import types

import numpy as np
import pytest

from core.cases import CASES
from core.fakes import HostSyncError, WrongDeviceError, make_chainerx, make_cupy
from gradient_lars import GradientLARS
from reference import assert_close, lars


@pytest.fixture
def cupy(monkeypatch):
    module = make_cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.fixture
def chainerx(monkeypatch):
    chainerx, chainer = make_chainerx()
    monkeypatch.setitem(sys.modules, "chainerx", chainerx)
    monkeypatch.setitem(sys.modules, "chainer", chainer)
    return chainerx


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cupy(case, dtype, cupy):
    p, g = case.p.astype(dtype), case.g.astype(dtype)
    param = types.SimpleNamespace(data=cupy.ndarray(p.copy()), grad=cupy.ndarray(g.copy()))
    grad = param.grad
    GradientLARS(**case.settings)(None, param)
    assert param.grad is grad
    assert grad.dtype == dtype
    assert_close(grad.values, lars(p, g, **case.settings).grad, dtype)
    np.testing.assert_array_equal(param.data.values, p)


def test_cupy_under_loss_scaling(cupy):
    p, g = np.array([3.0, 4.0]), np.array([5.0, -12.0])
    param = types.SimpleNamespace(data=cupy.ndarray(p), grad=cupy.ndarray(8 * g), _loss_scale=8.0)
    GradientLARS(weight_decay=0.5, eps=0.5)(None, param)
    assert_close(param.grad.values, 8 * lars(p, g, weight_decay=0.5, eps=0.5).grad, "float64")


def test_cupy_selects_the_device_of_the_array(cupy):
    p, g = np.array([3.0, 4.0]), np.array([5.0, -12.0])
    param = types.SimpleNamespace(data=cupy.ndarray(p, device=1), grad=cupy.ndarray(g.copy(), device=1))
    GradientLARS(weight_decay=0.5)(None, param)
    assert_close(param.grad.values, lars(p, g, weight_decay=0.5).grad, "float64")
    assert cupy.current_device() == 0


@pytest.mark.parametrize("kind", ["int32", "shape"])
def test_cupy_errors(cupy, kind):
    grad = np.ones(2, "int32") if kind == "int32" else np.ones(3)
    param = types.SimpleNamespace(data=cupy.ndarray(np.ones(2)), grad=cupy.ndarray(grad))
    with pytest.raises((TypeError, ValueError), match=r"`param\.grad` must (be an array of floating|have the shape)"):
        GradientLARS()(None, param)


def test_cupy_and_numpy_do_not_mix(cupy):
    param = types.SimpleNamespace(data=cupy.ndarray(np.ones(2)), grad=np.ones(2))
    with pytest.raises(TypeError, match="must come from one array library, got ndarray and ndarray"):
        GradientLARS()(None, param)


@pytest.mark.parametrize("lender", ["numpy", "cupy"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_chainerx(case, lender, chainerx, cupy):
    p, g = case.p.copy(), case.g.copy()
    lend = (lambda array: array) if lender == "numpy" else cupy.ndarray
    param = types.SimpleNamespace(data=chainerx.ndarray(lend(p)), grad=chainerx.ndarray(lend(g)))
    GradientLARS(**case.settings)(None, param)
    assert_close(g, lars(case.p, case.g, **case.settings).grad, "float64")
    np.testing.assert_array_equal(p, case.p)


@pytest.mark.parametrize("ask", [float, bool, int, len, list, np.asarray, lambda array: array.item()])
def test_the_stand_in_refuses_to_give_values_to_the_host(cupy, ask):
    with pytest.raises(HostSyncError):
        ask(cupy.ndarray(np.ones(())))


def test_the_stand_in_refuses_other_devices_and_numpy(cupy):
    with pytest.raises(WrongDeviceError):
        cupy.ndarray(np.ones(2), device=1) + 1.0
    with pytest.raises(TypeError, match="Unsupported type"):
        cupy.ndarray(np.ones(2)) + np.ones(2)
    with pytest.raises(TypeError, match="condition"):
        cupy.where(True, 1.0, 2.0)
