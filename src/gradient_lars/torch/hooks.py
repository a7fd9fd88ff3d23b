"""``add_hook``, ``remove_hook`` and ``HookHandle``: Chainer's hook protocol on any ``torch.optim`` optimizer."""

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from gradient_lars.hook import GradientLARS
from gradient_lars.torch import _checks, _dispatch
from gradient_lars.torch._actions import LarsAction, ProtocolAction
from gradient_lars.torch._closure import Arguments, ClosureArgument
from gradient_lars.torch._decay import AbsorbedDecay
from gradient_lars.torch._selection import Params, Selection
from gradient_lars.torch._step_guard import OncePerStep, StepGuard, calls_other_steps
from gradient_lars.torch.rates import LayerRates

Hook = Callable[..., Any]

# An attribute of the optimizer object, which copies and pickles leave out as they leave out PyTorch's step hooks. A
# registry beside it would keep optimizers alive that their own hooks refer to.
_ATTRIBUTE = "_gradient_lars_handles"


def _handles(optimizer: torch.optim.Optimizer) -> "dict[str, HookHandle]":
    handles: dict[str, HookHandle] = optimizer.__dict__.setdefault(_ATTRIBUTE, {})
    return handles


def add_hook(
    optimizer: torch.optim.Optimizer,
    hook: Hook,
    name: str | None = None,
    timing: str = "auto",
    *,
    params: Params | None = None,
    absorb_weight_decay: bool = False,
    path: str | None = None,
) -> "HookHandle":
    """Put `hook` on `optimizer`, as ``chainer.Optimizer.add_hook`` does.

    A `GradientLARS` rescales the gradients of all layers together before each step::

        g <- rate * (g + weight_decay * p),   rate = ||p|| / (eps + ||g|| + weight_decay * ||p||)

    without waiting for a GPU. Any other hook of Chainer's protocol is called as ``hook(None, param)`` for every
    parameter if its `call_for_each_param` is true, else once as ``hook(optimizer)``. Hooks run in the order in which
    they were added. With ``step(closure)`` the hook acts inside the closure, on the gradients it has just produced.

    Under ``torch.amp.GradScaler`` the result is that of unscaled training, with plain optimizers and with
    ``fused=True``, where the gradients still hold the scale; hooks other than GradientLARS see them scaled there.

    Args:
        optimizer: any ``torch.optim.Optimizer`` but LBFGS. Its parameters are the layers; a shared one counts once.
            For groups that maximize, the decay is subtracted, so that weights shrink there too.
        hook: a `GradientLARS`, or any callable of Chainer's protocol.
        name: to remove it by and unique on the optimizer; default ``hook.name``, then ``hook.__name__``.
        timing: 'pre' before the update, 'post' after it, 'auto' the hook's own `timing`, by default 'pre'.
        params: restrict the hook to these parameters: an iterable of parameters (or of name and parameter), or a
            predicate on name and parameter. The names are those of ``torch.optim.SGD(model.named_parameters(), ...)``;
            the predicate is also asked about parameters that are added later.
        absorb_weight_decay: take each group's own ``weight_decay`` into the rate instead of the hook's, and keep the
            optimizer from applying it again: it is 0 while the optimizer steps and back afterwards, also when the step
            raises. Use it where groups have different decays.
        path: 'loop' (readable, one layer after the other), 'foreach' (multi-tensor), 'fused' (Triton on CUDA and ROCm;
            layers that are not dense, or complex, take 'foreach' in the same step), or None, which chooses: 'fused'
            where it can run, else 'foreach'.

    Returns:
        A handle with `rates`, the figures of the last step, and `remove`.

    Raises:
        TypeError: `optimizer` is no ``torch.optim.Optimizer`` or is LBFGS; `hook` is not callable; `params` holds
            something that is no tensor; `absorb_weight_decay` without a GradientLARS.
        ValueError: `timing`, `path` or `params` is not as described; the hook has no name; a decay is set in the hook
            and in a group; `optimizer` does layer-wise scaling itself; the parameters are sharded in a way that has
            lost their layers (FSDP1, DeepSpeed's ZeRO). Steps raise the same for what has happened since.
        RuntimeError: in a step, if `path` is 'fused' and that cannot run.
        KeyError: `name` is in use on this optimizer.

    Warns:
        UserWarning: `optimizer` is Adam or another one that cancels any rescaling of the gradient.

    ``copy.deepcopy`` and pickling drop the step hooks of an optimizer, these among them; add the hook to the copy.

    Example:
        The gradient is 100 times longer than the weights, and the plain step would be far too long:

        >>> import torch
        >>> from gradient_lars import GradientLARS
        >>> from gradient_lars.torch import add_hook
        >>> layer = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = torch.optim.SGD([layer], lr=0.1)
        >>> handle = add_hook(optimizer, GradientLARS())
        >>> layer.grad = torch.tensor([300.0, -400.0])
        >>> optimizer.step()
        >>> layer.data
        tensor([2.7000, 4.4000])
        >>> handle.rates().rate
        tensor([0.0100], dtype=torch.float64)
    """
    _checks.check_optimizer(optimizer)
    _checks.check_hook(hook)
    timing = _checks.resolve_timing(hook, timing)
    name = _checks.resolve_name(hook, name, _handles(optimizer))
    _dispatch.check_path(path)
    # A subclass with a `__call__` of its own is called as any other hook is.
    is_lars = isinstance(hook, GradientLARS) and type(hook).__call__ is GradientLARS.__call__
    _check_options(hook, timing, is_lars=is_lars, params=params, absorb=absorb_weight_decay, path=path)
    selection = Selection(optimizer, params)
    absorbed = AbsorbedDecay() if absorb_weight_decay else None
    action: LarsAction | ProtocolAction
    if is_lars:
        action = LarsAction(hook, selection, absorbed, path)  # type: ignore[arg-type]
        _checks.check_not_lars_already(optimizer)
        action.check(optimizer)
        _checks.warn_if_rescaling_cancels(optimizer)
    else:
        action = ProtocolAction(hook, selection)
    handle = HookHandle(optimizer, hook, name, timing, action, absorbed)
    _handles(optimizer)[name] = handle
    return handle


def remove_hook(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Take the hook registered as `name` off `optimizer`.

    Raises:
        KeyError: there is no hook of that name; the message lists those there are.
    """
    handles = _handles(optimizer)
    if name not in handles:
        known = ", ".join(repr(known) for known in handles) or "none"
        raise KeyError(f"`name` {name!r} is not a hook of this optimizer. Its hooks: {known}.")
    handles[name].remove()


class HookHandle:
    """A hook on an optimizer, as `add_hook` returns it. Used as a context manager it takes the hook off at the end."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        hook: Hook,
        name: str,
        timing: str,
        action: LarsAction | ProtocolAction,
        absorbed: AbsorbedDecay | None,
    ) -> None:
        self.hook = hook
        self.name = name
        self.timing = timing
        self._optimizer = weakref.ref(optimizer)
        self._action = action
        self._guard = StepGuard.of(optimizer)
        self._once = OncePerStep(self._guard)
        self._closure = ClosureArgument(optimizer)
        self._at_exit = absorbed.give_back if absorbed else _nothing
        self._registered: list[RemovableHandle] = []
        if timing == "pre":
            self._registered.append(optimizer.register_step_pre_hook(self._before_step))
        else:
            self._registered.append(optimizer.register_step_post_hook(self._after_step))
        if absorbed is not None:
            self._registered.append(optimizer.register_step_post_hook(self._give_back))
        if absorbed is not None or calls_other_steps(optimizer):
            self._guard.add(optimizer, self._at_exit)

    def rates(self) -> LayerRates:
        """Return norms and rates of the last step; they stay on the device until they are read.

        Raises:
            RuntimeError: no step was taken yet.
            TypeError: the hook is not a `GradientLARS`, which alone has rates.
        """
        if not isinstance(self._action, LarsAction):
            raise TypeError(f"`rates` needs a GradientLARS hook, but {self.name!r} is not one.")
        if self._action.rates is None:
            raise RuntimeError("`rates` has nothing to show yet. Take a step first.")
        return self._action.rates

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that the hook was put on.

        Raises:
            RuntimeError: it is gone; a handle does not keep it alive.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError("`optimizer` is gone: the handle does not keep it alive. Hold on to it yourself.")
        return optimizer

    def remove(self) -> None:
        """Take the hook off its optimizer; does nothing if it is off already."""
        optimizer = self._optimizer()
        if optimizer is None or _handles(optimizer).get(self.name) is not self:
            return
        del _handles(optimizer)[self.name]
        for handle in self._registered:
            handle.remove()
        self._guard.remove(optimizer, self._at_exit)

    def __enter__(self) -> "HookHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"HookHandle(name={self.name!r}, timing={self.timing!r}, hook={self.hook!r})"

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        """Act on the gradients; or have the closure do so, since it makes them only during the step."""
        if not self._once.first():
            return None
        run = self._action.prepare(optimizer)
        closure = self._closure.of(args, kwargs)
        if closure is None:
            run()
            return None

        def closure_then_hook() -> Any:
            loss = closure()
            run()
            return loss

        return self._closure.replaced(args, kwargs, closure_then_hook)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._once.first():
            self._action.prepare(optimizer)()

    def _give_back(self, *_: Any) -> None:
        # Within a guarded step the guard does it, after whatever the optimizer's own class still does.
        if not self._guard.inside:
            self._at_exit()


def _nothing() -> None:
    pass


def _check_options(
    hook: Hook, timing: str, *, is_lars: bool, params: Params | None, absorb: bool, path: str | None
) -> None:
    """Raise if an option is given to a hook that cannot heed it."""
    if not is_lars and absorb:
        raise TypeError("`absorb_weight_decay` needs a GradientLARS hook: only its rate can take a decay in.")
    if not is_lars and path is not None:
        raise TypeError("`path` needs a GradientLARS hook: other hooks are called one parameter at a time.")
    if absorb and timing == "post":
        raise ValueError("`absorb_weight_decay` needs `timing` 'pre': after the step the decay has been applied.")
    if params is not None and not getattr(hook, "call_for_each_param", False):
        raise ValueError("`params` cannot restrict a hook whose `call_for_each_param` is false: it is called once.")
