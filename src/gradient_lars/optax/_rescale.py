"""Norms, rates and updates of all layers of a pytree: what the public transformations are made of."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradient_lars import _formula
from gradient_lars.optax._settings import Number, check_layer, is_zero

PyTree = Any
Mask = Any  # a pytree of booleans, a prefix of one, or a function that returns one


class ScaleByGradientLARSState(NamedTuple):
    """Norms and rates of the last step, in trees like the parameters' with one number in place of each array.

    float64 for float64 and complex128 parameters, else float32. They are 0 before the first step, and where a layer had
    no update (None) in the last one.

    Attributes:
        p_norm: Euclidean norm of each layer's weights.
        g_norm: Euclidean norm of each layer's raw update, before any decay; with ``norm_of="decayed"`` after it.
        rate: factor by which ``g + weight_decay * p`` was multiplied; 1 for a layer that was not adapted.
    """

    p_norm: PyTree
    g_norm: PyTree
    rate: PyTree


def rescale(*, adapted: Mask = None, decayed: Mask = None, **settings: Any) -> Any:
    """Return the transformation that rescales all layers; the masks say which are adapted and which decay."""

    def init(params: PyTree) -> ScaleByGradientLARSState:
        return ScaleByGradientLARSState(*(_zeros(params) for _ in range(3)))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, ScaleByGradientLARSState]:
        if params is None:
            raise ValueError(
                "`params` must be given to `update`: LARS needs the current value of the parameters. Call "
                "`update(grads, state, params)`."
            )
        tree: Any
        with_path, tree = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_none)
        masks = (tree.flatten_up_to(_broadcast(mask, updates)) for mask in (adapted, decayed))
        layers = []
        for (path, g), p, *switches in zip(with_path, tree.flatten_up_to(params), *masks, strict=True):
            if g is None:
                layers.append((None, *(_zeros(p) for _ in range(3))))
            else:
                check_layer(jax.tree_util.keystr(path), g, p)
                layers.append(_layer(jnp.asarray(g), jnp.asarray(p), *switches, **settings))
        columns = zip(*layers, strict=True) if layers else ((),) * 4
        scaled, *figures = (tree.unflatten(column) for column in columns)
        return scaled, ScaleByGradientLARSState(*figures)

    return optax.GradientTransformationExtraArgs(init, update)


def _layer(
    g: jax.Array,
    p: jax.Array,
    adapted: bool,
    decayed: bool,
    *,
    threshold: Number,
    weight_decay: Number,
    eps: Number,
    trust_coefficient: Number = 1.0,
    zero_gradient_rate: Number | None = None,
    norm_of: str = "gradient",
) -> tuple[jax.Array, ...]:
    """Return the update of one layer, and its weight norm, gradient norm and rate."""
    p_norm, g_norm = _norm(p), _norm(g)
    # A setting that is an array would change the type of what it meets; all are brought to the norms' own.
    wide = jnp.promote_types(p_norm.dtype, g_norm.dtype)
    decay = jnp.asarray(weight_decay if decayed else 0.0, wide)
    scaled = _widened(g)
    if decayed and not is_zero(weight_decay):
        scaled = scaled + decay * _widened(p)
    if norm_of == "decayed":
        g_norm = _norm(scaled)
    rate = jnp.ones((), wide)
    if adapted:
        rate = _formula.rate(
            p_norm,
            g_norm,
            threshold=jnp.asarray(threshold, p_norm.dtype),
            weight_decay=jnp.zeros((), wide) if norm_of == "decayed" else decay,
            eps=jnp.asarray(eps, wide),
            trust_coefficient=jnp.asarray(trust_coefficient, wide),
            zero_gradient_rate=None if zero_gradient_rate is None else jnp.asarray(zero_gradient_rate, wide),
            where=jnp.where,
        )
    figures = (figure.astype(p_norm.dtype) for figure in (p_norm, g_norm, rate))
    return ((rate * scaled).astype(g.dtype), *figures)


def _norm(array: jax.Array) -> jax.Array:
    """Return the Euclidean norm, whose derivative at 0 is 0 and not NaN."""
    wide = _widened(array)
    squares = jnp.sum(jnp.square(wide.real) + jnp.square(wide.imag) if jnp.iscomplexobj(wide) else jnp.square(wide))
    # Not `> 0`: a NaN stays one.
    nonzero = squares != 0.0
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squares, 1.0)), 0.0)


def _widened(array: jax.Array) -> jax.Array:
    return array.astype(jnp.float32) if array.dtype.itemsize < 4 else array


def _zeros(params: PyTree) -> PyTree:
    """Return a zero for each array, in the type of its norm. Other leaves, such as functions, have no norm."""
    # A stand-in for all parameters marks what has their shapes. The norms do not have these.
    if isinstance(params, _STAND_IN):
        return jnp.zeros(())

    def zero(p: Any) -> jax.Array | None:
        if not (hasattr(p, "dtype") or isinstance(p, float | complex)):
            return None
        wide = jnp.result_type(p) in (np.float64, np.complex128)
        return jnp.zeros((), jnp.float64 if wide else jnp.float32)

    return jax.tree.map(zero, params)


def _stand_in() -> type:
    """Return the type that ``optax.tree_utils.tree_map_params`` hands to ``init`` in place of parameters."""
    seen = []

    def init(params: PyTree) -> tuple[()]:
        seen.append(type(params))
        return ()

    optax.tree_utils.tree_map_params(init, is_none, ())
    return seen[0]


def _broadcast(mask: Mask, updates: PyTree) -> PyTree:
    """Return a tree of the structure of `updates` that holds True or False for each leaf."""
    leaves = jax.tree.leaves(mask)
    # As optax tells them apart: an Equinox module is callable, but holds the answers.
    found = mask(updates) if leaves and all(callable(leaf) for leaf in leaves) else mask

    def spread(answer: Any, part: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf is not None and bool(answer), part, is_leaf=is_none)

    return jax.tree.map(spread, True if found is None else found, updates)


def is_none(leaf: Any) -> bool:
    return leaf is None


_STAND_IN = _stand_in()
