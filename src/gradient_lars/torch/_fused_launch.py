"""Where and when kernels are launched."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def is_capturing(device: torch.device) -> bool:
    """Return whether what is launched on `device` goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which Triton launches on `device`: it takes the current one's stream."""
    if device.type == "cpu" or torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)
