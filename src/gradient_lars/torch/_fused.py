"""The fused path on CUDA and ROCm: two launches for all layers of the same types, from tables kept on the device.

`Fused` is made once for an optimizer's layers. A step then reads addresses and versions of all tensors, in lists and
not layer by layer, sends what has changed and launches the kernels. What it does not recognise makes it give up
before anything is changed, and the optimizer makes a new one.
"""

from collections.abc import Iterable
from itertools import chain, compress, repeat
from operator import is_, is_not, itemgetter
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from gradient_lars import _formula
from gradient_lars.torch._fused_bucket import Bucket
from gradient_lars.torch._fused_gradients import Gradients
from gradient_lars.torch._fused_launch import current, is_capturing
from gradient_lars.torch._fused_layer import FusedLayer
from gradient_lars.torch._fused_rates import FusedRates
from gradient_lars.torch._fused_tables import COPY, flags_of, lr_on, settings_row
from gradient_lars.torch._fused_versions import Versions
from gradient_lars.torch._lars_bucket import LarsLayer
from gradient_lars.torch._lars_layers import is_adapted
from gradient_lars.torch._layers import LossScale
from gradient_lars.torch._sharding import Sharding, gradient_like, is_dtensor, local
from gradient_lars.torch.rates import LayerRates

_ADDRESS: Any = Tensor.data_ptr
_STRIDE: Any = Tensor.stride
_IS_CONTIGUOUS: Any = Tensor.is_contiguous
_SETTINGS = itemgetter(
    "momentum", "dampening", "weight_decay", "nesterov", "trust_coefficient", "threshold", "eps", "adapt",
    "lr_in_momentum", "trust_clip", "min_rate", "max_rate", "norm_of", "zero_gradient_rate", "adapt_without_decay",
    "decay_excluded", "dampen_first_step", "maximize", "differentiable", "foreach", "fused", "capturable",
)  # fmt: skip
# Of these, a change makes other kernels or another path necessary.
_STRUCTURE = itemgetter("differentiable", "foreach", "fused", "norm_of")


class SkipCount(Protocol):
    """Where the number of skipped steps is kept: a tensor of one int64, or None before the first."""

    skipped: Tensor | None


class Fused:
    """The fused step of one optimizer, for as long as its tensors stay what they are.

    Args:
        layers: the layers that have gradients; their state has been made.
        params: the parameters of these layers.
        optimizer: whose layers they are.
        sharding: of the optimizer's parameters.
        kernels: the module `_triton`.
    """

    def __init__(
        self,
        layers: list[LarsLayer],
        params: list[Tensor],
        optimizer: torch.optim.Optimizer,
        sharding: Sharding,
        kernels: ModuleType,
    ) -> None:
        groups = optimizer.param_groups
        self._options = _options(optimizer)
        self._groups = groups
        self._structure = [(_STRUCTURE(group), group["momentum"] == 0) for group in groups]
        self._keys: list[Any] = [None] * len(groups)
        indices = {id(group): i for i, group in enumerate(groups)}
        buckets: dict[Any, list[FusedLayer]] = {}
        for place, (layer, param) in enumerate(zip(layers, params, strict=True)):
            made = FusedLayer.of(layer, param, optimizer.state.get(param, {}), place, indices[id(layer.group)])
            buckets.setdefault((made.weights.device, made.types), []).append(made)
        self._layers = [layer for members in buckets.values() for layer in members]
        self._sharding = sharding
        self._absent = sharding.absent()
        self._whole = [torch.empty_like(rows) for rows in self._absent]
        self._remember(optimizer)

        carry = self._versions.known and self._options[2] is not False
        blank = [[0] * len(settings_row(group, 0.0)) for group in groups]
        self._buckets: list[Bucket] = []
        for members in buckets.values():
            start = self._buckets[-1].stop if self._buckets else 0
            self._buckets.append(Bucket(members, start, blank, kernels, self._whole, carry=carry))
        self._bad = {bucket.device: torch.zeros(1, dtype=torch.int32, device=bucket.device) for bucket in self._buckets}
        self._thresholds: list[list[float]] = []
        self._lr_copied = [False] * len(groups)
        self._lr_kept: list[Any] = [None] * len(groups)
        self._kept: list[Any] = []
        self._listed: tuple[Any, tuple[str, ...], list[tuple[list[int], list[int]]]] | None = None

    def _remember(self, optimizer: torch.optim.Optimizer) -> None:
        """Note down every tensor that the step relies on."""
        self._group_params = [list(group["params"]) for group in self._groups]
        self._params = [layer.param for layer in self._layers]
        mine = set(map(id, self._params))
        self._others = [param for params in self._group_params for param in params if id(param) not in mine]
        self._dtensors = any(map(is_dtensor, self._params))
        self._states = len(optimizer.state)
        # How to read each kind of state tensor, and which states hold one; None says that all do.
        self._in_state: list[tuple[Any, list[bool] | None]] = []
        for name in ("momentum_buffer", "master"):
            holding = [isinstance(state.get(name), Tensor) for state in optimizer.state.values()]
            if any(holding):
                self._in_state.append((itemgetter(name), None if all(holding) else holding))
        self._addresses = self._read_addresses(optimizer)
        self._layout_of = _IS_CONTIGUOUS
        if not all(self._read_layout()):
            self._layout_of = _STRIDE
        self._layout = self._read_layout()
        self._gradients = Gradients(self._layers, self._read_gradients())
        self._versions = Versions(self._layers)

    def _read_addresses(self, optimizer: torch.optim.Optimizer) -> list[int]:
        tensors: list[Iterable[Tensor]] = [self._params]
        for tensor_of, holding in self._in_state:
            states = optimizer.state.values()
            tensors.append(map(tensor_of, states if holding is None else compress(states, holding)))
        if self._dtensors:
            tensors = [map(local, some) for some in tensors]
        return list(map(_ADDRESS, chain.from_iterable(tensors)))

    def _read_layout(self) -> list[Any]:
        """Return how the parameters lie at their addresses: transposed, they stay where they are."""
        return list(map(self._layout_of, map(local, self._params) if self._dtensors else self._params))

    def _read_gradients(self) -> list[Tensor | None]:
        grads = [param.grad for param in self._params]
        if not self._dtensors:
            return grads
        return [
            None if grad is None else local(gradient_like(layer.name, layer.param, grad))
            for layer, grad in zip(self._layers, grads, strict=True)
        ]

    def step(self, optimizer: torch.optim.Optimizer, loss_scale: LossScale, count: SkipCount) -> LayerRates | None:
        """Take a step; return its rates, or None if the tensors are others and nothing was done.

        With the optimizer's `skip_nonfinite`, a skipped step is added to `count`.

        Raises:
            RuntimeError: a CUDA graph is being captured, and a group is not `capturable`.
        """
        if not self._still_valid(optimizer):
            return None
        grads = self._read_gradients()
        found = self._gradients.addresses(grads)
        if found is None:
            return None
        pointers, copies, present = found
        capturing = is_capturing(self._buckets[0].device)
        if capturing and not all(group["capturable"] for group in self._groups):
            raise RuntimeError(NOT_CAPTURABLE)
        self._enter_settings()
        if changed := self._versions.changed():
            for bucket in self._buckets:
                bucket.stale |= {i - bucket.start for i in changed if bucket.start <= i < bucket.stop}
        for bucket in self._buckets:
            bucket.prepare(pointers[bucket.start : bucket.stop])
        figures = self._launch(loss_scale, count, capturing=capturing)
        if capturing:
            self._kept += [figures, grads, copies, list(self._lr_kept)]
        self._versions.count(present)
        if not capturing:
            for bucket in self._buckets:
                if bucket.carry:
                    bucket.look()
        return self._rates(present, figures)

    def forget_unstarted(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop momenta in which there is no step yet, all having been skipped: the next one is then the first.

        Waits for the device, but only until all layers have started, and where a dampening makes a difference.
        """
        fresh = [layer for layer in self._layers if layer.fresh and self._groups[layer.group_index]["dampening"]]
        # A captured graph goes on with the momentum it knows.
        if not fresh or self._kept or is_capturing(self._buckets[0].device):
            return
        for layer in (layer for bucket in self._buckets for layer in bucket.unstarted()):
            state = optimizer.state.get(layer.param, {})
            # Not what somebody has put there since.
            if state.get("momentum_buffer") is not None and not state["momentum_buffer"].any():
                del state["momentum_buffer"]
        for layer in self._layers:
            layer.fresh = False

    def _still_valid(self, optimizer: torch.optim.Optimizer) -> bool:
        groups = optimizer.param_groups
        if groups is not self._groups or _options(optimizer) != self._options:
            return False
        if [(_STRUCTURE(group), group["momentum"] == 0) for group in groups] != self._structure:
            return False
        for group, params in zip(groups, self._group_params, strict=True):
            if len(group["params"]) != len(params) or not all(map(is_, group["params"], params)):
                return False
        if len(optimizer.state) != self._states:
            return False
        if any(map(is_not, [param.grad for param in self._others], repeat(None))):
            return False
        try:
            # The states' tensors in the states' order: one that was replaced, or whose storage was, is elsewhere.
            return self._read_addresses(optimizer) == self._addresses and self._read_layout() == self._layout
        except (KeyError, TypeError):
            return False

    def _enter_settings(self) -> None:
        changed = False
        for i, group in enumerate(self._groups):
            lr = group["lr"]
            key = _SETTINGS(group), (lr.data_ptr(), lr.dtype, lr.device) if isinstance(lr, Tensor) else lr
            if key == self._keys[i] and not self._lr_copied[i]:
                continue
            changed |= self._keys[i] is None or key[0] != self._keys[i][0]
            self._keys[i] = key
            here = [lr_on(lr, bucket.device) for bucket in self._buckets]
            for bucket, value in zip(self._buckets, here, strict=True):
                bucket.table.set_settings(i, settings_row(group, value))
            # What was copied must be copied again next time, and kept until then.
            self._lr_copied[i] = isinstance(lr, Tensor) and any(_elsewhere(lr, value) for value in here)
            self._lr_kept[i] = here
        if changed:
            self._enter_groups()

    def _enter_groups(self) -> None:
        """Enter which layers are adapted, and to which group each belongs."""
        flags, thresholds = [], []
        for layer in self._layers:
            i = layer.group_index
            adapted = is_adapted(layer.param, self._groups[i])
            copy = layer.piece is not None and not layer.piece.counted
            flags.append(flags_of(self._groups[i], i, adapted=adapted) | (COPY if copy else 0))
            thresholds.append(self._groups[i]["threshold"] if adapted else _formula.INFINITY)
        self._thresholds = [thresholds[bucket.start : bucket.stop] for bucket in self._buckets]
        for bucket in self._buckets:
            bucket.set_group_flags(flags[bucket.start : bucket.stop])

    def _launch(self, loss_scale: LossScale, count: SkipCount, *, capturing: bool) -> list[Tensor]:
        skip_nonfinite = self._options[0]
        bad: dict[torch.device, Tensor] = self._bad if skip_nonfinite else {}
        for flag in bad.values():
            flag.zero_()
        scaled = [(_on(loss_scale.scale, bucket), _on(loss_scale.found_inf, bucket)) for bucket in self._buckets]
        for bucket, (scale, _) in zip(self._buckets, scaled, strict=True):
            with current(bucket.device):
                bucket.norms(bad.get(bucket.device), scale, capturing=capturing)
        if self._sharding:
            bad = self._add_up(loss_scale, bad)
        if len(bad) > 1:
            first, *others = bad.values()
            for other in others:
                first |= other.to(first.device, non_blocking=True)
            for other in others:
                other.copy_(first, non_blocking=True)
        skipped = _skip_count(count, self._buckets[0].device) if skip_nonfinite else None
        figures = []
        for bucket, (scale, found_inf) in zip(self._buckets, scaled, strict=True):
            figures.append(torch.empty((3, len(bucket.layers)), dtype=bucket.wide_dtype, device=bucket.device))
            with current(bucket.device):
                bucket.update(
                    figures[-1], scale, found_inf, bad.get(bucket.device), skipped, capturing=capturing
                )  # fmt: skip
            skipped = None
        return figures

    def _add_up(self, loss_scale: LossScale, bad: dict[torch.device, Tensor]) -> dict[torch.device, Tensor]:
        """Add up the sums of sharded layers over the ranks; return what says whether all skip the step."""
        for rows, absent in zip(self._whole, self._absent, strict=True):
            rows.copy_(absent)
        for bucket in self._buckets:
            with current(bucket.device):
                bucket.totals(_on(loss_scale.scale, bucket))
        here = self._whole[0].device
        flags = [flag.to(here, non_blocking=True) for flag in bad.values()]
        if loss_scale.found_inf is not None:
            flags.append(loss_scale.found_inf.reshape(1).to(here, non_blocking=True))
        overflow = torch.stack([flag[0] != 0 for flag in flags]).any() if flags else None
        stop = self._sharding.add_up(self._whole, overflow)
        if stop is None:
            return bad
        for flag in self._bad.values():
            flag.copy_(stop, non_blocking=True)
        return self._bad

    def _rates(self, present: list[bool] | None, figures: list[Tensor]) -> LayerRates:
        if self._listed is None or present != self._listed[0]:
            self._listed = (present, *self._list(present))
        _, names, rows = self._listed
        parts = zip(rows, figures, self._thresholds, strict=True)
        return FusedRates(names, [(*where, matrix, thresholds) for where, matrix, thresholds in parts])

    def _list(self, present: list[bool] | None) -> tuple[tuple[str, ...], list[tuple[list[int], list[int]]]]:
        """Return names of the layers that have a gradient, and per bucket their places among these and their rows."""
        layers = compress(self._layers, present) if present else self._layers
        in_order = sorted(layers, key=lambda layer: layer.place)
        place_of = {layer.place: i for i, layer in enumerate(in_order)}
        rows = []
        for bucket in self._buckets:
            here = [i for i, layer in enumerate(bucket.layers) if layer.place in place_of]
            rows.append(([place_of[bucket.layers[i].place] for i in here], here))
        return tuple(layer.name for layer in in_order), rows


NOT_CAPTURABLE = (
    "LARS is stepped inside a CUDA graph capture, and `capturable` is False in a group. Give LARS `capturable=True`, "
    "with `lr` as a tensor if it is to change between replays."
)


def _options(optimizer: Any) -> tuple[bool, bool, bool | None]:
    return optimizer.skip_nonfinite, optimizer.master_weights, optimizer.carry_norms


def _on(tensor: Tensor | None, bucket: Bucket) -> Tensor | None:
    return None if tensor is None else tensor.to(bucket.device, non_blocking=True)


def _elsewhere(lr: Tensor, value: float | Tensor) -> bool:
    return not isinstance(value, Tensor) or value.data_ptr() != lr.data_ptr()


def _skip_count(count: SkipCount, device: torch.device) -> Tensor:
    """Return the count of skipped steps, on `device`."""
    if count.skipped is None:
        count.skipped = torch.zeros((), dtype=torch.int64, device=device)
    elif count.skipped.device != device:
        count.skipped = count.skipped.to(device, non_blocking=True)
    return count.skipped
