"""Loops that need no code of ours, beside a training in NumPy: AMP, compiled, Flax, Equinox and Chainer."""

import chainer
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from gradient_lars import GradientLARS
from gradient_lars.optax import lars, scale_by_gradient_lars
from gradient_lars.torch import LARS, add_hook
from integrations.plain import LR, MOMENTUM, assert_differ, assert_equal, batches, linear, plain

DATA = batches(6)


def reference(**settings):
    found = plain(weight_decay=0.5, **settings)
    for batch in DATA:
        found.step(batch)
    return found


def hooked(params, **settings):
    optimizer = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, **settings)
    add_hook(optimizer, GradientLARS(weight_decay=0.5))
    return optimizer


def fused(params):
    return hooked(params, fused=True)


def optimizer_lars(params):
    return LARS(params, lr=torch.tensor(LR, dtype=torch.float64), trust_coefficient=1.0, weight_decay=0.5)


def batch_of(i, dtype=torch.float64):
    return (torch.tensor(part, dtype=dtype) for part in DATA[i])


@pytest.mark.parametrize("make", [hooked, fused, optimizer_lars])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_scaler_with_clipping_in_between(make, clip):
    layer, scaler = linear(torch.float32), torch.amp.GradScaler("cpu", init_scale=2.0**17, growth_interval=2)
    optimizer = make(layer.named_parameters())
    for i in range(6):
        x, y = batch_of(i, torch.float32)
        optimizer.zero_grad()
        scaler.scale(torch.nn.functional.mse_loss(layer(x), y)).backward()
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(layer.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
    assert_equal(layer, reference(clip=clip))
    assert_differ(reference(), reference(clip=0.1))


@pytest.mark.filterwarnings("ignore")  # dynamo's own
@pytest.mark.parametrize("make", [hooked, optimizer_lars])
def test_compiled_model_and_step(make):
    layer = linear()
    optimizer = make(layer.named_parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
    model = torch.compile(layer, backend="aot_eager")
    step = torch.compile(optimizer.step, backend="aot_eager")
    for i in range(6):
        x, y = batch_of(i)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        step()
        schedule.step()
    expected = plain(weight_decay=0.5)
    if make is optimizer_lars:  # lr is in the momentum: each gradient keeps the lr of its own step
        velocity = dict.fromkeys(("weight", "bias"), 0.0)
        for i, batch in enumerate(DATA):
            expected.lr, expected.velocity = LR * 0.5 ** (i // 3), {}
            before = expected.weight.copy(), expected.bias.copy()
            expected.step(batch)
            for name, start in zip(("weight", "bias"), before, strict=True):
                velocity[name] = MOMENTUM * velocity[name] + start - getattr(expected, name)
                setattr(expected, name, start - velocity[name])
    else:
        for i, batch in enumerate(DATA):
            expected.lr = LR * 0.5 ** (i // 3)
            expected.step(batch)
    assert_equal(layer, expected)


def loss_of(kernel, bias, x, y):
    return jnp.mean((x @ kernel + bias - y) ** 2)


class Linear(nnx.Module):
    def __init__(self):
        start = plain()
        self.kernel, self.bias = nnx.Param(jnp.asarray(start.weight.T)), nnx.Param(jnp.asarray(start.bias))


def test_flax():
    with jax.enable_x64(True):
        model = Linear()
        transformation = lars(LR, momentum=MOMENTUM, weight_decay=0.5, trust_coefficient=1.0)
        optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer, x, y):
            optimizer.update(model, nnx.grad(lambda m: loss_of(m.kernel[...], m.bias[...], x, y))(model))

        for x, y in DATA:
            step(model, optimizer, x, y)
        expected = reference()
        np.testing.assert_allclose(model.kernel[...].T, expected.weight, rtol=1e-11)
        np.testing.assert_allclose(model.bias[...], expected.bias, rtol=1e-11)


def test_equinox():
    with jax.enable_x64(True):
        start = plain()
        model = eqx.nn.Linear(4, 3, key=jax.random.key(0))
        arrays = lambda m: (m.weight, m.bias)  # noqa: E731
        model = eqx.tree_at(arrays, model, (jnp.asarray(start.weight), jnp.asarray(start.bias)))
        optimizer = optax.chain(scale_by_gradient_lars(weight_decay=0.5), optax.sgd(LR, momentum=MOMENTUM))
        state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

        @eqx.filter_jit
        def step(model, state, x, y):
            grads = eqx.filter_grad(lambda m: jnp.mean((jax.vmap(m)(x) - y) ** 2))(model)
            updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
            return eqx.apply_updates(model, updates), state

        for x, y in DATA:
            model, state = step(model, state, x, y)
        expected = reference()
        np.testing.assert_allclose(model.weight, expected.weight, rtol=1e-11)
        np.testing.assert_allclose(model.bias, expected.bias, rtol=1e-11)


@pytest.mark.parametrize("level", ["optimizer", "rule"])
def test_chainer(level):
    start = plain()
    model = chainer.links.Linear(4, 3)
    model.W.data, model.b.data = start.weight, start.bias
    optimizer = chainer.optimizers.MomentumSGD(lr=LR, momentum=MOMENTUM).setup(model)
    if level == "optimizer":
        optimizer.add_hook(GradientLARS(weight_decay=0.5))
    else:
        for param in model.params():
            param.update_rule.add_hook(GradientLARS(weight_decay=0.5))
    for x, y in DATA:
        optimizer.update(lambda x, y: chainer.functions.mean_squared_error(model(x), y), x, y)
    expected = reference()
    np.testing.assert_allclose(model.W.data, expected.weight, rtol=1e-11)
    np.testing.assert_allclose(model.b.data, expected.bias, rtol=1e-11)
