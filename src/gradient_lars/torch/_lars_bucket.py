"""A layer as the LARS step sees it, and the buckets of those that it takes together."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradient_lars.torch._layers import ARRAYS
from gradient_lars.torch._sharding import Piece

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
    def weight_decay(self) -> float:
        """Coefficient of the layer's decay: 0 if the layer is excluded and its group says that these have none."""
        decay: float = self.group["weight_decay"] if self.adapted or self.group["decay_excluded"] else 0.0
        return decay

    @property
    def decayed(self) -> bool:
        """Whether the rate divides by the norm of gradient and decay together."""
        return self.group["norm_of"] == "decayed" and self.weight_decay != 0

    @property
    def seeded(self) -> bool:
        """Whether this step itself becomes the momentum, without dampening."""
        return self.fresh and not self.group["dampen_first_step"]

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
    def after_momentum(self) -> bool:
        """Whether the rate divides by the norm of the update, and acts after the momentum."""
        return bool(self.group["norm_of"] == "update")

    @property
    def wide_dtype(self) -> torch.dtype:
        """The type the update is computed in: float32 at least."""
        first = self.layers[0]
        return torch.promote_types(ARRAYS.wide_dtype(first.weights.dtype), ARRAYS.wide_dtype(first.grad.dtype))


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
