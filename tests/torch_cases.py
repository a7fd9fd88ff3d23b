"""The layers every path is tried on: one table, so that a new path is tested by joining it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

# Those that run wherever PyTorch does, and all.
PYTORCH_PATHS = ("loop", "foreach")
PATHS = (*PYTORCH_PATHS, "fused")


@dataclass(frozen=True)
class Case:
    """`make` returns weights and gradient; `norms` what they must look like is the reference's business."""

    name: str
    make: Callable[[torch.Generator], tuple[torch.Tensor, torch.Tensor]]


def _randn(*shape, dtype=torch.float32, p=1.0, g=1.0):
    def make(generator):
        weights = torch.randn(shape, generator=generator, dtype=torch.float64)
        grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        if dtype.is_complex:
            weights = torch.complex(weights, weights.flip(0) + 0.5)
            grad = torch.complex(grad.flip(0), grad - 0.25)
        return (weights * p).to(dtype), (grad * g).to(dtype)

    return make


def _transposed(generator):
    return torch.randn(5, 3, generator=generator).t(), torch.randn(5, 3, generator=generator).t()


def _channels_last(generator):
    like = {"memory_format": torch.channels_last}
    return (
        torch.randn(4, 3, 5, 5, generator=generator).contiguous(**like),
        torch.randn(4, 3, 5, 5, generator=generator).contiguous(**like),
    )


def _other_layout(generator):
    weights = torch.randn(4, 3, 5, 5, generator=generator)
    return weights, torch.randn(4, 3, 5, 5, generator=generator).contiguous(memory_format=torch.channels_last)


def _offset_view(generator):
    return torch.randn(40, generator=generator)[3:27].view(4, 6), torch.randn(41, generator=generator)[5:29].view(4, 6)


def _strided_view(generator):
    return torch.randn(6, 8, generator=generator)[:, ::2], torch.randn(6, 8, generator=generator)[:, 1::2]


def _half_overflow(generator):
    # The norm of this gradient is 1.5e6; float16 ends at 65504.
    return torch.full((32, 32), 0.5, dtype=torch.float16), torch.full((32, 32), 48000.0, dtype=torch.float16)


def _half_tiny(generator):
    # The rate is 5e6: rounded to float16 it would be infinite.
    return torch.full((4,), 2.0, dtype=torch.float16), torch.full((4,), 4e-7, dtype=torch.float16)


def _on_threshold(generator):
    return torch.tensor([0.0, 2.0**-6]), torch.tensor([0.5, -0.25])


def _just_above(generator):
    return torch.tensor([0.0, np.nextafter(np.float32(2.0**-6), np.float32(1))]), torch.tensor([0.5, -0.25])


def _conjugate(generator):
    weights, grad = _randn(3, 4, dtype=torch.complex64)(generator)
    return weights, grad.conj()


def _negated_view(generator):
    weights, _ = _randn(3, 4)(generator)
    return weights, torch.randn(3, 4, generator=generator, dtype=torch.complex64).conj().imag


CASES = [
    Case("matrix", _randn(7, 5)),
    Case("convolution", _randn(8, 3, 3, 3, p=0.1, g=30.0)),
    Case("large", _randn(300, 400)),
    Case("float64", _randn(7, 5, dtype=torch.float64)),
    Case("float16", _randn(16, 4, dtype=torch.float16)),
    Case("bfloat16", _randn(16, 4, dtype=torch.bfloat16)),
    Case("complex64", _randn(6, 3, dtype=torch.complex64)),
    Case("complex128", _randn(6, 3, dtype=torch.complex128)),
    Case("conjugate gradient", _conjugate),
    Case("negated gradient", _negated_view),
    Case("0-d", _randn()),
    Case("empty", _randn(0, 3)),
    Case("zero weight", _randn(4, p=0.0)),
    Case("zero gradient", _randn(4, g=0.0)),
    Case("zero both", _randn(4, p=0.0, g=0.0)),
    Case("below threshold", _randn(4, p=1e-4)),
    Case("on threshold", _on_threshold),
    Case("just above threshold", _just_above),
    Case("transposed", _transposed),
    Case("channels_last", _channels_last),
    Case("gradient of another layout", _other_layout),
    Case("offset view", _offset_view),
    Case("strided view", _strided_view),
    Case("float16 near overflow", _half_overflow),
    Case("float16 with a huge rate", _half_tiny),
]

# A power of two, so that "on threshold" is exact in every type.
SETTINGS = [
    {"threshold": 2.0**-6, "weight_decay": 0.0, "eps": 1e-9},
    {"threshold": 2.0**-6, "weight_decay": 0.25, "eps": 1e-9},
    {"threshold": 2.0**-6, "weight_decay": 5e-4, "eps": 0.5},
    {"threshold": 0.0, "weight_decay": 0.0, "eps": 0.0},
]


def parameter(weights, grad):
    """Return a parameter over exactly this memory and layout, with exactly this gradient."""
    param = torch.nn.Parameter(weights)
    param.grad = grad
    assert param.stride() == weights.stride()
    assert param.grad is grad
    return param


def to_numpy(tensor):
    """Return the values of `tensor` in float64 or complex128."""
    tensor = tensor.detach().resolve_conj()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).cpu().numpy().copy()
