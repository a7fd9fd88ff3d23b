"""Small layers of a step on the CPU, many at once: what a call costs is then paid once and not once a layer.

PyTorch's kernel takes many layers in one call, but one set of coefficients. So gradients and weights are copied side by
side, into memory that stays in the cache; norms, decay and rates are computed there, and the kernel reads from there.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gradient_lars.torch._lars_bucket import LarsLayer

# Layers up to this size; of larger ones the copy costs more than the calls.
SMALL = 1 << 14
# Of so many numbers at a time, so that the copies stay in the cache.
TOGETHER = 1 << 18
# With fewer layers than this, the calls that they share are as many as their own would be.
FEWEST = 8

# The rows of the copies. Each layer begins a new one; its last one is filled up with zeros.
ROW = 256


class SmallLayers:
    """Layers of one group and type, whose parameters, gradients and momenta lie densely and alike.

    Args:
        layers: at least one; the gradients are not kept.
        scratch: memory for `scratch_size` numbers of the layers' type, which others may use between two steps.
    """

    def __init__(self, layers: list[LarsLayer], scratch: Tensor) -> None:
        self._params = [layer.param for layer in layers]
        self._momenta = [layer.momentum for layer in layers if layer.momentum is not None]
        self._first = layers[0]
        rows = [_rows(param) for param in self._params]
        total = sum(rows)
        self._copies = scratch[: 2 * total * ROW].view(2, total, ROW)
        self._weights, self._gradients = self._copies
        starts = [ROW * start for start in accumulate(rows, initial=0)][:-1]
        self._slots: list[list[Tensor]] = [
            [
                copy.view(-1)[start:].as_strided(param.shape, param.stride())
                for param, start in zip(self._params, starts, strict=True)
            ]
            for copy in self._copies
        ]
        self._layer_of = torch.repeat_interleave(torch.tensor(rows, dtype=torch.int64))
        self._layer_of_both = torch.cat([self._layer_of, self._layer_of + len(layers)])

    def norms(self, grads: list[Tensor]) -> Tensor:
        """Copy weights and gradients, and return their norms: shape (2, layers). With "decayed", decay included."""
        self._copies.zero_()
        torch._foreach_copy_([*self._slots[0], *self._slots[1]], [*self._params, *grads])
        if self._first.decayed:
            self._add_decay()
        rows = torch.linalg.vector_norm(self._copies, dim=2)
        # Added up in float64, in which no square of a float32 overflows.
        squares = rows.to(torch.float64, copy=True).square_().view(-1)
        sums = torch.zeros(2 * len(self._params), dtype=torch.float64).index_add_(0, self._layer_of_both, squares)
        return sums.sqrt_().to(rows.dtype).view(2, -1)

    def update(self, rate: Tensor) -> None:
        """Update parameters and momenta by the gradients that `norms` has copied, which are used up."""
        group = self._first.group
        sign = -1.0 if group["maximize"] else 1.0
        lr = float(group["lr"])
        lr_inside, lr_outside = (lr, 1.0) if group["lr_in_momentum"] else (1.0, lr)
        if self._first.weight_decay and not self._first.decayed:
            self._add_decay()
        factor = (sign * lr_inside) * rate
        self._gradients.mul_(factor.index_select(0, self._layer_of).unsqueeze(1))
        torch._fused_sgd_(
            self._params,
            self._slots[1],
            self._momenta,
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=lr_outside,
            dampening=group["dampening"] if self._momenta else 0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    def _add_decay(self) -> None:
        sign = -1.0 if self._first.group["maximize"] else 1.0
        self._gradients.add_(self._weights, alpha=sign * self._first.weight_decay)


def parts(layers: list[Any], sizes: list[int]) -> list[list[Any]]:
    """Return the layers in lists, each to be taken at once."""
    found: list[list[Any]] = []
    room = 0
    for layer, size in zip(layers, sizes, strict=True):
        if size > room or not found:
            found.append([])
            room = TOGETHER
        found[-1].append(layer)
        room -= size
    return found


def scratch_size(params: list[Tensor]) -> int:
    """Return how many numbers `SmallLayers` of these parameters needs room for."""
    return 2 * ROW * sum(map(_rows, params))


def _rows(param: Tensor) -> int:
    return -(-param.numel() // ROW)
