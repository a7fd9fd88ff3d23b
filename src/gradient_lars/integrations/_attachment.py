"""A hook and a monitor on the optimizers of a trainer, from the beginning of a training to its end."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from gradient_lars.hook import GradientLARS
from gradient_lars.torch import LARS, HookHandle, add_hook

Source = HookHandle | LARS
Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Callable[[str, Tensor], bool]


class Closable(Protocol):
    """What a `monitor` makes: something that is closed when the training ends, such as a ``Monitor``."""

    def close(self) -> Any:
        """Write out what is left."""


MonitorFactory = Callable[[Source], Closable]


class Attachment:
    """What the callbacks of all frameworks have in common.

    Attributes:
        handles: of the hook, one for each optimizer; after a training still those of the last one, for their `rates`.
        monitors: what `monitor` has made, one for each optimizer.
    """

    def __init__(
        self,
        hook: GradientLARS | None,
        *,
        params: Params | None,
        absorb_weight_decay: bool,
        monitor: MonitorFactory | None,
    ) -> None:
        if hook is not None and not isinstance(hook, GradientLARS):
            raise TypeError(
                f"`hook` must be a GradientLARS or None, got {_described(hook)}. Put other hooks on the optimizer with "
                "`gradient_lars.torch.add_hook`."
            )
        if monitor is not None and not callable(monitor):
            raise TypeError(
                f"`monitor` must be a function that makes one, got {_described(monitor)}. The optimizer is not there "
                "yet: pass `lambda source: Monitor(source, every=10)`, for example."
            )
        if hook is None and monitor is None:
            raise ValueError("`hook` and `monitor` are both None, which leaves nothing to do. Pass one of them.")
        if hook is None and (params is not None or absorb_weight_decay):
            raise ValueError("`params` and `absorb_weight_decay` are settings of the hook. Pass `hook` as well.")
        self.handles: list[HookHandle] = []
        self.monitors: list[Closable] = []
        self._hook = hook
        # An iterator would be used up by the first optimizer, or the first training.
        self._params = params if params is None or callable(params) else list(params)
        self._absorb_weight_decay = absorb_weight_decay
        self._monitor = monitor
        self._open: list[Closable] = []

    def attach(self, optimizers: Sequence[Optimizer], module: nn.Module) -> None:
        """Put the hook, and a monitor, on each of `optimizers`; all of them or, if one refuses, none."""
        self.detach()
        self.handles, self.monitors = [], []
        try:
            for optimizer in optimizers:
                source = self._source(optimizer, module)
                if self._monitor is not None:
                    self.monitors.append(self._monitor(source))
                    self._open.append(self.monitors[-1])
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Close the monitors and take the hooks off; does nothing where that is done already."""
        # One that cannot be closed keeps nothing else open.
        with ExitStack() as stack:
            for handle in self.handles:
                stack.callback(handle.remove)
            while self._open:
                stack.callback(self._open.pop(0).close)

    def _source(self, optimizer: Optimizer, module: nn.Module) -> Source:
        if self._hook is not None:
            params = _of_unnamed(optimizer, self._params, module)
            handle = add_hook(optimizer, self._hook, params=params, absorb_weight_decay=self._absorb_weight_decay)
            self.handles.append(handle)
            return handle
        if not isinstance(optimizer, LARS):
            raise TypeError(
                f"`monitor` needs an optimizer with rates, and {type(optimizer).__name__} has none. Pass "
                "`hook=GradientLARS(...)` as well, or use `gradient_lars.torch.LARS`."
            )
        return optimizer


def _of_unnamed(optimizer: Optimizer, params: Any, module: nn.Module) -> Any:
    """Return `params`; as a list if it is a predicate and the names are known to `module` alone."""
    if not callable(params) or all("param_names" in group for group in optimizer.param_groups):
        return params
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    found = [param for name, param in module.named_parameters() if id(param) in held and params(name, param)]
    if not found:
        raise ValueError("`params` selects none of the optimizer's parameters. Leave it out to select all.")
    return found


def _described(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
