"""Weight decay in one place only: the hook's, or the optimizer's taken over by the hook for the time of a step."""

import functools
import types
from typing import Any

import torch


def decay_of(hook_decay: float, group: dict[str, Any], *, absorb: bool) -> float:
    """Return the decay that enters the rate for the layers of `group`.

    Raises:
        ValueError: the hook's and the group's decay are both non-zero.
    """
    group_decay = float(group.get("weight_decay", 0.0))
    if hook_decay and group_decay:
        raise ValueError(
            f"`weight_decay` is {hook_decay} in the hook and {group_decay} in a parameter group of the optimizer: the "
            "decay would act twice. Set one of them to 0; to keep the group's own values, use "
            "GradientLARS(weight_decay=0) and `absorb_weight_decay=True`."
        )
    return hook_decay or (group_decay if absorb else 0.0)


class AbsorbedDecay:
    """Sets ``weight_decay`` of groups to 0 while the optimizer steps, and gives it back afterwards.

    The step's post-hook gives it back. A step that raises runs no post-hook, so the optimizer's ``step`` is wrapped,
    as PyTorch's own schedulers do, by one that gives it back in any case.
    """

    def __init__(self) -> None:
        self._taken: list[tuple[dict[str, Any], Any]] = []
        self._wrapper: types.MethodType | None = None
        self._wrapped: Any = None

    def take(self, groups: list[dict[str, Any]]) -> None:
        """Set the decay of `groups` to 0 and remember it."""
        for group in groups:
            self._taken.append((group, group["weight_decay"]))
            group["weight_decay"] = 0.0

    def give_back(self) -> None:
        """Restore what `take` took; does nothing the second time."""
        while self._taken:
            group, weight_decay = self._taken.pop()
            group["weight_decay"] = weight_decay

    def guard(self, optimizer: torch.optim.Optimizer) -> None:
        """Wrap ``optimizer.step`` so that the decay comes back when the step raises."""
        self._wrapped = optimizer.__dict__.get("step")
        inner = optimizer.step
        function = getattr(inner, "__func__", None)

        @functools.wraps(function or inner)
        def step(self_: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            try:
                # A scheduler's wrapper is a plain function that holds the optimizer itself.
                return function(self_, *args, **kwargs) if function else inner(*args, **kwargs)
            finally:
                self.give_back()

        self._wrapper = types.MethodType(step, optimizer)
        optimizer.step = self._wrapper  # type: ignore[method-assign]

    def unguard(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo `guard`; if somebody has wrapped the step again since, it stays in between and does nothing."""
        if self._wrapper is None or optimizer.__dict__.get("step") is not self._wrapper:
            return
        if self._wrapped is None:
            del optimizer.__dict__["step"]
        else:
            optimizer.step = self._wrapped  # type: ignore[method-assign]
        self._wrapper = None
