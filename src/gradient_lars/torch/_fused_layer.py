"""One layer as the kernels see it: dense tensors in one order of memory, and what makes others so."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradient_lars.torch._fused_tables import is_dense, same_order
from gradient_lars.torch._lars_bucket import LarsLayer
from gradient_lars.torch._layers import ARRAYS
from gradient_lars.torch._sharding import Piece, is_dtensor, local

Types = tuple[torch.dtype | None, ...]


@dataclass(slots=True)
class FusedLayer:
    """A layer with dense `weights`, `momentum` and `low` (the narrow copy of master weights) in the same order.

    `counted` is the tensor whose version tells of changes of the weights. `staged` holds pairs of a tensor that is not
    dense and of the dense one that stands for it during the step.
    """

    name: str
    place: int
    param: Tensor
    group_index: int
    fresh: bool
    weights: Tensor
    counted: Tensor
    momentum: Tensor | None
    low: Tensor | None
    grad_dtype: torch.dtype
    piece: Piece | None
    staged: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, layer: LarsLayer, param: Tensor, state: dict[str, Any], place: int, group_index: int) -> "FusedLayer":
        """Return the layer of `param`, whose state is `state`; a state in another order of memory is laid out anew."""
        staged: list[tuple[Tensor, Tensor]] = []
        weights = layer.weights.detach()
        if not is_dense(weights):
            buffer = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
            staged.append((weights, buffer))
            weights = buffer
        momentum = layer.momentum
        if momentum is not None and not same_order(momentum, weights):
            if staged or param.is_complex() or is_dtensor(param):
                staged.append((momentum, torch.empty_like(weights, dtype=momentum.dtype)))
                momentum = staged[-1][1]
            else:
                momentum = torch.empty_like(weights, dtype=momentum.dtype).copy_(momentum)
                state["momentum_buffer"] = momentum
        low = None if layer.master is None else layer.param.detach()
        if low is not None and not same_order(low, weights):
            staged.append((low, torch.empty_like(weights, dtype=low.dtype)))
            low = staged[-1][1]
        counted = local(param if layer.master is None else state["master"])
        return cls(
            layer.name,
            place,
            param,
            group_index,
            layer.seeded,
            weights,
            counted,
            momentum,
            low,
            layer.grad.dtype,
            layer.piece,
            staged,
        )

    def takes(self, grad: Tensor) -> bool:
        """Return whether the kernels can read `grad` as it is."""
        if self.param.is_complex() or self.staged or grad.layout is not torch.strided:
            return False
        return not grad.is_neg() and grad.dtype == self.grad_dtype and same_order(grad, self.weights)

    @property
    def types(self) -> Types:
        """Types of weights, gradient, momentum and low copy: a kernel is compiled for them."""
        others = (None if t is None else t.dtype for t in (self.momentum, self.low))
        return self.weights.dtype, self.grad_dtype, *others

    @property
    def wide_dtype(self) -> torch.dtype:
        """The type in which the layer is computed, float32 at least."""
        return torch.promote_types(ARRAYS.wide_dtype(self.weights.dtype), ARRAYS.wide_dtype(self.grad_dtype))

    def prepared(self, grad: Tensor) -> Tensor | None:
        """Return `grad` in the order of the weights, copied if need be, or None if its type is not the layer's."""
        if grad.layout is not torch.strided:
            return None
        if self.param.is_complex():
            if not grad.is_complex():
                return None
            grad = torch.view_as_real(grad.resolve_conj())
        grad = grad.detach().resolve_neg()
        if grad.dtype != self.grad_dtype or grad.device != self.weights.device or grad.shape != self.weights.shape:
            return None
        if same_order(grad, self.weights):
            return grad
        return torch.empty_like(self.weights, dtype=grad.dtype).copy_(grad)
