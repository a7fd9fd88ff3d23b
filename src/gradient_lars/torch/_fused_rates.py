"""The rates of a fused step, left on the device until somebody reads them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradient_lars.torch.rates import LayerRates


class FusedRates(LayerRates):
    """The rates of a fused step, read from one matrix of figures a bucket.

    Args:
        names: of the layers that had a gradient.
        parts: places among these, rows of the matrix, the matrix, and the thresholds of its rows.
    """

    def __init__(self, names: Sequence[str], parts: list[tuple[list[int], list[int], Tensor, list[float]]]) -> None:
        super().__init__(names, [])
        self._matrices = parts

    def tensors(self) -> list[Tensor]:
        """See `LayerRates.tensors`."""
        return [figures for _, _, figures, _ in self._matrices]

    def with_tensors(self, tensors: Sequence[Tensor]) -> LayerRates:
        """See `LayerRates.with_tensors`."""
        parts = zip(self._matrices, tensors, strict=True)
        return FusedRates(self._names, [(places, rows, new, limits) for (places, rows, _, limits), new in parts])

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._host is None:
            columns = torch.empty((3, len(self)), dtype=torch.float64)
            adapted = torch.empty(len(self), dtype=torch.bool)
            for places, rows, figures, thresholds in self._matrices:
                found = figures.cpu()[:, rows]
                columns[:, places] = found.double()
                # Compared in the norms' own type, as the kernel compared them.
                adapted[places] = found[0] > torch.tensor(thresholds, dtype=found.dtype)[rows]
            self._host = (columns[0], columns[1], columns[2], adapted)
        return self._host
