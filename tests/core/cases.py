"""The table: what goes into the hook, for every array library, type and layout that joins it."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Case:
    """Weights and raw gradient in float64, exactly representable in float16, and the hook's arguments."""

    name: str
    p: np.ndarray
    g: np.ndarray
    settings: dict[str, float] = field(default_factory=dict)

    def __str__(self):
        """Return the name, which pytest shows."""
        return self.name


def _random(seed, *shape):
    return np.round(np.random.default_rng(seed).uniform(-1, 1, shape) * 256) / 256


_P, _G = _random(1, 4, 3), _random(2, 4, 3) * 8
# Four times 1/8: the norm is 1/4 exactly in every type.
_QUARTER = np.full((2, 2), 0.125)
_G4 = _random(3, 2, 2)

CASES = [
    Case("defaults", _P, _G),
    Case("decay", _P, _G, {"weight_decay": 0.25}),
    Case("eps", _P, _G, {"eps": 0.5}),
    Case("decay and eps", _P, _G, {"weight_decay": 0.25, "eps": 0.5}),
    Case("gradient smaller than the weights", _P, _G / 256, {"weight_decay": 0.125}),
    Case("below the threshold", _P, _G, {"threshold": 16.0}),
    Case("below the threshold with decay", _P, _G, {"threshold": 16.0, "weight_decay": 0.25}),
    Case("exactly on the threshold", _QUARTER, _G4, {"threshold": 0.25}),
    Case("exactly on the threshold with decay", _QUARTER, _G4, {"threshold": 0.25, "weight_decay": 0.25}),
    Case("just above the threshold", _QUARTER * (1 + 2.0**-8), _G4, {"threshold": 0.25, "weight_decay": 0.25}),
    Case("just below the threshold", _QUARTER * (1 - 2.0**-8), _G4, {"threshold": 0.25, "weight_decay": 0.25}),
    Case("threshold zero", _P, _G, {"threshold": 0.0}),
    Case("threshold infinite", _P, _G, {"threshold": np.inf, "weight_decay": 0.25}),
    Case("zero weights", 0 * _P, _G),
    Case("zero weights on a threshold of zero", 0 * _P, _G, {"threshold": 0.0, "weight_decay": 0.25}),
    Case("zero gradient", _P, 0 * _G),
    Case("zero gradient with decay", _P, 0 * _G, {"weight_decay": 0.25, "eps": 0.5}),
    Case("zero gradient without eps", _P, 0 * _G, {"eps": 0.0}),
    Case("zero gradient with decay without eps", _P, 0 * _G, {"weight_decay": 0.25, "eps": 0.0}),
    Case("without eps", _P, _G, {"eps": 0.0, "weight_decay": 0.25}),
    Case("both zero, all arguments zero", 0 * _P, 0 * _G, {"threshold": 0.0, "eps": 0.0}),
    Case("scalar", np.array(0.75), np.array(-3.0), {"weight_decay": 0.25}),
    Case("scalar below", np.array(0.125), np.array(-3.0), {"weight_decay": 0.25, "threshold": 0.125}),
    Case("one entry", np.array([0.75]), np.array([-3.0]), {"eps": 0.5}),
    Case("empty", np.zeros((0,)), np.zeros((0,)), {"weight_decay": 0.25}),
    Case("empty in the middle", np.zeros((2, 0, 3)), np.zeros((2, 0, 3)), {"threshold": 0.0, "eps": 0.0}),
    Case("convolution", _random(4, 3, 2, 3, 3), _random(5, 3, 2, 3, 3), {"weight_decay": 0.125}),
    Case("gradient norm above 65504", _P, np.full((4, 3), 60000.0), {"weight_decay": 0.25}),
    Case("weight norm above 65504", np.full(4, 40000.0), _random(6, 4), {"eps": 0.5}),
]
