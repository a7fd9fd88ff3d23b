"""Small networks that are trained for some steps while a monitor records them."""

import torch

from gradient_lars.torch import LARS


def layers(*, dtype=torch.float32, seed=0):
    """Return named parameters: a matrix, a vector and a convolution."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"dense.weight": (6, 5), "dense.bias": (6,), "conv.weight": (2, 3, 3, 3)}
    return [
        (name, torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)))
        for name, shape in shapes.items()
    ]


def set_gradients(named, step, scale=0.1):
    """Give every parameter a gradient that depends on the step only."""
    generator = torch.Generator().manual_seed(100 + step)
    for _, param in named:
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        param.grad = (scale * grad).to(param.dtype)


def train(optimizer, named, steps, start=0, scale=0.1):
    """Take `steps` steps."""
    for step in range(start, start + steps):
        set_gradients(named, step, scale)
        optimizer.step()


def recipe(named, **settings):
    """Return a LARS in which there is nothing to remark: layers move by 1 % of their norm in a step."""
    return LARS(named, **{"lr": 10.0, "weight_decay": 1e-4, "trust_coefficient": 1e-3, **settings})
