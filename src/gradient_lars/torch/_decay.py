"""Weight decay in one place only: the hook's, or the optimizer's taken over by the hook for the time of a step."""

from typing import Any


def decay_of(hook_decay: float, group: dict[str, Any], *, absorb: bool) -> float:
    """Return the decay that enters the rate for the layers of `group`.

    Raises:
        ValueError: the hook's and the group's decay are both non-zero.
    """
    group_decay = float(group.get("weight_decay") or 0.0)
    if hook_decay and group_decay:
        raise ValueError(
            f"`weight_decay` is {hook_decay} in the hook and {group_decay} in a parameter group of the optimizer: the "
            "decay would act twice. Set one of them to 0; to keep the group's own values, use "
            "GradientLARS(weight_decay=0) and `absorb_weight_decay=True`."
        )
    return hook_decay or (group_decay if absorb else 0.0)


class AbsorbedDecay:
    """Sets ``weight_decay`` of groups to 0 while the optimizer steps, and gives it back afterwards.

    Both the step's post-hook and a `StepGuard` give it back, the latter also when the step raises.
    """

    def __init__(self) -> None:
        self._taken: list[tuple[dict[str, Any], Any]] = []

    def take(self, groups: list[dict[str, Any]]) -> None:
        """Set the decay of `groups` to 0 and remember it."""
        for group in groups:
            self._taken.append((group, group["weight_decay"]))
            group["weight_decay"] = 0.0

    def of(self, group: dict[str, Any]) -> float:
        """Return the decay of `group`, also while it is taken."""
        taken = [weight_decay for held, weight_decay in self._taken if held is group]
        return float(group.get("weight_decay") or (taken[0] if taken else 0.0))

    def give_back(self) -> None:
        """Restore what `take` took; does nothing the second time."""
        while self._taken:
            group, weight_decay = self._taken.pop()
            # A value that somebody else has set meanwhile stays.
            if group["weight_decay"] == 0.0:
                group["weight_decay"] = weight_decay
