"""Flags that a step leaves on the device and that the host reads when they have arrived, without waiting for them."""

from typing import Any

import torch
from torch import Tensor


class FetchedFlags:
    """The flags of one step on their way to the host; those of later steps are left out until they have arrived."""

    def __init__(self) -> None:
        self._host: Tensor | None = None
        self._event: Any = None

    @property
    def under_way(self) -> bool:
        """Whether flags were sent that `arrived` has not returned yet."""
        return self._host is not None

    def send(self, flags: Tensor) -> bool:
        """Begin to fetch `flags`, a vector; return whether they are there at once, as they are on the CPU."""
        if flags.device.type == "cpu":
            self._host = flags.clone()
            return True
        if self._host is None and not torch.cuda.is_current_stream_capturing():
            self._host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            self._host.copy_(flags, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(flags.device))
        return False

    def arrived(self) -> list[Any]:
        """Return the flags that have arrived since the last call, or an empty list."""
        if self._host is None:
            return []
        # While a graph is captured an event may not even be asked.
        if self._event is not None and (torch.cuda.is_current_stream_capturing() or not self._event.query()):
            return []
        flags: list[Any] = self._host.tolist()
        self._host = self._event = None
        return flags
