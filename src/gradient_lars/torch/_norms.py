"""Norms of many tensors of one device and type, as one vector."""

import torch
from torch import Tensor

from gradient_lars._arrays import LARGE
from gradient_lars.torch._layers import ARRAYS


def norms(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norms of `tensors`, which share a device and a type, without waiting for the device."""
    first = tensors[0]
    alone = first.is_complex() or any(tensor.layout is not torch.strided for tensor in tensors)
    if first.device.type != "cpu":
        # Multi-tensor kernels of some PyTorch releases return nothing useful for empty tensors.
        alone = alone or any(tensor.numel() == 0 for tensor in tensors)
    elif not alone and any(tensor.numel() >= LARGE for tensor in tensors):
        return _split_by_size(tensors)
    if alone:
        return torch.stack([ARRAYS.norm(tensor) for tensor in tensors])
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=ARRAYS.wide_dtype(first.dtype)))


def _split_by_size(tensors: list[Tensor]) -> Tensor:
    """Take the small tensors together, and of the large ones the norms that are accurate on the CPU."""
    small = [tensor for tensor in tensors if tensor.numel() < LARGE]
    together = iter(norms(small).unbind() if small else ())
    return torch.stack([ARRAYS.norm(tensor) if tensor.numel() >= LARGE else next(together) for tensor in tensors])
