"""The LARS step: norms of all layers, one rate a layer, then the update; layer by layer or many tensors at once.

``lars`` is the functional entry. Layers that share device, types and settings make a `Bucket`; a path differs only in
what it puts into one bucket and in how it updates it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gradient_lars import _formula
from gradient_lars.torch import _after_momentum
from gradient_lars.torch._lars_bucket import Bucket, LarsLayer, buckets, scalar_lr
from gradient_lars.torch._layers import LossScale
from gradient_lars.torch._norms import norms
from gradient_lars.torch._sharding import LocalNorms, Sharding
from gradient_lars.torch.rates import Norms

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


def figures(bucket: Bucket, loss_scale: LossScale) -> Norms:
    """Return norms and rates of a bucket's layers, which are not sharded."""
    return _figures(bucket, *_norms(bucket, loss_scale))


def _norms(bucket: Bucket, loss_scale: LossScale) -> tuple[Tensor, Tensor]:
    p_norm = norms([layer.values for layer in bucket.layers])
    if bucket.after_momentum:
        return p_norm, norms(_after_momentum.directions(bucket, loss_scale))
    grads = [layer.grad for layer in bucket.layers]
    if bucket.layers[0].decayed:
        values = [layer.values.to(bucket.wide_dtype) for layer in bucket.layers]
        grads = _with_decay(bucket, values, loss_scale)
    return p_norm, loss_scale.unscaled(norms(grads))


def _with_decay(bucket: Bucket, values: list[Tensor], loss_scale: LossScale) -> list[Tensor]:
    """Return gradients plus decay, still times the loss scale and, where the optimizer maximizes, times -1."""
    step = [layer.grad.to(bucket.wide_dtype, copy=True) for layer in bucket.layers]
    decay = bucket.sign * bucket.layers[0].weight_decay
    if not decay:
        return step
    if loss_scale.scale is None:
        torch._foreach_add_(step, values, alpha=decay)
    else:
        scale = loss_scale.scale.to(step[0].device, non_blocking=True)
        torch._foreach_add_(step, torch._foreach_mul(values, decay * scale))
    return step


def _figures(bucket: Bucket, p_norm: Tensor, g_norm: Tensor) -> Norms:
    group = bucket.group
    # A layer that is not to be adapted has no weights above an infinite threshold.
    threshold = group["threshold"] if bucket.layers[0].adapted else _formula.INFINITY
    rate = _formula.rate(
        p_norm,
        g_norm,
        threshold=threshold,
        weight_decay=bucket.layers[0].weight_decay if group["norm_of"] == "gradient" else 0.0,
        eps=group["eps"],
        trust_coefficient=group["trust_coefficient"],
        clip_lr=scalar_lr(group) if group["trust_clip"] else None,
        min_rate=group["min_rate"],
        max_rate=group["max_rate"],
        zero_gradient_rate=group["zero_gradient_rate"],
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
    if bucket.after_momentum:
        _after_momentum.update(bucket, rate, loss_scale, skip)
        return
    group, (layer,) = bucket.group, bucket.layers
    lr, m = scalar_lr(group), group["momentum"]
    lr_inside, lr_outside = (lr, 1.0) if group["lr_in_momentum"] else (1.0, lr)
    w, g = layer.values.to(bucket.wide_dtype), layer.grad.to(bucket.wide_dtype)
    if loss_scale.scale is not None:
        g = g / loss_scale.scale.to(g.device, non_blocking=True)

    step = lr_inside * rate.reshape(()) * (bucket.sign * g + layer.weight_decay * w)
    velocity = step
    if layer.momentum is not None:
        if not layer.seeded:
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
    if bucket.after_momentum:
        _after_momentum.update(bucket, rate, loss_scale, skip)
        return
    group, layers, dtype = bucket.group, bucket.layers, bucket.wide_dtype
    lr, m = scalar_lr(group), group["momentum"]
    lr_inside, lr_outside = (lr, None) if group["lr_in_momentum"] else (1.0, lr)
    w = [layer.weights.to(dtype) for layer in layers]
    factor = bucket.sign * lr_inside * rate
    if loss_scale.scale is not None:
        factor = factor / loss_scale.scale.to(rate.device, non_blocking=True)

    # Factoring the sign and the scale out of the bracket, step = factor * (g + decay * w).
    step = _with_decay(bucket, w, loss_scale)
    torch._foreach_mul_(step, list(factor.unbind()))

    velocity = step
    momenta = [layer.momentum for layer in layers if layer.momentum is not None]
    if momenta:
        if not layers[0].seeded:
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
