"""The settings of `LARS`: their ranges, checked for the defaults and for every group."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# name: (least, least allowed, greatest, remedy)
_RANGES: dict[str, tuple[float, bool, float, str]] = {
    "lr": (0.0, True, math.inf, "It is the paper's gamma; recipes use 0.1 to 30."),
    "momentum": (0.0, True, math.inf, "0.9 is usual."),
    "dampening": (0.0, True, 1.0, "0 is usual."),
    "weight_decay": (0.0, True, math.inf, "Recipes use 0 to 5e-4."),
    "trust_coefficient": (0.0, False, math.inf, "It is the paper's eta, 0.001; 1 makes `lr` that of GradientLARS."),
    "threshold": (0.0, True, math.inf, "0 adapts every layer that is not zero, math.inf none."),
    "eps": (0.0, True, math.inf, "1e-9 is the default."),
    "min_rate": (0.0, True, math.inf, "0 means no bound."),
    "max_rate": (0.0, False, math.inf, "math.inf means no bound."),
    "zero_gradient_rate": (0.0, True, math.inf, "None leaves it to the formula."),
}
# Numbers that may be None, and names to choose from.
_OPTIONAL = ("zero_gradient_rate",)
_NAMED = {"norm_of": ("gradient", "decayed", "update")}
_SWITCHES = (
    "nesterov",
    "lr_in_momentum",
    "trust_clip",
    "dampen_first_step",
    "adapt_without_decay",
    "decay_excluded",
    "maximize",
    "capturable",
    "differentiable",
)
_CHOICES = ("adapt", "foreach", "fused")
_ALL = (*_RANGES, *_NAMED, *_SWITCHES, *_CHOICES)
_WHOLE = ("skip_nonfinite", "master_weights", "carry_norms", "differentiable")


def check_group(group: dict[str, Any]) -> None:
    """Raise TypeError or ValueError if a setting of `group` is not of its type or out of its range."""
    _check_each({name: group[name] for name in _ALL})
    if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
        raise ValueError("`nesterov` needs a `momentum` above 0 and `dampening` 0. Set them, or leave it out.")
    check_place_of_rate(group)
    if not group["min_rate"] < group["max_rate"]:
        raise ValueError(f"`min_rate` must be below `max_rate`, got {group['min_rate']} and {group['max_rate']}.")


def check_place_of_rate(group: Mapping[str, Any]) -> None:
    """Raise ValueError if the rate is to act after a momentum that holds the learning rate."""
    if group["norm_of"] == "update" and group["lr_in_momentum"]:
        raise ValueError("`norm_of` 'update' needs `lr_in_momentum=False`: the rate then acts after the momentum.")


def check_some(settings: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError if `settings` holds what no group may have, or a value out of its range."""
    known = [name for name in _ALL if name not in _WHOLE]
    for name in settings:
        if name not in known:
            raise ValueError(f"`{name}` is no setting of a group. Known are {', '.join(known)}.")
    _check_each(settings)


def check_switches(switches: dict[str, Any]) -> None:
    """Raise TypeError if one of `switches` is not True or False."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(f"`{name}` must be True or False, got {value!r}.")


def check_whole_optimizer(group: dict[str, Any], whole: dict[str, Any]) -> None:
    """Raise ValueError if `group` sets for itself what only the whole optimizer can have.

    ``ZeroRedundancyOptimizer`` writes all settings into its groups: those of the whole optimizer may stand there too.
    """
    for name in _WHOLE:
        if name in group and group[name] != whole[name]:
            raise ValueError(f"`{name}` cannot differ per group. Pass it to `LARS` itself.")
    if group.get("skip_nonfinite"):
        raise ValueError(
            "`skip_nonfinite` cannot be had in ZeroRedundancyOptimizer: a rank has the gradients of its own layers "
            "there, and would skip a step that others take. Use `fully_shard`, whose ranks decide together."
        )


def _check_each(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if name in _RANGES:
            if value is not None or name not in _OPTIONAL:
                _check_number(name, value)
        elif name in _NAMED:
            if value not in _NAMED[name]:
                known = " or ".join(map(repr, _NAMED[name]))
                raise ValueError(f"`{name}` must be {known}, got {value!r}.")
        elif name in _SWITCHES:
            check_switches({name: value})
        elif value is not None and not isinstance(value, bool):
            raise TypeError(f"`{name}` must be True, False or None, got {value!r}.")


def _check_number(name: str, value: Any) -> None:
    least, least_allowed, greatest, remedy = _RANGES[name]
    if isinstance(value, Tensor):
        # Its value may lie on a device that is busy: only its form is looked at.
        if name != "lr":
            raise TypeError(f"`{name}` must be a number, got a tensor. Only `lr` may be one.")
        if value.numel() != 1:
            raise ValueError(f"`lr` must have one element, got a tensor of shape {tuple(value.shape)}.")
        return
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"`{name}` must be a number, got {value!r}. {remedy}")
    number = float(value)
    above = number >= least if least_allowed else number > least
    finite = number != math.inf or name in ("threshold", "max_rate")
    if not (above and finite and number <= greatest):
        bound = f"{'>=' if least_allowed else '>'} {least:g}" + (f" and <= {greatest:g}" if greatest < math.inf else "")
        raise ValueError(f"`{name}` must be {bound}, got {value!r}. {remedy}")
