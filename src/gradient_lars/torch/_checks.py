"""What `add_hook` accepts, in the order in which Chainer's `add_hook` checks it."""

import warnings
from collections.abc import Container
from typing import Any

import torch

# Optimizers whose step does not change when a layer's gradient is multiplied by a constant: they divide by a running
# size of the gradient, take its sign or orthogonalise it. By class name, so that other packages' are known as well.
_RESCALING_CANCELS = frozenset(
    {
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Lamb",
        "Lion",
        "Muon",
        "RMSprop",
        "Rprop",
        "RMSpropTF",
        "Shampoo",
        "SOAP",
    }
)

_LARS_ALREADY = frozenset({"LARC", "LARS", "LARSWrapper", "Lars"})


def check_optimizer(optimizer: Any) -> None:
    """Raise TypeError if hooks cannot be put on `optimizer`."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}. Pass the optimizer that "
            "your wrapper holds."
        )
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"`optimizer` is a {type(optimizer).__name__} that has no step hooks of its own. Pass the optimizer that "
            "it wraps."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "`optimizer` is LBFGS, which evaluates loss and gradient many times in one step and needs them to belong "
            "together: a rescaled gradient breaks its line search. Use SGD."
        )


def check_hook(hook: Any) -> None:
    """Raise TypeError if `hook` cannot be called."""
    if not callable(hook) or isinstance(hook, type):
        what = f"the class {hook.__name__}" if isinstance(hook, type) else type(hook).__name__
        raise TypeError(f"`hook` must be a callable object, got {what}. Pass GradientLARS(), for example.")


def resolve_timing(hook: Any, timing: str) -> str:
    """Return 'pre' or 'post': an explicit `timing` wins, 'auto' takes the hook's own, and 'pre' is the default."""
    if timing not in ("pre", "post", "auto"):
        raise ValueError(f"`timing` must be 'pre', 'post' or 'auto', got {timing!r}.")
    if timing != "auto":
        return timing
    own = getattr(hook, "timing", "pre")
    if own in ("pre", "post"):
        return str(own)
    warnings.warn(f"`hook.timing` must be 'pre' or 'post', got {own!r}; 'pre' is used.", stacklevel=3)
    return "pre"


def resolve_name(hook: Any, name: str | None, taken: Container[str]) -> str:
    """Return the name to register `hook` under: `name`, else the hook's own, else its function name.

    Raises:
        TypeError: it is not a text.
        ValueError: there is none.
        KeyError: it is in use.
    """
    name = name if name is not None else getattr(hook, "name", None) or getattr(hook, "__name__", None)
    if name is not None and (not isinstance(name, str) or not name):
        raise TypeError(f"`name` must be a text that is not empty, got {name!r}.")
    if name is None:
        raise ValueError("`name` is missing, and the hook has neither `name` nor `__name__`. Pass `name=...`.")
    if name in taken:
        raise KeyError(f"`name` {name!r} is in use on this optimizer. Pass another, or remove_hook the first.")
    return name


def rescaling_cancels(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether `optimizer` is known to undo any rescaling of a layer's gradient."""
    names = {base.__name__ for base in type(optimizer).__mro__}
    return any("adam" in name.lower() for name in names) or not _RESCALING_CANCELS.isdisjoint(names)


def check_not_lars_already(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if the optimizer scales its layers itself, so that GradientLARS would do it twice."""
    if any(base.__name__ in _LARS_ALREADY for base in type(optimizer).__mro__):
        raise ValueError(
            f"`optimizer` is {type(optimizer).__name__}, which does layer-wise scaling itself: GradientLARS would do "
            "it twice. Leave the hook out, or use torch.optim.SGD with it."
        )


def warn_if_rescaling_cancels(optimizer: torch.optim.Optimizer) -> None:
    """Warn that GradientLARS has no effect on Adam and its kin."""
    if rescaling_cancels(optimizer):
        warnings.warn(
            f"GradientLARS has next to no effect on {type(optimizer).__name__}: it normalises each gradient's size "
            "itself, which cancels the rate. Use SGD with momentum; for Adam, LAMB is the layer-wise form.",
            stacklevel=3,
        )
