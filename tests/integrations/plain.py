"""A linear layer trained in NumPy and float64, with gradients written out: what every framework's loop must equal."""

from dataclasses import dataclass, field

import numpy as np
import torch

from reference import TOLERANCE, lars

LR, MOMENTUM = 0.05, 0.9


@dataclass
class Plain:
    """Momentum SGD with LARS on ``x @ weight.T + bias``, under the mean squared error.

    `clip` bounds the norm of all gradients before LARS acts, `clip_after` that of what LARS makes of them. `lars_names`
    are the layers that LARS acts on; the others take the plain gradient with `other_decay`.
    """

    weight: np.ndarray
    bias: np.ndarray
    lr: float = LR
    momentum: float = MOMENTUM
    trust: float = 1.0
    weight_decay: float = 0.0
    other_decay: float = 0.0
    clip: float | None = None
    clip_after: float | None = None
    lars_names: tuple[str, ...] = ("weight", "bias")
    velocity: dict = field(default_factory=dict)
    rates: dict = field(default_factory=dict)

    def gradients(self, x, y):
        """Return loss and gradients for one batch."""
        residual = x @ self.weight.T + self.bias - y
        outer = 2 * residual / residual.size
        return np.mean(residual**2), {"weight": outer.T @ x, "bias": outer.sum(axis=0)}

    def step(self, *batches):
        """Take one step on the mean of the batches' gradients, as gradient accumulation does."""
        parts = [self.gradients(x, y)[1] for x, y in batches]
        grads = {name: sum(part[name] for part in parts) / len(parts) for name in ("weight", "bias")}
        grads = _clipped(grads, self.clip)
        for name, grad in grads.items():
            p = getattr(self, name)
            if name in self.lars_names:
                layer = lars(p, grad, weight_decay=self.weight_decay)
                adapted = layer.p_norm > 0.01
                self.rates[name] = layer.rate
                grads[name] = layer.grad * (self.trust if adapted else 1.0)
            else:
                grads[name] = grad + self.other_decay * p
        for name, grad in _clipped(grads, self.clip_after).items():
            self.velocity[name] = self.momentum * self.velocity.get(name, 0.0) + grad
            setattr(self, name, getattr(self, name) - self.lr * self.velocity[name])


def _clipped(grads, bound):
    if bound is None:
        return grads
    norm = np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))
    # torch adds 1e-6 to the norm.
    return {name: grad * min(1.0, bound / (norm + 1e-6)) for name, grad in grads.items()}


def linear(dtype=torch.float64):
    """Return a layer with fixed weights."""
    layer = torch.nn.Linear(4, 3, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 4, generator=generator, dtype=torch.float64))
        layer.bias.copy_(0.3 * torch.randn(3, generator=generator, dtype=torch.float64))
    return layer


def plain(**settings):
    """Return the reference of `linear`."""
    layer = linear()
    return Plain(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy(), **settings)


def batches(count, size=4, scale=3.0):
    """Return batches in float64, with gradients that are long enough to be clipped."""
    rng = np.random.default_rng(11)
    return [(scale * rng.normal(size=(size, 4)), scale * rng.normal(size=(size, 3))) for _ in range(count)]


def tensors(data, dtype=torch.float64):
    """Return the batches as a data set of single examples, in their order."""
    x, y = (torch.tensor(np.concatenate(part), dtype=dtype) for part in zip(*data, strict=True))
    return torch.utils.data.TensorDataset(x, y)


def assert_equal(layer, reference, factor=20):
    """Assert that both have the same weights, to the rounding of some steps in the layer's type."""
    for name in ("weight", "bias"):
        actual, expected = getattr(layer, name).detach().double().numpy(), getattr(reference, name)
        allowed = factor * TOLERANCE[str(layer.weight.dtype).removeprefix("torch.")]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed * np.abs(expected).max())


def assert_differ(reference, other):
    """Assert that two references have come to different weights, so that a test can tell them apart."""
    assert np.abs(reference.weight - other.weight).max() > 1e-3
