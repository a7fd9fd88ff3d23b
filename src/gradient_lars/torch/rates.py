"""``LayerRates``: what LARS did to each layer in the last step."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradient_lars import _formula


class LayerRate(NamedTuple):
    """The figures of one layer, as Python numbers."""

    name: str
    p_norm: float
    g_norm: float
    rate: float
    adapted: bool


class Norms(NamedTuple):
    """Norms and rates of some layers, as vectors on the layers' device.

    `places` are the layers' among all; `threshold` is what their weight norms were compared with.
    """

    places: list[int]
    p_norm: Tensor
    g_norm: Tensor
    rate: Tensor
    threshold: float


class LayerRates:
    """Norms and rates of every layer in the last step.

    The figures stay on the device until the first of the properties is read; that read waits for the device and
    copies all of them at once. Iterating yields one `LayerRate` a layer.

    The gradient's norm is that of the raw gradient, without loss scale and before decay. A layer that had no gradient
    is not listed.
    """

    def __init__(self, names: Sequence[str], parts: list[Norms]) -> None:
        self._names = tuple(names)
        self._parts = parts
        self._host: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers in the optimizer's order; reading them does not wait for the device."""
        return self._names

    @property
    def p_norm(self) -> Tensor:
        """Norm of each layer's weights; float64, on the CPU, shape (layers,)."""
        return self._read()[0]

    @property
    def g_norm(self) -> Tensor:
        """Norm of each layer's raw gradient; float64, on the CPU, shape (layers,)."""
        return self._read()[1]

    @property
    def rate(self) -> Tensor:
        """Factor applied to each layer's gradient; float64, on the CPU, shape (layers,)."""
        return self._read()[2]

    @property
    def adapted(self) -> Tensor:
        """Whether each layer's weight norm was above the threshold; bool, on the CPU, shape (layers,)."""
        return self._read()[3]

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[LayerRate]:
        columns = (column.tolist() for column in self._read())
        return map(LayerRate._make, zip(self._names, *columns, strict=True))

    def __repr__(self) -> str:
        return f"LayerRates(layers={len(self)})"

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._host is None:
            layers = len(self._names)
            columns = [torch.empty(layers, dtype=torch.float64) for _ in range(3)]
            adapted = torch.empty(layers, dtype=torch.bool)
            for part in self._parts:
                vectors = torch.stack([part.p_norm, part.g_norm, part.rate]).cpu()
                # Compared in the norms' own type, as the step compared them.
                adapted[part.places] = _formula.adapted(vectors[0].to(part.p_norm.dtype), threshold=part.threshold)
                for column, vector in zip(columns, vectors, strict=True):
                    column[part.places] = vector.double()
            self._host = (columns[0], columns[1], columns[2], adapted)
        return self._host
