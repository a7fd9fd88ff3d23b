"""``GradientLARSCallback``: the hook, and a monitor of it, in a Lightning ``Trainer``."""

import operator
from collections.abc import Iterable
from typing import Any

from gradient_lars.hook import GradientLARS
from gradient_lars.integrations._attachment import Attachment, MonitorFactory, Params
from gradient_lars.torch import HookHandle

try:
    import lightning.pytorch as pl
except ImportError:  # the same code, under the name of its older package
    try:
        import pytorch_lightning as pl  # type: ignore[no-redef]
    except ImportError:
        raise ImportError(
            "gradient_lars.integrations.lightning needs Lightning, which is not installed. `pip install lightning`."
        ) from None

__all__ = ["GradientLARSCallback"]


class GradientLARSCallback(pl.Callback):
    """Put `GradientLARS` on the optimizers of a Lightning module while it is fitted, and a monitor if asked.

    In automatic and in manual optimization, in every step that the optimizer takes::

        gradients of all accumulated batches -> unscaled -> clipped by the Trainer -> LARS -> optimizer

    so that accumulated batches count as the one large batch they stand for. The Trainer's ``gradient_clip_val`` comes
    first: it does not bound what LARS makes of the gradient, and cancels in the rate of an adapted layer where there is
    no decay.

    Args:
        hook: a `GradientLARS`. Its attributes may be changed during the training. None adds no hook: for a `monitor` on
            an optimizer that is a `LARS`.
        params: restrict the hook to some parameters, as in `add_hook`: an iterable, or a predicate on name and
            parameter. Names are those of the optimizer, or the module's if the optimizer was made without names.
        absorb_weight_decay: take the optimizer's own ``weight_decay`` into the rate, as in `add_hook`.
        optimizers: positions, in ``trainer.optimizers``, of those that it is for; None means all.
        monitor: a function that is given the hook's handle, or the `LARS`, when the fit begins, once for each
            optimizer, and returns what is to be closed when it ends.

    Raises:
        TypeError: an argument is not of its type; when the fit begins, what `add_hook` raises.
        ValueError: nothing to do is left; when the fit begins, `optimizers` names one that there is not, or what
            `add_hook` raises.

    A checkpoint holds nothing of the callback: pass the same one when you resume. Hooks that are put on in
    ``configure_optimizers`` with `add_hook` work as well; the callback does it from outside of the module.

    Example:
        The layer's gradient is far too long; with LARS the layer moves by ``lr`` times its own length of 5:

        >>> import lightning, torch
        >>> from gradient_lars import GradientLARS
        >>> from gradient_lars.integrations.lightning import GradientLARSCallback
        >>> class Module(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        ...     def training_step(self, batch, _):
        ...         return self.weight @ batch
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.named_parameters(), lr=0.1)
        >>> callback = GradientLARSCallback(GradientLARS())
        >>> quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        >>> trainer = lightning.Trainer(
        ...     accelerator="cpu", callbacks=[callback], max_epochs=1, enable_model_summary=False, **quiet)
        >>> module = Module()
        >>> trainer.fit(module, torch.utils.data.DataLoader([torch.tensor([300.0, -400.0])], batch_size=None))
        >>> module.weight.data
        tensor([2.7000, 4.4000])
        >>> [f"{layer.name}: {layer.rate:.4f}" for layer in callback.handles[0].rates()]
        ['weight: 0.0100']
    """

    def __init__(
        self,
        hook: GradientLARS | None,
        *,
        params: Params | None = None,
        absorb_weight_decay: bool = False,
        optimizers: Iterable[int] | None = None,
        monitor: MonitorFactory | None = None,
    ) -> None:
        super().__init__()
        self._attachment = Attachment(hook, params=params, absorb_weight_decay=absorb_weight_decay, monitor=monitor)
        self._optimizers = None if optimizers is None else [operator.index(place) for place in optimizers]

    @property
    def handles(self) -> list[HookHandle]:
        """The hook's handles, one for each optimizer, for their `rates`: none before the fit begins, kept after it."""
        return self._attachment.handles

    @property
    def monitors(self) -> list[Any]:
        """What `monitor` has returned, one for each optimizer."""
        return self._attachment.monitors

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the hook on; a checkpoint has been loaded by now, so that `monitor` can see ``trainer.global_step``."""
        found = trainer.optimizers
        places = range(len(found)) if self._optimizers is None else self._optimizers
        for place in places:
            if not 0 <= place < len(found):
                raise ValueError(
                    f"`optimizers` names {place}, but the module has {len(found)}, counted from 0. Leave it out for "
                    "all of them."
                )
        self._attachment.attach([found[place] for place in places], pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the hook off."""
        self._attachment.detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the hook off."""
        self._attachment.detach()
