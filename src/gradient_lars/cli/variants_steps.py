"""The first step of each variant on one layer, taken by ``LARS`` itself while one figure of the layer varies."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gradient_lars.presets import Preset
from gradient_lars.torch import LARS

MATRIX, BIAS = (64, 32), (64,)
# Steps that differ by less are drawn as one: the values of eps do not matter in a plot.
SAME = 1e-3


@dataclass(frozen=True)
class Layer:
    """What a step depends on."""

    shape: tuple[int, ...]
    p_norm: float
    g_norm: float
    weight_decay: float


# In the middle of a training: the decay is small beside the gradient, and both beside the weights.
USUAL: dict[str, float] = {"p_norm": 10.0, "g_norm": 1.0, "weight_decay": 1e-4}
# What varies, over which values; at 0, variants have rules of their own.
VARIED: dict[str, tuple[float, ...]] = {
    "weight_decay": (0.0, *np.logspace(-5, 1, 37)),
    "g_norm": (0.0, *np.logspace(-5, 2, 43)),
    "p_norm": tuple(np.logspace(-3, 3, 37)),
}


def layers(varied: str, shape: tuple[int, ...]) -> list[Layer]:
    """Return the usual layer with one figure in all its values."""
    return [Layer(shape, **{**USUAL, varied: float(value)}) for value in VARIED[varied]]


def relative_steps(preset: Preset, layers: Sequence[Layer], lr: float) -> np.ndarray:
    """Return ``||dp|| / ||p||`` of the first step that LARS takes with the preset, for each of `layers`."""
    p, g = (
        torch.randn(layers[0].shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1)
    )
    p, g = p / torch.linalg.vector_norm(p), g / torch.linalg.vector_norm(g)
    params = [torch.nn.Parameter(p * layer.p_norm) for layer in layers]
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for param, layer in zip(params, layers, strict=True):
        param.grad = g * layer.g_norm
        groups.setdefault(layer.weight_decay, []).append(param)
    own = [{"params": members, "weight_decay": weight_decay} for weight_decay, members in groups.items()]
    LARS(own, lr=lr, **preset).step()
    steps = [
        torch.linalg.vector_norm(param.detach() - p * layer.p_norm) for param, layer in zip(params, layers, strict=True)
    ]
    return np.array([float(step) / layer.p_norm for step, layer in zip(steps, layers, strict=True)])


def grouped(shown: Sequence[Preset], shape: tuple[int, ...], lr: float) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield the names of variants that take the same steps, and these steps, by what varies."""
    groups: list[tuple[list[str], dict[str, np.ndarray]]] = []
    for preset in shown:
        steps = {varied: relative_steps(preset, layers(varied, shape), lr) for varied in VARIED}
        for names, others in groups:
            if all(np.allclose(steps[varied], others[varied], rtol=SAME, atol=0) for varied in VARIED):
                names.append(preset.name)
                break
        else:
            groups.append(([preset.name], steps))
    for names, steps in groups:
        yield ", ".join(names), steps


def least(steps: Sequence[dict[str, np.ndarray]]) -> float:
    """Return the power of ten at or below the least step that is not 0."""
    found = min(
        (float(values[values > 0].min()) for step in steps for values in step.values() if values.any()), default=1.0
    )
    return float(10.0 ** math.floor(math.log10(found)))
