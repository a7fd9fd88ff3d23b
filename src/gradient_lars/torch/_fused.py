"""The fused path on CUDA and ROCm: two launches for all layers of the same types, from tables kept on the device.

`Fused` is made once for an optimizer's layers. A step then reads addresses and versions of all tensors, in lists and
not layer by layer, sends what has changed and launches the kernels. What it does not recognise makes it give up
before anything is changed, and the optimizer makes a new one.
"""

from contextlib import AbstractContextManager, nullcontext
from itertools import compress, repeat
from operator import is_, is_not, itemgetter
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from gradient_lars import _formula
from gradient_lars.torch._fused_bucket import Bucket
from gradient_lars.torch._fused_layer import FusedLayer
from gradient_lars.torch._fused_rates import FusedRates
from gradient_lars.torch._fused_tables import ABSENT, ADAPTED, GROUP_SHIFT, lr_on, settings_row
from gradient_lars.torch._fused_versions import Versions
from gradient_lars.torch._lars import LarsLayer
from gradient_lars.torch._layers import LossScale
from gradient_lars.torch.rates import LayerRates

_ADDRESS: Any = Tensor.data_ptr
_STRIDE: Any = Tensor.stride
_IS_CONTIGUOUS: Any = Tensor.is_contiguous
_SETTINGS = itemgetter(
    "momentum", "dampening", "weight_decay", "nesterov", "trust_coefficient", "threshold", "eps", "adapt",
    "lr_in_momentum", "trust_clip", "min_rate", "max_rate", "maximize", "differentiable", "foreach", "fused",
    "capturable",
)  # fmt: skip
# Of these, a change makes other kernels or another path necessary.
_STRUCTURE = itemgetter("differentiable", "foreach", "fused")


class SkipCount(Protocol):
    """Where the number of skipped steps is kept: a tensor of one int64, or None before the first."""

    skipped: Tensor | None


class Fused:
    """The fused step of one optimizer, for as long as its tensors stay what they are.

    Args:
        layers: the layers that have gradients; their state has been made.
        params: the parameters of these layers.
        optimizer: whose layers they are.
        kernels: the module `_triton`.
    """

    def __init__(
        self, layers: list[LarsLayer], params: list[Tensor], optimizer: torch.optim.Optimizer, kernels: ModuleType
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
        self._remember(optimizer)

        carry = self._versions.known and self._options[2] is not False
        blank = [[0] * len(settings_row(group, 0.0)) for group in groups]
        self._buckets: list[Bucket] = []
        for members in buckets.values():
            start = self._buckets[-1].stop if self._buckets else 0
            self._buckets.append(Bucket(members, start, blank, kernels, carry=carry))
        self._bad = {bucket.device: torch.zeros(1, dtype=torch.int32, device=bucket.device) for bucket in self._buckets}
        self._thresholds: list[float] = []
        self._lr_copied = [False] * len(groups)
        self._lr_kept: list[Any] = [None] * len(groups)
        self._kept: list[Any] = []
        self._listed: tuple[Any, tuple[str, ...], list[tuple[list[int], list[int]]]] | None = None

    def _remember(self, optimizer: torch.optim.Optimizer) -> None:
        """Note down every tensor that the step relies on."""
        self._all_params = [param for group in self._groups for param in group["params"]]
        self._params = [layer.param for layer in self._layers]
        mine = set(map(id, self._params))
        self._others = [param for param in self._all_params if id(param) not in mine]
        self._states = list(optimizer.state.values())
        self._with_momentum = [optimizer.state[la.param] for la in self._layers if la.momentum is not None]
        self._with_master = [optimizer.state[la.param] for la in self._layers if la.low is not None]
        self._addresses = self._read_addresses()
        # Gradients whose type and strides are compared in lists; the others are looked at one by one.
        grads = [param.grad for param in self._params]
        self._single = [
            i for i, (layer, grad) in enumerate(zip(self._layers, grads, strict=True)) if not layer.takes(grad)
        ]
        single = set(self._single)
        self._common = [i for i in range(len(grads)) if i not in single]
        self._contiguous = all(self._layers[i].weights.is_contiguous() for i in self._common)
        common = [grad for grad in (grads[i] for i in self._common) if grad is not None]
        self._strides = [grad.stride() for grad in common]
        self._dtypes = [grad.dtype for grad in common]
        self._versions = Versions(self._layers)

    def _read_addresses(self) -> list[int]:
        addresses = list(map(_ADDRESS, self._params))
        if self._with_momentum:
            addresses += map(_ADDRESS, [state["momentum_buffer"] for state in self._with_momentum])
        if self._with_master:
            addresses += map(_ADDRESS, [state["master"] for state in self._with_master])
        return addresses

    def step(self, optimizer: torch.optim.Optimizer, loss_scale: LossScale, count: SkipCount) -> LayerRates | None:
        """Take a step; return its rates, or None if the tensors are others and nothing was done.

        With the optimizer's `skip_nonfinite`, a skipped step is added to `count`.

        Raises:
            RuntimeError: a CUDA graph is being captured, and a group is not `capturable`.
        """
        if not self._still_valid(optimizer):
            return None
        grads = [param.grad for param in self._params]
        prepared = self._gradient_addresses(grads)
        if prepared is None:
            return None
        pointers, copies = prepared
        capturing = _capturing(self._buckets[0].device)
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
            self._kept += [figures, copies, list(self._lr_kept)]
        self._versions.count(pointers)
        if not capturing:
            for bucket in self._buckets:
                if bucket.carry:
                    bucket.look()
        return self._rates(pointers, figures)

    def _still_valid(self, optimizer: torch.optim.Optimizer) -> bool:
        groups = optimizer.param_groups
        if groups is not self._groups or _options(optimizer) != self._options:
            return False
        if [(_STRUCTURE(group), group["momentum"] == 0) for group in groups] != self._structure:
            return False
        params = [param for group in groups for param in group["params"]]
        if len(params) != len(self._all_params) or not all(map(is_, params, self._all_params)):
            return False
        if len(optimizer.state) != len(self._states) or not all(map(is_, optimizer.state.values(), self._states)):
            return False
        if any(param.grad is not None for param in self._others):
            return False
        try:
            addresses = self._read_addresses()
        except KeyError:
            return False
        return addresses == self._addresses

    def _gradient_addresses(self, grads: list[Tensor | None]) -> tuple[list[int], list[Tensor]] | None:
        """Return the addresses of all gradients and the copies made of some, or None if one has another type."""
        if not self._single and all(map(is_not, grads, repeat(None))) and self._as_before(grads):
            return list(map(_ADDRESS, grads)), []
        common = [grads[i] for i in self._common]
        as_before = all(map(is_not, common, repeat(None))) and self._as_before(common)
        single = set(self._single if as_before else range(len(grads)))
        pointers, copies = [], []
        for i, grad in enumerate(grads):
            if grad is not None and i in single:
                grad = self._layers[i].prepared(grad)
                if grad is None:
                    return None
                copies.append(grad)
            pointers.append(ABSENT if grad is None else grad.data_ptr())
        return pointers, copies

    def _as_before(self, grads: list[Any]) -> bool:
        """Return whether gradients have the types and strides that the plan was made for."""
        try:
            if self._contiguous:
                in_order = all(map(_IS_CONTIGUOUS, grads))
            else:
                in_order = list(map(_STRIDE, grads)) == self._strides
            return in_order and [grad.dtype for grad in grads] == self._dtypes
        except RuntimeError:  # a sparse gradient has no strides
            return False

    def _enter_settings(self) -> None:
        changed = False
        for i, group in enumerate(self._groups):
            lr = group["lr"]
            key = _SETTINGS(group), (lr.data_ptr(), lr.dtype, lr.device) if isinstance(lr, Tensor) else lr
            if key == self._keys[i] and not self._lr_copied[i]:
                continue
            changed |= key != self._keys[i]
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
        flags = []
        self._thresholds = []
        for layer in self._layers:
            group = self._groups[layer.group_index]
            adapted = layer.param.dim() >= 2 if group["adapt"] is None else bool(group["adapt"])
            flags.append(layer.group_index << GROUP_SHIFT | (ADAPTED if adapted else 0))
            self._thresholds.append(group["threshold"] if adapted else _formula.INFINITY)
        for bucket in self._buckets:
            bucket.set_group_flags(flags[bucket.start : bucket.stop])

    def _launch(self, loss_scale: LossScale, count: SkipCount, *, capturing: bool) -> list[Tensor]:
        skip_nonfinite = self._options[0]
        bad: dict[torch.device, Tensor] = self._bad if skip_nonfinite else {}
        for flag in bad.values():
            flag.zero_()
        for bucket in self._buckets:
            with _on(bucket.device):
                bucket.norms(bad.get(bucket.device), capturing=capturing)
        if len(bad) > 1:
            first, *others = bad.values()
            for other in others:
                first |= other.to(first.device, non_blocking=True)
            for other in others:
                other.copy_(first, non_blocking=True)
        skipped = _skip_count(count, self._buckets[0].device) if skip_nonfinite else None
        figures = []
        for bucket in self._buckets:
            figures.append(torch.empty((3, len(bucket.layers)), dtype=bucket.wide_dtype, device=bucket.device))
            scale, found_inf = (
                None if t is None else t.to(bucket.device, non_blocking=True)
                for t in (loss_scale.scale, loss_scale.found_inf)
            )
            with _on(bucket.device):
                bucket.update(
                    figures[-1], scale, found_inf, bad.get(bucket.device), skipped, capturing=capturing
                )  # fmt: skip
            skipped = None
        return figures

    def _rates(self, pointers: list[int], figures: list[Tensor]) -> LayerRates:
        pattern = [pointer != ABSENT for pointer in pointers] if ABSENT in pointers else None
        if self._listed is None or pattern != self._listed[0]:
            self._listed = (pattern, *self._list(pattern))
        _, names, rows = self._listed
        parts = zip(self._buckets, rows, figures, strict=True)
        return FusedRates(
            names,
            [(*where, matrix, self._thresholds[bucket.start : bucket.stop]) for bucket, where, matrix in parts],
        )

    def _list(self, pattern: list[bool] | None) -> tuple[tuple[str, ...], list[tuple[list[int], list[int]]]]:
        """Return names of the layers that have a gradient, and per bucket their places among these and their rows."""
        present = list(compress(self._layers, pattern)) if pattern else self._layers
        in_order = sorted(present, key=lambda layer: layer.place)
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


def _elsewhere(lr: Tensor, value: float | Tensor) -> bool:
    return not isinstance(value, Tensor) or value.data_ptr() != lr.data_ptr()


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which Triton launches on `device`: it takes the current one's stream."""
    if device.type == "cpu" or torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)


def _skip_count(count: SkipCount, device: torch.device) -> Tensor:
    """Return the count of skipped steps, on `device`."""
    if count.skipped is None:
        count.skipped = torch.zeros((), dtype=torch.int64, device=device)
    elif count.skipped.device != device:
        count.skipped = count.skipped.to(device, non_blocking=True)
    return count.skipped
