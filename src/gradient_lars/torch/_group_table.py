"""``ParamGroups``: the groups that ``param_groups`` has made, and the table of its decisions."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Decision:
    """What was decided for one parameter and why; `settings` is None for one that is not trained."""

    name: str
    param: Tensor
    settings: dict[str, Any] | None
    reason: str
    other_names: list[str] = field(default_factory=list)


class ParamGroups(list[dict[str, Any]]):
    """A list of parameter groups for an optimizer. ``str()`` of it is a table with a line for each parameter.

    `decisions` holds the same for programs. The groups themselves may be changed before they are given away.
    """

    def __init__(self, decisions: list[Decision]) -> None:
        super().__init__()
        self.decisions = tuple(decisions)
        self._places: list[int | None] = []
        kept: list[dict[str, Any]] = []
        for decision in decisions:
            if decision.settings is None:
                self._places.append(None)
                continue
            if decision.settings not in kept:
                kept.append(decision.settings)
                self.append({"params": [], **decision.settings})
            place = kept.index(decision.settings)
            self[place]["params"].append((decision.name, decision.param))
            self._places.append(place)
        if not self:
            raise ValueError(
                "`module` has no parameter that is trained. Set `requires_grad` of some, or pass another module."
            )

    def __str__(self) -> str:
        keys = list(dict.fromkeys(key for decision in self.decisions for key in decision.settings or ()))
        rows = [["name", "shape", "group", *keys, "reason"]]
        for decision, place in zip(self.decisions, self._places, strict=True):
            settings = [str((decision.settings or {}).get(key, "-")) for key in keys]
            also = f", tied to {', '.join(decision.other_names)}" if decision.other_names else ""
            group = "-" if place is None else str(place)
            rows.append([decision.name, str(tuple(decision.param.shape)), group, *settings, decision.reason + also])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)
