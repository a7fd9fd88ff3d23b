"""The user's rules of ``param_groups``: what they look for, and whether they are valid and have decided anything."""

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from gradient_lars.torch._settings import check_some

Predicate: TypeAlias = Callable[[str, nn.Module, Tensor], bool]
Matcher: TypeAlias = "str | re.Pattern[str] | type[nn.Module] | Predicate"
Rule: TypeAlias = tuple[Matcher, Mapping[str, Any]]


@dataclass(slots=True)
class CheckedRule:
    """A valid rule; `used` says that it was the first one that fitted some parameter."""

    matches: Predicate
    settings: dict[str, Any]
    label: str
    fitted: bool = False
    used: bool = False


class Rules:
    """Rules in order: the first that fits a parameter wins."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        if isinstance(rules, str | Mapping) or not isinstance(rules, Sequence):
            raise TypeError(f"`rules` must be a list of pairs, got {rules!r}.")
        self._rules = [_checked(rule) for rule in rules]

    def first(self, name: str, owner: nn.Module, param: Tensor) -> CheckedRule | None:
        """Return the first rule that fits, or None."""
        winner = None
        for rule in self._rules:
            if rule.matches(name, owner, param):
                rule.fitted = True
                winner = winner or rule
        if winner is not None:
            winner.used = True
        return winner

    def check_used(self) -> None:
        """Raise ValueError if a rule has decided nothing. A frozen parameter counts: it may be trained another day."""
        for rule in self._rules:
            if not rule.fitted:
                raise ValueError(f"`rules` holds {rule.label}, which fits no parameter. Correct it, or leave it out.")
            if not rule.used:
                raise ValueError(
                    f"`rules` holds {rule.label}, which fits only parameters that rules before it have taken. "
                    "Move it before them, or leave it out."
                )


def _checked(rule: Any) -> CheckedRule:
    if not (isinstance(rule, tuple | list) and len(rule) == 2):
        raise TypeError(f"`rules` must hold pairs of what to look for and settings, got {rule!r}.")
    matcher, settings = rule
    matches, label = _predicate(matcher)
    if not isinstance(settings, Mapping) or not settings:
        raise TypeError(f"`rules` holds {label}, whose settings must be a dict that is not empty, got {settings!r}.")
    check_some(settings)
    return CheckedRule(matches, dict(settings), label)


def _predicate(matcher: Any) -> tuple[Predicate, str]:
    if isinstance(matcher, str):
        return (lambda name, owner, param: fnmatch.fnmatchcase(name, matcher)), f"rule {matcher!r}"
    if isinstance(matcher, re.Pattern):
        return (lambda name, owner, param: matcher.search(name) is not None), f"rule /{matcher.pattern}/"
    if isinstance(matcher, type):
        if not issubclass(matcher, nn.Module):
            raise TypeError(f"`rules` holds the class {matcher.__name__}, which is no torch.nn.Module.")
        return (lambda name, owner, param: isinstance(owner, matcher)), f"rule {matcher.__name__}"
    if callable(matcher):
        label = f"rule {getattr(matcher, '__name__', type(matcher).__name__)}"
        return (lambda name, owner, param: bool(matcher(name, owner, param))), label
    raise TypeError(
        "`rules` must look for a pattern, a module class or a predicate on name, module and parameter, got "
        f"{matcher!r}."
    )
