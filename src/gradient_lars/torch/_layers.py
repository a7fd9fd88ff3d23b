"""The layers of one step: which parameters of an optimizer are rescaled, under what name and with what decay."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradient_lars._arrays import TorchArrays
from gradient_lars.torch._flattened import check_not_partitioned
from gradient_lars.torch._sharding import LocalNorms, Piece, Sharding, check_sharding

ARRAYS = TorchArrays(torch)


@dataclass(slots=True)
class Layer:
    """One parameter with its gradient. `weight_decay` is >= 0; `sign` is -1 where the optimizer maximizes.

    An optimizer that maximizes negates the gradient; the decay has to survive that, so it enters with the sign turned.
    Of a sharded parameter, `param` and `grad` are this rank's pieces and `piece` says where these belong.
    """

    name: str
    param: Tensor
    grad: Tensor
    weight_decay: float
    sign: int
    piece: Piece | None = None

    @property
    def target(self) -> Tensor:
        """The tensor whose entries are scaled: the gradient, or a sparse gradient's stored values."""
        return self.grad._values() if self.grad.layout is torch.sparse_coo else self.grad


@dataclass(frozen=True, slots=True)
class LossScale:
    """What ``torch.amp.GradScaler`` leaves to a fused optimizer: the scale still in the gradients, and the overflow.

    Both are tensors on the device, or None. With `found_inf` non-zero the optimizer will skip the step, and the
    gradients are left as they are.
    """

    scale: Tensor | None
    found_inf: Tensor | None

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> "LossScale":
        """Read the two attributes that ``GradScaler.step`` sets on the optimizer for the time of one step."""
        return cls(getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None))

    def agreed(
        self, sharding: Sharding, parts: Sequence[LocalNorms]
    ) -> "tuple[list[tuple[Tensor, Tensor]], LossScale]":
        """Return norms of whole layers from those of the pieces, and the overflow that the ranks have agreed on.

        It also enters into `found_inf` itself, by which the optimizer decides whether to step.
        """
        overflow = None if self.found_inf is None else self.found_inf != 0
        pairs, stop = sharding.whole(parts, overflow)
        if stop is None:
            return pairs, self
        if self.found_inf is not None:
            self.found_inf.copy_(stop, non_blocking=True)
        return pairs, LossScale(self.scale, stop.to(torch.float32))

    def unscaled(self, g_norm: Tensor) -> Tensor:
        """Return the norm of the gradient without the scale."""
        return g_norm if self.scale is None else g_norm / self.scale.to(g_norm.device, non_blocking=True)

    def applied(self, rate: Tensor, decay: float) -> tuple[Tensor, Tensor | float]:
        """Return the factor and the decay for the gradient as it is stored: scaled, and untouched on an overflow."""
        scaled_decay: Tensor | float = decay
        if self.scale is not None and decay:
            scaled_decay = decay * self.scale.to(rate.device, non_blocking=True)
        if self.found_inf is None:
            return rate, scaled_decay
        overflow = self.found_inf.to(rate.device, non_blocking=True) != 0
        if decay:
            scaled_decay = torch.where(overflow, 0.0, torch.as_tensor(scaled_decay, device=rate.device))
        return torch.where(overflow, 1.0, rate), scaled_decay


def named_parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], str, bool, Tensor]]:
    """Yield group, name, whether the name is the optimizer's own, and parameter; a shared parameter once."""
    seen: set[int] = set()
    for i, group in enumerate(optimizer.param_groups):
        names = group.get("param_names")
        for j, param in enumerate(group["params"]):
            if id(param) not in seen:
                seen.add(id(param))
                yield group, names[j] if names else f"group{i}.param{j}", bool(names), param


def is_plain(param: Tensor, grad: Tensor) -> bool:
    """Return whether `grad` has the type and layout of `param`, so that there is nothing to check; quick."""
    return (
        grad.dtype is param.dtype
        and grad.layout is torch.strided
        and grad.shape == param.shape
        and grad.stride() == param.stride()
        and not grad.is_inference()
    )


def check_own_gradients(layers: list[Layer]) -> None:
    """Raise ValueError if two layers have the same gradient tensor: it would be rescaled twice."""
    if len({id(layer.grad) for layer in layers}) == len(layers):
        return
    first: dict[int, str] = {}
    for layer in layers:
        other = first.setdefault(id(layer.grad), layer.name)
        if other != layer.name:
            raise ValueError(
                f"`param.grad` of {layer.name!r} is the same tensor as that of {other!r}: it would be rescaled twice. "
                "Give one of them a copy, for example `param.grad = param.grad.clone()`."
            )


def check_parameter(name: str, param: Tensor) -> None:
    """Raise if `param` is not one layer's tensor of floating point."""
    if not (param.is_floating_point() or param.is_complex()) or param.dtype.itemsize < 2:
        raise TypeError(f"`optimizer` holds {name!r} of type {param.dtype}. LARS takes float16 and wider, and complex.")
    if getattr(param, "_fsdp_flattened", False) or getattr(param, "_is_flat_param", False):
        raise ValueError(
            f"`optimizer` holds {name!r}, a parameter that FSDP1 has flattened: its layers, and so their norms, are "
            "gone. Shard with FSDP2 (`torch.distributed.fsdp.fully_shard`), which keeps every layer."
        )
    check_not_partitioned(name, param)
    check_sharding(name, param)
