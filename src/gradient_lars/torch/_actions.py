"""What a registered hook does in a step: GradientLARS on many tensors at once, or any hook of Chainer's protocol."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from gradient_lars.hook import GradientLARS
from gradient_lars.torch import _dispatch
from gradient_lars.torch._decay import AbsorbedDecay, decay_of
from gradient_lars.torch._layers import ARRAYS, Layer, LossScale, check_parameter, named_parameters
from gradient_lars.torch._selection import Selection
from gradient_lars.torch.rates import LayerRates

Group = dict[str, Any]


class Action(Protocol):
    """A hook bound to an optimizer's parameters."""

    def prepare(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Check the optimizer and return what to run once the step's gradients are there."""


class ProtocolAction:
    """Any hook of Chainer's protocol: once with the optimizer, or as ``hook(None, param)`` for every parameter."""

    def __init__(self, hook: Callable[..., Any], selection: Selection) -> None:
        self._hook = hook
        self._selection = selection

    def prepare(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """See `Action`."""
        if not getattr(self._hook, "call_for_each_param", False):
            return lambda: self._hook(optimizer)
        params = [p for _, name, own, p in named_parameters(optimizer) if self._selection(name, own, p)]

        def run() -> None:
            for param in params:
                self._hook(None, param)

        return run


class LarsAction:
    """GradientLARS on the selected parameters of an optimizer."""

    def __init__(
        self, hook: GradientLARS, selection: Selection, absorbed: AbsorbedDecay | None, path: str | None
    ) -> None:
        self._hook = hook
        self._selection = selection
        self._absorbed = absorbed
        self._path = path
        self.rates: LayerRates | None = None

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise ValueError if parameters or decays of `optimizer` do not suit the hook."""
        self._selected(optimizer)

    def prepare(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """See `Action`. An absorbed decay is taken now, since the optimizer may read it before the gradients."""
        if self._absorbed is not None:
            # What an interrupted step has left behind is still the group's decay.
            self._absorbed.give_back()
        selected, groups = self._selected(optimizer)
        if self._absorbed is not None:
            self._absorbed.take([group for group in groups if group.get("weight_decay")])
        return lambda: self._run(selected, LossScale.of(optimizer))

    def _selected(self, optimizer: torch.optim.Optimizer) -> tuple[list[tuple[str, Tensor, float, int]], list[Group]]:
        """Return name, parameter, decay and sign of what the hook acts on, and the groups that hold it."""
        selected: list[tuple[str, Tensor, float, int]] = []
        decays: dict[int, tuple[Group, float]] = {}
        left_out: dict[int, str] = {}
        for group, name, own_name, param in named_parameters(optimizer):
            if not self._selection(name, own_name, param):
                left_out[id(group)] = name
                continue
            check_parameter(name, param)
            if id(group) not in decays:
                absorb = self._absorbed is not None
                decays[id(group)] = group, decay_of(self._hook.weight_decay, group, absorb=absorb)
            decay = decays[id(group)][1]
            selected.append((name, param, decay, -1 if group.get("maximize") else 1))
        if self._absorbed is not None:
            for key, name in left_out.items():
                if key in decays and decays[key][0].get("weight_decay"):
                    raise ValueError(
                        f"`absorb_weight_decay` takes over the decay of a whole group, but `params` leaves out "
                        f"{name!r} of a group that it also selects from. Put the two into groups of their own."
                    )
        return selected, [group for group, _ in decays.values()]

    def _run(self, selected: list[tuple[str, Tensor, float, int]], loss_scale: LossScale) -> None:
        layers = []
        for name, param, decay, sign in selected:
            grad = param.grad
            if grad is not None:
                ARRAYS.check(param, grad, decay, f"`param.grad` of {name!r}")
                layers.append(Layer(name, param, grad, decay, sign))
        parts = []
        if layers:
            rescale = _dispatch.rescale_with(self._path, layers)
            with torch.no_grad():
                parts = rescale(layers, loss_scale, threshold=self._hook.threshold, eps=self._hook.eps)
        self.rates = LayerRates([layer.name for layer in layers], parts)
