"""Finding the closure among the arguments of a step."""

import inspect
from typing import Any

import torch

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class ClosureArgument:
    """Where an optimizer's ``step`` takes its closure: the parameter of that name, else the first one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        try:
            parameters = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
        except (TypeError, ValueError):
            parameters = []
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._name = "closure"
        if named and not any(p.name == "closure" for p in parameters):
            self._name = named[0]
        # Arguments of a hook begin with the optimizer itself.
        self._position = 1 + (named.index(self._name) if self._name in named else 0)

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the closure, or None."""
        found = kwargs.get(self._name, args[self._position] if len(args) > self._position else None)
        return found if callable(found) else None

    def replaced(self, args: tuple[Any, ...], kwargs: dict[str, Any], closure: Any) -> Arguments:
        """Return the arguments with `closure` in its place."""
        if self._name in kwargs:
            return args, {**kwargs, self._name: closure}
        return (*args[: self._position], closure, *args[self._position + 1 :]), kwargs
