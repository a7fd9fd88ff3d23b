"""The `params` argument: a hook restricted to some parameters, by an iterable or by a predicate."""

import itertools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gradient_lars.torch._layers import check_parameter, named_parameters
from gradient_lars.torch._sharding import Sharding

Predicate = Callable[[str, Tensor], bool]
Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Predicate


class Selection:
    """Decides, once per parameter, whether a hook acts on it; a predicate also sees parameters added later."""

    def __init__(self, optimizer: torch.optim.Optimizer, params: Params | None) -> None:
        self._predicate: Predicate | None = None
        self._chosen: dict[int, tuple[Tensor, bool]] = {}
        self._everything = params is None
        self._given = 0
        if params is None:
            return
        if callable(params):
            self._predicate = params
        else:
            self._chosen = {id(p): (p, True) for p in _tensors(params)}
            self._given = len(self._chosen)
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

    def check_complete(self, found: int) -> None:
        """Raise RuntimeError if parameters that were given are no longer among the optimizer's."""
        if self._given > found:
            raise RuntimeError(
                f"`params` named {self._given} parameters, but the optimizer now holds {found} of them. Remove the "
                "hook and add it again for the parameters that have replaced them."
            )

    def _ask(self, name: str, own_name: bool, param: Tensor) -> bool:
        if self._predicate is None:
            return False
        if not own_name:
            raise ValueError(
                "`params` is a predicate, but the optimizer does not know its parameters' names. Make it with "
                "`model.named_parameters()`, or pass an iterable of parameters."
            )
        return bool(self._predicate(name, param))


class Chosen:
    """What a hook acts on, by the index of its group, for as long as the optimizer holds the same parameters.

    Attributes:
        by_group: names and parameters, of the groups that have some.
        left_out: of each group the name of one parameter that is not selected, if there is one.
        sharding: of the parameters that it acts on.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, selection: Selection) -> None:
        self.by_group: dict[int, list[tuple[str, Tensor]]] = {}
        self.left_out: dict[int, str] = {}
        places = {id(group): i for i, group in enumerate(optimizer.param_groups)}
        for group, name, own_name, param in named_parameters(optimizer):
            i = places[id(group)]
            if selection(name, own_name, param):
                check_parameter(name, param)
                self.by_group.setdefault(i, []).append((name, param))
            else:
                self.left_out[i] = name
        selection.check_complete(sum(map(len, self.by_group.values())))
        self.sharding = Sharding(itertools.chain(*self.by_group.values()))
        self._held = _held(optimizer.param_groups)

    def holds_for(self, groups: list[dict[str, Any]]) -> bool:
        """Return whether `groups` hold the same parameters under the same names."""
        held = _held(groups)
        return len(held) == len(self._held) and all(map(operator.is_, held, self._held))


def _held(groups: list[dict[str, Any]]) -> list[Any]:
    # The list of names marks where a group begins, too.
    return [item for group in groups for item in (group.get("param_names"), *group["params"])]


def _tensors(params: Any) -> list[Tensor]:
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(
            f"`params` must be an iterable of parameters or a predicate on name and parameter, got "
            f"{type(params).__name__}. Wrap a single tensor in a list."
        )
    tensors = [item[1] if isinstance(item, tuple) and len(item) == 2 else item for item in params]
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"`params` must hold tensors, got {type(tensor).__name__}. To choose by name pass a function of name "
                "and parameter, such as `lambda name, param: 'head' not in name`."
            )
    return tensors
