"""What is refused, by the text of the refusal."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradient_lars.optax import lars, scale_by_gradient_lars


def whole(**settings):
    return lars(**({"learning_rate": 0.1} | settings))


NUMBERS = [
    (make, name)
    for make, names in (
        (scale_by_gradient_lars, ("threshold", "weight_decay", "eps")),
        (whole, ("learning_rate", "momentum", "weight_decay", "trust_coefficient", "threshold", "eps")),
    )
    for name in names
]


@pytest.mark.parametrize(("make", "name"), NUMBERS)
def test_numbers_out_of_range(make, name):
    least = "> 0" if name == "trust_coefficient" else ">= 0"
    wrong = [-1.0, math.nan, -math.inf] + [0.0] * (name == "trust_coefficient")
    for value in wrong:
        finite = "" if name == "threshold" else " and finite"
        text = rf"^`{name}` must be {least}{finite}, got {value}\. [A-Z0-9].*\.$"
        with pytest.raises(ValueError, match=text):
            make(**{name: value})
    if name != "threshold":
        with pytest.raises(ValueError, match=rf"^`{name}` must be {least} and finite, got inf\. "):
            make(**{name: math.inf})
    make(**{name: math.inf if name == "threshold" else 1})


@pytest.mark.parametrize(("make", "name"), NUMBERS)
@pytest.mark.parametrize("value", ["0.1", None, True, [0.1]], ids=str)
def test_what_is_no_number(make, name, value):
    with pytest.raises(TypeError, match=rf"^`{name}` must be a number, got {re.escape(repr(value))}\. .*\.$"):
        make(**{name: value})


def test_a_schedule_where_none_is_taken():
    with pytest.raises(
        TypeError, match=r"^`weight_decay` must be a number, got <function .* optax.inject_hyperparams\.$"
    ):
        lars(0.1, weight_decay=lambda step: 1e-4)


@pytest.mark.parametrize(("make", "name"), NUMBERS)
def test_arrays_with_dimensions(make, name):
    for array in (jnp.ones(1), np.ones((1, 2))):
        with pytest.raises(ValueError, match=rf"^`{name}` must have no dimensions, got an array of shape \(1,"):
            make(**{name: array})


@pytest.mark.parametrize("name", ["nesterov", "lr_in_momentum"])
def test_switches(name):
    with pytest.raises(TypeError, match=rf"^`{name}` must be True or False, got 1\.$"):
        lars(0.1, **{name: 1})


def test_nesterov_without_momentum():
    with pytest.raises(ValueError, match=r"^`nesterov` needs a `momentum` above 0\. Set it, or leave"):
        lars(0.1, momentum=0, nesterov=True)


def test_settings_go_by_name():
    # optax.lars takes weight_decay second.
    with pytest.raises(TypeError, match="positional"):
        lars(0.1, 1e-4)


@pytest.mark.parametrize("make", [scale_by_gradient_lars, whole, lambda: scale_by_gradient_lars(mask=True)])
def test_params_are_needed(make):
    transformation = make()
    params = {"w": jnp.ones(2)}
    with pytest.raises(
        ValueError, match=r"^`params` must be given to `update`: .* Call `update\(grads, state, params\)`"
    ):
        transformation.update(params, transformation.init(params))


@pytest.mark.parametrize(
    ("updates", "params", "error", "text"),
    [
        (
            jnp.ones(2),
            jnp.ones((2, 1)),
            ValueError,
            r"`updates\['w'\]` must have the shape of its parameter, \(2, 1\), got",
        ),
        (jnp.ones(2, int), jnp.ones(2), TypeError, r"`updates\['w'\]` must be an array of floating point, got int32"),
        (jnp.ones(2), jnp.ones(2, int), TypeError, r"`params\['w'\]` must be an array of floating point, got int32"),
        (jnp.ones(2), None, TypeError, r"`params\['w'\]` must be an array of floating point, got None"),
        (
            jnp.ones(2),
            jnp.ones(2, complex),
            TypeError,
            r"`updates\['w'\]` must be complex as its parameter is, or neither",
        ),
        (jnp.ones(2, complex), jnp.ones(2), TypeError, r"or neither: got complex64 and float32"),
    ],
)
def test_leaves_that_do_not_fit(updates, params, error, text):
    transformation = scale_by_gradient_lars()
    state = transformation.init({"w": jnp.ones(2)})
    with pytest.raises(error, match=text):
        transformation.update({"w": updates}, state, {"w": params})


def test_the_gradient_of_an_integer():
    params = {"w": jnp.ones(2), "n": jnp.ones(2, int)}
    grads = jax.grad(lambda params: jnp.sum(params["w"] ** 2), allow_int=True)(params)
    transformation = scale_by_gradient_lars()
    with pytest.raises(TypeError, match=r"^`updates\['n'\]` must be an array of floating point, got .*float0.*`mask`"):
        transformation.update(grads, transformation.init(params), params)
    masked = scale_by_gradient_lars(mask={"w": True, "n": False})
    updates, _ = masked.update(grads, masked.init(params), params)
    assert updates["n"] is grads["n"]


def test_trees_that_do_not_fit():
    transformation = scale_by_gradient_lars()
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="b"):
        transformation.update({"w": jnp.ones(2), "b": jnp.ones(2)}, transformation.init(params), params)
