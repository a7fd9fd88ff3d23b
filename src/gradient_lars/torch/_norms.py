"""Norms of many tensors of one device and type, as one vector."""

import torch
from torch import Tensor

from gradient_lars.torch._layers import ARRAYS


def norms(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norms of `tensors`, which share a device and a type, without waiting for the device."""
    first = tensors[0]
    if first.device.type == "cpu" or first.is_complex() or any(t.is_sparse or t.numel() == 0 for t in tensors):
        return torch.stack([ARRAYS.norm(tensor) for tensor in tensors])
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=ARRAYS.wide_dtype(first.dtype)))
