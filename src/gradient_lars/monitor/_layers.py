"""What of a source's layers does not change from step to step, and what their groups are set to in one."""

from collections.abc import Iterator
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradient_lars.monitor._records import NO_GRADIENT, Record, relative_update
from gradient_lars.torch import LARS, HookHandle, LayerRates
from gradient_lars.torch._layers import named_parameters
from gradient_lars.torch.rates import LayerRate

Group = dict[str, Any]

# A float32 rate at a bound is the bound, rounded.
_ROUNDING = 1e-6


class Settings(NamedTuple):
    """Of one group in one step; `lr` may be a tensor on the device."""

    lr: float | Tensor
    weight_decay: float
    threshold: float
    min_rate: float = 0.0
    max_rate: float = float("inf")
    trust_clip: bool = False
    adapt_without_decay: bool = True
    decay_excluded: bool = True
    norm_of: str = "gradient"
    zero_gradient_rate: float | None = None


class Layer(NamedTuple):
    """Where a layer's settings stand, and whether it is to be adapted."""

    group: int
    adapt: bool


class Layers:
    """The layers of a source, by name, in the optimizer's order; for as long as its groups stay as they are.

    Args:
        source: a `LARS`, or the handle of a `GradientLARS`.
    """

    def __init__(self, source: LARS | HookHandle) -> None:
        self._source = source
        self._optimizer = optimizer = source.optimizer if isinstance(source, HookHandle) else source
        self._groups: list[Group] = list(optimizer.param_groups)
        self._sizes = [len(group["params"]) for group in self._groups]
        self.by_name: dict[str, Layer] = {}
        if isinstance(source, HookHandle):
            numbers = {id(group): i for i, group in enumerate(self._groups)}
            for group, named in source._action.layers(optimizer):  # type: ignore[union-attr]
                self.by_name |= {name: Layer(numbers[id(group)], adapt=True) for name, _ in named}
            return
        numbers = {id(group): i for i, group in enumerate(self._groups)}
        for group, name, _, param in named_parameters(source):
            adapt = param.dim() >= 2 if group["adapt"] is None else bool(group["adapt"])
            self.by_name[name] = Layer(numbers[id(group)], adapt)

    @property
    def current(self) -> bool:
        """Whether the optimizer has the groups from before: `load_state_dict` gives it others."""
        groups = self._optimizer.param_groups
        return len(groups) == len(self._groups) and all(map(is_, groups, self._groups))

    def hold_for(self, names: tuple[str, ...]) -> bool:
        """Return whether the groups are as they were, and `names` among the layers."""
        same = [len(group["params"]) for group in self._groups] == self._sizes
        return same and all(name in self.by_name for name in names)

    def settings(self) -> list[Settings]:
        """Return what the groups are set to now; a learning rate that is a tensor is copied where it is."""
        return [self._settings(group) for group in self._groups]

    def _settings(self, group: Group) -> Settings:
        lr = group["lr"]
        if isinstance(lr, Tensor):
            lr = lr.detach().reshape(1).clone()
        if isinstance(self._source, HookHandle):
            return Settings(lr, *self._source._action.settings(group))  # type: ignore[union-attr]
        return Settings(
            lr,
            group["weight_decay"],
            group["threshold"],
            group["min_rate"],
            group["max_rate"],
            group["trust_clip"],
            group["adapt_without_decay"],
            group["decay_excluded"],
            group["norm_of"],
            group["zero_gradient_rate"],
        )


class Taken(NamedTuple):
    """What one step has left: the figures, perhaps on the device still, and what they are figures of."""

    number: int
    step: int
    rates: LayerRates
    layers: Layers
    settings: list[Settings]

    def tensors(self) -> list[Tensor]:
        """Return all tensors there are, in a fixed order."""
        lrs = [group.lr for group in self.settings if isinstance(group.lr, Tensor)]
        return [*self.rates.tensors(), *lrs]

    def with_tensors(self, tensors: list[Tensor]) -> "Taken":
        """Return the same with copies in place of what `tensors` returned."""
        own = len(self.rates.tensors())
        lrs = iter(tensors[own:])
        settings = [group._replace(lr=next(lrs)) if isinstance(group.lr, Tensor) else group for group in self.settings]
        return self._replace(rates=self.rates.with_tensors(tensors[:own]), settings=settings)

    def copied(self) -> "Taken":
        """Return the same in memory of its own."""
        return self.with_tensors([tensor.detach().clone() for tensor in self.tensors()])

    def rows(self, seen: set[str]) -> Iterator[Record]:
        """Yield one row for each layer; it waits for the device.

        Args:
            seen: the layers that have had a row. Those that had none and have no gradient get one that says so.
        """
        figures = {row.name: row for row in self.rates}
        groups = [group._replace(lr=float(group.lr)) for group in self.settings]
        for name, layer in self.layers.by_name.items():
            group = groups[layer.group]
            row = figures.get(name)
            if row is None:
                if name not in seen:
                    nan = float("nan")
                    group_figures = (float(group.lr), group.weight_decay, group.threshold)
                    yield Record(self.step, name, nan, nan, nan, False, nan, *group_figures, NO_GRADIENT)
                seen.add(name)
                continue
            seen.add(name)
            lr = float(group.lr)
            decay = group.weight_decay if layer.adapt or group.decay_excluded else 0.0
            # The other norms hold the decay already.
            beside = decay if group.norm_of == "gradient" else 0.0
            yield Record(
                self.step,
                name,
                row.p_norm,
                row.g_norm,
                row.rate,
                row.adapted,
                relative_update(row.p_norm, row.g_norm, row.rate, lr, beside),
                lr,
                decay,
                group.threshold,
                _held_by(row, layer.adapt, group),
            )


def _held_by(row: LayerRate, adapt: bool, group: Settings) -> str:
    """Return what sets the rate in place of the norms, or ''."""
    if not adapt:
        return "adapt"
    if not group.adapt_without_decay and group.weight_decay == 0.0:
        return "no_decay"
    if not row.adapted:
        return "threshold" if row.p_norm <= group.threshold * (1 + _ROUNDING) else ""
    if row.g_norm == 0.0 and group.zero_gradient_rate is not None:
        return ""  # it comes before all bounds
    if group.trust_clip and row.rate == 1.0:
        return "trust_clip"
    if group.min_rate > 0.0 and row.rate <= group.min_rate * (1 + _ROUNDING):
        return "min_rate"
    return "max_rate" if row.rate >= group.max_rate * (1 - _ROUNDING) else ""


def one_rank_of_many() -> bool:
    """Return whether this is a rank of several, and not the first."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0
