"""What a registered hook does in a step: GradientLARS on many tensors at once, or any hook of Chainer's protocol."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from gradient_lars.hook import GradientLARS
from gradient_lars.torch import _dispatch
from gradient_lars.torch._decay import AbsorbedDecay, decay_of
from gradient_lars.torch._flattened import MadeWith
from gradient_lars.torch._layers import ARRAYS, Layer, LossScale, check_own_gradients, is_plain, named_parameters
from gradient_lars.torch._selection import Chosen, Selection
from gradient_lars.torch._sharding import gradient_like, is_dtensor, local
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
            return torch.no_grad()(lambda: self._hook(optimizer))
        params = [p for _, name, own, p in named_parameters(optimizer) if self._selection(name, own, p)]

        def run() -> None:
            for param in params:
                self._hook(None, param)

        return torch.no_grad()(run)


class LarsAction:
    """GradientLARS on the selected parameters of an optimizer."""

    def __init__(
        self, hook: GradientLARS, selection: Selection, absorbed: AbsorbedDecay | None, path: str | None
    ) -> None:
        self._hook = hook
        self._selection = selection
        self._absorbed = absorbed
        self._path = _dispatch.HookPath(path)
        self._chosen: Chosen | None = None
        self._made_with = MadeWith()
        self.rates: LayerRates | None = None

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise ValueError if parameters or decays of `optimizer` do not suit the hook."""
        self._decays(optimizer)

    def prepare(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """See `Action`. An absorbed decay is taken now, since the optimizer may read it before the gradients."""
        if self._absorbed is not None:
            # What an interrupted step has left behind is still the group's decay.
            self._absorbed.give_back()
        decays = self._decays(optimizer)
        if self._absorbed is not None:
            self._absorbed.take([group for group, _, _ in decays if group.get("weight_decay")])
        return lambda: self._run(optimizer, decays)

    def layers(self, optimizer: torch.optim.Optimizer) -> list[tuple[Group, list[tuple[str, Tensor]]]]:
        """Return the groups that the hook acts on, with what it acts on there."""
        return [(group, named) for group, named, _ in self._decays(optimizer)]

    def settings(self, group: Group) -> tuple[float, float]:
        """Return the decay that entered the rates of a group's layers, and the threshold."""
        absorbed = 0.0 if self._absorbed is None else self._absorbed.of(group)
        return self._hook.weight_decay or absorbed, self._hook.threshold

    def _decays(self, optimizer: torch.optim.Optimizer) -> list[tuple[Group, list[tuple[str, Tensor]], float]]:
        """Return the groups that the hook acts on, with what it acts on there and the decay."""
        groups = optimizer.param_groups
        if self._chosen is None or not self._chosen.holds_for(groups):
            self._made_with.check(groups)
            self._chosen = Chosen(optimizer, self._selection)
            self._path.forget()
        absorb = self._absorbed is not None
        decays = []
        for i, named in self._chosen.by_group.items():
            left_out = self._chosen.left_out.get(i)
            if absorb and left_out and groups[i].get("weight_decay"):
                raise ValueError(
                    f"`absorb_weight_decay` takes over the decay of a whole group, but `params` leaves out "
                    f"{left_out!r} of a group that it also selects from. Put the two into groups of their own."
                )
            decays.append((groups[i], named, decay_of(self._hook.weight_decay, groups[i], absorb=absorb)))
        return decays

    def _run(
        self, optimizer: torch.optim.Optimizer, decays: list[tuple[Group, list[tuple[str, Tensor]], float]]
    ) -> None:
        sharding = self._chosen.sharding if self._chosen is not None else None
        layers: list[Layer] = []
        for group, named, decay in decays:
            sign = -1 if group.get("maximize") else 1
            for name, param in named:
                grad = param.grad
                if grad is None:
                    continue
                piece = None
                if sharding is not None and (is_dtensor(param) or is_dtensor(grad)):
                    piece = sharding.piece(param)
                    param, grad = _pieces(name, param, grad)
                if not is_plain(param, grad):
                    ARRAYS.check(param, grad, decay, f"`param.grad` of {name!r}")
                layers.append(Layer(name, param, grad, decay, sign, piece))
        check_own_gradients(layers)
        parts = []
        # Where nothing has a gradient here, other ranks may wait for this one's word all the same.
        if layers or sharding:
            with torch.no_grad():
                parts = self._path.rescale(
                    layers, LossScale.of(optimizer), sharding, threshold=self._hook.threshold, eps=self._hook.eps
                )
        self.rates = LayerRates([layer.name for layer in layers], parts)


def _pieces(name: str, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return this rank's pieces of a parameter and its gradient.

    A gradient that is distributed otherwise is redistributed first, and stays so: the optimizer needs it like that too.
    """
    same = gradient_like(name, param, grad)
    if same is not grad:
        param.grad = same
    return local(param), local(same)
