"""Which path computes a step."""

from collections.abc import Callable

import torch

from gradient_lars.torch import _foreach, _loop
from gradient_lars.torch._layers import Layer
from gradient_lars.torch.rates import Norms

Rescale = Callable[..., list[Norms]]

_PATHS: dict[str, Rescale] = {"loop": _loop.rescale, "foreach": _foreach.rescale}


def hook_path(device: torch.device) -> str:
    """Return the path that `add_hook` chooses for parameters on `device` when it is not told."""
    return "foreach"


def check_path(path: str | None) -> None:
    """Raise ValueError if `path` names no path."""
    if path is not None and path not in _PATHS:
        known = ", ".join(repr(name) for name in _PATHS)
        raise ValueError(f"`path` must be None or one of {known}, got {path!r}. None chooses.")


def rescale_with(path: str | None, layers: list[Layer]) -> Rescale:
    """Return the function of the path to take for `layers`."""
    return _PATHS[path or hook_path(layers[0].param.device)]
