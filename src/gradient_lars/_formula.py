"""The LARS rate from two norms: the one place where the formula is written down.

This module imports nothing. ``rate`` works on Python floats, on 0-d arrays and on vectors of norms (one entry per
layer) of any array library, so that every path, on any framework, computes the same thing.
"""

from typing import Any


def _choose(condition: Any, if_true: Any, if_false: Any) -> Any:
    return if_true if condition else if_false


def adapted(p_norm: Any, *, threshold: float) -> Any:
    """Whether a layer is adapted: its weight norm is strictly above the threshold."""
    return p_norm > threshold


def rate(p_norm: Any, g_norm: Any, *, threshold: float, weight_decay: Any, eps: float, where: Any = _choose) -> Any:
    """Return the factor by which LARS multiplies ``g + weight_decay * p``.

    ::

        rate = p_norm / (eps + g_norm + weight_decay * p_norm)   if p_norm > threshold, else 1

    Args:
        p_norm: Euclidean norm of the layer's weights, >= 0; a float, a 0-d array or a vector with one norm per layer.
        g_norm: Euclidean norm of the layer's raw gradient, before any decay; same shape as `p_norm`.
        threshold: layers whose weight norm is not strictly greater keep their gradient's size.
        weight_decay: coefficient of the decay, >= 0; one number, or a vector with one per layer.
        eps: added to the denominator, >= 0.
        where: ``where(condition, if_true, if_false)`` of the array library that holds the norms. The default serves
            Python floats.

    Returns:
        The rate, of the type and shape of `p_norm`. Where the denominator is zero (``eps = 0`` and neither gradient
        nor decay) the rate is 1: there is nothing to scale, and a gradient of zeros stays one of zeros.

    References:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", arXiv 1708.03888, equation 6; in the
        form of Chainer's ``GradientLARS``, without the trust coefficient.
    """
    denominator = eps + g_norm + weight_decay * p_norm
    scaled = adapted(p_norm, threshold=threshold) & (denominator != 0.0)
    return where(scaled, p_norm / where(scaled, denominator, 1.0), 1.0)
