"""LARS in the ``Trainer`` of Hugging Face's transformers: the hook as a callback, and `LARS` as its optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradient_lars.hook import GradientLARS
from gradient_lars.integrations._attachment import Attachment, MonitorFactory, Params
from gradient_lars.torch import LARS, HookHandle, param_groups

try:
    from transformers import TrainerCallback, TrainingArguments
except ImportError:
    raise ImportError(
        "gradient_lars.integrations.transformers needs transformers with its Trainer. `pip install "
        '"transformers[torch]"`.'
    ) from None

__all__ = ["GradientLARSCallback", "optimizer_cls_and_kwargs"]

_DEFAULT_LR = TrainingArguments.__dataclass_fields__["learning_rate"].default


class GradientLARSCallback(TrainerCallback):
    """Put `GradientLARS` on the ``Trainer``'s optimizer while it trains, and a monitor if asked.

    In every step that the optimizer takes::

        gradients of all accumulated batches -> unscaled -> clipped to ``max_grad_norm`` -> LARS -> optimizer

    The clipping, which the Trainer does by default, comes first: it does not bound what LARS makes of the gradient, and
    cancels in the rate of an adapted layer where there is no decay.

    Args:
        hook: a `GradientLARS`. None adds no hook: for a `monitor` on an optimizer that is a `LARS`.
        params: restrict the hook to some parameters, as in `add_hook`: an iterable, or a predicate on the model's names
            and parameters.
        absorb_weight_decay: take the optimizer's ``weight_decay``, which the Trainer gives to all but norms and biases,
            into the rate.
        monitor: a function that is given the hook's handle, or the `LARS`, when the training begins, and returns what
            is to be closed when it ends.

    Raises:
        TypeError: an argument is not of its type; when the training begins, what `add_hook` raises.
        ValueError: nothing to do is left; when the training begins, what `add_hook` raises.

    Warns:
        UserWarning: the optimizer is Adam or its kin, as the Trainer's is by default, on which LARS has no effect.

    Example::

        trainer = Trainer(
            model,
            TrainingArguments("out", optim="sgd", optim_args="momentum=0.9", learning_rate=0.03, max_grad_norm=0),
            train_dataset=data,
            callbacks=[GradientLARSCallback(GradientLARS(weight_decay=1e-4))],
        )

    A checkpoint holds nothing of the callback: pass the same one when you resume.
    """

    def __init__(
        self,
        hook: GradientLARS | None,
        *,
        params: Params | None = None,
        absorb_weight_decay: bool = False,
        monitor: MonitorFactory | None = None,
    ) -> None:
        self._attachment = Attachment(hook, params=params, absorb_weight_decay=absorb_weight_decay, monitor=monitor)

    @property
    def handles(self) -> list[HookHandle]:
        """The hook's handle, in a list, for its `rates`: none before the training begins, kept after it."""
        return self._attachment.handles

    @property
    def monitors(self) -> list[Any]:
        """What `monitor` has returned, in a list."""
        return self._attachment.monitors

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the hook on; the optimizer is prepared by now."""
        self._attachment.attach([_inner(kwargs["optimizer"])], kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the hook off."""
        self._attachment.detach()


def optimizer_cls_and_kwargs(
    args: TrainingArguments, *, groups: Callable[[nn.Module], Any] | None = None, **settings: Any
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return what makes ``Trainer(..., optimizer_cls_and_kwargs=...)`` train with `LARS`.

    Args:
        args: the Trainer's own. Its ``learning_rate`` is `lr`, and its ``weight_decay`` that of the weights.
        groups: makes the groups of the Trainer's model; None takes ``param_groups(model, args.weight_decay)``, where
            norms and biases are neither adapted nor decayed. The Trainer calls it when the model is where it trains.
        settings: of `LARS`, or a preset: ``**presets.byol``, say. An `lr` among them is taken instead of
            ``args.learning_rate``, and a `weight_decay` where that of `args` is 0, its default.

    Raises:
        TypeError: a setting is unknown, or not of its type.
        ValueError: a setting is out of its range; ``args.learning_rate`` is still the Trainer's default; `settings`
            has another `weight_decay` than `args`.
        RuntimeError: the Trainer is of a transformers without optimizer factories.

    Example:
        >>> from transformers import TrainingArguments
        >>> from gradient_lars.integrations.transformers import optimizer_cls_and_kwargs
        >>> args = TrainingArguments("out", learning_rate=4.8, weight_decay=1e-4, max_grad_norm=0)
        >>> make, settings = optimizer_cls_and_kwargs(args, trust_coefficient=0.002)
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = make()(model, **settings)  # what the Trainer does
        >>> [(group["param_names"], group["lr"], group["adapt"]) for group in optimizer.param_groups]
        [(['weight'], 4.8, True), (['bias'], 4.8, False)]
    """
    _check_factories()
    weight_decay = settings.get("weight_decay", args.weight_decay)
    if args.weight_decay not in (0, weight_decay):
        raise ValueError(
            f"`weight_decay` is {weight_decay} among the settings and {args.weight_decay} in TrainingArguments. "
            "Leave it out in one of them."
        )
    if "lr" not in settings and args.learning_rate == _DEFAULT_LR:
        raise ValueError(
            f"`args.learning_rate` is {args.learning_rate}, the Trainer's default for Adam, at which LARS hardly moves "
            "a weight. Set it to a rate for LARS, such as 0.1 to 30 with trust_coefficient=0.001."
        )
    settings = {"lr": args.learning_rate, **settings}
    LARS([nn.Parameter(torch.zeros(1))], **settings)  # raises for a wrong setting now, not when the training begins
    make_groups = groups or (lambda model: param_groups(model, weight_decay))

    def make() -> Callable[..., LARS]:
        return lambda model, **settings: LARS(make_groups(model), **settings)

    return make, settings


def _inner(optimizer: Any) -> Any:
    """Return the optimizer in Accelerate's wrapper, which has no step hooks of its own."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _check_factories() -> None:
    try:
        from transformers.trainer_optimizer import is_optimizer_factory  # noqa: F401
    except ImportError:
        raise RuntimeError(
            "`optimizer_cls_and_kwargs` needs a Trainer that can be given a function of the model, as that of "
            "transformers 5. With an older one pass `(LARS, {'lr': ..., 'adapt': None})`, or "
            "`optimizers=(LARS(param_groups(model, ...), ...), None)`."
        ) from None
