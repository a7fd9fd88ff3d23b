"""Knowing where one step of an optimizer begins and ends, also when it raises or calls another hooked ``step``."""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch


class StepGuard:
    """Wraps an optimizer's ``step``, once for all its hooks, to run something when it ends and to tell steps apart.

    A step that raises runs no post-hook. And a subclass whose ``step`` calls ``super().step()`` runs PyTorch's step
    hooks twice, because PyTorch hooks the step of every class. The wrapper sits on the optimizer object, as those of
    PyTorch's own schedulers do.
    """

    def __init__(self) -> None:
        self.inside = False
        self.number = 0
        self._at_exit: list[Callable[[], None]] = []
        self._wrapper: Any = None
        self._wrapped: Any = None

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> "StepGuard":
        """Return the guard of `optimizer`, made if there is none yet."""
        guard: StepGuard = optimizer.__dict__.setdefault("_gradient_lars_guard", cls())
        return guard

    def add(self, optimizer: torch.optim.Optimizer, at_exit: Callable[[], None]) -> None:
        """Run `at_exit` whenever a step ends, in whatever way."""
        self._at_exit.append(at_exit)
        if self._wrapper is None:
            self._install(optimizer)

    def remove(self, optimizer: torch.optim.Optimizer, at_exit: Callable[[], None]) -> None:
        """Undo `add`. If somebody has wrapped the step again since, the wrapper stays in there for the next `add`."""
        if at_exit in self._at_exit:
            self._at_exit.remove(at_exit)
        if self._at_exit or getattr(optimizer.__dict__.get("step"), "__func__", None) is not self._wrapper:
            return
        if self._wrapper is not None:
            del optimizer.__dict__["step"]
            if self._wrapped is not None:
                optimizer.step = self._wrapped  # type: ignore[method-assign]
            self._wrapper = self._wrapped = None

    def _install(self, optimizer: torch.optim.Optimizer) -> None:
        # A bound method would keep the optimizer alive; a scheduler's wrapper is a function with a weak reference.
        bound = hasattr(optimizer.step, "__func__")
        inner: Any = optimizer.step.__func__ if bound else optimizer.step  # type: ignore[attr-defined]

        @functools.wraps(inner)
        def step(self_: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            self.inside = True
            self.number += 1
            try:
                return inner(self_, *args, **kwargs) if bound else inner(*args, **kwargs)
            finally:
                self.inside = False
                for at_exit in self._at_exit:
                    at_exit()

        self._wrapper = step
        self._wrapped = optimizer.__dict__.get("step")
        optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]


class OncePerStep:
    """Says of a hook whether it has acted in the present step; always no where a step's limits are not known."""

    def __init__(self, guard: StepGuard) -> None:
        self._guard = guard
        self._acted_in = 0

    def first(self) -> bool:
        """Return whether this is the first call within the step."""
        if not self._guard.inside:
            return True
        first = self._acted_in != self._guard.number
        self._acted_in = self._guard.number
        return first


def calls_other_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's ``step`` overrides another one, which it may call."""
    return sum("step" in vars(base) for base in type(optimizer).__mro__ if base is not torch.optim.Optimizer) > 1
