"""The settings of the optax transformations and the leaves they act on: what is refused, and why."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Number = Any  # a Python number, or an array without dimensions, which may be traced

# name: (least, least allowed, remedy)
_RANGES: dict[str, tuple[float, bool, str]] = {
    "learning_rate": (0.0, True, "It is the paper's gamma; recipes use 0.1 to 30. A schedule may be given instead."),
    "momentum": (0.0, True, "0.9 is usual, 0 means none."),
    "weight_decay": (0.0, True, "Recipes use 0 to 5e-4. For a schedule wrap with optax.inject_hyperparams."),
    "trust_coefficient": (0.0, False, "It is the paper's eta, 0.001; 1 leaves the scale to the learning rate."),
    "threshold": (0.0, True, "0 adapts every layer that is not zero, math.inf none."),
    "eps": (0.0, True, "1e-9 is the default."),
    "zero_gradient_rate": (0.0, True, "None leaves it to the formula."),
}


def check(**settings: Any) -> None:
    """Raise TypeError or ValueError if a setting is no number or out of its range; arrays may hold anything."""
    for name, value in settings.items():
        least, least_allowed, remedy = _RANGES[name]
        if isinstance(value, jax.Array | np.ndarray):
            if value.ndim:
                raise ValueError(f"`{name}` must have no dimensions, got an array of shape {value.shape}. {remedy}")
            continue
        if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
            raise TypeError(f"`{name}` must be a number, got {value!r}. {remedy}")
        number = float(value)
        above = number >= least if least_allowed else number > least
        if not above or (number == math.inf and name != "threshold"):
            bound = f"{'>=' if least_allowed else '>'} {least:g}" + ("" if name == "threshold" else " and finite")
            raise ValueError(f"`{name}` must be {bound}, got {value!r}. {remedy}")


def check_layer(path: str, g: Any, p: Any) -> None:
    """Raise TypeError or ValueError if update `g` and parameter `p`, at `path` in their trees, do not fit."""
    types = []
    for what, leaf in (("updates", g), ("params", p)):
        dtype = None if leaf is None else jnp.result_type(leaf)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"`{what}{path}` must be an array of floating point, got {dtype}. Leave it out with `mask`, or give "
                "None as its update."
            )
        types.append(dtype)
    if jnp.shape(g) != jnp.shape(p):
        raise ValueError(
            f"`updates{path}` must have the shape of its parameter, {jnp.shape(p)}, got {jnp.shape(g)}. Gradients and "
            "parameters must be of one tree."
        )
    if jnp.issubdtype(types[0], jnp.complexfloating) != jnp.issubdtype(types[1], jnp.complexfloating):
        raise TypeError(
            f"`updates{path}` must be complex as its parameter is, or neither: got {types[0]} and {types[1]}."
        )


def is_zero(setting: Number) -> bool:
    """Return whether `setting` is known to be 0 before anything is computed; an array is not."""
    return not isinstance(setting, jax.Array | np.ndarray) and setting == 0
