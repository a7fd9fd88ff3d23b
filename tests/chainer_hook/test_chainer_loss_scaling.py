"""Chainer's loss scaling and its float32 masters: our hook sees the gradient that there would be without them."""

import sys
import types

import chainer
import numpy as np
import pytest

from chainer_hook.models import LEVELS, OPTIMIZERS, arrays_of, link_of, loss_of, register
from gradient_lars import GradientLARS
from reference import assert_close, lars

SETTINGS = {"threshold": 0.25, "weight_decay": 0.125, "eps": 0.25}


@pytest.fixture
def inputs(rng):
    """Weights above and below the threshold, and the gradients of three steps."""
    shapes = {"above": (4, 3), "below": (5,)}
    sizes = {"above": 1.0, "below": 0.03}
    weights = {name: sizes[name] * rng.uniform(-1, 1, shape) for name, shape in shapes.items()}
    grads = [{name: sizes[name] * rng.uniform(-1, 1, shape) for name, shape in shapes.items()} for _ in range(3)]
    return weights, grads


def train(inputs, hook, level, *, optimizer="SGD", scale=None, dtype="float64", fp32=False, lr=0.125):
    weights, grads = inputs
    link = link_of(**{name: array.astype(dtype) for name, array in weights.items()})
    chosen = getattr(chainer.optimizers, optimizer)(lr=lr).setup(link)
    if fp32:
        chosen.use_fp32_update()
    if scale is not None:
        chosen.loss_scaling(scale=scale)
    register(chosen, hook, level)
    for step in grads:
        chosen.update(loss_of, link, {name: grad.astype(dtype) for name, grad in step.items()})
    return arrays_of(link)


def sgd(inputs, *, dtype="float64", lr=0.125, times=1):
    """The same run by the reference: SGD whose gradient goes through the formula `times` times."""
    weights, grads = inputs
    params = {name: array.astype(dtype).astype(np.float64) for name, array in weights.items()}
    for step in grads:
        for name, p in params.items():
            g = step[name].astype(dtype)
            for _ in range(times):
                g = lars(p, g, **SETTINGS).grad
            params[name] = p - lr * g
    return params


def check(actual, expected, dtype="float64"):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert_close(actual[name], array, dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scale", [None, 1024.0, 0.125, 3.0])
def test_values(inputs, scale, level):
    check(train(inputs, GradientLARS(**SETTINGS), level, scale=scale), sgd(inputs))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("level", LEVELS)
def test_scaled_training_equals_unscaled(inputs, optimizer, level):
    plain = train(inputs, GradientLARS(**SETTINGS), level, optimizer=optimizer)
    scaled = train(inputs, GradientLARS(**SETTINGS), level, optimizer=optimizer, scale=256.0)
    check(scaled, plain)


def test_chainers_own_hook_differs_at_the_optimizer_level(inputs):
    hook = chainer.optimizer_hooks.GradientLARS(**SETTINGS)
    check(train(inputs, hook, "rule", scale=256.0), sgd(inputs))
    shrunk = train(inputs, hook, "optimizer", scale=256.0)["above"]
    start, right = inputs[0]["above"], sgd(inputs)["above"]
    # Its steps are smaller by about the scale, which is what users of ours are spared.
    assert np.linalg.norm(shrunk - start) < 0.02 * np.linalg.norm(right - start)


@pytest.mark.parametrize("scale", [None, 256.0])
def test_one_hook_at_both_levels_is_applied_twice(inputs, scale):
    check(train(inputs, GradientLARS(**SETTINGS), "both", scale=scale), sgd(inputs, times=2))


@pytest.mark.parametrize("scale", [None, 256.0])
def test_hook_called_by_a_hook_of_the_rule(inputs, scale):
    hook = GradientLARS(**SETTINGS)

    def wrapper(rule, param):
        hook(rule, param)

    check(train(inputs, wrapper, "rule", scale=scale), sgd(inputs))


@pytest.mark.parametrize("on_rule", [True, False])
def test_chainer_before_7_has_only_the_registration_to_go_by(monkeypatch, on_rule):
    hook, p, g = GradientLARS(**SETTINGS), np.array([3.0, 4.0]), np.array([5.0, 12.0])
    link = link_of(w=p)
    chainer.optimizers.SGD().setup(link)
    if on_rule:
        link.w.update_rule.add_hook(hook)
    scale = 1.0 if on_rule else 8.0
    link.w.grad, link.w._loss_scale = scale * g, 8.0
    monkeypatch.setitem(sys.modules, "chainer", types.ModuleType("chainer"))
    hook(link.w.update_rule, link.w)
    assert_close(link.w.grad / scale, lars(p, g, **SETTINGS).grad, "float64")


def test_an_object_with_a_loss_scale_of_its_own():
    p, g = np.array([3.0, 4.0]), np.array([5.0, 12.0])
    param = types.SimpleNamespace(data=p, grad=8.0 * g, _loss_scale=8.0)
    GradientLARS(**SETTINGS)(None, param)
    assert_close(param.grad / 8.0, lars(p, g, **SETTINGS).grad, "float64")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scale", [None, 64.0])
def test_float16_parameters_with_float32_masters(inputs, level, scale):
    arrays = train(inputs, GradientLARS(**SETTINGS), level, scale=scale, dtype="float16", fp32=True)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
    check(arrays, sgd(inputs, dtype="float16"), "float16")


def test_hook_of_the_rule_gets_the_float32_master(inputs):
    seen = []

    class Recording(GradientLARS):
        def __call__(self, rule, param):
            seen.append((param.array.dtype, param.grad.dtype))
            super().__call__(rule, param)

    train(inputs, Recording(**SETTINGS), "rule", dtype="float16", fp32=True)
    assert set(seen) == {(np.dtype(np.float32), np.dtype(np.float32))}
    seen.clear()
    train(inputs, Recording(**SETTINGS), "optimizer", dtype="float16", fp32=True)
    assert set(seen) == {(np.dtype(np.float16), np.dtype(np.float16))}


@pytest.mark.parametrize("level", LEVELS)
def test_an_overflow_under_dynamic_scaling_changes_nothing(inputs, level):
    weights, grads = inputs
    link = link_of(**weights)
    optimizer = chainer.optimizers.SGD(lr=0.125).setup(link)
    optimizer.loss_scaling(interval=1)
    register(optimizer, GradientLARS(**SETTINGS), level)
    overflow = {name: np.full_like(grad, np.inf) for name, grad in grads[0].items()}
    with np.errstate(invalid="ignore"), pytest.warns(UserWarning, match="Non finite number found"):
        optimizer.update(loss_of, link, overflow)
    check(arrays_of(link), weights)
    for step in grads:
        optimizer.update(loss_of, link, step)
    check(arrays_of(link), sgd(inputs))
