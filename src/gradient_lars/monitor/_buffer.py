"""Figures of many steps, kept on the device and copied to the host together, without waiting for them."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from gradient_lars.monitor._layers import Taken

# A step's figures in more tensors than this are put into one: each takes 512 bytes of a GPU at least.
_MANY = 16


def packed(taken: Taken) -> Taken:
    """Return `taken` with few tensors; the readable path leaves three for each layer."""
    tensors = taken.tensors()
    if len(tensors) <= _MANY:
        return taken
    return taken.with_tensors(_split(_joined(tensors), tensors))


class Transfer:
    """The figures of some steps on their way to the host: one copy for each device and type.

    Args:
        taken: the steps.
    """

    def __init__(self, taken: list[Taken]) -> None:
        self._taken = taken
        self._tensors = [tensor for step in taken for tensor in step.tensors()]
        self._joined = {key: _to_host(flat) for key, flat in _joined(self._tensors).items()}
        self._events: list[Any] = []
        for device in {device for device, _ in self._joined if device.type == "cuda"}:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._events.append(event)

    @property
    def arrived(self) -> bool:
        """Whether the figures are on the host; asking does not wait for them."""
        return all(event.query() for event in self._events)

    def result(self) -> list[Taken]:
        """Return the steps with their figures on the host; waits until they are there."""
        for event in self._events:
            event.synchronize()
        # Pinned memory is scarce: what stays is in the ordinary kind.
        flat = {key: host.clone() if host.is_pinned() else host for key, host in self._joined.items()}
        copies = iter(_split(flat, self._tensors))
        return [step.with_tensors([next(copies) for _ in step.tensors()]) for step in self._taken]


def _key(tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    return tensor.device, tensor.dtype


def _joined(tensors: list[Tensor]) -> dict[tuple[torch.device, torch.dtype], Tensor]:
    """Return one vector for each device and type; always memory of its own."""
    parts: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        parts[_key(tensor)].append(tensor if tensor.dim() == 1 else tensor.reshape(-1))
    return {key: torch.cat(some) if len(some) > 1 else some[0].clone() for key, some in parts.items()}


def _split(flat: dict[tuple[torch.device, torch.dtype], Tensor], like: list[Tensor]) -> list[Tensor]:
    """Return views of the vectors with the shapes of `like`, from which they were joined."""
    sizes: defaultdict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for tensor in like:
        sizes[_key(tensor)].append(tensor.numel())
    pieces = {key: iter(flat[key].split_with_sizes(numbers)) for key, numbers in sizes.items()}
    found = (next(pieces[_key(tensor)]) for tensor in like)
    return [piece if tensor.dim() == 1 else piece.view(tensor.shape) for piece, tensor in zip(found, like, strict=True)]


def _to_host(flat: Tensor) -> Tensor:
    if flat.device.type == "cpu":
        return flat
    if flat.device.type != "cuda":
        return flat.cpu()
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    return host.copy_(flat, non_blocking=True)


class History:
    """The steps that are kept on the host: all there were, and of more than `keep` every second, again and again.

    Args:
        keep: the most steps to keep.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self.stride = 1
        self.taken: list[Taken] = []

    def wants(self, number: int) -> bool:
        """Return whether the step that was recorded as this number would be kept."""
        return number % self.stride == 0

    def add(self, taken: list[Taken]) -> None:
        """Keep `taken`, whose figures are on the host."""
        chosen = [step for step in taken if self.wants(step.number)]
        # A step's figures are views of what arrived together, which would stay with the last of them.
        self.taken += chosen if len(chosen) == len(taken) else [step.copied() for step in chosen]
        while len(self.taken) > self._keep:
            self.stride *= 2
            self.taken = [step.copied() for step in self.taken if self.wants(step.number)]
