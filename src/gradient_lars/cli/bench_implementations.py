"""The optimizers that ``gradient-lars bench`` compares: LARS on every path, the hook, PyTorch's SGD, and the peers.

All take the same step as nearly as each can: momentum 0.9, a weight decay, a trust coefficient. Frameworks and peers
are imported when they are asked for, so that the names are known without any of them.
"""

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LR = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
TRUST_COEFFICIENT = 1e-3

Step = Callable[[], object]
Build = Callable[[Sequence["Tensor"], bool], Step]


class Unavailable(Exception):  # noqa: N818 - not an error: the reason is shown in place of figures
    """An implementation cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Implementation:
    """One optimizer to measure.

    Attributes:
        name: as options and results files have it.
        label: as tables and plots have it.
        build: makes an optimizer for parameters that have their gradients, and returns its step; the second argument
            says whether the step will be captured in a CUDA graph.
        package: import name of the peer's package, or "" for what is there anyway.
        distribution: the name to install it by.
        devices: the kinds of device it runs on.
        graph: whether its step can be captured in a CUDA graph: some wait for the device in each step.
        note: what a reader of its figures must know.
    """

    name: str
    label: str
    build: Build
    package: str = ""
    distribution: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")
    graph: bool = True
    note: str = ""

    def check(self, device: str) -> None:
        """Raise `Unavailable` if it cannot be measured on this kind of device."""
        if device not in self.devices:
            raise Unavailable(f"not for {device}")
        if not self.package:
            return
        try:
            importlib.import_module(self.package)
        except Exception as error:  # a package fails to import in any way it likes: timm with another's RuntimeError
            absent = isinstance(error, ModuleNotFoundError) and error.name == self.package.partition(".")[0]
            reason = str(error).partition("\n")[0]
            raise Unavailable("not installed" if absent else f"cannot be imported: {reason}") from None

    @property
    def version(self) -> str:
        """Name and version of the distribution, such as ``open-lars 0.1.1``; "" for what is there anyway."""
        if not self.distribution:
            return ""
        try:
            return f"{self.distribution} {importlib.metadata.version(self.distribution)}"
        except importlib.metadata.PackageNotFoundError:
            return self.distribution


def _lars(**options: Any) -> Build:
    def build(params: Sequence["Tensor"], capturable: bool) -> Step:
        from gradient_lars.torch import LARS

        known = inspect.signature(LARS).parameters
        missing = [name for name in options if name not in known]
        if missing:
            raise Unavailable(f"this LARS has no `{missing[0]}`")
        return LARS(
            params,
            lr=LR,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            trust_coefficient=TRUST_COEFFICIENT,
            capturable=capturable,
            **options,
        ).step

    return build


def _monitored() -> Build:
    def build(params: Sequence["Tensor"], capturable: bool) -> Step:
        from gradient_lars.monitor import Monitor

        step = _lars()(params, capturable)
        Monitor(step.__self__)  # type: ignore[attr-defined]
        return step

    return build


def _hook(**options: bool) -> Build:
    def build(params: Sequence["Tensor"], capturable: bool) -> Step:
        import torch

        from gradient_lars import GradientLARS
        from gradient_lars.torch import add_hook

        # The hook has no trust coefficient: the learning rate is both in one.
        optimizer = torch.optim.SGD(params, lr=LR * TRUST_COEFFICIENT, momentum=MOMENTUM, **options)
        add_hook(optimizer, GradientLARS(weight_decay=WEIGHT_DECAY))
        return optimizer.step

    return build


def _sgd(**options: bool) -> Build:
    def build(params: Sequence["Tensor"], capturable: bool) -> Step:
        import torch

        lr = LR * TRUST_COEFFICIENT
        return torch.optim.SGD(params, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **options).step

    return build


def _own() -> list[Implementation]:
    return [
        Implementation("lars", "LARS", _lars()),
        Implementation(
            "lars-monitor",
            "LARS + monitor",
            _monitored(),
            graph=False,
            note="norms and rates of all layers recorded in every step",
        ),
        Implementation("lars-fused", "LARS fused", _lars(fused=True)),
        Implementation(
            "lars-fused-strict",
            "LARS fused, strict",
            _lars(fused=True, carry_norms=False),
            devices=("cuda",),
            note="all norms computed anew in every step",
        ),
        Implementation("lars-foreach", "LARS foreach", _lars(foreach=True)),
        Implementation("lars-loop", "LARS loop", _lars(foreach=False, fused=False)),
        Implementation("hook-sgd-fused", "hook + SGD fused", _hook(fused=True)),
        Implementation("hook-sgd-foreach", "hook + SGD foreach", _hook(foreach=True)),
    ]


YARDSTICK = "sgd-fused"


def _plain() -> list[Implementation]:
    return [
        Implementation(YARDSTICK, "SGD fused", _sgd(fused=True)),
        Implementation("sgd-foreach", "SGD foreach", _sgd(foreach=True)),
        Implementation("sgd-loop", "SGD loop", _sgd(foreach=False)),
    ]


def implementations() -> dict[str, Implementation]:
    """Return all implementations by name, in the order in which tables show them."""
    from gradient_lars.cli.bench_peers import peers

    return {implementation.name: implementation for implementation in (*_own(), *_plain(), *peers())}
