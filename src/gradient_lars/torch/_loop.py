"""The readable path: one layer after the other. The faster paths are proven equal to it."""

import torch

from gradient_lars import _formula
from gradient_lars.torch._layers import ARRAYS, Layer, LossScale
from gradient_lars.torch.rates import Norms


def rescale(layers: list[Layer], loss_scale: LossScale, *, threshold: float, eps: float) -> list[Norms]:
    """Rescale the gradients of `layers` in place and return their norms and rates."""
    parts = []
    for i, layer in enumerate(layers):
        p_norm = ARRAYS.norm(layer.param)
        g_norm = loss_scale.unscaled(ARRAYS.norm(layer.grad))
        rate = _formula.rate(
            p_norm, g_norm, threshold=threshold, weight_decay=layer.weight_decay, eps=eps, where=torch.where
        )
        factor, decay = loss_scale.applied(rate, layer.sign * layer.weight_decay)
        ARRAYS.scale(layer.grad, layer.param, factor, decay)
        parts.append(Norms([i], p_norm.reshape(1), g_norm.reshape(1), rate.reshape(1), threshold))
    return parts
