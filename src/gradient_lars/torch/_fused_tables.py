"""What the kernels of the fused path read: addresses, sizes and settings of all layers as one table of int64.

The table lies on the device. Each column holds one number a layer, the settings of the groups follow in rows. What may
change from step to step stands together at the end, so that one copy sends it.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from enum import IntEnum, IntFlag
from itertools import compress, count
from operator import ne
from typing import Any

import torch
from torch import Tensor

# Entries a program takes, times a layer's span; and programs a layer gets at most. Every program of an update reads its
# layer's sums, which would grow with the square of the layer: the span grows instead. 8192 was best on an H100.
CHUNK = 8192
MOST_CHUNKS = 2048

# Stands for the address of a gradient that is None: no tensor of floating point lies at an odd address.
ABSENT = 1


class Column(IntEnum):
    """The columns, one number a layer. FIRST is the layer's first chunk among all, SPAN its chunks' size in CHUNKs.

    WHOLE is the address of a sharded layer's two sums over all ranks, 0 of another.
    """

    WEIGHTS = 0
    MOMENTUM = 1
    LOW = 2
    NUMEL = 3
    FIRST = 4
    CHUNKS = 5
    SPAN = 6
    WHOLE = 7
    FLAGS = 8
    GRAD = 9


# The bits of FLAGS; above them stands the index of the layer's group. COPY: another rank enters the same piece.
# UNDECAYED: no decay, whatever the group has. DECAYED: the rate divides by the norm of gradient and decay together.
RECOMPUTE, ADAPTED, COPY, UNDECAYED, DECAYED, GROUP_SHIFT = 1, 2, 4, 8, 16, 8


class Mark(IntEnum):
    """Rows of what the kernels note down, one number a layer: weights not those of the carried sums; whether the
    momentum holds a step, and whether the last update has put one there.
    """

    EDITED = 0
    STARTED = 1
    TAKEN = 2


class Setting(IntEnum):
    """The numbers of a group's row: float64 as bits, but for an address and the switches."""

    LR = 0
    LR_ADDRESS = 1
    MOMENTUM = 2
    KEEP = 3
    WEIGHT_DECAY = 4
    TRUST_COEFFICIENT = 5
    THRESHOLD = 6
    EPS = 7
    MIN_RATE = 8
    MAX_RATE = 9
    ZERO_GRADIENT_RATE = 10
    SWITCHES = 11


class Switch(IntFlag):
    """The bits of SWITCHES."""

    NESTEROV = 1
    MAXIMIZE = 2
    LR_IN_MOMENTUM = 4
    TRUST_CLIP = 8
    LR_IS_DOUBLE = 16


COLUMNS = len(Column)
SETTINGS = len(Setting)


def settings_row(group: dict[str, Any], lr: float | Tensor) -> list[int]:
    """Return the row of a group; `lr` is a number, or a float32 or float64 tensor on the table's device."""
    on_device = isinstance(lr, Tensor)
    numbers = [
        0.0 if isinstance(lr, Tensor) else float(lr),
        0.0,
        float(group["momentum"]),
        1.0 - float(group["dampening"]),
        float(group["weight_decay"]),
        float(group["trust_coefficient"]),
        float(group["threshold"]),
        float(group["eps"]),
        float(group["min_rate"]),
        float(group["max_rate"]),
        # None as what equals nothing, not even itself.
        math.nan if group["zero_gradient_rate"] is None else float(group["zero_gradient_rate"]),
    ]
    row = memoryview(array("d", numbers)).cast("B").cast("q").tolist()
    row[Setting.LR_ADDRESS] = lr.data_ptr() if isinstance(lr, Tensor) else 0
    switches = Switch(0)
    for name in ("nesterov", "maximize", "lr_in_momentum", "trust_clip"):
        if group[name]:
            switches |= Switch[name.upper()]
    if on_device and isinstance(lr, Tensor) and lr.dtype == torch.float64:
        switches |= Switch.LR_IS_DOUBLE
    return [*row, int(switches)]


def flags_of(group: dict[str, Any], index: int, *, adapted: bool) -> int:
    """Return the bits of a layer of `group`, the one with this index, but for those of pieces and carried sums."""
    flags = index << GROUP_SHIFT
    if adapted:
        flags |= ADAPTED
    elif not group["decay_excluded"]:
        return flags | UNDECAYED
    if group["norm_of"] == "decayed" and group["weight_decay"]:
        flags |= DECAYED
    return flags


def lr_on(lr: float | Tensor, device: torch.device) -> float | Tensor:
    """Return `lr` as `settings_row` takes it: a tensor on `device` as it is, others copied there or read."""
    if not isinstance(lr, Tensor):
        return lr
    if lr.device.type == "cpu" and device.type != "cpu":
        return float(lr)
    dtype = lr.dtype if lr.dtype in (torch.float32, torch.float64) else torch.float32
    return lr.detach().to(device, dtype, non_blocking=True)


def chunks_of(numel: int) -> tuple[int, int]:
    """Return how many chunks a layer has, at least one, and the span of each."""
    span = 1
    while numel > span * CHUNK * MOST_CHUNKS:
        span *= 2
    return max(1, -(-numel // (span * CHUNK))), span


def is_dense(tensor: Tensor) -> bool:
    """Return whether the entries fill a stretch of memory without gaps and without overlap, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 0:
            return True
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def same_order(one: Tensor, other: Tensor) -> bool:
    """Return whether entry by entry two tensors of one shape lie in the same order of memory."""
    return one.shape == other.shape and all(
        a == b or size == 1 for a, b, size in zip(one.stride(), other.stride(), one.shape, strict=True)
    )


def to_device(values: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `values` as a tensor on `device`, without waiting for it."""
    host = torch.tensor(values, dtype=dtype)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


class Table:
    """The table of the layers of one launch, with its mirror on the host."""

    def __init__(
        self, columns: Sequence[Sequence[int]], settings: Iterable[Sequence[int]], device: torch.device
    ) -> None:
        self._host = array("q", [number for part in (*columns, *settings) for number in part])
        self._view = torch.frombuffer(self._host, dtype=torch.int64)
        self._layers = len(columns[0])
        self._changed: tuple[int, int] | None = None
        self._frozen = False
        self._kept: list[Tensor] = []
        self._device = device
        self._on_device = to_device(self._host.tolist(), torch.int64, device)
        self._spare: Tensor | None = self._pinned(len(self._host))
        self.sent = 0

    def set_column(self, column: Column, values: Sequence[int]) -> None:
        """Set a column; only what differs will be sent."""
        self._set(column * self._layers, values)

    def set_settings(self, index: int, row: Sequence[int]) -> None:
        """Set the row of the group with this index."""
        self._set(COLUMNS * self._layers + index * SETTINGS, row)

    def on_device(self, *, capturing: bool) -> Tensor:
        """Return the table as the kernels read it, with all changes on their way.

        A captured graph reads at every replay the table it was captured with: that one is never written again.
        """
        if not capturing:
            self._send()
            return self._on_device
        if self._changed is None:
            self._frozen = True
            self._kept.append(self._on_device)
            return self._on_device
        # The changes hold for the graph alone; the next eager step compares with what it has sent itself.
        pinned = self._pinned(len(self._host)) if self._spare is None else self._spare
        self._spare = None
        pinned.copy_(self._view)
        captured = torch.empty(len(self._host), dtype=torch.int64, device=self._device)
        captured.copy_(pinned, non_blocking=True)
        self._kept += [pinned, captured]
        return captured

    def _set(self, start: int, values: Sequence[int]) -> None:
        new = array("q", values)
        stop = start + len(new)
        old = self._host[start:stop]
        if old == new:
            return
        self._host_set(start, new)
        # From both ends up to what differs: where all gradients have moved, that is near.
        first = start + next(compress(count(), map(ne, old, new)))
        last = stop - next(compress(count(), map(ne, reversed(old), reversed(new))))
        if self._changed is not None:
            first, last = min(first, self._changed[0]), max(last, self._changed[1])
        self._changed = (first, last)

    def _host_set(self, start: int, new: "array[int]") -> None:
        # Item by item through the buffer: an array that has lent its memory refuses a slice of another length only.
        memoryview(self._host)[start : start + len(new)] = new

    def _send(self) -> None:
        if self._changed is None:
            return
        first, last = self._changed
        if self._frozen:
            self._on_device, self._frozen = self._on_device.clone(), False
        if self._spare is None:
            self._spare = self._pinned(len(self._host))
        # A fresh piece of pinned memory each time: the copy of the step before may still be waiting on the device.
        message = self._view[first:last]
        if self._device.type != "cpu":
            message = torch.empty(last - first, dtype=torch.int64, pin_memory=True).copy_(message)
        self._on_device[first:last].copy_(message, non_blocking=True)
        self._changed = None
        self.sent += last - first

    def _pinned(self, length: int) -> Tensor:
        return torch.empty(length, dtype=torch.int64, pin_memory=self._device.type != "cpu")
