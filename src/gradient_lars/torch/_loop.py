"""The readable path: one layer after the other. The faster paths are proven equal to it."""

import torch

from gradient_lars import _formula
from gradient_lars.torch._layers import ARRAYS, Layer, LossScale
from gradient_lars.torch._sharding import LocalNorms, Sharding
from gradient_lars.torch.rates import Norms


def rescale(
    layers: list[Layer], loss_scale: LossScale, sharding: Sharding | None, *, threshold: float, eps: float
) -> list[Norms]:
    """Rescale the gradients of `layers` in place and return their norms and rates."""
    pairs = [
        (ARRAYS.norm(layer.param).reshape(1), loss_scale.unscaled(ARRAYS.norm(layer.grad)).reshape(1))
        for layer in layers
    ]
    if sharding:
        parts = [LocalNorms([layer.piece], *pair) for layer, pair in zip(layers, pairs, strict=True)]
        pairs, loss_scale = loss_scale.agreed(sharding, parts)
    found = []
    for i, (layer, (p_norm, g_norm)) in enumerate(zip(layers, pairs, strict=True)):
        rate = _formula.rate(
            p_norm, g_norm, threshold=threshold, weight_decay=layer.weight_decay, eps=eps, where=torch.where
        )
        factor, decay = loss_scale.applied(rate, layer.sign * layer.weight_decay)
        ARRAYS.scale(layer.grad, layer.param, factor.reshape(()), decay)
        found.append(Norms([i], p_norm, g_norm, rate, threshold))
    return found
