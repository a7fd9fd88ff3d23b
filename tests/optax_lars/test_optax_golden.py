"""The trajectories of the real Chainer, replayed in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from golden import load
from gradient_lars.optax import lars, scale_by_gradient_lars
from jax_cases import x64
from reference import assert_close


def chainer_nesterov(lr, momentum):
    """Chainer's NesterovAG, which is not optax's Nesterov: it looks ahead with the new velocity, and so once more."""

    def update(updates, state, params=None):
        velocity = jax.tree.map(lambda v, g: momentum * v - lr * g, state, updates)
        step = jax.tree.map(lambda v, g: momentum * momentum * v - (1 + momentum) * lr * g, velocity, updates)
        return step, velocity

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def chain(run):
    """Return the hook followed by an optimizer of optax, or of this file."""
    hook = scale_by_gradient_lars(**run.hook)
    match run.optimizer:
        case "SGD":
            return optax.chain(hook, optax.sgd(run.lr))
        case "MomentumSGD":
            return optax.chain(hook, optax.scale_by_learning_rate(run.lr), optax.trace(run.momentum))
        case "CorrectedMomentumSGD":
            return optax.chain(hook, optax.sgd(run.lr, momentum=run.momentum))
        case "NesterovAG":
            return optax.chain(hook, chainer_nesterov(run.lr, run.momentum))
    raise ValueError(run.optimizer)


def whole(run):
    """Return the same as one optimizer."""
    in_momentum = run.optimizer == "MomentumSGD"
    return lars(run.lr, momentum=run.momentum, trust_coefficient=1.0, lr_in_momentum=in_momentum, **run.hook)


def replay(run, optimizer):
    with x64(run.dtype):
        params = dict(zip(run.layers, map(jnp.asarray, run.initial), strict=True))
        state = optimizer.init(params)
        for grads, expected in zip(run.grads, run.params, strict=True):
            updates, state = optimizer.update(
                dict(zip(run.layers, map(jnp.asarray, grads), strict=True)), state, params
            )
            params = optax.apply_updates(params, updates)
            for name, values in zip(run.layers, expected, strict=True):
                assert params[name].dtype == run.dtype
                assert_close(np.asarray(params[name]), values, run.dtype)


@pytest.mark.parametrize("run", load(), ids=str)
def test_the_hook_before_an_optimizer(run):
    replay(run, chain(run))


@pytest.mark.parametrize("run", [run for run in load() if run.optimizer != "NesterovAG"], ids=str)
def test_the_whole_optimizer(run):
    replay(run, whole(run))
