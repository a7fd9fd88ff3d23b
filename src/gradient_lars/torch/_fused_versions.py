"""Which weights were changed in place between two steps, from the tensors' version counters."""

from collections.abc import Iterable, Sequence
from itertools import compress, repeat
from operator import attrgetter

from torch import Tensor
from torch.autograd.graph import increment_version

from gradient_lars.torch._fused_layer import FusedLayer

_VERSION = attrgetter("_version")


class Versions:
    """The version counters of the weights of `layers`, which the step moves as PyTorch's own operations do."""

    def __init__(self, layers: Sequence[FusedLayer]) -> None:
        self._layers = layers
        self._counted = [layer.counted for layer in layers]
        self._lows: list[Tensor] = [layer.param for layer in layers if layer.low is not None]
        # Inference tensors have none.
        self.known = not any(tensor.is_inference() for tensor in self._counted)
        self._versions: list[int] = []
        self._steps: Iterable[int] = repeat(1)
        self._read_again = True
        self._expected = -1

    def changed(self) -> set[int]:
        """Return the places of the layers whose weights were changed since the last step."""
        if not self.known:
            return set()
        versions = list(map(_VERSION, self._counted))
        before, steps = self._versions, self._steps
        # Until the step is counted, which it is not where it is broken off.
        self._versions, self._steps = versions, repeat(0)
        # Versions only grow, so that equal sums are equal versions.
        total, expected = sum(versions), self._expected
        self._expected = total
        if total == expected or not before:
            return set()
        after = map(int.__add__, before, steps)
        return {i for i, (a, b) in enumerate(zip(versions, after, strict=False)) if a != b}

    def count(self, present: list[bool] | None) -> None:
        """Count the step as a change in place of the weights that are `present`, all if None."""
        if not self.known:
            return
        counted, lows = self._counted, self._lows
        self._steps = repeat(1)
        if present is not None:
            counted = list(compress(counted, present))
            lows = [la.param for la, here in zip(self._layers, present, strict=True) if here and la.low is not None]
            self._steps = [int(here) for here in present]
        increment_version(counted)
        increment_version(lows)
        self._expected = sum(self._versions) + len(counted)
        if self._read_again:
            # Parameters that are views of one tensor share a version, which then moves by more than one.
            self._versions, self._steps = list(map(_VERSION, self._counted)), repeat(0)
            self._read_again = sum(self._versions) != self._expected
            self._expected = sum(self._versions)
