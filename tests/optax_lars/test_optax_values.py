"""``scale_by_gradient_lars`` on every case against the float64 reference: its updates and the figures in its state."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradient_lars.optax import lars as lars_optimizer
from gradient_lars.optax import scale_by_gradient_lars
from jax_cases import CASES, dtype_of, layer, structure, to_jax, to_wide, x64
from reference import assert_close, lars
from torch_cases import SETTINGS


def step(params, grads, *, jit=True, **settings):
    """Return updates and state after one step."""
    transformation = scale_by_gradient_lars(**settings)
    state = transformation.init(params)
    update = jax.jit(transformation.update) if jit else transformation.update
    updates, after = update(grads, state, params)
    assert structure(after) == structure(state)
    return updates, after


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_layer(case, settings):
    dtype = dtype_of(case)
    with x64(dtype):
        p, g = map(to_jax, layer(case))
        updates, state = step(p, g, **settings)
        expected = lars(to_wide(p), to_wide(g), **settings)
        assert updates.dtype == dtype
        assert_close(to_wide(updates), expected.grad, dtype)
        wide = "float64" if dtype in ("float64", "complex128") else "float32"
        for figure in ("p_norm", "g_norm", "rate"):
            assert getattr(state, figure).dtype == wide
            assert_close(getattr(state, figure), getattr(expected, figure), wide)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_all_layers_in_one_tree(settings, jit):
    # Mixed types and shapes together: each must come out as it does alone.
    with jax.enable_x64(True):
        layers = {case.name: tuple(map(to_jax, layer(case, seed=2))) for case in CASES}
        params, grads = ({name: pair[i] for name, pair in layers.items()} for i in range(2))
        updates, state = step(params, grads, jit=jit, **settings)
        for name, (p, g) in layers.items():
            expected = lars(to_wide(p), to_wide(g), **settings)
            assert updates[name].dtype == g.dtype
            assert_close(to_wide(updates[name]), expected.grad, g.dtype)
            for figure in ("p_norm", "g_norm", "rate"):
                assert_close(getattr(state, figure)[name], getattr(expected, figure), "float32")


def test_settings_may_be_traced_arrays():
    with jax.enable_x64(True):
        params, grads = {}, {}
        for case in CASES:
            params[case.name], grads[case.name] = map(to_jax, layer(case, seed=3))

        @jax.jit
        def traced(settings):
            transformation = scale_by_gradient_lars(**settings)
            return transformation.update(grads, transformation.init(params), params)

        for settings in SETTINGS:
            numbers = step(params, grads, jit=False, **settings)
            arrays = traced({name: jnp.asarray(value, jnp.float64) for name, value in settings.items()})
            assert structure(numbers) == structure(arrays)
            for one, other in zip(jax.tree.leaves(numbers), jax.tree.leaves(arrays), strict=True):
                assert_close(to_wide(one), to_wide(other), one.dtype)


@pytest.mark.parametrize(
    ("param_type", "grad_type"),
    [("float64", "float32"), ("float32", "float64"), ("bfloat16", "float32"), ("float32", "bfloat16")],
)
def test_gradient_of_another_type(rng, param_type, grad_type):
    settings = {"threshold": 0.01, "weight_decay": 0.1, "eps": 1e-9}
    with jax.enable_x64(True):
        p = jnp.asarray(rng.standard_normal((4, 3)), param_type)
        g = jnp.asarray(rng.standard_normal((4, 3)), grad_type)
        updates, state = step(p, g, **settings)
        expected = lars(to_wide(p), to_wide(g), **settings)
        assert updates.dtype == grad_type
        assert_close(to_wide(updates), expected.grad, "bfloat16" if grad_type == "bfloat16" else "float32")
        assert_close(state.rate, expected.rate, "float32")


def test_the_threshold_is_compared_in_the_norms_own_type():
    # 0.1 is larger as float32 than as float64, and is not larger than itself.
    for threshold in (0.1, jnp.float32(0.1), np.float64(0.1)):
        _, state = step(jnp.array([0.1]), jnp.array([5.0]), threshold=threshold)
        assert state.rate == 1.0
    with jax.enable_x64(True):
        _, state = step(jnp.array([0.1], jnp.float32), jnp.array([5.0], jnp.float64), threshold=jnp.float64(0.1))
        assert state.rate == 1.0


def test_what_is_not_finite_goes_through_the_formula():
    # A NaN gradient: the rate is NaN. An infinite one: 0. NaN weights are not above the threshold: 1.
    nan, inf = float("nan"), float("inf")
    params = [jnp.array([3.0, 4.0]), jnp.array([3.0, 4.0]), jnp.array([nan, 4.0])]
    grads = [jnp.array([nan, 1.0]), jnp.array([inf, 1.0]), jnp.array([2.0, 1.0])]
    updates, state = step(params, grads)
    assert str([float(rate) for rate in state.rate]) == "[nan, 0.0, 1.0]"
    assert bool(jnp.isnan(updates[0]).all())
    assert str(updates[1].tolist()) == "[nan, 0.0]"
    assert updates[2].tolist() == [2.0, 1.0]


def test_zeros_make_no_nan_anywhere():
    with jax.debug_nans(True):
        for p, g in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
            updates, _ = step(jnp.full(3, p), jnp.full(3, g), threshold=0.0, eps=0.0)
            assert bool(jnp.isfinite(updates).all())


def test_norm_of_millions_of_entries_is_accurate(rng):
    p, g = (rng.random(2_000_003, dtype=np.float32) for _ in range(2))
    expected = lars(p, g)
    _, state = step(jnp.asarray(p), jnp.asarray(g))
    assert abs(state.p_norm / expected.p_norm - 1) < 1e-6
    assert abs(state.g_norm / expected.g_norm - 1) < 1e-6


@pytest.mark.parametrize("p", [[3.0, 4.0], [0.0, 0.0]], ids=["adapted", "zero"])
def test_a_gradient_goes_through_the_step(p):
    # Meta-learning differentiates the step; the norm of a bias of zeros must not make NaN of it.
    def stepped(weight_decay, p, g):
        transformation = scale_by_gradient_lars(weight_decay=weight_decay, eps=0.0)
        updates, _ = transformation.update(g, transformation.init(p), p)
        return jnp.sum(updates * jnp.array([1.0, -2.0]))

    with jax.enable_x64(True):
        p, g = jnp.array(p), jnp.array([0.5, 0.25])
        actual = jax.grad(stepped, argnums=(0, 1, 2))(0.1, p, g)

        def difference(argument, entry, size=1e-6):
            values = [[0.1, p, g], [0.1, p, g]]
            for sign, row in zip((1, -1), values, strict=True):
                row[argument] = row[argument] + sign * size * (1.0 if entry is None else jnp.eye(2)[entry])
            return (stepped(*values[0]) - stepped(*values[1])) / (2 * size)

        expected = [difference(0, None), [difference(1, i) for i in range(2)], [difference(2, i) for i in range(2)]]
        for found, wanted in zip(actual, expected, strict=True):
            assert_close(found, np.asarray(wanted), "float32")


def test_python_numbers_as_parameters():
    updates, state = step({"a": 3.0, "b": -4.0}, {"a": 600.0, "b": 0.5})
    assert_close([updates["a"], updates["b"]], [3.0, 4.0], "float32")
    assert_close(state.rate["a"], 0.005, "float32")


def test_chained_with_others_its_rates_are_found():
    chain = optax.chain(optax.clip_by_global_norm(1.0), scale_by_gradient_lars(), optax.sgd(0.1, momentum=0.9))
    params = {"w": jnp.array([3.0, 4.0])}
    state = chain.init(params)
    assert float(optax.tree_utils.tree_get(state, "rate")["w"]) == 0.0
    _, state = chain.update({"w": jnp.array([0.3, 0.4])}, state, params)
    assert_close(optax.tree_utils.tree_get(state, "rate")["w"], 10.0, "float32")


@pytest.mark.parametrize("documented", [scale_by_gradient_lars, lars_optimizer])
def test_examples_in_docstrings(documented):
    result = doctest.testmod(inspect.getmodule(documented))
    assert result.attempted > 5
    assert result.failed == 0
