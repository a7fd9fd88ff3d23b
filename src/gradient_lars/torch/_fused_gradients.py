"""Where the gradients of a fused step lie, once it is known that the kernels can read them there.

Backward passes make new gradient tensors in every step, so that all of them must be looked at every time: all at once
where PyTorch has a way, else by as few calls a tensor as will do.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import repeat
from operator import is_not
from typing import Any

import torch
from torch import Tensor

from gradient_lars.torch._fused_layer import FusedLayer
from gradient_lars.torch._fused_tables import ABSENT

_ADDRESS: Any = Tensor.data_ptr
_NUMEL: Any = Tensor.numel
_STRIDE: Any = Tensor.stride
_IS_CONTIGUOUS: Any = Tensor.is_contiguous

Check = Callable[[Sequence[Any]], bool]

# How often gradients may be others that would do as well until the quick check, which costs ten times as much to make
# as to ask, is given up.
REMADE_AT_MOST = 4


class Gradients:
    """What the gradients of `layers` were when the plan was made, or have become since.

    Args:
        layers: the layers of the step.
        grads: their gradients, of the types that the layers note.
    """

    def __init__(self, layers: Sequence[FusedLayer], grads: Sequence[Tensor | None]) -> None:
        self._layers = layers
        self._left = REMADE_AT_MOST if at_once_works() else 0
        self._make(grads)

    def addresses(self, grads: Sequence[Tensor | None]) -> tuple[list[int], list[Tensor], list[bool] | None] | None:
        """Return addresses, the copies made of some, and which there are; None if one has another type.

        In place of which there are stands None if all are.
        """
        as_before = self._as_before(grads if not self._single else [grads[i] for i in self._common])
        if as_before and not self._single:
            return list(map(_ADDRESS, grads)), [], None
        single = set(self._single if as_before else range(len(grads)))
        pointers, copies = [], []
        for i, grad in enumerate(grads):
            if grad is not None and i in single:
                grad = self._layers[i].prepared(grad)
                if grad is None:
                    return None
                copies.append(grad)
            pointers.append(ABSENT if grad is None else grad.data_ptr())
        if not as_before and self._left and self._as_good(grads):
            self._left -= 1
            self._make(grads)
        present = [pointer != ABSENT for pointer in pointers] if ABSENT in pointers else None
        return pointers, copies, present

    def _as_good(self, grads: Sequence[Tensor | None]) -> bool:
        """Return whether gradients that are not as before could be: a stride that says nothing, a history, autocast."""
        found = ((self._layers[i], grads[i]) for i in self._common)
        return all(grad is not None and layer.takes(grad) for layer, grad in found)

    def _make(self, grads: Sequence[Tensor | None]) -> None:
        at_once = self._left > 0
        common = []
        # Others are looked at one by one. Nobody sees from its strides that a gradient of one element is the negated
        # view of another.
        self._common, self._single = [], []
        for i, (layer, grad) in enumerate(zip(self._layers, grads, strict=True)):
            if grad is not None and layer.takes(grad) and (at_once or grad.numel() != 1):
                self._common.append(i)
                common.append(grad)
            else:
                self._single.append(i)
        self._as_before: Check = same_at_once(common) if at_once else same_in_lists(common)


def same_in_lists(grads: Sequence[Tensor]) -> Check:
    """Return whether tensors have the types, sizes and strides of `grads`, as a function of them."""
    dtypes, strides = [grad.dtype for grad in grads], [grad.stride() for grad in grads]
    numels = [grad.numel() for grad in grads]
    contiguous = all(grad.is_contiguous() for grad in grads)

    def same(now: Sequence[Any]) -> bool:
        try:
            if not all(map(is_not, now, repeat(None))):
                return False
            in_order = all(map(_IS_CONTIGUOUS, now)) if contiguous else list(map(_STRIDE, now)) == strides
            return in_order and [grad.dtype for grad in now] == dtypes and list(map(_NUMEL, now)) == numels
        except RuntimeError:  # a sparse gradient has no strides
            return False

    return same


def same_at_once(grads: Sequence[Tensor]) -> Check:
    """Return what `same_in_lists` does, by the one call with which torch.compile looks at what a graph is given.

    It also looks at device, layout, shape and whether a tensor is a negated view.
    """
    guards: Any = torch._C._dynamo.guards
    check = guards.TensorGuards(
        *grads,
        dynamic_dims_sizes=[list(grad.shape) for grad in grads],
        dynamic_dims_strides=[list(grad.stride()) for grad in grads],
    ).check
    return lambda now: bool(check(*now))


@cache
def at_once_works() -> bool:
    """Return whether `same_at_once` can be had: it is PyTorch's own, and a version may be without it or change it."""
    grad, scalar = torch.zeros(2, 3), torch.zeros(())
    others: list[tuple[Any, Any]] = [
        (None, scalar),
        (torch.zeros(3, 2).t(), scalar),
        (torch.zeros(1, 3).expand(2, 3), scalar),
        (grad[:1], scalar),
        (grad.double(), scalar),
        (grad.to_sparse(), scalar),
        (grad.to("meta"), scalar),
        (torch._neg_view(grad), scalar),
        (grad, torch._neg_view(scalar)),
    ]
    try:
        same = same_at_once([grad, scalar])
        return same([grad.clone(), scalar.clone()]) and not any(map(same, others))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False
