"""``lars``: the whole optimizer."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from gradient_lars.optax._rescale import Mask, PyTree, is_none, rescale
from gradient_lars.optax._settings import Number, check, is_zero


def lars(
    learning_rate: Number | Callable[[Any], Any],
    *,
    momentum: Number = 0.9,
    weight_decay: Number = 0.0,
    weight_decay_mask: Mask = None,
    nesterov: bool = False,
    trust_coefficient: Number = 1e-3,
    trust_ratio_mask: Mask = None,
    threshold: Number = 0.01,
    eps: Number = 1e-9,
    lr_in_momentum: bool = True,
    norm_of: str = "gradient",
    zero_gradient_rate: Number | None = None,
    adapt_without_decay: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum SGD whose learning rate is scaled, layer by layer, to the norm of the weights (LARS).

    The optimizer of ``gradient_lars.torch.LARS``, with the masks of ``optax.lars``::

        rate = trust_coefficient * p_norm / (eps + g_norm + weight_decay * p_norm)   if p_norm > threshold, else 1
        d    = rate * (g + weight_decay * p)
        v   <- momentum * v + lr * d;  p <- p - v         with lr_in_momentum=True, as in the paper and in optax.lars
        v   <- momentum * v + d;       p <- p - lr * v    with lr_in_momentum=False, as in optax.sgd

    Args:
        learning_rate: >= 0, or a schedule: a function of the number of steps taken. The paper's gamma.
        momentum: >= 0; with the number 0 there is no momentum in the state.
        weight_decay: coefficient of the decay inside the rate, >= 0.
        weight_decay_mask: which layers decay, as a tree of booleans or a function (see `scale_by_gradient_lars`); where
            it is False their `weight_decay` is 0. None decays all.
        nesterov: Nesterov momentum as in ``optax.trace``.
        trust_coefficient: factor of an adapted layer's rate, > 0. The paper's eta.
        trust_ratio_mask: which layers are adapted, in the same forms; where it is False the rate is 1, and the decay
            stays. None adapts all.
        threshold: a layer is adapted only if its weight norm is strictly greater, >= 0.
        eps: added to the denominator, >= 0.
        lr_in_momentum: where the learning rate enters. The two differ whenever it changes.
        norm_of: what the ratio divides by: "gradient" is the paper's ``eps + ||g|| + weight_decay * ||p||``, "decayed"
            the ``eps + ||g + weight_decay * p||`` of ``optax.lars``. The state holds the norm taken.
        zero_gradient_rate: rate of an adapted layer whose gradient (with "decayed": gradient and decay) has the norm
            zero, >= 0. None is the formula's; with 0 the layer has no decay then.
        adapt_without_decay: False adapts nothing if `weight_decay` is the number 0, as timm and bolts do.

    Masks for both are what most recipes use: biases and normalisation layers are neither adapted nor decayed.
    ``optax.inject_hyperparams(lars, static_args=("weight_decay_mask", "trust_ratio_mask"))`` makes the numbers part of
    the state.

    Returns:
        An optax optimizer whose ``update`` needs the parameters. ``optax.tree_utils.tree_get(state, "rate")`` are the
        rates of the last step, in a tree like the parameters'.

    Raises:
        TypeError: a setting is not of its type.
        ValueError: a setting is out of its range.

    Example:
        The gradient is far too long; the layer moves by ``learning_rate * trust_coefficient`` of its norm:

        >>> import jax.numpy as jnp, optax
        >>> from gradient_lars.optax import lars
        >>> params = {"kernel": jnp.array([3.0, 4.0])}
        >>> optimizer = lars(10.0, trust_coefficient=0.01)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"kernel": jnp.array([300.0, -400.0])}, state, params)
        >>> print(optax.apply_updates(params, updates)["kernel"])
        [2.7 4.4]
        >>> print(optax.tree_utils.tree_get(state, "rate")["kernel"])
        1e-04

    Where it differs from ``optax.lars``: the ratio's denominator unless `norm_of` is "decayed", the threshold, the
    rates in the state, and settings by name only. The momentum is the same ``optax.TraceState``.

    References:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", arXiv 1708.03888.
    """
    check(momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust_coefficient)
    check(threshold=threshold, eps=eps)
    if zero_gradient_rate is not None:
        check(zero_gradient_rate=zero_gradient_rate)
    if norm_of not in ("gradient", "decayed"):
        raise ValueError(f"`norm_of` must be 'gradient' or 'decayed', got {norm_of!r}. 'gradient' is the paper's.")
    if not callable(learning_rate):
        check(learning_rate=learning_rate)
    switches = {"nesterov": nesterov, "lr_in_momentum": lr_in_momentum, "adapt_without_decay": adapt_without_decay}
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise TypeError(f"`{name}` must be True or False, got {switch!r}.")
    if nesterov and is_zero(momentum):
        raise ValueError("`nesterov` needs a `momentum` above 0. Set it, or leave `nesterov` out.")
    scaled = rescale(
        threshold=threshold,
        weight_decay=weight_decay,
        eps=eps,
        trust_coefficient=trust_coefficient,
        zero_gradient_rate=zero_gradient_rate,
        norm_of=norm_of,
        adapted=trust_ratio_mask if adapt_without_decay or not is_zero(weight_decay) else False,
        decayed=weight_decay_mask,
    )
    steps = [_scale_by_learning_rate(learning_rate)]
    if not is_zero(momentum):
        steps.insert(1 if lr_in_momentum else 0, _trace(momentum, nesterov=nesterov))
    return optax.chain(scaled, *steps)


def _scale_by_learning_rate(learning_rate: Any) -> Any:
    if isinstance(learning_rate, jax.Array | np.ndarray):
        # As a schedule it takes the type of each update; as a factor it would widen those of float16 and bfloat16.
        return optax.scale_by_learning_rate(lambda count: learning_rate)
    return optax.scale_by_learning_rate(learning_rate)


def _trace(momentum: Number, *, nesterov: bool) -> Any:
    """Return ``optax.trace`` with updates and state in the parameters' types, and a state that keeps its structure."""
    inner = optax.trace(momentum, nesterov=nesterov)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, PyTree]:
        stepped, after = inner.update(updates, state, params)

        # A momentum that is an array widens what it meets, and where there is no update the momentum would be lost.
        def typed(new: Any, old: Any) -> Any:
            return None if new is None else new.astype(old.dtype)

        def kept(new: Any, old: Any) -> Any:
            return old if new is None else typed(new, old)

        before = state.trace
        trace = jax.tree.map(kept, after.trace, before, is_leaf=is_none)
        return jax.tree.map(typed, stepped, before, is_leaf=is_none), after._replace(trace=trace)

    return optax.GradientTransformationExtraArgs(inner.init, update)
