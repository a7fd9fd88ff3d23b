"""What ``lars`` has for the published variants: ``norm_of``, ``zero_gradient_rate``, ``adapt_without_decay``."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from gradient_lars import torch as lars_torch
from gradient_lars.optax import lars
from jax_cases import structure, to_wide
from optax_lars.test_optax_lars import SHAPES, rate_of, train, values
from reference import assert_close

DECAYED = {"norm_of": "decayed", "weight_decay": 0.125, "trust_coefficient": 0.25}
SETTINGS = [
    DECAYED,
    {**DECAYED, "threshold": 0.5, "eps": 0.25, "lr_in_momentum": False},
    {**DECAYED, "zero_gradient_rate": 1.0, "nesterov": True},
    {"weight_decay": 0.125, "zero_gradient_rate": 0.0},
    {"weight_decay": 0.125, "zero_gradient_rate": 2.0, "lr_in_momentum": False},
    {"adapt_without_decay": False},
    {"adapt_without_decay": False, "weight_decay": 0.125},
]


@pytest.mark.parametrize("changed", [{}, {"nesterov": True}, {"momentum": 0.5, "weight_decay": 0.0}, {"eps": 0.25}])
def test_decayed_is_the_lars_of_optax(changed):
    settings = {"momentum": 0.9, "weight_decay": 0.125, "trust_coefficient": 0.25, "eps": 0.0, **changed}
    ours, theirs = lars(rate_of, threshold=0.0, norm_of="decayed", **settings), optax.lars(rate_of, **settings)
    with jax.enable_x64(True):
        for (params, _), (other, _) in zip(train(ours), train(theirs), strict=True):
            for name in SHAPES:
                assert_close(params[name], np.asarray(other[name]), "float64")


def test_gradient_is_not_the_lars_of_optax():
    settings = {"weight_decay": 0.125, "eps": 0.0}
    with jax.enable_x64(True):
        ours = list(train(lars(rate_of, threshold=0.0, **settings)))[-1][0]
        theirs = list(train(optax.lars(rate_of, **settings)))[-1][0]
    assert not np.allclose(ours["conv"], theirs["conv"], rtol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_optimizer_of_pytorch(settings):
    named = [(name, torch.nn.Parameter(torch.from_numpy(array))) for name, array in values(None).items()]
    other = lars_torch.LARS(named, lr=0.0, foreach=False, fused=False, **settings)
    transformation = lars(rate_of, **settings)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, values(None))
        state, update = transformation.init(params), jax.jit(transformation.update)
        for step in range(4):
            # The scalar has no gradient in the second step.
            grads = {name: array * (name != "scalar" or step != 1) for name, array in values(step).items()}
            updates, state = update(jax.tree.map(jnp.asarray, grads), state, params)
            params = optax.apply_updates(params, updates)
            other.param_groups[0]["lr"] = rate_of(step)
            for (_, param), grad in zip(named, grads.values(), strict=True):
                param.grad = torch.from_numpy(np.asarray(grad))
            other.step()
            found = [optax.tree_utils.tree_get(state, figure) for figure in ("p_norm", "g_norm", "rate")]
            for (name, param), theirs in zip(named, other.rates(), strict=True):
                assert_close(params[name], param.detach().numpy(), "float64")
                for figure, expected in zip(found, (theirs.p_norm, theirs.g_norm, theirs.rate), strict=True):
                    assert_close(figure[name], expected, "float64")


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_the_rate_where_the_gradient_is_zero(rate):
    transformation = lars(0.5, momentum=0.0, weight_decay=0.25, zero_gradient_rate=rate)
    params, grads = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.zeros(2)}
    updates, state = jax.jit(transformation.update)(grads, transformation.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.5 * rate * 0.25 * params["w"], rtol=1e-6)
    assert float(optax.tree_utils.tree_get(state, "rate")["w"]) == rate


def test_without_decay_it_can_be_plain_sgd():
    ours, theirs = lars(rate_of, adapt_without_decay=False, lr_in_momentum=False), optax.sgd(rate_of, momentum=0.9)
    with jax.enable_x64(True):
        for (params, _), (other, _) in zip(train(ours), train(theirs), strict=True):
            for name in SHAPES:
                assert_close(params[name], np.asarray(other[name]), "float64")


@pytest.mark.parametrize("settings", [DECAYED, {"weight_decay": 0.125, "zero_gradient_rate": 0.5}], ids=str)
def test_numbers_are_in_the_state_with_inject_hyperparams(settings):
    numbers = {name: value for name, value in settings.items() if name != "norm_of"}
    words = {name: value for name, value in settings.items() if name == "norm_of"}
    static = ("norm_of", "nesterov", "lr_in_momentum", "adapt_without_decay", "weight_decay_mask", "trust_ratio_mask")
    injected = optax.inject_hyperparams(lars, static_args=static)(0.5, **numbers, **words)
    with jax.enable_x64(True):
        one, two = list(train(injected)), list(train(lars(0.5, **settings)))
        for (params, state), (other, _) in zip(one, two, strict=True):
            assert set(numbers) <= set(state.hyperparams)
            for name in SHAPES:
                assert_close(params[name], to_wide(other[name]), "float64")
        # Changed between steps, without a recompilation: the next step goes by the new value.
        name = next(name for name in ("zero_gradient_rate", "trust_coefficient") if name in numbers)
        params, state = one[-1]
        changed = optax.tree_utils.tree_set(
            state, **{name: jnp.asarray(2 * numbers[name], state.hyperparams[name].dtype)}
        )
        assert structure(changed) == structure(state)
        grads = jax.tree.map(jnp.zeros_like, params)
        before, after = (injected.update(grads, s, params)[1] for s in (state, changed))
        rates = [float(optax.tree_utils.tree_get(s, "rate")["conv"]) for s in (before, after)]
        assert math.isclose(rates[1], 2 * rates[0], rel_tol=1e-12)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (
            {"norm_of": "update"},
            ValueError,
            r"^`norm_of` must be 'gradient' or 'decayed', got 'update'\. 'gradient' is",
        ),
        ({"norm_of": None}, ValueError, "^`norm_of` must be 'gradient' or 'decayed', got None"),
        ({"zero_gradient_rate": -1.0}, ValueError, r"^`zero_gradient_rate` must be >= 0 and finite, got -1\.0\. None"),
        ({"zero_gradient_rate": math.nan}, ValueError, "^`zero_gradient_rate` must be >= 0 and finite, got nan"),
        ({"zero_gradient_rate": math.inf}, ValueError, "^`zero_gradient_rate` must be >= 0 and finite, got inf"),
        ({"zero_gradient_rate": jnp.ones(1)}, ValueError, "^`zero_gradient_rate` must have no dimensions, got"),
        ({"zero_gradient_rate": True}, TypeError, "^`zero_gradient_rate` must be a number, got True"),
        ({"zero_gradient_rate": "1"}, TypeError, "^`zero_gradient_rate` must be a number, got '1'"),
        ({"adapt_without_decay": 1}, TypeError, "^`adapt_without_decay` must be True or False, got 1"),
        ({"adapt_without_decay": None}, TypeError, "^`adapt_without_decay` must be True or False, got None"),
    ],
    ids=str,
)
def test_refusals(settings, error, text):
    with pytest.raises(error, match=text):
        lars(0.1, **settings)
