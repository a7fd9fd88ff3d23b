"""``GradientLARS``: the hook of Chainer's protocol."""

import math
import sys
from typing import Any, ClassVar, overload

from gradient_lars import _arrays


class _NonNegative:
    """A float attribute that refuses what is not a number >= 0, also when it is changed between two steps."""

    def __init__(self, *, infinite: bool, remedy: str) -> None:
        self._infinite = infinite
        self._remedy = remedy

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> "_NonNegative": ...
    @overload
    def __get__(self, instance: object, owner: type) -> float: ...
    def __get__(self, instance: object | None, owner: type) -> "float | _NonNegative":
        return self if instance is None else instance.__dict__[self._name]

    def __set__(self, instance: object, value: float) -> None:
        if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
            raise TypeError(f"`{self._name}` must be a number, got {value!r}. {self._remedy}")
        number = float(value)
        if math.isnan(number) or number < 0 or (math.isinf(number) and not self._infinite):
            raise ValueError(f"`{self._name}` must be {self._range}, got {value!r}. {self._remedy}")
        instance.__dict__[self._name] = number

    @property
    def _range(self) -> str:
        return ">= 0" if self._infinite else ">= 0 and finite"


class GradientLARS:
    r"""Optimizer hook that rescales each layer's gradient to the norm of its weights (LARS).

    With ``p_norm = ||p||_2`` and ``g_norm = ||g||_2``, one pair of numbers per parameter tensor ("layer") and the norm
    of the raw gradient taken before the decay::

        rate = p_norm / (eps + g_norm + weight_decay * p_norm)   if p_norm > threshold (strict), else 1
        g   <- rate * (g + weight_decay * p)                     the decay applies below the threshold too

    so that momentum SGD then computes ``v <- m * v + lr * rate * (g + weight_decay * p); p <- p - v``. There is no
    trust coefficient: the optimizer's ``lr`` is the paper's gamma * eta, about the relative change of a layer per step
    (0.001 to 0.3, not SGD's 0.1 to 10).

    The same object is a hook of Chainer (``optimizer.add_hook(GradientLARS())``, or on one ``param.update_rule``), a
    hook of any ``torch.optim`` optimizer (``gradient_lars.torch.add_hook``), and a function to call on anything that
    has ``data`` (or ``array``) and ``grad``.

    Args:
        threshold: a layer is adapted only if its weight norm is strictly greater; >= 0, in the weights' own units.
            Layers that start at zero, such as biases, are left to the plain optimizer by it. ``math.inf`` adapts none.
        weight_decay: coefficient of the decay added to the gradient inside the rate, >= 0. Leave the optimizer's own
            decay at 0: the hook applies it, and it is scaled with the gradient.
        eps: added to the denominator, >= 0.

    The three attributes may be changed between steps. Two hooks are equal only if they are the same object.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative, NaN or (but for `threshold`) infinite.

    Example:
        The gradient has norm 500 and the weights have norm 5; the hook brings the one to the other:

        >>> import numpy as np
        >>> from types import SimpleNamespace
        >>> from gradient_lars import GradientLARS
        >>> layer = SimpleNamespace(data=np.array([3.0, 4.0]), grad=np.array([300.0, -400.0]))
        >>> GradientLARS(weight_decay=0.0)(None, layer)
        >>> layer.grad
        array([ 3., -4.])

    It is not LARC (whose rate depends on lr and may be clipped) and not timm's ``Lars`` (which turns itself off at
    ``weight_decay=0``). It differs from Chainer's own ``GradientLARS`` on purpose in three places: under Chainer's loss
    scaling it sees through the scale, as Chainer's ``WeightDecay`` does; float16 norms are accumulated in float32, so
    that a norm above 65504 does not freeze the layer; with ``eps=0`` a gradient of zeros stays zero instead of
    becoming NaN.

    References:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", arXiv 1708.03888.
        Chainer 7.8.1, ``chainer.optimizer_hooks.GradientLARS``.
    """

    name: ClassVar[str] = "GradientLARS"
    timing: ClassVar[str] = "pre"
    call_for_each_param: ClassVar[bool] = True

    threshold = _NonNegative(infinite=True, remedy="Chainer's default is 0.01; 0 adapts every layer that is not zero.")
    weight_decay = _NonNegative(infinite=False, remedy="Recipes use 0 to 5e-4.")
    eps = _NonNegative(infinite=False, remedy="Chainer's default is 1e-9.")

    def __init__(self, threshold: float = 0.01, weight_decay: float = 0.0, eps: float = 1e-09) -> None:
        self.threshold = threshold
        self.weight_decay = weight_decay
        self.eps = eps

    def __call__(self, rule: Any, param: Any) -> None:
        """Rescale ``param.grad`` in place.

        Args:
            rule: Chainer's update rule of the parameter, or None. Only read, to tell a scaled gradient from an
                unscaled one.
            param: anything with ``data`` (or ``array``) and ``grad``, two arrays of one shape from NumPy, CuPy,
                ChainerX or PyTorch. If either is None nothing is touched.

        Raises:
            TypeError: `param` has no such attributes, or they are of another array library or not of floating point.
            ValueError: the gradient cannot be changed in place (read-only, overlapping), or is sparse and a decay is
                asked for. Nothing was changed then.
        """
        data = _array_of(param)
        # Read before the gradient: that of an uninitialised Chainer parameter raises until it has been cleared once.
        if data is None:
            return
        grad = _grad_of(param)
        if grad is None:
            return
        _arrays.rescale(
            data,
            grad,
            name=getattr(param, "name", None),
            threshold=self.threshold,
            weight_decay=self.weight_decay,
            eps=self.eps,
            loss_scale=self._loss_scale(rule, param),
        )

    def _loss_scale(self, rule: Any, param: Any) -> float | None:
        """Return the factor that Chainer's loss scaling left in the gradient, or None if there is none.

        Chainer divides the gradient by the scale after the optimizer's hooks and before the update rule's own hooks,
        but leaves ``param._loss_scale`` set in both. What tells the two calls apart is that Chainer 7 lets arrays of
        any layout be read while a rule updates its parameter, and only then. Earlier versions have no such state: there
        a hook that is registered on the rule is taken to be called by it.
        """
        scale = getattr(param, "_loss_scale", None)
        if scale is None:
            return None
        variable = getattr(sys.modules.get("chainer"), "variable", None)
        updating = getattr(variable, "_allow_array_access_with_nonstandard_layout", None)
        if updating is not None:
            return None if updating() else float(scale)
        registered = getattr(getattr(rule, "_hookable", None), "_pre_update_hooks", None) or {}
        return None if any(hook is self for hook in registered.values()) else float(scale)

    def __repr__(self) -> str:
        return f"GradientLARS(threshold={self.threshold}, weight_decay={self.weight_decay}, eps={self.eps})"


def _array_of(param: Any) -> Any:
    for attribute in ("array", "data"):
        if hasattr(param, attribute):
            return getattr(param, attribute)
    raise TypeError(f"`param` must have `.data` (or `.array`) and `.grad`, got {type(param).__name__}.")


def _grad_of(param: Any) -> Any:
    try:
        return param.grad
    except AttributeError:
        raise TypeError(f"`param` must have `.data` (or `.array`) and `.grad`, got {type(param).__name__}.") from None
