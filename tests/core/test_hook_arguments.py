"""The hook as an object: its arguments, its attributes, and what Chainer reads from it."""

import copy
import fractions
import inspect
import math
import pickle

import numpy as np
import pytest

import gradient_lars
from gradient_lars import GradientLARS

SETTINGS = {"threshold": 0.5, "weight_decay": 0.25, "eps": 0.125}


def settings_of(hook):
    return {name: getattr(hook, name) for name in SETTINGS}


def test_defaults_are_chainers():
    assert settings_of(GradientLARS()) == {"threshold": 0.01, "weight_decay": 0.0, "eps": 1e-09}
    signature = inspect.signature(GradientLARS)
    assert {name: parameter.default for name, parameter in signature.parameters.items()} == settings_of(GradientLARS())
    assert settings_of(GradientLARS(0.5, 0.25, 0.125)) == SETTINGS


def test_what_chainer_reads():
    hook = GradientLARS()
    assert (hook.name, hook.timing, hook.call_for_each_param) == ("GradientLARS", "pre", True)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("value", [0, 2, 0.5, True, np.float32(0.5), np.array(0.5), fractions.Fraction(1, 2)])
def test_numbers_are_kept_as_floats(name, value):
    hook = GradientLARS(**{name: value})
    assert type(getattr(hook, name)) is float
    assert getattr(hook, name) == float(value)


BAD = [
    (TypeError, "must be a number, got '0.1'", "0.1"),
    (TypeError, "must be a number, got b'0.1'", b"0.1"),
    (TypeError, "must be a number, got None", None),
    (TypeError, r"must be a number, got \[0.1\]", [0.1]),
    (TypeError, r"must be a number, got 1j", 1j),
    (ValueError, "must be >= 0( and finite)?, got -1.0", -1.0),
    (ValueError, "must be >= 0( and finite)?, got -1e-300", -1e-300),
    (ValueError, "must be >= 0( and finite)?, got nan", math.nan),
    (ValueError, "must be >= 0( and finite)?, got -inf", -math.inf),
]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("error", "match", "value"), BAD)
def test_bad_arguments(name, error, match, value):
    with pytest.raises(error, match=rf"^`{name}` {match}\. [A-Z]"):
        GradientLARS(**{name: value})


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("error", "match", "value"), BAD)
def test_bad_changes_leave_the_attribute(name, error, match, value):
    hook = GradientLARS(**SETTINGS)
    with pytest.raises(error, match=rf"^`{name}` {match}\. [A-Z]"):
        setattr(hook, name, value)
    assert settings_of(hook) == SETTINGS


def test_only_the_threshold_may_be_infinite():
    assert GradientLARS(threshold=math.inf).threshold == math.inf
    for name in ("weight_decay", "eps"):
        with pytest.raises(ValueError, match=f"^`{name}` must be >= 0 and finite, got inf. "):
            GradientLARS(**{name: math.inf})


def test_no_other_arguments():
    # The name in Chainer's own documentation, which Chainer does not accept either.
    with pytest.raises(TypeError, match="threashold"):
        GradientLARS(threashold=0.1)


def test_attributes_belong_to_one_object():
    first, second = GradientLARS(), GradientLARS()
    first.threshold, first.weight_decay, first.eps = 1, 2, 3
    assert settings_of(first) == {"threshold": 1.0, "weight_decay": 2.0, "eps": 3.0}
    assert settings_of(second) == settings_of(GradientLARS())


def test_equality_is_identity():
    first, second = GradientLARS(**SETTINGS), GradientLARS(**SETTINGS)
    assert first == first
    assert first != second
    assert len({first, second}) == 2
    assert [first, second].index(second) == 1


def test_repr_makes_an_equal_hook():
    hook = GradientLARS(**SETTINGS)
    assert repr(hook) == "GradientLARS(threshold=0.5, weight_decay=0.25, eps=0.125)"
    assert settings_of(eval(repr(hook))) == SETTINGS


COPIES = [copy.copy, copy.deepcopy] + [
    lambda hook, protocol=protocol: pickle.loads(pickle.dumps(hook, protocol))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
]


@pytest.mark.parametrize("duplicate", COPIES)
def test_copies_are_independent(duplicate):
    hook = GradientLARS(**SETTINGS)
    other = duplicate(hook)
    assert type(other) is GradientLARS
    assert other is not hook
    assert settings_of(other) == SETTINGS
    other.eps = 2.0
    assert hook.eps == 0.125
    with pytest.raises(ValueError, match="^`eps` must be"):
        other.eps = -1.0


def test_the_descriptor_is_reachable_from_the_class():
    assert GradientLARS.threshold is vars(GradientLARS)["threshold"]


def test_public_names():
    assert gradient_lars.__all__ == ["GradientLARS", "__version__"]
    assert gradient_lars.__version__.count(".") == 2
