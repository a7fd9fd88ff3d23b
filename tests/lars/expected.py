"""The LARS update in float64 and NumPy, from the reference's rate: what every path of ``LARS`` is compared with."""

from dataclasses import dataclass

import numpy as np
import torch

from gradient_lars.torch import LARS
from reference import assert_close, lars
from torch_cases import to_numpy

# Every way to ask for a path on the CPU; "chosen" leaves it to the optimizer.
PATHS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "chosen": {},
}


# What JAX's form has no setting for, or leaves as it is.
USUAL = {
    "norm_of": "gradient",
    "zero_gradient_rate": None,
    "adapt_without_decay": True,
    "decay_excluded": True,
    "dampen_first_step": False,
}


@dataclass(frozen=True)
class Expected:
    """What a step makes of one layer; `v` is None without momentum."""

    p: np.ndarray
    v: np.ndarray | None
    p_norm: float
    g_norm: float
    rate: float
    adapted: bool


def lars_step(p, g, v, settings):
    """Return the `Expected` of weights `p`, gradient `g` and momentum `v`, which is None before the first step."""
    settings = {**USUAL, **settings}
    s = {name: float(value) if torch.is_tensor(value) else value for name, value in settings.items()}
    p, g = np.asarray(p), np.asarray(g)
    included = (np.ndim(p) >= 2 if s["adapt"] is None else s["adapt"]) and (
        s["weight_decay"] or s["adapt_without_decay"]
    )
    decay = s["weight_decay"] if included or s["decay_excluded"] else 0.0
    direction = (-g if s["maximize"] else g) + decay * p
    moved = direction
    if s["norm_of"] == "update" and s["momentum"]:
        seed = direction if v is None and not s["dampen_first_step"] else (1 - s["dampening"]) * direction
        velocity = seed + (0 if v is None else s["momentum"] * v)
        moved = direction + s["momentum"] * velocity if s["nesterov"] else velocity
    # Where the norm is that of gradient and decay, no other decay is in the denominator.
    measured = {"gradient": (g, decay), "decayed": (direction, 0.0), "update": (moved, 0.0)}[s["norm_of"]]
    layer = lars(p, measured[0], threshold=s["threshold"], weight_decay=measured[1], eps=s["eps"])
    adapted = bool(included) and layer.p_norm > s["threshold"]
    rate = 1.0
    if adapted and layer.g_norm == 0 and s["zero_gradient_rate"] is not None:
        rate = s["zero_gradient_rate"]
    elif adapted and s["eps"] + layer.g_norm + measured[1] * layer.p_norm > 0:
        rate = s["trust_coefficient"] * layer.rate
        if s["trust_clip"]:
            rate = min(rate, s["lr"]) / s["lr"] if s["lr"] else 1.0
        rate = min(max(rate, s["min_rate"]), s["max_rate"])

    if s["norm_of"] == "update":
        return Expected(
            p - s["lr"] * rate * moved, velocity if s["momentum"] else None, layer.p_norm, layer.g_norm, rate, adapted
        )
    step = rate * direction
    if s["lr_in_momentum"]:
        step = s["lr"] * step
    velocity = None
    if s["momentum"]:
        if v is None and s["dampen_first_step"]:
            v = np.zeros_like(step)
        velocity = step if v is None else s["momentum"] * v + (1 - s["dampening"]) * step
        step = step + s["momentum"] * velocity if s["nesterov"] else velocity
    if not s["lr_in_momentum"]:
        step = s["lr"] * step
    return Expected(p - step, velocity, layer.p_norm, layer.g_norm, rate, adapted)


def expect(optimizer, scale=1.0):
    """Return parameter and `Expected` of each layer for the next step of `optimizer`; gradients hold `scale`."""
    found = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                state = optimizer.state.get(param, {})
                v = state.get("momentum_buffer")
                weights, g = to_numpy(state.get("master", param)), to_numpy(param.grad) / scale
                found.append((param, lars_step(weights, g, None if v is None else to_numpy(v), group)))
    return found


def checked_step(optimizer, *, factor=1.0):
    """Take a step, and assert that parameters, momentum and rates are the expected and gradients what they were."""
    expected = expect(optimizer)
    before = [(param.grad, param.grad.clone()) for param, _ in expected]
    optimizer.step()
    rates = list(optimizer.rates())
    assert len(rates) == len(expected)
    for (param, layer), rate, (grad, values) in zip(expected, rates, before, strict=True):
        assert param.grad is grad
        assert torch.equal(grad, values)
        state = optimizer.state.get(param, {})
        if "master" in state:
            assert_close(to_numpy(state["master"]), layer.p, "float32", factor=factor)
            assert torch.equal(param.detach(), state["master"].to(param.dtype))
        else:
            assert_close(to_numpy(param), layer.p, param.dtype, factor=factor)
        if layer.v is None:
            assert "momentum_buffer" not in state
        else:
            assert_close(to_numpy(state["momentum_buffer"]), layer.v, state["momentum_buffer"].dtype, factor=factor)
        wide = "float64" if param.dtype in (torch.float64, torch.complex128) else "float32"
        assert_close(
            [rate.p_norm, rate.g_norm, rate.rate], [layer.p_norm, layer.g_norm, layer.rate], wide, factor=factor
        )
        assert rate.adapted == layer.adapted


def network(dtype=torch.float32, shapes=((4, 3), (5,), (2, 2, 3)), seed=5):
    """Return named parameters with fixed values."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [(f"layer{i}", torch.nn.Parameter(value.to(dtype))) for i, value in enumerate(values)]


def set_gradients(named, step, scale=1.0):
    """Give the parameters the gradients of this step, times `scale`."""
    generator = torch.Generator().manual_seed(100 + step)
    for _, param in named:
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        param.grad = (grad * scale).to(param.dtype)


def state_of(optimizer):
    """Return copies of all parameters and of all tensors in the state."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    tensors = [param.detach().clone() for param in params]
    for param in params:
        tensors += [t.clone() for t in optimizer.state.get(param, {}).values() if torch.is_tensor(t)]
    return tensors


def assert_same(left, right):
    """Assert that two lists of tensors are equal bit for bit."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def train(named, steps, *, first=0, **settings):
    """Return a LARS that has taken some steps with the gradients of `set_gradients`."""
    optimizer = LARS(named, **settings)
    advance(optimizer, named, steps, first=first)
    return optimizer


def advance(optimizer, named, steps, *, first=0):
    """Take steps with the gradients of `set_gradients`, from that of step `first` on."""
    for step in range(first, first + steps):
        set_gradients(named, step)
        optimizer.step()
