"""The LARS step: norms of all layers, one rate a layer, then the update; layer by layer or many tensors at once.

``lars`` is the functional entry. Layers that share device, types and settings make a `Bucket`; a path differs only in
what it puts into one bucket and in how it updates it.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradient_lars import _formula
from gradient_lars.torch._layers import ARRAYS, LossScale
from gradient_lars.torch._norms import norms
from gradient_lars.torch._sharding import LocalNorms, Piece, Sharding
from gradient_lars.torch.rates import Norms

Group = dict[str, Any]


def scalar_lr(group: Group) -> float | Tensor:
    """Return the learning rate, a tensor without dimensions: it then changes neither type nor shape of a product."""
    lr: float | Tensor = group["lr"]
    return lr.reshape(()) if isinstance(lr, Tensor) else lr


@dataclass(slots=True)
class LarsLayer:
    """One parameter with its gradient and state; `fresh` and `fresh_master` say what was made for this step.

    Of a sharded parameter, the tensors are this rank's pieces and `piece` says where these belong.
    """

    name: str
    param: Tensor
    grad: Tensor
    momentum: Tensor | None
    master: Tensor | None
    group: Group
    adapted: bool
    fresh: bool
    piece: Piece | None = None
    fresh_master: bool = False

    @property
    def weights(self) -> Tensor:
        """The weights the step computes with: the float32 master copy if there is one."""
        return self.param if self.master is None else self.master

    @property
    def values(self) -> Tensor:
        """The weights to read: autograd keeps what it has seen, and the step writes to `weights`."""
        return self.weights.clone() if self.group["differentiable"] else self.weights

    @property
    def key(self) -> Hashable:
        """Layers of the same key can be updated together."""
        types = tuple(None if t is None else t.dtype for t in (self.param, self.grad, self.momentum, self.master))
        return self.param.device, types, id(self.group), self.adapted, self.fresh


@dataclass(slots=True)
class Bucket:
    """Layers updated together, and their places among all layers."""

    places: list[int]
    layers: list[LarsLayer]

    @property
    def group(self) -> Group:
        """The settings that the layers share."""
        return self.layers[0].group

    @property
    def sign(self) -> int:
        """-1 where the optimizer maximizes: the gradient is negated, the decay is not."""
        return -1 if self.group["maximize"] else 1

    @property
    def wide_dtype(self) -> torch.dtype:
        """The type the update is computed in: float32 at least."""
        first = self.layers[0]
        return torch.promote_types(ARRAYS.wide_dtype(first.weights.dtype), ARRAYS.wide_dtype(first.grad.dtype))


# Takes a bucket, its rates, the loss scale, and whether to leave everything as it is.
Update = Callable[[Bucket, Tensor, LossScale, Tensor | None], None]


def lars(
    layers: list[LarsLayer],
    loss_scale: LossScale,
    *,
    update: Update,
    together: bool,
    skip_nonfinite: bool,
    sharding: Sharding | None = None,
) -> tuple[list[Norms], Tensor | None]:
    """Take one step of `layers` in place.

    Args:
        layers: parameters, gradients and state; parameters, master copies and momenta change.
        loss_scale: what GradScaler has left in the gradients.
        update: how a bucket is updated, once its rates are known.
        together: whether layers that share device, types and settings are taken together.
        skip_nonfinite: leave everything as it is if any gradient has an infinity or NaN.
        sharding: of the optimizer's parameters, if any is sharded.

    Returns:
        Norms and rates, and whether the step was skipped: a bool tensor on the device, or None if it could not be.

    Raises:
        RuntimeError: the ranks disagree about which layers have gradients; nothing was changed then.
    """
    together_now = buckets(layers, together=together)
    pairs = [_norms(bucket, loss_scale) for bucket in together_now]
    skip = _skip([g_norm for _, g_norm in pairs], loss_scale, skip_nonfinite=skip_nonfinite)
    if sharding:
        parts = [
            LocalNorms([layer.piece for layer in bucket.layers], *pair)
            for bucket, pair in zip(together_now, pairs, strict=True)
        ]
        pairs, skip = sharding.whole(parts, skip)
    found = [_figures(bucket, *pair) for bucket, pair in zip(together_now, pairs, strict=True)]
    for bucket, figure in zip(together_now, found, strict=True):
        here = None if skip is None else skip.to(figure.rate.device, non_blocking=True)
        update(bucket, figure.rate, loss_scale, here)
    return found, skip


def buckets(layers: list[LarsLayer], *, together: bool) -> list[Bucket]:
    """Return the layers in buckets: one each, or those that can be updated together."""
    if not together:
        return [Bucket([i], [layer]) for i, layer in enumerate(layers)]
    found: dict[Hashable, Bucket] = {}
    for i, layer in enumerate(layers):
        bucket = found.setdefault(layer.key, Bucket([], []))
        bucket.places.append(i)
        bucket.layers.append(layer)
    return list(found.values())


def figures(bucket: Bucket, loss_scale: LossScale) -> Norms:
    """Return norms and rates of a bucket's layers, which are not sharded."""
    return _figures(bucket, *_norms(bucket, loss_scale))


def _norms(bucket: Bucket, loss_scale: LossScale) -> tuple[Tensor, Tensor]:
    p_norm = norms([layer.values for layer in bucket.layers])
    return p_norm, loss_scale.unscaled(norms([layer.grad for layer in bucket.layers]))


def _figures(bucket: Bucket, p_norm: Tensor, g_norm: Tensor) -> Norms:
    group = bucket.group
    # A layer that is not to be adapted has no weights above an infinite threshold.
    threshold = group["threshold"] if bucket.layers[0].adapted else _formula.INFINITY
    rate = _formula.rate(
        p_norm,
        g_norm,
        threshold=threshold,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        trust_coefficient=group["trust_coefficient"],
        clip_lr=scalar_lr(group) if group["trust_clip"] else None,
        min_rate=group["min_rate"],
        max_rate=group["max_rate"],
        where=torch.where,
    )
    return Norms(bucket.places, p_norm, g_norm, rate, threshold)


def _skip(g_norms: list[Tensor], loss_scale: LossScale, *, skip_nonfinite: bool) -> Tensor | None:
    """Return whether the step must change nothing, on the first layer's device."""
    bad = []
    if skip_nonfinite:
        # A norm is finite only if every entry is.
        bad += [(~torch.isfinite(g_norm)).any() for g_norm in g_norms]
        # Asked for also where no layer has a gradient here, but others' may be infinite.
        bad = bad or [torch.zeros((), dtype=torch.bool)]
    if loss_scale.found_inf is not None:
        bad.append(loss_scale.found_inf.reshape(()) != 0)
    if not bad:
        return None
    device = g_norms[0].device if g_norms else bad[-1].device
    return torch.stack([flag.to(device, non_blocking=True) for flag in bad]).any()


def single_tensor_update(bucket: Bucket, rate: Tensor, loss_scale: LossScale, skip: Tensor | None) -> None:
    """Update one layer, written as the formula reads; the other paths are proven equal to it."""
    group, (layer,) = bucket.group, bucket.layers
    lr, m = scalar_lr(group), group["momentum"]
    lr_inside, lr_outside = (lr, 1.0) if group["lr_in_momentum"] else (1.0, lr)
    w, g = layer.values.to(bucket.wide_dtype), layer.grad.to(bucket.wide_dtype)
    if loss_scale.scale is not None:
        g = g / loss_scale.scale.to(g.device, non_blocking=True)

    step = lr_inside * rate.reshape(()) * (bucket.sign * g + group["weight_decay"] * w)
    velocity = step
    if layer.momentum is not None:
        if not layer.fresh:
            velocity = m * layer.momentum.to(bucket.wide_dtype) + (1 - group["dampening"]) * step
        step = step + m * velocity if group["nesterov"] else velocity
    new = w - lr_outside * step

    if layer.momentum is not None:
        layer.momentum.copy_(velocity if skip is None else torch.where(skip, layer.momentum, velocity))
    layer.weights.copy_(new if skip is None else torch.where(skip, layer.weights, new))
    if layer.master is not None:
        layer.param.copy_(new if skip is None else torch.where(skip, layer.param, new))


def multi_tensor_update(bucket: Bucket, rate: Tensor, loss_scale: LossScale, skip: Tensor | None) -> None:
    """Update the layers of a bucket together, with PyTorch's multi-tensor operations."""
    group, layers, dtype = bucket.group, bucket.layers, bucket.wide_dtype
    lr, m = scalar_lr(group), group["momentum"]
    lr_inside, lr_outside = (lr, None) if group["lr_in_momentum"] else (1.0, lr)
    w = [layer.weights.to(dtype) for layer in layers]
    factor = bucket.sign * lr_inside * rate
    decay = bucket.sign * group["weight_decay"]
    if loss_scale.scale is not None:
        scale = loss_scale.scale.to(rate.device, non_blocking=True)
        factor, decay = factor / scale, decay * scale

    # Factoring the sign and the scale out of the bracket, step = factor * (g + decay * w).
    step = [layer.grad.to(dtype, copy=True) for layer in layers]
    if isinstance(decay, Tensor):
        torch._foreach_add_(step, torch._foreach_mul(w, decay))
    elif decay:
        torch._foreach_add_(step, w, alpha=decay)
    torch._foreach_mul_(step, list(factor.unbind()))

    velocity = step
    momenta = [layer.momentum for layer in layers if layer.momentum is not None]
    if momenta:
        if not layers[0].fresh:
            # A copy costs as much as the arithmetic: in place where nothing can take the step back.
            copy = skip is not None
            velocity = [momentum.to(dtype, copy=copy) for momentum in momenta]
            torch._foreach_mul_(velocity, m)
            torch._foreach_add_(velocity, step, alpha=1 - group["dampening"])
        step = list(torch._foreach_add(step, velocity, alpha=m)) if group["nesterov"] else velocity
        _store(momenta, velocity, skip)
    change = step if lr_outside is None else list(torch._foreach_mul(step, lr_outside))
    if skip is None:
        torch._foreach_sub_(w, change)
        new = w
    else:
        new = list(torch._foreach_sub(w, change))
    _store([layer.weights for layer in layers], new, skip)
    if layers[0].master is not None:
        _store([layer.param for layer in layers], new, skip)


def _store(targets: list[Tensor], values: list[Tensor], skip: Tensor | None) -> None:
    if targets[0] is values[0]:
        return
    if skip is not None:
        values = [torch.where(skip, target, value) for target, value in zip(targets, values, strict=True)]
    torch._foreach_copy_(targets, values)
