"""What must hold for any weights and gradients."""

import types

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradient_lars import GradientLARS, _formula
from reference import assert_close, lars

examples = settings(derandomize=True, database=None, deadline=None, max_examples=150)

numbers = st.floats(1e-6, 1e6)
norms = st.one_of(st.just(0.0), numbers)
# Entries far from the smallest floats, whose squares would be lost to any norm.
entries = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.floats(-1e3, -1e-3))
arguments = st.fixed_dictionaries(
    {"threshold": norms, "weight_decay": norms, "eps": st.one_of(st.just(0.0), st.floats(1e-9, 1.0))}
)


@st.composite
def layers(draw, nonzero=False):
    """Weights and gradient of one shape; with `nonzero` both have a norm."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=1 if nonzero else 0, max_side=4))
    p, g = (draw(hnp.arrays(np.float64, shape, elements=entries)) for _ in range(2))
    if nonzero:
        p, g = (array if np.any(array) else np.full_like(array, 0.5) for array in (p, g))
    return p, g


def hooked(p, g, **arguments):
    param = types.SimpleNamespace(data=np.array(p), grad=np.array(g))
    GradientLARS(**arguments)(None, param)
    return param.grad


@examples
@given(norms, norms, arguments)
def test_the_rate_is_positive_and_finite(p_norm, g_norm, arguments):
    rate = _formula.rate(p_norm, g_norm, **arguments)
    assert 0 < rate < np.inf


@examples
@given(st.lists(st.tuples(norms, norms), max_size=6), arguments)
def test_a_vector_of_norms_gives_the_rates_of_its_entries(rows, arguments):
    p_norm, g_norm = (np.array([row[i] for row in rows], dtype=np.float64) for i in range(2))
    rates = _formula.rate(p_norm, g_norm, **arguments, where=np.where)
    assert rates.tolist() == [_formula.rate(*row, **arguments) for row in rows]


@examples
@given(layers(), arguments)
def test_the_hook_is_the_formula(layer, arguments):
    assert_close(hooked(*layer, **arguments), lars(*layer, **arguments).grad, "float64")


@examples
@given(layers(nonzero=True), st.floats(1e-3, 1e3), st.floats(0.0, 10.0))
def test_the_rate_does_not_see_a_common_scale(layer, scale, weight_decay):
    p, g = layer
    arguments = {"threshold": 0.0, "weight_decay": weight_decay, "eps": 0.0}
    assert_close(hooked(scale * p, scale * g, **arguments), scale * hooked(p, g, **arguments), "float64")


@examples
@given(layers(nonzero=True), st.floats(1e-3, 1e3))
def test_the_step_does_not_see_the_scale_of_the_gradient(layer, scale):
    p, g = layer
    arguments = {"threshold": 0.0, "weight_decay": 0.0, "eps": 0.0}
    assert_close(hooked(p, scale * g, **arguments), hooked(p, g, **arguments), "float64")


@examples
@given(layers(nonzero=True))
def test_without_decay_and_eps_the_gradient_gets_the_norm_of_the_weights(layer):
    p, g = layer
    grad = hooked(p, g, threshold=0.0, weight_decay=0.0, eps=0.0)
    assert_close(np.linalg.norm(grad), np.linalg.norm(p), "float64")


@examples
@given(layers(), st.floats(0.0, 10.0))
def test_at_or_below_the_threshold_only_the_decay_is_added(layer, weight_decay):
    p, g = layer
    arguments = {"threshold": lars(p, g).p_norm * (1 + 1e-12), "weight_decay": weight_decay}
    assert_close(hooked(p, g, **arguments), g + weight_decay * p, "float64")
