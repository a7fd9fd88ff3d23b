"""The fused path on the CPU while its tensors stay what they are: what is known of them is kept between steps.

`Plan` is made once for an optimizer's layers. A step then reads what could have changed of all tensors, in lists and
not layer by layer, and goes on to norms and updates. What it does not recognise makes it give up before anything is
changed, and the optimizer makes a new one or takes the step layer by layer.
"""

import dataclasses
from collections.abc import Hashable
from itertools import repeat
from operator import attrgetter, is_, is_not, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gradient_lars import _formula
from gradient_lars.torch import _lars_cpu, _lars_cpu_small
from gradient_lars.torch._lars_bucket import LarsLayer
from gradient_lars.torch._lars_cpu_small import SmallLayers
from gradient_lars.torch._layers import LossScale
from gradient_lars.torch.rates import LayerRates, Norms

_ADDRESS: Any = Tensor.data_ptr
_NUMEL: Any = Tensor.numel
_STRIDE: Any = Tensor.stride
_IS_CONTIGUOUS: Any = Tensor.is_contiguous
_IS_NEG: Any = Tensor.is_neg
_DTYPE = attrgetter("dtype")
# A change of these makes another path or another arrangement of the layers necessary; others are read in each step.
_STRUCTURE = itemgetter(
    "differentiable", "foreach", "fused", "nesterov", "trust_clip", "adapt", "adapt_without_decay", "norm_of"
)


def plan(layers: list[LarsLayer], params: list[Tensor], optimizer: Any) -> "Plan | None":
    """Return the plan for the steps of `layers`, or None if they are not such that one can be made.

    Args:
        layers: the layers that have gradients; their state has been made.
        params: the parameters of these layers.
        optimizer: whose layers they are.
    """
    # Whether to step at all is known after all norms only: `_lars_cpu` does that, and a first step, layer by layer.
    if optimizer.skip_nonfinite or not _unscaled(LossScale.of(optimizer)):
        return None
    # Of a sharded parameter, other ranks may wait for this one's word even where it has no gradient here.
    if not {type(param) for group in optimizer.param_groups for param in group["params"]} <= {Parameter, Tensor}:
        return None
    for layer, param in zip(layers, params, strict=True):
        tensors = [param, *([] if layer.momentum is None else [layer.momentum])]
        if layer.param is not param:
            return None
        if layer.param.device.type != "cpu" or layer.fresh or layer.group["trust_clip"]:
            return None
        if not (_lars_cpu.supported(layer) and all(_lars_cpu.same_layout(tensor, param) for tensor in tensors)):
            return None
        if not _lars_cpu.is_dense(param) or type(layer.grad) is not Tensor:
            return None
    return Plan(layers, optimizer)


class Plan:
    """The step of one optimizer on the CPU, for as long as its tensors stay what they are; see `plan`."""

    def __init__(self, layers: list[LarsLayer], optimizer: Any) -> None:
        self._groups = list(optimizer.param_groups)
        self._structure = self._read_structure()
        self._master_weights = optimizer.master_weights
        self._all_params = [param for group in self._groups for param in group["params"]]
        self._params = [layer.param for layer in layers]
        mine = set(map(id, self._params))
        self._others = [param for param in self._all_params if id(param) not in mine]
        self._states = list(optimizer.state.values())
        self._with_momentum = [optimizer.state[layer.param] for layer in layers if layer.momentum is not None]
        self._momenta = [layer.momentum for layer in layers if layer.momentum is not None]

        self._contiguous = all(map(_IS_CONTIGUOUS, self._params))
        self._forms = self._read_forms()
        self._numels = list(map(_NUMEL, self._params))
        self._dtypes = list(map(_DTYPE, self._params))
        self._strides = list(map(_STRIDE, self._params))

        # Without the gradients: they are others in each step, and would be kept alive.
        self._layers = [dataclasses.replace(layer, grad=torch.empty(0)) for layer in layers]
        self._buckets: list[_Bucket] = []
        self._present: list[bool] = []
        self._names: tuple[str, ...] = ()

    def step(self, optimizer: Any, loss_scale: LossScale, count: Any) -> LayerRates | None:
        """Take a step; return its rates, or None if the tensors are others and nothing was done."""
        if not (_unscaled(loss_scale) and self._still_valid(optimizer)):
            return None
        grads = self._gradients()
        if grads is None:
            return None
        present = list(map(is_not, grads, repeat(None)))
        if present != self._present:
            self._arrange(present)
        figures: list[Norms] = []
        for bucket in self._buckets:
            figures += bucket.step(grads)
        return LayerRates(self._names, figures)

    def forget_unstarted(self, optimizer: Any) -> None:
        """Do nothing: the layers of a plan have all started, and it skips no step."""

    def _read_structure(self) -> list[Any]:
        return [(_STRUCTURE(group), group["momentum"] == 0, group["weight_decay"] == 0) for group in self._groups]

    def _read_forms(self) -> list[list[Any]]:
        tensors = [*self._params, *self._momenta]
        layout = _IS_CONTIGUOUS if self._contiguous else _STRIDE
        return [list(map(_ADDRESS, tensors)), list(map(_NUMEL, tensors)), list(map(layout, self._params))]

    def _still_valid(self, optimizer: Any) -> bool:
        groups, state = optimizer.param_groups, optimizer.state
        if not _are(groups, self._groups):
            return False
        if optimizer.skip_nonfinite or optimizer.master_weights != self._master_weights:
            return False
        if self._read_structure() != self._structure:
            return False
        if not _are([param for group in groups for param in group["params"]], self._all_params):
            return False
        if len(state) != len(self._states) or not all(map(is_, state.values(), self._states)):
            return False
        if not _are([state.get("momentum_buffer") for state in self._with_momentum], self._momenta):
            return False
        return all(param.grad is None for param in self._others) and self._read_forms() == self._forms

    def _gradients(self) -> list[Tensor | None] | None:
        """Return the gradients as the kernel can read them, or None if one is of another type."""
        grads: list[Any] = [param.grad for param in self._params]
        if self._as_the_params(grads):
            return grads
        for i, (grad, param) in enumerate(zip(grads, self._params, strict=True)):
            if grad is None:
                continue
            plain = type(grad) is Tensor and grad.layout is torch.strided
            if not plain or grad.dtype != param.dtype or grad.shape != param.shape:
                return None
            if not _lars_cpu.same_layout(grad, param):
                grads[i] = torch.empty_like(param).copy_(grad)
        return grads

    def _as_the_params(self, grads: list[Any]) -> bool:
        if set(map(type, grads)) != {Tensor}:
            return False
        try:
            alike = all(map(_IS_CONTIGUOUS, grads)) if self._contiguous else list(map(_STRIDE, grads)) == self._strides
        except RuntimeError:  # a sparse gradient has no strides
            return False
        alike = alike and list(map(_NUMEL, grads)) == self._numels and list(map(_DTYPE, grads)) == self._dtypes
        return alike and not any(map(_IS_NEG, grads))

    def _arrange(self, present: list[bool]) -> None:
        """Put the layers that have a gradient into buckets."""
        self._present = present
        self._names = tuple(layer.name for layer, here in zip(self._layers, present, strict=True) if here)
        members: dict[Hashable, list[tuple[int, int]]] = {}
        place = 0
        for i, (layer, here) in enumerate(zip(self._layers, present, strict=True)):
            if here:
                members.setdefault((id(layer.group), layer.adapted, layer.param.dtype), []).append((i, place))
                place += 1
        self._buckets = [_Bucket(self._layers, found) for found in members.values()]


class _Bucket:
    """Layers of one group and type: the small ones together, then each of the others.

    Args:
        layers: all layers of the plan.
        members: of the bucket's layers, the indices in `layers` and the places among those that have gradients.
    """

    def __init__(self, layers: list[LarsLayer], members: list[tuple[int, int]]) -> None:
        self._first = layers[members[0][0]]
        small = [item for item in members if layers[item[0]].param.numel() <= _lars_cpu_small.SMALL]
        sizes = [layers[i].param.numel() for i, _ in small]
        parts = [part for part in _lars_cpu_small.parts(small, sizes) if len(part) >= _lars_cpu_small.FEWEST]
        together = {i for part in parts for i, _ in part}
        self._singles = [
            (i, layers[i], _lars_cpu.block_length(layers[i].param.numel())) for i, _ in members if i not in together
        ]
        self._single_places = [place for i, place in members if i not in together]
        room = [_lars_cpu_small.scratch_size([layers[i].param for i, _ in part]) for part in parts]
        scratch = torch.empty(max(room, default=0), dtype=self._first.param.dtype)
        self._parts = [
            ([i for i, _ in part], [place for _, place in part], SmallLayers([layers[i] for i, _ in part], scratch))
            for part in parts
        ]

    def step(self, grads: list[Any]) -> list[Norms]:
        dtype = self._first.param.dtype
        settings = _lars_cpu.rate_settings(self._first)
        threshold, decayed = settings["threshold"], self._first.decayed
        figures = []
        for indices, places, small in self._parts:
            p_norms, g_norms = small.norms([grads[i] for i in indices])
            rates = _formula.rate(p_norms, g_norms, **settings, where=torch.where)
            small.update(rates)
            figures.append(Norms(places, p_norms, g_norms, rates, threshold))
        columns: list[tuple[float, float, float]] = []
        for i, layer, block in self._singles:
            grad = grads[i]
            p_norm = _lars_cpu.norm(layer.param, block)
            g_norm = _lars_cpu.decayed_norm(layer, grad) if decayed else _lars_cpu.norm(grad, block)
            rate = _formula.rate(p_norm, g_norm, **settings)
            columns.append((p_norm, g_norm, rate))
            _lars_cpu.update_layer(layer, grad, rate)
        if columns:
            p_norms, g_norms, rates = torch.tensor(columns, dtype=dtype).unbind(1)
            figures.append(Norms(self._single_places, p_norms, g_norms, rates, threshold))
        return figures


def _unscaled(loss_scale: LossScale) -> bool:
    return loss_scale.scale is None and loss_scale.found_inf is None


def _are(items: list[Any], same: list[Any]) -> bool:
    return len(items) == len(same) and all(map(is_, items, same))
