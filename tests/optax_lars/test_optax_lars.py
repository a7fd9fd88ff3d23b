"""``lars`` beside the float64 transcription, PyTorch's LARS and ``optax.lars``."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from gradient_lars import torch as lars_torch
from gradient_lars.optax import lars
from jax_cases import structure, to_wide, x64
from lars.expected import lars_step
from reference import assert_close

SHAPES = {"conv": (4, 3, 2), "bias": (5,), "zero": (3,), "scalar": ()}
FIXED = {"dampening": 0.0, "trust_clip": False, "min_rate": 0.0, "max_rate": np.inf, "maximize": False, "adapt": True}
DEFAULTS = {
    "momentum": 0.9,
    "weight_decay": 0.0,
    "nesterov": False,
    "trust_coefficient": 1e-3,
    "threshold": 0.01,
    "eps": 1e-9,
    "lr_in_momentum": True,
}
SETTINGS = [
    {},
    {"weight_decay": 0.125, "trust_coefficient": 0.25},
    {"weight_decay": 0.125, "trust_coefficient": 0.25, "lr_in_momentum": False},
    {"nesterov": True, "weight_decay": 0.125, "trust_coefficient": 1.0},
    {"nesterov": True, "lr_in_momentum": False, "momentum": 0.5},
    {"momentum": 0.0, "weight_decay": 0.125, "eps": 0.5, "trust_coefficient": 1.0},
    {"threshold": 1e3, "weight_decay": 0.125},
    {"threshold": 0.0, "eps": 0.0},
]
STEPS = 4


def rate_of(step):
    """Return a learning rate that changes with every step."""
    return 0.5 / (1 + step)


def values(step, dtype="float64"):
    """Return a tree of numbers; `step` None is for the parameters, one of which is zero."""
    rng = np.random.default_rng([7, 0 if step is None else 1 + step])
    tree = {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    return {**tree, "zero": 0 * tree["zero"]} if step is None else tree


def train(optimizer, dtype="float64", steps=STEPS):
    """Yield parameters and state after each step."""
    params = jax.tree.map(jnp.asarray, values(None, dtype))
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(jax.tree.map(jnp.asarray, values(step, dtype)), state, params)
        params = optax.apply_updates(params, updates)
        yield params, state


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_follows_the_transcription(settings, dtype):
    expected = {name: (array.astype("float64"), None) for name, array in values(None, dtype).items()}
    with x64(dtype):
        for step, (params, state) in enumerate(train(lars(rate_of, **settings), dtype)):
            rates = optax.tree_utils.tree_get(state, "rate")
            for name, (p, v) in expected.items():
                layer = lars_step(
                    p,
                    values(step, dtype)[name].astype("float64"),
                    v,
                    DEFAULTS | FIXED | settings | {"lr": rate_of(step)},
                )
                assert params[name].dtype == dtype
                assert_close(to_wide(params[name]), layer.p, dtype)
                assert_close(to_wide(rates[name]), layer.rate, dtype)
                if layer.v is None:
                    assert not optax.tree_utils.tree_get_all_with_path(state, "trace")
                elif not settings.get("lr_in_momentum", True):
                    assert_close(to_wide(optax.tree_utils.tree_get(state, "trace")[name]), layer.v, dtype)
                else:
                    # optax puts the sign into the learning rate.
                    assert_close(-to_wide(optax.tree_utils.tree_get(state, "trace")[name]), layer.v, dtype)
                expected[name] = layer.p, layer.v


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_optimizer_of_pytorch(settings):
    named = [(name, torch.nn.Parameter(torch.from_numpy(array))) for name, array in values(None).items()]
    other = lars_torch.LARS(named, lr=0.0, foreach=False, fused=False, **settings)
    with jax.enable_x64(True):
        for step, (params, state) in enumerate(train(lars(rate_of, **settings))):
            other.param_groups[0]["lr"] = rate_of(step)
            for (_, param), grad in zip(named, values(step).values(), strict=True):
                param.grad = torch.from_numpy(grad)
            other.step()
            rates = optax.tree_utils.tree_get(state, "rate")
            for (name, param), theirs in zip(named, other.rates(), strict=True):
                assert_close(params[name], param.detach().numpy(), "float64")
                assert_close(rates[name], theirs.rate, "float64")


@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_masks_say_which_layers_are_adapted_and_which_decay(lr_in_momentum):
    settings = {"weight_decay": 0.125, "trust_coefficient": 0.25, "lr_in_momentum": lr_in_momentum}
    adapted = {"conv": True, "bias": False, "zero": True, "scalar": False}
    decayed = {"conv": True, "bias": True, "zero": False, "scalar": False}
    forms = {
        "trees": (adapted, decayed),
        "functions": (
            lambda updates: {name: adapted[name] for name in updates},
            lambda updates: {name: decayed[name] for name in updates},
        ),
    }
    for trust_ratio_mask, weight_decay_mask in forms.values():
        optimizer = lars(0.5, trust_ratio_mask=trust_ratio_mask, weight_decay_mask=weight_decay_mask, **settings)
        with jax.enable_x64(True):
            expected = {name: (array, None) for name, array in values(None).items()}
            for step, (params, state) in enumerate(train(optimizer)):
                for name, (p, v) in expected.items():
                    group = {"adapt": adapted[name], "weight_decay": 0.125 * decayed[name], "lr": 0.5}
                    layer = lars_step(p, values(step)[name], v, DEFAULTS | FIXED | settings | group)
                    assert_close(to_wide(params[name]), layer.p, "float64")
                    for figure in ("p_norm", "g_norm", "rate"):
                        found = optax.tree_utils.tree_get(state, figure)[name]
                        assert_close(to_wide(found), getattr(layer, figure), "float64")
                    expected[name] = layer.p, layer.v


@pytest.mark.parametrize("mask", [True, False])
def test_a_mask_may_be_one_answer_for_all(mask):
    with jax.enable_x64(True):
        one = list(train(lars(0.5, weight_decay=0.1, trust_ratio_mask=mask, weight_decay_mask=mask)))
        settings = {"weight_decay": 0.1} if mask else {"threshold": np.inf}
        two = list(train(lars(0.5, **settings)))
        for name in SHAPES:
            assert_close(one[-1][0][name], np.asarray(two[-1][0][name]), "float64")


def test_without_decay_it_is_the_lars_of_optax_and_goes_on_from_its_momentum():
    # Above the threshold, without decay and eps, the two ratios are the same.
    ours, theirs = lars(rate_of, threshold=0.0, eps=0.0), optax.lars(rate_of)
    with jax.enable_x64(True):
        steps = list(zip(train(ours), train(theirs), strict=True))
        for (params, _), (other, _) in steps:
            for name in SHAPES:
                assert_close(params[name], np.asarray(other[name]), "float64")
        (_, state), (_, other_state) = steps[-1]
        trace = optax.tree_utils.tree_get(other_state, "trace")
        taken = optax.tree_utils.tree_set(state, trace=trace)
        assert structure(taken) == structure(state)
        for name in SHAPES:
            assert_close(optax.tree_utils.tree_get(taken, "trace")[name], np.asarray(trace[name]), "float64")


def test_the_two_places_of_the_learning_rate_differ_only_when_it_changes():
    with jax.enable_x64(True):
        for changing in (False, True):
            learning_rate = rate_of if changing else 0.25
            one, two = (list(train(lars(learning_rate, lr_in_momentum=place)))[-1][0] for place in (True, False))
            same = np.allclose(one["conv"], two["conv"], rtol=1e-12, atol=0)
            assert same is not changing
