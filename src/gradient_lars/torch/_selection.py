"""The `params` argument: a hook restricted to some parameters, by an iterable or by a predicate."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gradient_lars.torch._layers import named_parameters

Predicate = Callable[[str, Tensor], bool]
Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Predicate


class Selection:
    """Decides, once per parameter, whether a hook acts on it; a predicate also sees parameters added later."""

    def __init__(self, optimizer: torch.optim.Optimizer, params: Params | None) -> None:
        self._predicate: Predicate | None = None
        self._chosen: dict[int, tuple[Tensor, bool]] = {}
        self._everything = params is None
        if params is None:
            return
        if callable(params):
            self._predicate = params
        else:
            self._chosen = {id(p): (p, True) for p in _tensors(params)}
            known = {id(p) for _, _, _, p in named_parameters(optimizer)}
            for param, _ in self._chosen.values():
                if id(param) not in known:
                    raise ValueError(
                        f"`params` holds a tensor of shape {tuple(param.shape)} that `optimizer` does not have. Pass "
                        "the same objects that the optimizer was made with."
                    )
        if not any(self(name, own, param) for _, name, own, param in named_parameters(optimizer)):
            raise ValueError("`params` selects none of the optimizer's parameters. Leave it out to select all.")

    def __call__(self, name: str, own_name: bool, param: Tensor) -> bool:
        """Return whether `param` is selected."""
        if self._everything:
            return True
        found = self._chosen.get(id(param))
        if found is None:
            chosen = self._ask(name, own_name, param)
            # The tensor is kept so that its id cannot be taken over by another one.
            found = self._chosen[id(param)] = (param, chosen)
        return found[1]

    def _ask(self, name: str, own_name: bool, param: Tensor) -> bool:
        if self._predicate is None:
            return False
        if not own_name:
            raise ValueError(
                "`params` is a predicate, but the optimizer does not know its parameters' names. Make it with "
                "`model.named_parameters()`, or pass an iterable of parameters."
            )
        return bool(self._predicate(name, param))


def _tensors(params: Any) -> list[Tensor]:
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(
            f"`params` must be an iterable of parameters or a predicate on name and parameter, got "
            f"{type(params).__name__}. Wrap a single tensor in a list."
        )
    tensors = [item[1] if isinstance(item, tuple) and len(item) == 2 else item for item in params]
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`params` must hold tensors, got {type(tensor).__name__}.")
    return tensors
