"""The LARS rate from two norms: the one place where the formula is written down.

This module imports nothing. ``rate`` works on Python floats, on 0-d arrays and on vectors of norms (one entry per
layer) of any array library, so that every path, on any framework, computes the same thing.
"""

from typing import Any

INFINITY = float("inf")


def _choose(condition: Any, if_true: Any, if_false: Any) -> Any:
    return if_true if condition else if_false


def adapted(p_norm: Any, *, threshold: Any) -> Any:
    """Whether a layer is adapted: its weight norm is strictly above the threshold."""
    return p_norm > threshold


def rate(
    p_norm: Any,
    g_norm: Any,
    *,
    threshold: Any,
    weight_decay: Any,
    eps: Any,
    trust_coefficient: Any = 1.0,
    clip_lr: Any = None,
    min_rate: float = 0.0,
    max_rate: float = INFINITY,
    zero_gradient_rate: Any = None,
    where: Any = _choose,
) -> Any:
    """Return the factor by which LARS multiplies ``g + weight_decay * p``.

    ::

        rate = trust_coefficient * p_norm / (eps + g_norm + weight_decay * p_norm)   if p_norm > threshold, else 1

    Args:
        p_norm: Euclidean norm of the layer's weights, >= 0; a float, a 0-d array or a vector with one norm per layer.
        g_norm: Euclidean norm of the layer's raw gradient, before any decay; same shape as `p_norm`.
        threshold: layers whose weight norm is not strictly greater keep their gradient's size.
        weight_decay: coefficient of the decay, >= 0; one number, or a vector with one per layer.
        eps: added to the denominator, >= 0.
        trust_coefficient: factor of an adapted layer's rate, > 0; the paper's eta. The hook has none.
        clip_lr: the learning rate to clip at, or None. With it ``rate = min(rate / clip_lr, 1)`` for adapted layers, so
            that ``clip_lr * rate`` is LARC's ``min(rate, clip_lr)``.
        min_rate: least rate of an adapted layer, >= 0.
        max_rate: greatest rate of an adapted layer.
        zero_gradient_rate: rate of a layer above the threshold whose `g_norm` is zero, >= 0; None leaves it to the
            formula.
        where: ``where(condition, if_true, if_false)`` of the array library that holds the norms. The default serves
            Python floats.

    Returns:
        The rate, of the type and shape of `p_norm`. Where the denominator is zero (``eps = 0`` and neither gradient
        nor decay) the rate is 1: there is nothing to scale, and a gradient of zeros stays one of zeros. A gradient norm
        that is NaN makes the rate NaN, an infinite one makes it 0. A weight norm of NaN is not above the threshold.

    References:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", arXiv 1708.03888, equation 6; in the
        form of Chainer's ``GradientLARS``, whose trust coefficient is 1.
    """
    denominator = eps + g_norm + weight_decay * p_norm
    scaled = adapted(p_norm, threshold=threshold) & (denominator != 0.0)
    ratio = p_norm / where(scaled, denominator, 1.0)
    # A number that JAX traces has no value to compare with yet.
    if not isinstance(trust_coefficient, float) or trust_coefficient != 1.0:
        ratio = trust_coefficient * ratio
    if clip_lr is not None:
        ratio = where(ratio >= clip_lr, 1.0, ratio / clip_lr)
    if min_rate > 0.0:
        ratio = where(ratio < min_rate, min_rate, ratio)
    if max_rate != INFINITY:
        ratio = where(ratio > max_rate, max_rate, ratio)
    result = where(scaled, ratio, 1.0)
    if zero_gradient_rate is not None:
        without_gradient = adapted(p_norm, threshold=threshold) & (g_norm == 0.0)
        result = where(without_gradient, zero_gradient_rate, result)
    return result
