"""The training stretch of ``gradient-lars advise``, and the noise scales at its start, middle and end."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradient_lars import presets
from gradient_lars.cli.advise_errors import enough_memory, reported
from gradient_lars.cli.advise_noise import NoiseScale, noise_scale, split_signal
from gradient_lars.cli.advise_probe import Probe
from gradient_lars.cli.advise_settings import STRETCHES, AdviseSettings
from gradient_lars.cli.advise_task import Task
from gradient_lars.cli.errors import CommandError
from gradient_lars.torch import LARS, scaled_lr

SIMPLE = "B_simple"
WITH_HESSIAN = "B_noise"
_CHECKED_EVERY = 20
_USUAL_STEPS = 90, 300


@dataclass(frozen=True)
class Measured:
    """One value for each step, on the host, float64; see `Probe.step`.

    Attributes:
        no_hessian: why the last two hold nothing, or "".
    """

    loss: Tensor
    small: Tensor
    big: Tensor
    curved_signal: Tensor
    curved_noise: Tensor
    no_hessian: str


@dataclass(frozen=True)
class Estimate:
    """A noise scale of one stretch of the steps; `first` and `last` count from 1."""

    stretch: str
    first: int
    last: int
    estimator: str
    scale: NoiseScale
    loss: float


def preset_of(task: Task) -> presets.Preset:
    """Return the preset that the measured steps are taken with, and that is proposed."""
    return presets.mlperf_resnet if task.has_batch_norm else presets.paper


def n_steps(task: Task, settings: AdviseSettings) -> int:
    """Return `settings.steps`, or as many as the training of `settings.epochs` has, from 90 to 300.

    Beyond the training's own length the figures would be those of a model that has learnt its data by heart.
    """
    few, many = _USUAL_STEPS
    return settings.steps or max(few, min(many, settings.epochs * len(task) // settings.big_batch))


def measure(task: Task, settings: AdviseSettings, device: torch.device, advance: Callable[[], None]) -> Measured:
    """Train for `n_steps` steps with LARS, and measure the gradients of each.

    Args:
        task: what to train; its model is changed.
        settings: the checked options.
        device: where.
        advance: called after each step.

    Raises:
        CommandError: the user's code raised an error, the loss is not finite or no scalar, or memory ran out.
    """
    _place(task, device)
    probe = Probe(task, hessian=settings.hessian)
    steps = n_steps(task, settings)
    lr = scaled_lr(settings.base_lr, settings.big_batch, base_batch_size=settings.base_batch, rule="sqrt")
    numbers = steps * (settings.micro_batches + 1)
    rows: list[Tensor] = []
    spent = (
        f"`--micro-batch`: {settings.micro_batch} samples do not fit into the memory of {device}: give fewer, and more "
        "`--micro-batches`."
    )
    with enough_memory(spent), reported(task.name, "the training step"):
        optimizer = LARS(probe.parameters, lr=lr, **preset_of(task))
        batches = task.batches(settings.micro_batch, numbers, settings.seed, device)
        for step in range(1, steps + 1):
            rows.append(probe.step(batches, settings.micro_batch, settings.micro_batches))
            optimizer.step()
            if step % _CHECKED_EVERY == 0 or step == steps:
                _check_finite(rows[-_CHECKED_EVERY:], step, settings)
            advance()
    loss, small, big, signal, noise = torch.stack(rows).cpu().unbind(1)
    return Measured(loss, small, big, signal, noise, probe.no_hessian)


def _place(task: Task, device: torch.device) -> None:
    spent = f"{task.name} returned a model that does not fit into the memory of {device}: give another `--device`."
    with enough_memory(spent), reported(task.name, f"model.to({device})"):
        task.model.to(device)
    with reported(task.name, "model.train()"):
        task.model.train()


def _check_finite(rows: list[Tensor], step: int, settings: AdviseSettings) -> None:
    if not torch.stack(rows).isfinite().all():  # the host waits for the device here
        raise CommandError(
            f"the loss or a gradient is not finite by step {step}: give a smaller `--base-lr` than "
            f"{settings.base_lr:g}, and look whether the loss is finite for every sample."
        )


def estimates(measured: Measured, settings: AdviseSettings) -> list[Estimate]:
    """Return both noise scales at start, middle and end of the steps."""
    pairs = {SIMPLE: split_signal(measured.small, measured.big, settings.micro_batch, settings.big_batch)}
    if not measured.no_hessian:
        pairs[WITH_HESSIAN] = measured.curved_signal, measured.curved_noise
    found = []
    for stretch, steps in zip(STRETCHES, torch.arange(len(measured.loss)).tensor_split(len(STRETCHES)), strict=True):
        first, last = int(steps[0]), int(steps[-1])
        for name, (signal, noise) in pairs.items():
            scale = noise_scale(signal[first : last + 1], noise[first : last + 1], seed=settings.seed)
            loss = float(measured.loss[first : last + 1].mean())
            found.append(Estimate(stretch, first + 1, last + 1, name, scale, loss))
    return found
