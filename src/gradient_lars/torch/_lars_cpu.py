"""The fused path on the CPU: PyTorch's own fused SGD kernel, one call a layer, with the rate in its coefficients.

The kernel computes ``v <- momentum * v + (1 - dampening) * (g + weight_decay * p); p <- p - lr * v`` in one pass over
memory. A layer's rate enters through the dampening, so that no second pass scales the gradient. Each layer is updated
right after its norms, while it is in the cache if it fits there. Measured against torch's fused SGD in
`gradient-lars bench`.
"""

import ctypes
import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor

from gradient_lars import _formula
from gradient_lars.torch import _lars
from gradient_lars.torch._lars import multi_tensor_update
from gradient_lars.torch._lars_bucket import Bucket, LarsLayer, buckets
from gradient_lars.torch._layers import ARRAYS, LossScale
from gradient_lars.torch._sharding import Sharding
from gradient_lars.torch.rates import Norms

# ``dampening = 1 - gain`` holds the gain to 1e-16, which for a smaller one is not the type's precision any more.
LEAST_GAIN = {torch.float32: 1e-8, torch.float64: 1e-3}

# As `_arrays` sums large tensors: block by block, which keeps the float32 sums exact and is done by all threads.
LEAST_BLOCK, GREATEST_BLOCK = 512, 8192
# From this size on.
BLOCKS_FROM = 1 << 14
# Gradient and decay are added up so many entries at a time, in memory that stays in the cache.
SUMS_AT_A_TIME = 1 << 16

_IS_NEG: Any = Tensor.is_neg


def lars(
    layers: list[LarsLayer], loss_scale: LossScale, *, skip_nonfinite: bool, sharding: Sharding | None = None
) -> tuple[list[Norms], Tensor | None]:
    """Take one step of `layers` in place; see `_lars.lars`, of which this is the form for the CPU."""
    if torch.compiler.is_compiling():
        # The compiler makes kernels of its own, and has none for PyTorch's.
        return _lars.lars(
            layers,
            loss_scale,
            update=multi_tensor_update,
            together=True,
            skip_nonfinite=skip_nonfinite,
            sharding=sharding,
        )
    # Whether to step at all, and the norms of sharded layers, are known after all norms only.
    at_the_end = sharding or skip_nonfinite or loss_scale.scale is not None or loss_scale.found_inf is not None
    # The clipping divides by a learning rate that may be zero, which tensors can and numbers cannot.
    if at_the_end or any(layer.group["trust_clip"] for layer in layers):
        return _lars.lars(
            layers, loss_scale, update=update, together=True, skip_nonfinite=skip_nonfinite, sharding=sharding
        )
    figures = []
    for bucket in buckets(layers, together=True):
        if supported(bucket.layers[0]):
            figures.append(_norms_and_updates(bucket))
        else:
            figures.append(_lars.figures(bucket, loss_scale))
            multi_tensor_update(bucket, figures[-1].rate, loss_scale, None)
    return figures, None


def _norms_and_updates(bucket: Bucket) -> Norms:
    dtype = bucket.layers[0].param.dtype
    settings = rate_settings(bucket.layers[0])
    columns: list[tuple[float, float, float]] = []
    decayed = bucket.layers[0].decayed
    known = {} if decayed else _small_norms(bucket.layers)
    for i, layer in enumerate(bucket.layers):
        if decayed:
            p_norm, g_norm = _norm(layer.param), decayed_norm(layer, layer.grad)
        else:
            p_norm, g_norm = known.get(i) or (_norm(layer.param), _norm(layer.grad))
        rate = _formula.rate(p_norm, g_norm, **settings)
        columns.append((p_norm, g_norm, rate))
        _update_layer(layer, rate)
    p_norms, g_norms, rates = torch.tensor(columns, dtype=dtype).unbind(1)
    return Norms(bucket.places, p_norms, g_norms, rates, settings["threshold"])


def rate_settings(layer: LarsLayer) -> dict[str, Any]:
    """Return what `_formula.rate` needs beside the norms; a layer that is not adapted has an infinite threshold."""
    group = layer.group
    return {
        "threshold": _rounded(group["threshold"], layer.param.dtype) if layer.adapted else _formula.INFINITY,
        "weight_decay": layer.weight_decay if group["norm_of"] == "gradient" else 0.0,
        "eps": group["eps"],
        "trust_coefficient": group["trust_coefficient"],
        "min_rate": group["min_rate"],
        "max_rate": group["max_rate"],
        "zero_gradient_rate": group["zero_gradient_rate"],
    }


def _small_norms(layers: list[LarsLayer]) -> dict[int, tuple[float, float]]:
    """Return the norms of weights and gradient of each small layer, by its place.

    A call a norm costs as much as the norm itself here, about 2 us.
    """
    places = [i for i, layer in enumerate(layers) if 0 < layer.param.numel() < BLOCKS_FROM]
    if not places:
        return {}
    tensors = [layers[i].param for i in places] + [layers[i].grad for i in places]
    norms = torch.stack(torch._foreach_norm(tensors)).tolist()
    return dict(zip(places, zip(norms[: len(places)], norms[len(places) :], strict=True), strict=True))


def _norm(tensor: Tensor) -> float:
    return norm(tensor, block_length(tensor.numel()) if is_dense(tensor) else 0)


def norm(tensor: Tensor, block: int) -> float:
    """Return the Euclidean norm as its type can hold it; of a dense tensor, block by block if `block` is not 0."""
    if not block:
        return float(ARRAYS.norm(tensor))
    blocks = tensor.as_strided((tensor.numel() // block, block), (block, 1))
    return float(torch.linalg.vector_norm(torch.linalg.vector_norm(blocks, dim=1)))


def decayed_norm(layer: LarsLayer, grad: Tensor) -> float:
    """Return the norm of gradient and decay together."""
    param = layer.param
    # Where the optimizer maximizes, the gradient is what is turned; the norm of the sum is the same.
    decay = -layer.weight_decay if layer.group["maximize"] else layer.weight_decay
    if not (is_dense(param) and same_layout(grad, param) and not param.is_neg()):
        return float(ARRAYS.norm(torch.add(grad, param, alpha=decay)))
    flat_grad, flat_param = (tensor.as_strided((tensor.numel(),), (1,)) for tensor in (grad, param))
    room = torch.empty(min(param.numel(), SUMS_AT_A_TIME), dtype=param.dtype)
    norms = []
    for start in range(0, param.numel(), SUMS_AT_A_TIME):
        length = min(SUMS_AT_A_TIME, param.numel() - start)
        piece = room[:length]
        torch.add(flat_grad[start:][:length], flat_param[start:][:length], alpha=decay, out=piece)
        norms.append(norm(piece, block_length(length)))
    return math.hypot(*norms)


@functools.lru_cache(maxsize=1024)
def block_length(numel: int) -> int:
    """Return the length of the blocks into which so many numbers can be divided evenly, or 0 if they are not to be."""
    if numel < BLOCKS_FROM:
        return 0
    return next((length for length in range(GREATEST_BLOCK, LEAST_BLOCK - 1, -1) if numel % length == 0), 0)


def _rounded(value: float, dtype: torch.dtype) -> float:
    return ctypes.c_float(value).value if dtype == torch.float32 else value


def supported(layer: LarsLayer) -> bool:
    """Return whether the kernel can express the layer's update."""
    dtype, momentum = layer.param.dtype, layer.momentum
    one_type = layer.grad.dtype == dtype and (momentum is None or momentum.dtype == dtype)
    group = layer.group
    plain = layer.master is None and not group["nesterov"] and group["norm_of"] != "update"
    return one_type and dtype in LEAST_GAIN and plain


def update(bucket: Bucket, rate: Tensor, loss_scale: LossScale, skip: Tensor | None) -> None:
    """Update the layers of a bucket; reads their rates, which on the CPU waits for nothing."""
    if loss_scale.scale is not None or not supported(bucket.layers[0]):
        # The kernel would write the unscaled gradient back, and gradients are not ours to change.
        multi_tensor_update(bucket, rate, loss_scale, skip)
        return
    if skip is not None and bool(skip):
        return
    for layer, layer_rate in zip(bucket.layers, rate.tolist(), strict=True):
        _update_layer(layer, layer_rate)


def _update_layer(layer: LarsLayer, rate: float) -> None:
    grad = _laid_out(layer)
    if grad is None:
        _update_anyway(layer, rate)
    else:
        update_layer(layer, grad, rate)


def _update_anyway(layer: LarsLayer, rate: float) -> None:
    bucket = Bucket([0], [layer])
    multi_tensor_update(bucket, torch.tensor([rate], dtype=bucket.wide_dtype), LossScale(None, None), None)


def update_layer(layer: LarsLayer, grad: Tensor, rate: float) -> None:
    """Update a layer by `grad`, which lies in memory as its other tensors do."""
    group, param, momentum = layer.group, layer.param, layer.momentum
    lr = float(group["lr"])
    lr_inside, lr_outside = (lr, 1.0) if group["lr_in_momentum"] else (1.0, lr)
    gain = lr_inside * rate
    if not gain >= LEAST_GAIN[param.dtype]:
        _update_anyway(dataclasses.replace(layer, grad=grad), rate)
        return
    keep = 1.0 if layer.seeded else 1.0 - group["dampening"]
    torch._fused_sgd_(
        [param],
        [grad],
        [momentum] if momentum is not None else [],
        weight_decay=layer.weight_decay,
        momentum=group["momentum"],
        lr=lr_outside if momentum is not None else lr * rate,
        dampening=1.0 - keep * gain if momentum is not None else 0.0,
        nesterov=False,
        maximize=group["maximize"],
        is_first_step=False,
    )


def _laid_out(layer: LarsLayer) -> Tensor | None:
    """Return the gradient as the kernel can read it, or None if the layer's own tensors are not for it.

    The kernel goes through the memory of all its tensors as through vectors: it sees no strides and no negative bit.
    """
    param, grad, momentum = layer.param, layer.grad, layer.momentum
    if param.is_contiguous() and grad.is_contiguous() and (momentum is None or momentum.is_contiguous()):
        tensors = (param, grad) if momentum is None else (param, grad, momentum)
        if not any(map(_IS_NEG, tensors)):
            return grad
    if not (is_dense(param) and not param.is_neg()) or not (momentum is None or same_layout(momentum, param)):
        return None
    return grad if same_layout(grad, param) else torch.empty_like(param).copy_(grad)


def is_dense(tensor: Tensor) -> bool:
    """Return whether the tensor fills its memory without a gap."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.is_contiguous() or reach == tensor.numel()


def same_layout(tensor: Tensor, like: Tensor) -> bool:
    """Return whether the kernel can go through the tensor as it goes through `like`."""
    same = (tensor.is_contiguous() and like.is_contiguous()) or tensor.stride() == like.stride()
    return same and not tensor.is_neg()
