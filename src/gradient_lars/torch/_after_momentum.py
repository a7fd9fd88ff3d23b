"""The rate after the momentum: the norm it divides by is that of the update, layer by layer."""

import torch
from torch import Tensor

from gradient_lars.torch._lars_bucket import Bucket, LarsLayer, scalar_lr
from gradient_lars.torch._layers import LossScale


def directions(bucket: Bucket, loss_scale: LossScale) -> list[Tensor]:
    """Return, of each layer, the direction in which it will move, before rate and learning rate."""
    return [_momentum_and_direction(bucket, layer, loss_scale)[1] for layer in bucket.layers]


def update(bucket: Bucket, rate: Tensor, loss_scale: LossScale, skip: Tensor | None) -> None:
    """Update the layers of a bucket: ``v <- m*v + g + wd*p; p <- p - lr * rate * v``."""
    for layer, factor in zip(bucket.layers, (scalar_lr(bucket.group) * rate).unbind(), strict=True):
        velocity, direction = _momentum_and_direction(bucket, layer, loss_scale)
        new = layer.values.to(bucket.wide_dtype) - factor * direction
        changes = [(layer.momentum, velocity), (layer.weights, new)]
        changes += [] if layer.master is None else [(layer.param, new)]
        for target, value in changes:
            if target is not None:
                target.copy_(value if skip is None else torch.where(skip, target, value))


def _momentum_and_direction(bucket: Bucket, layer: LarsLayer, loss_scale: LossScale) -> tuple[Tensor, Tensor]:
    group = bucket.group
    w, g = layer.values.to(bucket.wide_dtype), layer.grad.to(bucket.wide_dtype)
    if loss_scale.scale is not None:
        g = g / loss_scale.scale.to(g.device, non_blocking=True)
    step = bucket.sign * g + layer.weight_decay * w
    if layer.momentum is None:
        return step, step
    velocity = step
    if not layer.seeded:
        velocity = group["momentum"] * layer.momentum.to(bucket.wide_dtype) + (1 - group["dampening"]) * step
    return velocity, step + group["momentum"] * velocity if group["nesterov"] else velocity
