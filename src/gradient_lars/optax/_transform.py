"""``scale_by_gradient_lars``: the hook as an optax transformation."""

import optax

from gradient_lars.optax._rescale import Mask, rescale
from gradient_lars.optax._settings import Number, check


def scale_by_gradient_lars(
    threshold: Number = 0.01, weight_decay: Number = 0.0, eps: Number = 1e-9, mask: Mask = None
) -> optax.GradientTransformationExtraArgs:
    r"""Rescale each layer's update to the norm of its weights: ``GradientLARS`` as an optax transformation.

    With ``p_norm = ||p||_2`` and ``g_norm = ||g||_2``, one pair of numbers per array of the tree ("layer")::

        rate = p_norm / (eps + g_norm + weight_decay * p_norm)   if p_norm > threshold (strict), else 1
        g   <- rate * (g + weight_decay * p)                     the decay applies below the threshold too

    There is no trust coefficient: the learning rate that follows is the paper's gamma * eta, about the relative change
    of a layer per step (0.001 to 0.3). `lars` is the whole optimizer.

    The state is a `ScaleByGradientLARSState`: ``optax.tree_utils.tree_get(state, "rate")`` finds the rates of the last
    step in the state of any chain. Norms are accumulated in float32, or float64 for float64 arrays; updates keep their
    type. Arrays sharded over a mesh have their global norm, under ``jax.jit`` and without. Inside ``jax.shard_map`` a
    shard is all there is to see: call ``update`` outside of it.

    Args:
        threshold: a layer is adapted only if its weight norm is strictly greater; >= 0, in the weights' own units.
        weight_decay: coefficient of the decay inside the rate, >= 0. Add no other decay.
        eps: added to the denominator, >= 0.
        mask: as in ``optax.masked``: a tree of booleans with the structure of the parameters or a prefix of it, or a
            function that returns one for them. Where it is False the update passes through unchanged, without decay,
            and the state holds ``optax.MaskedNode()``. None rescales all.

    The three numbers may be arrays without dimensions, as ``optax.inject_hyperparams`` makes them (name a `mask` that
    is a function in its `static_args`). The range of an array is not checked.

    Returns:
        A transformation whose ``update`` needs the parameters.

    Raises:
        TypeError: a setting is not a number; in ``update``, a leaf is not of floating point.
        ValueError: a setting is negative, NaN or (but for `threshold`) infinite; in ``update``, `params` is missing or
            an update has not the shape of its parameter.

    Example:
        The gradient has norm 500 and the weights have norm 5; the one is brought to the other. The bias is below the
        threshold and keeps its gradient:

        >>> import jax.numpy as jnp
        >>> from gradient_lars.optax import scale_by_gradient_lars
        >>> params = {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.zeros(1)}
        >>> grads = {"kernel": jnp.array([300.0, -400.0]), "bias": jnp.array([7.0])}
        >>> transformation = scale_by_gradient_lars(eps=0.0)
        >>> updates, state = transformation.update(grads, transformation.init(params), params)
        >>> print(updates["kernel"], updates["bias"])
        [ 3. -4.] [7.]
        >>> print(state.rate["kernel"], state.rate["bias"])
        0.01 1.0

    It differs from ``optax.scale_by_trust_ratio``, which divides by the norm of the gradient with the decay in it and
    has no threshold.

    References:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", arXiv 1708.03888, in the form of
        Chainer's ``GradientLARS``.
    """
    check(threshold=threshold, weight_decay=weight_decay, eps=eps)
    transformation = rescale(threshold=threshold, weight_decay=weight_decay, eps=eps)
    return transformation if mask is None else optax.masked(transformation, mask)
