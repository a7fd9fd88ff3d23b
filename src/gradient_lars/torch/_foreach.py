"""The multi-tensor path: layers of one device, type and decay together. Never waits for the device."""

from collections import defaultdict
from collections.abc import Hashable

import torch
from torch import Tensor

from gradient_lars import _formula
from gradient_lars.torch._layers import ARRAYS, Layer, LossScale
from gradient_lars.torch._norms import norms
from gradient_lars.torch._sharding import LocalNorms, Sharding
from gradient_lars.torch.rates import Norms


def rescale(
    layers: list[Layer], loss_scale: LossScale, sharding: Sharding | None, *, threshold: float, eps: float
) -> list[Norms]:
    """Rescale the gradients of `layers` in place and return their norms and rates."""
    buckets: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i, layer in enumerate(layers):
        param, grad = layer.param, layer.grad
        key = (param.device, param.dtype, grad.device, grad.dtype, layer.weight_decay, layer.sign)
        buckets[key].append(i)
    members = [[layers[i] for i in places] for places in buckets.values()]
    pairs = [
        (
            norms([layer.param.detach() for layer in bucket]),
            loss_scale.unscaled(norms([layer.grad for layer in bucket])),
        )
        for bucket in members
    ]
    if sharding:
        parts = [
            LocalNorms([layer.piece for layer in bucket], *pair) for bucket, pair in zip(members, pairs, strict=True)
        ]
        pairs, loss_scale = loss_scale.agreed(sharding, parts)
    found = []
    for places, bucket, (p_norm, g_norm) in zip(buckets.values(), members, pairs, strict=True):
        rate = _formula.rate(
            p_norm, g_norm, threshold=threshold, weight_decay=bucket[0].weight_decay, eps=eps, where=torch.where
        )
        _rescale_bucket(bucket, loss_scale, rate)
        found.append(Norms(places, p_norm, g_norm, rate, threshold))
    return found


@torch.no_grad()
def _rescale_bucket(layers: list[Layer], loss_scale: LossScale, rate: Tensor) -> None:
    params = [layer.param.detach() for layer in layers]
    weight_decay = layers[0].weight_decay
    factor, decay = loss_scale.applied(rate, layers[0].sign * weight_decay)

    targets = [layer.target for layer in layers]
    odd = any(target.is_conj() or target.is_neg() for target in targets)
    as_stored = not odd and ARRAYS.wide_dtype(targets[0].dtype) == targets[0].dtype
    wide = targets if as_stored else [_workable(target) for target in targets]
    if isinstance(decay, torch.Tensor):
        torch._foreach_add_(wide, torch._foreach_mul([_workable(param) for param in params], decay))
    elif decay:
        torch._foreach_add_(wide, [_workable(param) for param in params], alpha=decay)
    torch._foreach_mul_(wide, list(factor.unbind()))
    if odd:
        for target, result in zip(targets, wide, strict=True):
            target.copy_(result)
    elif not as_stored:
        torch._foreach_copy_(targets, wide)


def _workable(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy that multi-tensor kernels can compute in: float32 at least, values as stored."""
    return tensor.to(ARRAYS.wide_dtype(tensor.dtype)).resolve_conj().resolve_neg()
