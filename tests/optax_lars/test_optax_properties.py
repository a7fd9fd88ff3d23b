"""What must hold for any weights and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from core.test_properties import arguments, layers
from gradient_lars.optax import scale_by_gradient_lars
from reference import assert_close, lars

examples = settings(derandomize=True, database=None, deadline=None, max_examples=60)


@jax.jit
def _step(p, g, arguments):
    transformation = scale_by_gradient_lars(**arguments)
    return transformation.update(g, transformation.init(p), p)


def step(p, g, **arguments):
    """Return update and state; the entries lie in one vector, so that few shapes are compiled."""
    with jax.enable_x64(True):
        padded = [jnp.asarray(np.pad(np.ravel(array), (0, 64 - np.size(array)))) for array in (p, g)]
        updates, state = _step(*padded, {name: jnp.float64(value) for name, value in arguments.items()})
        return np.asarray(updates)[: np.size(g)].reshape(np.shape(g)), jax.tree.map(float, state)


@examples
@given(layers(), arguments)
def test_it_is_the_formula(layer, arguments):
    updates, state = step(*layer, **arguments)
    expected = lars(*layer, **arguments)
    assert_close(updates, expected.grad, "float64")
    assert_close(state.rate, expected.rate, "float64")
    assert 0 < state.rate < np.inf


@examples
@given(layers(nonzero=True), st.floats(1e-3, 1e3), st.floats(0.0, 10.0))
def test_the_rate_does_not_see_a_common_scale(layer, scale, weight_decay):
    p, g = layer
    arguments = {"threshold": 0.0, "weight_decay": weight_decay, "eps": 0.0}
    one, two = step(p, g, **arguments), step(scale * p, scale * g, **arguments)
    assert_close(two[0], scale * one[0], "float64")
    assert_close(two[1].rate, one[1].rate, "float64")


@examples
@given(layers(nonzero=True))
def test_without_decay_and_eps_the_update_gets_the_norm_of_the_weights(layer):
    updates, _ = step(*layer, threshold=0.0, weight_decay=0.0, eps=0.0)
    assert_close(np.linalg.norm(updates), np.linalg.norm(layer[0]), "float64")


@examples
@given(hnp.arrays(np.float32, (5,), elements=st.floats(-(2.0**60), 2.0**60, width=32)))
def test_the_rate_of_float32_is_a_number(g):
    with jax.enable_x64(False):
        _, state = _step(jnp.ones(5), jnp.asarray(g), {"threshold": 0.0, "weight_decay": 0.0, "eps": 0.0})
        assert 0 < float(state.rate) < np.inf
