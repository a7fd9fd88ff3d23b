"""Other people's LARS optimizers, as ``gradient-lars bench`` builds them; each is left out where it is missing."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gradient_lars.cli.bench_implementations import (
    LR,
    MOMENTUM,
    TRUST_COEFFICIENT,
    WEIGHT_DECAY,
    Implementation,
    Step,
    Unavailable,
)

if TYPE_CHECKING:
    from torch import Tensor

VECTORS = "scalars and vectors take plain SGD"


def peers() -> list[Implementation]:
    """Return the peers, whether they are installed or not."""
    return [
        Implementation(
            "pytorch-optimizer",
            "pytorch_optimizer LARS",
            _pytorch_optimizer,
            package="pytorch_optimizer",
            distribution="pytorch-optimizer",
            note=f"writes over the gradients; {VECTORS}",
        ),
        Implementation("timm", "timm Lars", _timm, package="timm.optim", distribution="timm"),
        Implementation(
            "open-lars",
            "open-lars",
            _open_lars,
            package="open_lars",
            distribution="open-lars",
            graph=False,
            note=f"waits for the device at every layer; {VECTORS}",
        ),
        Implementation(
            "torchlars",
            "torchlars + SGD",
            _torchlars,
            package="torchlars",
            distribution="torchlars",
            devices=("cuda",),
            note="writes over the gradients",
        ),
        Implementation(
            "optax",
            "optax lars (jit)",
            OptaxStep,
            package="optax",
            distribution="optax",
            devices=("cpu",),
            note="XLA with threads of its own; the rate divides by the norm of gradient plus decay",
        ),
    ]


def _pytorch_optimizer(params: Sequence["Tensor"], capturable: bool) -> Step:
    lars = _attribute("pytorch_optimizer", "LARS")
    optimizer = lars(params, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, trust_coefficient=TRUST_COEFFICIENT)
    step: Step = optimizer.step
    return step


def _timm(params: Sequence["Tensor"], capturable: bool) -> Step:
    lars = _attribute("timm.optim", "Lars")
    step: Step = lars(params, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, trust_coeff=TRUST_COEFFICIENT).step
    return step


def _open_lars(params: Sequence["Tensor"], capturable: bool) -> Step:
    lars = _attribute("open_lars", "LARS")
    optimizer = lars(params, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, trust_coefficient=TRUST_COEFFICIENT)
    step: Step = optimizer.step
    return step


def _torchlars(params: Sequence["Tensor"], capturable: bool) -> Step:
    import torch

    lars = _attribute("torchlars", "LARS")
    sgd = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    step: Step = lars(sgd, trust_coef=TRUST_COEFFICIENT).step
    return step


class OptaxStep:
    """One step of ``optax.lars`` under jit: update and application in one compiled function, on the CPU.

    It has its own copies of parameters and gradients. Parameters and momentum are donated, so that XLA may write over
    them as the others do.
    """

    def __init__(self, params: Sequence["Tensor"], capturable: bool = False) -> None:
        if params[0].element_size() > 4:
            raise Unavailable("JAX has no float64 unless it is switched on")
        jax = importlib.import_module("jax")
        transform, self._step = _optax_step()
        self._ready = jax.block_until_ready
        with jax.default_device(jax.devices("cpu")[0]):
            self.params = [_to_jax(param.detach()) for param in params]
            self._grads = [_to_jax(param.grad) for param in params if param.grad is not None]
            self._state = transform.init(self.params)

    def __call__(self) -> None:
        """Take a step and wait for its end."""
        self.params, self._state = self._step(self.params, self._state, self._grads)
        self._ready((self.params, self._state))


@functools.cache
def _optax_step() -> tuple[Any, Callable[..., Any]]:
    """Return the transformation and its jitted step; made once, so that each round finds it compiled."""
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    transform = optax.lars(LR, weight_decay=WEIGHT_DECAY, trust_coefficient=TRUST_COEFFICIENT, momentum=MOMENTUM)

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return transform, jax.jit(step, donate_argnums=(0, 1))


def _to_jax(tensor: "Tensor") -> Any:
    """Return a copy: what XLA is given to write over must be nobody else's."""
    jnp = importlib.import_module("jax.numpy")
    import torch

    if tensor.dtype == torch.bfloat16:  # unknown to NumPy
        return jnp.array(tensor.float().numpy()).astype(jnp.bfloat16)
    return jnp.array(tensor.numpy(), copy=True)


def _attribute(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)
