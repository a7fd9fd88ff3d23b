"""Any pytree: containers, absent leaves, masks, and the tools that look into optax's states."""

import collections
import dataclasses
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradient_lars.optax import ScaleByGradientLARSState, lars, scale_by_gradient_lars
from jax_cases import structure
from reference import assert_close
from reference import lars as expected_layer

WEIGHTS = (np.array([[3.0, 4.0]], "float32"), np.zeros(2, "float32"))
GRADS = (np.array([[300.0, -400.0]], "float32"), np.array([0.5, 0.25], "float32"))

Pair = collections.namedtuple("Pair", ["kernel", "bias"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    kernel: jax.Array
    bias: jax.Array


class Dense(eqx.Module):
    """An Equinox layer: a module is a tree, also of what are no arrays."""

    kernel: jax.Array
    bias: jax.Array
    activation: object = jnp.tanh
    width: int = eqx.field(static=True, default=2)

    def __call__(self, x):
        return self.activation(x @ self.kernel.T + self.bias)


class Frozen(Mapping):
    """A mapping that is no dict, as Flax's FrozenDict."""

    def __init__(self, entries):
        self._entries = dict(entries)

    def __getitem__(self, name):
        return self._entries[name]

    def __iter__(self):
        return iter(self._entries)

    def __len__(self):
        return len(self._entries)


jax.tree_util.register_pytree_with_keys(
    Frozen,
    lambda frozen: (tuple((jax.tree_util.DictKey(key), frozen[key]) for key in frozen), tuple(frozen)),
    lambda names, children: Frozen(zip(names, children, strict=True)),
)

CONTAINERS = {
    "dict": lambda kernel, bias: {"kernel": kernel, "bias": bias},
    "flax": lambda kernel, bias: {"params": {"Dense_0": {"kernel": kernel, "bias": bias}}},
    "frozen": lambda kernel, bias: Frozen({"params": Frozen({"kernel": kernel, "bias": bias})}),
    "tuple": lambda kernel, bias: (kernel, bias),
    "list": lambda kernel, bias: [kernel, (bias,)],
    "namedtuple": Pair,
    "dataclass": Registered,
    "equinox": lambda kernel, bias: eqx.filter(Dense(kernel, bias), eqx.is_array),
    "none": lambda kernel, bias: {"kernel": kernel, "absent": None, "more": (None, bias)},
}


def tree(name, leaves):
    return CONTAINERS[name](*map(jnp.asarray, leaves))


def assert_rescaled(updates, figures, **settings):
    """Assert that the two layers are the formula's, wherever they lie in their trees."""
    found = {leaf.shape: leaf for leaf in jax.tree.leaves(updates)}
    assert len(found) == 2
    rates = sorted(float(rate) for rate in jax.tree.leaves(figures.rate))
    wanted = [expected_layer(p, g, **settings) for p, g in zip(WEIGHTS, GRADS, strict=True)]
    for p, layer in zip(WEIGHTS, wanted, strict=True):
        assert_close(found[p.shape], layer.grad, "float32")
    assert_close(rates, sorted(layer.rate for layer in wanted), "float32")


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(container):
    params, grads = tree(container, WEIGHTS), tree(container, GRADS)
    transformation = scale_by_gradient_lars(weight_decay=0.25)
    state = transformation.init(params)
    updates, after = jax.jit(transformation.update)(grads, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params) == jax.tree.structure(after.rate)
    assert structure(after) == structure(state)
    assert_rescaled(updates, after, weight_decay=0.25)


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_in_the_optimizer(container):
    params, grads = tree(container, WEIGHTS), tree(container, GRADS)
    optimizer = lars(0.5, trust_coefficient=1.0, weight_decay=0.25)
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    assert jax.tree.structure(optax.apply_updates(params, updates)) == jax.tree.structure(params)
    negated = jax.tree.map(lambda update: -2 * update, updates)
    assert_rescaled(negated, state[0], weight_decay=0.25)


def test_an_equinox_model_may_be_passed_with_its_functions():
    model = Dense(*map(jnp.asarray, WEIGHTS))
    grads = eqx.filter_grad(lambda model, x: jnp.sum(model(x) ** 2))(model, jnp.ones((3, 2)))
    assert grads.activation is None
    for optimizer in (
        scale_by_gradient_lars(),
        lars(0.1),
        lars(0.1, trust_ratio_mask=lambda m: jax.tree.map(lambda p: p.ndim > 1, m)),
    ):
        state = optimizer.init(eqx.filter(model, eqx.is_array))
        whole, after = optimizer.update(grads, state, model)
        filtered, _ = optimizer.update(grads, state, eqx.filter(model, eqx.is_array))
        assert structure(after) == structure(state)
        np.testing.assert_array_equal(whole.kernel, filtered.kernel)
        assert callable(eqx.apply_updates(model, whole).activation)
    assert structure(scale_by_gradient_lars().init(model)) == structure(scale_by_gradient_lars().init(grads))


def test_a_callable_module_as_a_mask_is_a_tree():
    params, grads = tree("equinox", WEIGHTS), tree("equinox", GRADS)
    mask = eqx.tree_at(lambda m: (m.kernel, m.bias), params, (False, True))
    assert callable(mask)
    updates, state = lars(1.0, trust_ratio_mask=mask).update(grads, lars(1.0).init(params), params)
    assert float(state[0].rate.kernel) == 1.0
    assert_close(updates.kernel, -GRADS[0], "float32")


def test_a_layer_without_gradient_keeps_its_place():
    params = {"w": jnp.array([3.0, 4.0]), "sub": {"frozen": jnp.ones(3), "too": jnp.ones(2)}}
    optimizer = lars(1.0, trust_coefficient=1.0)
    state = optimizer.init(params)
    _, after = optimizer.update({"w": jnp.ones(2), "sub": {"frozen": jnp.ones(3), "too": jnp.ones(2)}}, state, params)
    momentum = optax.tree_utils.tree_get(after, "trace")["sub"]
    for grads in (
        {"w": jnp.ones(2), "sub": {"frozen": None, "too": None}},
        {"w": jnp.ones(2), "sub": {"frozen": None, "too": jnp.ones(2)}},
    ):
        updates, later = optimizer.update(grads, after, params)
        assert updates["sub"]["frozen"] is None
        assert structure(later) == structure(state)
        assert float(optax.tree_utils.tree_get(later, "rate")["sub"]["frozen"]) == 0.0
        assert float(optax.tree_utils.tree_get(later, "rate")["w"]) > 0.0
        kept = optax.tree_utils.tree_get(later, "trace")["sub"]["frozen"]
        np.testing.assert_array_equal(kept, momentum["frozen"])
    # A whole part of the tree may be left out as well.
    scaled = scale_by_gradient_lars()
    updates, later = scaled.update({"w": jnp.ones(2), "sub": None}, scaled.init(params), params)
    assert updates["sub"] is None
    assert structure(later) == structure(scaled.init(params))


def test_an_empty_tree():
    for params in ({}, {"a": None}, ()):
        optimizer = lars(0.1)
        updates, state = optimizer.update(params, optimizer.init(params), params)
        assert updates == params
        assert structure(state) == structure(optimizer.init(params))


MASKS = {
    "tree": {"a": {"kernel": True, "bias": False}, "b": {"kernel": False, "bias": False}},
    "prefix": {"a": {"kernel": True, "bias": False}, "b": False},
    "function": lambda updates: {name: {"kernel": name == "a", "bias": False} for name in updates},
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masked_layers_pass_through_without_decay(mask):
    params = {name: tree("dict", WEIGHTS) for name in "ab"}
    grads = {name: tree("dict", GRADS) for name in "ab"}
    transformation = scale_by_gradient_lars(weight_decay=0.25, mask=mask)
    state = transformation.init(params)
    updates, after = jax.jit(transformation.update)(grads, state, params)
    assert structure(after) == structure(state)
    layer = expected_layer(WEIGHTS[0], GRADS[0], weight_decay=0.25)
    assert_close(updates["a"]["kernel"], layer.grad, "float32")
    np.testing.assert_array_equal(updates["a"]["bias"], GRADS[1])
    np.testing.assert_array_equal(updates["b"]["kernel"], GRADS[0])
    rates = optax.tree_utils.tree_get(after, "rate")
    assert_close(jax.tree.leaves(rates), [layer.rate], "float32")
    assert rates["a"]["bias"] == optax.MaskedNode()


@pytest.mark.parametrize("which", ["trust_ratio_mask", "weight_decay_mask"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_of_the_optimizer_in_each_form(mask, which):
    params = {name: tree("dict", WEIGHTS) for name in "ab"}
    grads = {name: tree("dict", GRADS) for name in "ab"}
    settings = {"trust_coefficient": 1.0, "momentum": 0.0}
    optimizer = lars(1.0, weight_decay=0.25, **{which: mask}, **settings)
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    chosen = expected_layer(WEIGHTS[0], GRADS[0], weight_decay=0.25)
    if which == "trust_ratio_mask":
        other, other_rate = GRADS[0] + 0.25 * WEIGHTS[0], 1.0
    else:
        layer = expected_layer(WEIGHTS[0], GRADS[0])
        other, other_rate = layer.grad, layer.rate
    assert_close(-updates["a"]["kernel"], chosen.grad, "float32")
    assert_close(-updates["b"]["kernel"], other, "float32")
    assert_close(state[0].rate["a"]["kernel"], chosen.rate, "float32")
    assert_close(state[0].rate["b"]["kernel"], other_rate, "float32")


def test_tree_map_params_sees_the_momentum_and_not_the_norms():
    # It is how optimizer states get the parameters' sharding: a norm has no axis to shard.
    params = {"w": jnp.ones((4, 2)), "b": jnp.ones(4)}
    specs = {"w": "rows", "b": "columns"}
    for wrap in (lambda t: t, lambda t: optax.masked(t, {"w": True, "b": True}), optax.inject_hyperparams(lambda t: t)):
        optimizer = wrap(lars(0.1))
        found = optax.tree_utils.tree_map_params(
            optimizer, lambda _, spec: spec, optimizer.init(params), specs, transform_non_params=lambda _: "whole"
        )
        assert optax.tree_utils.tree_get(found, "trace") == specs
        assert optax.tree_utils.tree_get(found, "rate") == "whole"


def test_the_state_is_a_namedtuple_whose_figures_are_named():
    assert ScaleByGradientLARSState._fields == ("p_norm", "g_norm", "rate")
    state = scale_by_gradient_lars().init({"w": jnp.ones(3)})
    assert isinstance(state, ScaleByGradientLARSState)
    shapes = jax.eval_shape(lars(0.1).init, {"w": jax.ShapeDtypeStruct((3, 2), jnp.bfloat16)})
    assert shapes[0].rate["w"].dtype == jnp.float32
