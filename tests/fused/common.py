"""Networks and steps for the tests of the kernels."""

import torch

from gradient_lars.torch import LARS
from gradient_lars.torch._fused import FusedRates

# Several chunks, the last one uneven; one chunk to the last entry; one entry more; and small ones.
SHAPES = ((3, 5500), (8192,), (8193,), (5,), (2, 3, 4, 4), ())
SETTINGS = {"lr": 0.5, "trust_coefficient": 0.25, "weight_decay": 0.125}


class NoLaunch:
    """Stands for a kernel, and does nothing but count its launches."""

    def __init__(self):
        self.launches = 0

    def __getitem__(self, grid):
        return self

    def __call__(self, *args, **options):
        self.launches += 1


def moved(device, tensor):
    """Return a copy on `device` that keeps strides, offset and signs, which `.to` would not."""
    memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).to(device, copy=True)
    copy = memory.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
    copy = torch._conj(copy) if tensor.is_conj() else copy
    return torch._neg_view(copy) if tensor.is_neg() else copy


def network(device, shapes=SHAPES, dtype=torch.float32, seed=5):
    """Return named parameters with fixed values."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [(f"layer{i}", torch.nn.Parameter(value.to(device, dtype))) for i, value in enumerate(values)]


def set_gradients(named, step, scale=1.0):
    """Give the parameters new gradients, those of this step."""
    generator = torch.Generator().manual_seed(100 + step)
    for _, param in named:
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64) * scale
        param.grad = torch.empty_like(param).copy_(grad)


def fused(params, **settings):
    """Return a LARS that takes the kernels."""
    return LARS(params, **{**SETTINGS, "fused": True, **settings})


def took_the_kernels(optimizer):
    """Return whether the last step was one of the kernels."""
    return type(optimizer.rates()) is FusedRates


def advance(optimizer, named, steps, first=0):
    """Take steps with the gradients of `set_gradients`."""
    for step in range(first, first + steps):
        set_gradients(named, step)
        optimizer.step()
        assert took_the_kernels(optimizer)


def state_of(optimizer):
    """Return copies of all parameters and of all tensors in the state."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    tensors = [param.detach().clone() for param in params]
    for param in params:
        tensors += [t.clone() for t in optimizer.state.get(param, {}).values() if torch.is_tensor(t)]
    return tensors


def copied(named):
    """Return parameters of the same names, values and layout."""
    return [(name, torch.nn.Parameter(param.detach().clone())) for name, param in named]
