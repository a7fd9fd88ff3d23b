"""``LARS.from_peer``: the settings and the momentum of another LARS, so that its training goes on in this one."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradient_lars._variants import SETTINGS
from gradient_lars.torch._layers import ARRAYS

Group = dict[str, Any]
# Takes the peer, a group of its and the settings of its variant; returns groups that share it out, with their settings.
Reader = Callable[[Any, Group, dict[str, Any]], list[Group]]

# What every peer has under its own name and every LARS under the same.
_SHARED = ("momentum", "dampening", "weight_decay", "nesterov", "eps")
_KEPT = ("lr", "initial_lr")
_OPTIONS = ("foreach", "fused", "capturable", "skip_nonfinite", "master_weights", "carry_norms")


def take_over(cls: Any, peer: Any, lr_in_momentum: bool | None, options: dict[str, Any]) -> Any:
    """Return an optimizer of type `cls` made from `peer`; see ``LARS.from_peer``."""
    for name in options:
        if name not in _OPTIONS:
            raise ValueError(
                f"`{name}` is the peer's to say. Known are {', '.join(_OPTIONS)}; change others afterwards."
            )
    variant, reader = _recognised(peer)
    inner = getattr(peer, "optim", peer)
    groups: list[Group] = []
    for group in inner.param_groups:
        kept = {name: group[name] for name in _KEPT if name in group}
        groups += [{**kept, **made} for made in reader(peer, group, dict(SETTINGS[variant])) if made["params"]]
    names = _names(inner.param_groups)
    for group in groups if names else []:
        group["params"] = [(names[id(param)], param) for param in group["params"]]
    inside = groups[0]["lr_in_momentum"] if groups else True
    wanted = inside if lr_in_momentum is None else lr_in_momentum
    for group in groups:
        group["lr_in_momentum"] = wanted
    optimizer = cls(groups, lr=groups[0]["lr"] if groups else 0.0, **options)
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = inner.state.get(param, {})
            # Barlow Twins and VICReg call it `mu`.
            momentum = state.get("momentum_buffer", state.get("mu"))
            if momentum is not None and group["momentum"]:
                found = _converted(momentum, group["lr"], inside, wanted)
                if optimizer.master_weights:
                    found = found.to(ARRAYS.wide_dtype(param.dtype))
                optimizer.state[param]["momentum_buffer"] = found
    return optimizer


def _names(groups: list[Group]) -> dict[int, str]:
    """Return the names of the parameters by their identity, if the peer was given names."""
    if not all("param_names" in group for group in groups):
        return {}
    return {
        id(param): name for group in groups for name, param in zip(group["param_names"], group["params"], strict=True)
    }


def _converted(momentum: Tensor, lr: float | Tensor, inside: bool, wanted: bool) -> Tensor:
    """Return a copy of the momentum that holds the learning rate if that is wanted."""
    if inside == wanted:
        return momentum.detach().clone()
    if inside and float(lr) == 0:
        raise ValueError("`lr_in_momentum` cannot be False at an `lr` of 0: the momentum is divided by it.")
    factor = lr.reshape(()) if isinstance(lr, Tensor) else lr
    return momentum.detach() * factor if wanted else momentum.detach() / factor


def _recognised(peer: Any) -> tuple[str, Reader]:
    kind = type(peer)
    package = kind.__module__.partition(".")[0]
    known = _PEERS.get((package, kind.__name__))
    if known is not None:
        return known
    if kind.__name__ == "LARS" and set(getattr(peer, "defaults", ())) >= _FILTERS:
        # A class in the training script, of whatever name that has.
        return "barlow_twins", _filtered
    if isinstance(peer, torch.optim.SGD):
        remedy = "Make a LARS and give it `load_state_dict(peer.state_dict())`, which takes SGD's momentum."
    else:
        names = sorted({f"{package}'s {name}" for package, name in _PEERS} | {"the LARS of Barlow Twins and VICReg"})
        remedy = f"Known are {', '.join(names)}. For another, choose from gradient_lars.presets and start afresh."
    raise TypeError(f"`peer` must be a LARS that is known, got {kind.__module__}.{kind.__qualname__}. {remedy}")


def _settings(variant: dict[str, Any], group: Group, **renamed: Any) -> dict[str, Any]:
    return {**variant, **{name: group[name] for name in _SHARED if name in group}, **renamed}


def _around_sgd(peer: Any, group: Group, variant: dict[str, Any], **own: Any) -> list[Group]:
    if type(peer.optim) is not torch.optim.SGD:
        raise ValueError(
            f"`peer` wraps a {type(peer.optim).__name__}, and LARS is momentum SGD. Use `gradient_lars.torch.add_hook` "
            "on that optimizer instead."
        )
    if group["maximize"]:
        raise ValueError("`peer` wraps an SGD with `maximize`, whose decay grows the weights. Negate the loss instead.")
    return [{"params": group["params"], **_settings(variant, group, eps=peer.eps, **own)}]


def _torchlars(peer: Any, group: Group, variant: dict[str, Any]) -> list[Group]:
    return _around_sgd(peer, group, variant, trust_coefficient=peer.trust_coef)


def _larc(peer: Any, group: Group, variant: dict[str, Any]) -> list[Group]:
    return _around_sgd(peer, group, variant, trust_coefficient=peer.trust_coefficient, trust_clip=bool(peer.clip))


def _timm(peer: Any, group: Group, variant: dict[str, Any]) -> list[Group]:
    if group["trust_clip"]:
        warnings.warn(
            "timm's `trust_clip` also clips layers whose weights or gradient are zero, at a learning rate above 1. "
            "LARS does not: such layers go on otherwise.",
            UserWarning,
            stacklevel=4,
        )
    own = {"trust_coefficient": group["trust_coeff"], "trust_clip": group["trust_clip"]}
    return [{"params": group["params"], **_settings(variant, group, adapt_without_decay=group["always_adapt"], **own)}]


def _bolts(peer: Any, group: Group, variant: dict[str, Any]) -> list[Group]:
    return [{"params": group["params"], **_settings(variant, group, trust_coefficient=group["trust_coefficient"])}]


def _solo_learn(peer: Any, group: Group, variant: dict[str, Any]) -> list[Group]:
    def either(*names: str) -> bool:
        return any(bool(group.get(name, getattr(peer, name, False))) for name in names)

    own = {"trust_coefficient": group["eta"], "trust_clip": either("clip_lr", "clip_lars_lr")}
    if either("exclude_bias_n_norm", "exclude_bias_n_norm_lars"):
        return _split(group["params"], _is_vector, _settings(variant, group, **own))
    return [{"params": group["params"], **_settings(variant, group, **own)}]


def _pytorch_optimizer(peer: Any, group: Group, variant: dict[str, Any]) -> list[Group]:
    own = {"trust_coefficient": group["trust_coefficient"], "maximize": bool(peer.maximize)}
    return [{"params": group["params"], **_settings(variant, group, **own)}]


def _filtered(peer: Any, group: Group, variant: dict[str, Any]) -> list[Group]:
    """Read a group of the LARS of Barlow Twins, whose filters are switches, or of VICReg, whose are functions."""
    excluded = []
    for name in ("weight_decay_filter", "lars_adaptation_filter"):
        chosen = group[name]
        rule = chosen if callable(chosen) else _is_vector
        excluded.append([bool(chosen) and bool(rule(param)) for param in group["params"]])
    own = _settings(variant, group, trust_coefficient=group["eta"])
    made = []
    for decays in (True, False):
        for adapts in (True, False):
            params = [
                param
                for param, no_decay, no_rate in zip(group["params"], *excluded, strict=True)
                if (not no_decay, not no_rate) == (decays, adapts)
            ]
            here = {} if decays else {"weight_decay": 0.0}
            made.append({"params": params, **own, **here, "adapt": adapts, "decay_excluded": True})
    return made


def _split(params: list[Tensor], excluded: Callable[[Tensor], bool], settings: dict[str, Any]) -> list[Group]:
    """Return a group of the layers that are adapted and one of those that are excluded."""
    return [
        {"params": [param for param in params if not excluded(param)], **settings, "adapt": True},
        {"params": [param for param in params if excluded(param)], **settings, "adapt": False},
    ]


def _is_vector(param: Tensor) -> bool:
    return param.dim() == 1


_FILTERS = {"eta", "weight_decay_filter", "lars_adaptation_filter"}
# Package and class: the variant, and what reads a group of it.
_PEERS: dict[tuple[str, str], tuple[str, Reader]] = {
    ("torchlars", "LARS"): ("torchlars", _torchlars),
    ("apex", "LARC"): ("larc", _larc),
    ("timm", "Lars"): ("timm", _timm),
    ("pl_bolts", "LARS"): ("bolts", _bolts),
    ("lightly", "LARS"): ("bolts", _bolts),
    ("solo", "LARS"): ("solo_learn", _solo_learn),
    ("open_lars", "LARS"): ("open_lars", _bolts),
    ("pytorch_optimizer", "LARS"): ("pytorch_optimizer", _pytorch_optimizer),
}
