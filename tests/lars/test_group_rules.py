"""The user's rules of ``param_groups``: what they fit, that the first wins, and that a useless one is an error."""

import re

import pytest
from torch import nn

from gradient_lars.torch import EXEMPT, LARS, param_groups
from lars.grouped import DECAYED, SPARED, assert_complete, settings_by_name


def is_wide(name, module, param):
    return param.shape[0] > 4 and isinstance(module, nn.Linear)


def test_rules_the_first_one_wins():
    model = nn.ModuleDict(
        {"body": nn.Linear(3, 4), "head": nn.Linear(4, 9), "norm": nn.LayerNorm(9), "c": nn.Conv1d(1, 1, 1)}
    )
    rules = [
        ("head.bias", {"lr": 0.5}),
        (is_wide, {"weight_decay": 0.75}),
        (re.compile("^bo"), {"momentum": 0.5}),
        (nn.LayerNorm, {"weight_decay": 0.0625}),
    ]
    groups = param_groups(model, 0.125, rules=rules)
    assert_complete(model, groups)
    # What a rule does not set stays what it would be without the rule.
    assert settings_by_name(groups) == {
        "body.weight": {**DECAYED, "momentum": 0.5},
        "body.bias": {**SPARED, "momentum": 0.5},
        "head.weight": {**DECAYED, "weight_decay": 0.75},
        "head.bias": {**SPARED, "lr": 0.5},
        "norm.weight": {**SPARED, "weight_decay": 0.0625},
        "norm.bias": {**SPARED, "weight_decay": 0.0625},
        "c.weight": DECAYED,
        "c.bias": SPARED,
    }
    table = str(groups)
    for label in ("rule 'head.bias'", "rule is_wide", "rule /^bo/", "rule LayerNorm"):
        assert label in table
    LARS(groups, 1.0)


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ([("haed.*", EXEMPT)], ValueError, r"`rules` holds rule 'haed.\*', which fits no parameter. Correct it"),
        ([(nn.Conv2d, EXEMPT)], ValueError, "`rules` holds rule Conv2d, which fits no parameter"),
        (
            [("*", EXEMPT), ("0.*", {"lr": 0.1})],
            ValueError,
            r"rule '0.\*', which fits only parameters that rules before",
        ),
        ([("0.*", {})], TypeError, "whose settings must be a dict that is not empty, got {}"),
        ([("0.*", 0.0)], TypeError, r"rule '0.\*', whose settings must be a dict"),
        ([("0.*", {"wd": 0.0})], ValueError, "`wd` is no setting of a group. Known are lr, momentum,.*weight_decay"),
        ([("0.*", {"fused": 1})], TypeError, "`fused` must be True, False or None"),
        ([("0.*", {"differentiable": True})], ValueError, "`differentiable` is no setting of a group"),
        ([("0.*", {"weight_decay": -1.0})], ValueError, "`weight_decay` must be >= 0, got -1.0"),
        ([("0.*", {"adapt": "no"})], TypeError, "`adapt` must be True, False or None, got 'no'"),
        ([("0.*", {"nesterov": 1})], TypeError, "`nesterov` must be True or False, got 1"),
        ([(dict, EXEMPT)], TypeError, "`rules` holds the class dict, which is no torch.nn.Module"),
        ([(3, EXEMPT)], TypeError, "`rules` must look for a pattern, a module class or a predicate.*got 3"),
        (["0.*"], TypeError, "`rules` must hold pairs of what to look for and settings"),
        ({"0.*": EXEMPT}, TypeError, "`rules` must be a list of pairs"),
        ("0.*", TypeError, "`rules` must be a list of pairs"),
    ],
    ids=str,
)
def test_rules_that_are_refused(rules, error, message):
    with pytest.raises(error, match=message):
        param_groups(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), 0.125, rules=rules)
