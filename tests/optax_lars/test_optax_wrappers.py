"""Inside the wrappers of optax and JAX: injected settings, several optimizers, accumulation, vmap, scan, jit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradient_lars.optax import lars, scale_by_gradient_lars
from jax_cases import structure, to_wide
from reference import assert_close
from reference import lars as expected_layer


def params_and_grads(seed=3, dtype="float32"):
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 3), "b": (3,)}
    return [{name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()} for _ in range(2)]


def assert_trees_close(one, other, dtype="float32"):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert_close(to_wide(left), to_wide(right), dtype)


def test_injected_settings_of_the_hook_can_be_set_and_scheduled():
    params, grads = params_and_grads()
    injected = optax.inject_hyperparams(scale_by_gradient_lars)(
        threshold=0.0, weight_decay=lambda step: 0.1 * (step + 1), eps=0.5
    )
    state = injected.init(params)
    update = jax.jit(injected.update)
    for step in range(3):
        state.hyperparams["eps"] = jnp.float32(0.5 * step)
        updates, state = update(grads, state, params)
        for name in params:
            layer = expected_layer(
                params[name], grads[name], threshold=0.0, weight_decay=0.1 * (step + 1), eps=0.5 * step
            )
            assert_close(updates[name], layer.grad, "float32")
            assert_close(state.inner_state.rate[name], layer.rate, "float32")


@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"lr_in_momentum": False}], ids=str)
def test_injected_settings_of_the_optimizer_are_those_of_the_plain_one(settings):
    numbers = {"momentum": 0.5, "weight_decay": 0.1, "trust_coefficient": 0.25, "threshold": 0.1, "eps": 1e-3}
    mask = {"w": True, "b": False}
    static = ("weight_decay_mask", "trust_ratio_mask")
    plain = lars(lambda step: 1.0 / (1 + step), weight_decay_mask=mask, **numbers, **settings)
    injected = optax.inject_hyperparams(lars, static_args=static)(
        learning_rate=lambda step: 1.0 / (1 + step), weight_decay_mask=mask, **numbers, **settings
    )
    params, grads = params_and_grads()
    ends = []
    for optimizer in (plain, injected):
        state, now = optimizer.init(params), params
        update = jax.jit(optimizer.update)
        for _ in range(3):
            updates, state = update(grads, state, now)
            now = optax.apply_updates(now, updates)
        ends.append(now)
    assert_trees_close(*ends)
    assert optax.tree_utils.tree_get(state, "rate")["w"] > 0


def test_injected_settings_leave_a_tree_of_mixed_types_as_it_is():
    # They all come in the widest type of the tree: bfloat16 must stay bfloat16, or the second step compiles again.
    params = {"wide": jnp.ones((3, 2)), "narrow": jnp.ones(3, jnp.bfloat16)}
    types = jax.tree.map(lambda p: p.dtype, params)
    for settings in ({}, {"nesterov": True}, {"lr_in_momentum": False}):
        optimizer = optax.inject_hyperparams(lars)(learning_rate=1.0, **settings)
        state = optimizer.init(params)
        updates, after = optimizer.update(params, state, params)
        assert structure(after) == structure(state)
        assert jax.tree.map(lambda u: u.dtype, updates) == types
    plain = optax.inject_hyperparams(lambda learning_rate: lars(learning_rate, momentum=0))(1.0)
    updates, _ = plain.update(params, plain.init(params), params)
    assert jax.tree.map(lambda u: u.dtype, updates) == types


def test_gradients_narrower_than_the_parameters_lose_nothing_in_the_momentum():
    params, grads = jnp.full(3, 2.0), jnp.full(3, 0.1, jnp.bfloat16)
    optimizer = lars(1.0, trust_coefficient=1.0)
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(grads, state, params)
    assert updates.dtype == state[2].trace.dtype == jnp.float32


def test_multi_transform_gives_each_part_its_own():
    params, grads = params_and_grads()
    labels = {"w": "lars", "b": "sgd"}
    for form in (labels, lambda params: labels):
        optimizer = optax.multi_transform({"lars": lars(0.5, weight_decay=0.1), "sgd": optax.sgd(0.25)}, form)
        updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        rate = 1e-3 * expected_layer(params["w"], grads["w"], weight_decay=0.1).rate
        assert_close(updates["w"], -0.5 * rate * (to_wide(grads["w"]) + 0.1 * to_wide(params["w"])), "float32")
        assert_close(updates["b"], -0.25 * np.asarray(grads["b"]), "float32")
        assert_close(jax.tree.leaves(optax.tree_utils.tree_get(state, "rate")), [rate], "float32")


def test_accumulated_gradients_are_rescaled_once():
    params, grads = params_and_grads()
    _, more = params_and_grads(seed=4)
    inner = lars(0.5, weight_decay=0.1)
    optimizer = optax.MultiSteps(inner, every_k_schedule=2)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    nothing, state = update(grads, state, params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(nothing))
    updates, state = update(more, state, params)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, grads, more)
    expected, inner_state = inner.update(mean, inner.init(params), params)
    assert_trees_close(updates, expected)
    assert_trees_close(optax.tree_utils.tree_get(state, "rate"), inner_state[0].rate)


def test_each_member_of_an_ensemble_has_its_own_norms():
    members = [params_and_grads(seed) for seed in range(3)]
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *(member[i] for member in members)) for i in range(2)]
    optimizer = lars(0.5, weight_decay=0.1, trust_coefficient=1.0)
    state = jax.vmap(optimizer.init)(stacked[0])
    updates, state = jax.jit(jax.vmap(optimizer.update))(stacked[1], state, stacked[0])
    assert state[0].rate["w"].shape == (3,)
    for i, (params, grads) in enumerate(members):
        alone, alone_state = optimizer.update(grads, optimizer.init(params), params)
        assert_trees_close(jax.tree.map(lambda leaf, i=i: leaf[i], updates), alone)
        assert_close(state[0].rate["w"][i], np.asarray(alone_state[0].rate["w"]), "float32")
    rates = [expected_layer(p["w"], g["w"], weight_decay=0.1).rate for p, g in members]
    assert_close(state[0].rate["w"], rates, "float32")


def test_settings_may_differ_over_an_ensemble():
    params, grads = params_and_grads()

    def rate(weight_decay):
        transformation = scale_by_gradient_lars(weight_decay=weight_decay)
        return transformation.update(grads, transformation.init(params), params)[1].rate["w"]

    decays = [0.0, 0.1, 10.0]
    wanted = [expected_layer(params["w"], grads["w"], weight_decay=decay).rate for decay in decays]
    assert_close(jax.vmap(rate)(jnp.array(decays)), wanted, "float32")


@pytest.mark.parametrize(
    "make",
    [
        lambda: lars(lambda step: 0.1 / (1 + step), weight_decay=0.1),
        lambda: lars(0.1, nesterov=True, lr_in_momentum=False),
        lambda: optax.inject_hyperparams(lars)(learning_rate=0.1, weight_decay=0.1),
        lambda: optax.chain(
            scale_by_gradient_lars(mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)), optax.sgd(0.1)
        ),
        lambda: optax.MultiSteps(lars(0.1), 2),
    ],
    ids=["schedule", "nesterov", "injected", "masked", "accumulated"],
)
def test_it_is_compiled_once(make):
    params, grads = params_and_grads(dtype="bfloat16")
    params["wide"], grads["wide"] = jnp.ones(3), jnp.ones(3)
    optimizer = make()
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(4):
        params, state = step(params, state)
        if hasattr(state, "hyperparams"):
            state.hyperparams["learning_rate"] = state.hyperparams["learning_rate"] * 0.5
    assert len(traces) == 1


def test_many_steps_in_a_scan():
    params, grads = params_and_grads()
    optimizer = lars(0.5, weight_decay=0.1)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), state[0].rate["w"]

    (scanned, _), rates = jax.lax.scan(step, (params, optimizer.init(params)), length=3)
    carry = params, optimizer.init(params)
    for i in range(3):
        carry, rate = step(carry, None)
        assert_close(rates[i], np.asarray(rate), "float32")
    assert_trees_close(scanned, carry[0])


def test_arguments_meant_for_other_transformations_are_let_through():
    params, grads = params_and_grads()
    for transformation in (scale_by_gradient_lars(), scale_by_gradient_lars(mask=True), lars(0.1)):
        plain, _ = transformation.update(grads, transformation.init(params), params)
        more, _ = transformation.update(grads, transformation.init(params), params, value=1.0, loss=2.0)
        assert_trees_close(plain, more)
