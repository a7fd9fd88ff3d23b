"""``param_groups``: which layers of a module LARS adapts and decays, decided by their modules and names."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter

from gradient_lars.torch._group_rules import Rule, Rules
from gradient_lars.torch._group_table import Decision, ParamGroups
from gradient_lars.torch._settings import check_some

EXEMPT: Mapping[str, Any] = {"weight_decay": 0.0, "adapt": False}

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Containers that give a parameter a number or a key for a name: the name that says something is the container's own.
_CONTAINERS = (nn.ParameterList, nn.ParameterDict)
_BIAS = re.compile(r"(?:^|_)bias(?:es)?(?:_|$)")


def param_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    rules: Sequence[Rule] = (),
    norm: Mapping[str, Any] | None = EXEMPT,
    bias: Mapping[str, Any] | None = EXEMPT,
    embedding: Mapping[str, Any] | None = None,
) -> ParamGroups:
    """Sort the parameters of `module` into groups for `LARS` or ``torch.optim.SGD``.

    Every parameter that is trained is decided upon once, by the first line that fits::

        the module that holds it normalises (batch, layer, group, instance, RMS norm)     norm: no decay, not adapted
        its own name says bias ("bias", "in_proj_bias", "bias_hh_l0")                      bias: no decay, not adapted
        the module that holds it is an nn.Embedding or nn.EmbeddingBag                     embedding: as weights
        anything else                                                                      weight_decay, adapted

    and then by the first of `rules` that fits, whose settings are laid over these. Leaving out norms and biases is what
    the recipes for LARS do; embeddings are adapted and decayed, as in LAMB's recipe for BERT. A third-party class is a
    norm if its name contains "norm"; of such a class only tensors of one dimension are meant. What decides is the
    module, not the shape of the tensor, so the groups may be made before or after ``fully_shard``. Bare parameters
    (``cls_token``, ``pos_embed``) are weights: use a rule for them.

    Args:
        module: any module whose parameters have their shapes: run lazy modules once before.
        weight_decay: coefficient of the decay of weights, >= 0.
        rules: pairs of what to look for and the settings it gets. To look for: a string, a shell pattern for the whole
            name ("head.*"); a compiled regular expression, searched in the name; a module class, of the module that
            holds the parameter itself; or a predicate ``(name, module, param) -> bool`` with that module. The settings
            are any that a group of `LARS` may have. The first rule that fits wins.
        norm: settings for norms, laid over ``weight_decay`` and ``adapt=True``; None treats them as weights.
        bias: the same for biases.
        embedding: the same for embeddings; ``EXEMPT`` excludes them as norms and biases are by default.

    Returns:
        A list of groups with named parameters, in the order of the module. ``print`` shows the decision on each
        parameter and its reason. Parameters that are not trained are in no group, but in the table; a tied one counts
        under its first name. Make a list of its own for each optimizer: an optimizer keeps the groups it is given.

    Raises:
        TypeError: `module` is no module, or a rule or setting is not of its type.
        ValueError: no parameter is trained; one has no shape yet; a setting is unknown or out of range; a rule decides
            nothing; tied parameters would get different settings under their different names.
        RuntimeError: ``module.parameters()`` lists other parameters than its submodules hold.

    Example:
        >>> import torch
        >>> from gradient_lars.torch import LARS, param_groups
        >>> layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 2)]
        >>> model = torch.nn.Sequential(*layers)
        >>> groups = param_groups(model, 1e-4, rules=[("2.*", {"lr": 0.1})])
        >>> print(groups)
        name      shape         group  weight_decay  adapt  lr   reason
        0.weight  (8, 3, 3, 3)  0      0.0001        True   -    weight of Conv2d
        0.bias    (8,)          1      0.0           False  -    bias of Conv2d
        1.weight  (8,)          1      0.0           False  -    norm: BatchNorm2d
        1.bias    (8,)          1      0.0           False  -    norm: BatchNorm2d
        2.weight  (2, 8)        2      0.0001        True   0.1  weight of Linear, rule '2.*'
        2.bias    (2,)          3      0.0           False  0.1  bias of Linear, rule '2.*'
        >>> optimizer = LARS(groups, lr=4.8)
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [1, 3, 1, 1]

    References:
        BYOL and SimCLR exclude norms and biases from adaptation and decay; leaving out the exclusion costs ResNet-50 at
        a batch of 8K 1.8 points in PaddlePaddle's study.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}.")
    weights = {"weight_decay": weight_decay, "adapt": True}
    check_some(weights)
    kinds: dict[str, dict[str, Any]] = {"weight": weights}
    for kind, settings in (("norm", norm), ("bias", bias), ("embedding", embedding)):
        if settings is not None:
            if not isinstance(settings, Mapping):
                raise TypeError(f"`{kind}` must be a dict of settings or None, got {settings!r}.")
            check_some(settings)
        kinds[kind] = {**weights, **(settings or {})}
    chosen = Rules(rules)

    decisions: dict[int, Decision] = {}
    for name, owner, param in _parameters(module):
        kind, reason = _kind(name, owner, param)
        rule = chosen.first(name, owner, param)
        if not param.requires_grad:
            decision = Decision(name, param, None, "frozen")
        elif rule is None:
            decision = Decision(name, param, kinds[kind], reason)
        else:
            decision = Decision(name, param, {**kinds[kind], **rule.settings}, f"{reason}, {rule.label}")
        first = decisions.setdefault(id(param), decision)
        if first is not decision:
            _also(first, decision)
    chosen.check_used()
    _check_complete(module, decisions)
    return ParamGroups(list(decisions.values()))


def _parameters(module: nn.Module) -> list[tuple[str, nn.Module, Tensor]]:
    """Return name, holding module and parameter; a tied parameter under each of its names."""
    found = []
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, param in owner._parameters.items():
            if param is None:
                continue
            full = f"{prefix}.{name}" if prefix else name
            if isinstance(param, UninitializedParameter):
                raise ValueError(f"`module` holds {full!r}, whose shape is not known yet. Run the module once before.")
            found.append((full, owner, param))
    # In the module's own order, which lists a module's parameters before those of its children.
    return found


def _kind(name: str, owner: nn.Module, param: Tensor) -> tuple[str, str]:
    """Return the kind of a parameter, and in words why."""
    parts = name.split(".")
    attribute, holder = parts[-1], type(owner).__name__
    if len(parts) > 2 and parts[-3] == "parametrizations":
        attribute, holder = parts[-2], "a parametrization"
    elif len(parts) > 1 and isinstance(owner, _CONTAINERS):
        attribute = f"{parts[-2]}_{attribute}"
    if isinstance(owner, _NORMS):
        return "norm", f"norm: {holder}"
    if "norm" in holder.lower() and param.dim() == 1:
        return "norm", f"norm by its name: {holder}"
    if _BIAS.search(attribute):
        return "bias", f"bias of {holder}"
    if isinstance(owner, _EMBEDDINGS):
        return "embedding", f"embedding: {holder}"
    return "weight", f"weight of {holder}"


def _also(first: Decision, other: Decision) -> None:
    """Note another name of a tied parameter."""
    if first.settings != other.settings:
        raise ValueError(
            f"`module` ties {first.name!r} ({first.reason}) to {other.name!r} ({other.reason}), and the two would get "
            f"{first.settings} and {other.settings}. Add a rule that fits both names."
        )
    first.other_names.append(other.name)


def _check_complete(module: nn.Module, decisions: dict[int, Decision]) -> None:
    listed = {id(param): name for name, param in module.named_parameters()}
    if listed.keys() != decisions.keys():
        names = [name for key, name in listed.items() if key not in decisions]
        names += [decision.name for key, decision in decisions.items() if key not in listed]
        raise RuntimeError(
            f"`module` lists other parameters than its submodules hold: {', '.join(map(repr, names))}. A class that "
            "overrides `named_parameters` is not supported; pass the module inside."
        )
