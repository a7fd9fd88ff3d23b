"""Knowing where one step of an optimizer begins and ends, also when it raises or calls another hooked ``step``."""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch


class StepGuard:
    """Wraps ``optimizer.step`` to run something when the step ends, in whatever way, and to act once in it.

    A step that raises runs no post-hook. And a subclass whose ``step`` calls ``super().step()`` runs PyTorch's step
    hooks twice, because PyTorch hooks the step of every class. The wrapper sits on the optimizer object, as those of
    PyTorch's own schedulers do.
    """

    def __init__(self, at_exit: Callable[[], None]) -> None:
        self._at_exit = at_exit
        self._wrapper: Any = None
        self._wrapped: Any = None
        self._inside = False
        self._acted = False

    def first_in_step(self) -> bool:
        """Return whether this is the first call within the step; true whenever nothing is known of the step."""
        first = not (self._inside and self._acted)
        self._acted = True
        return first

    def install(self, optimizer: torch.optim.Optimizer) -> None:
        """Wrap ``optimizer.step``."""
        # A bound method would keep the optimizer alive; a scheduler's wrapper is a function with a weak reference.
        bound = hasattr(optimizer.step, "__func__")
        inner: Any = optimizer.step.__func__ if bound else optimizer.step  # type: ignore[attr-defined]

        @functools.wraps(inner)
        def step(self_: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            self._inside, self._acted = True, False
            try:
                return inner(self_, *args, **kwargs) if bound else inner(*args, **kwargs)
            finally:
                self._inside = False
                self._at_exit()

        self._wrapper = step
        self._wrapped = optimizer.__dict__.get("step")
        optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]

    def uninstall(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo `install`; if somebody has wrapped the step again since, this wrapper stays in it and does nothing."""
        if self._wrapper is None or getattr(optimizer.__dict__.get("step"), "__func__", None) is not self._wrapper:
            return
        if self._wrapped is None:
            del optimizer.__dict__["step"]
        else:
            optimizer.step = self._wrapped  # type: ignore[method-assign]


def calls_other_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's ``step`` overrides another one, which it may call."""
    return sum("step" in vars(base) for base in type(optimizer).__mro__ if base is not torch.optim.Optimizer) > 1
