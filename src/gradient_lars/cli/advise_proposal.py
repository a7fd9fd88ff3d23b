"""What ``gradient-lars advise`` proposes from the noise scales, and why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradient_lars.cli.advise_measure import SIMPLE, Estimate, preset_of
from gradient_lars.cli.advise_noise import NoiseScale
from gradient_lars.cli.advise_settings import RECIPE_BATCH, RECIPE_LR, RECIPE_WARM_UP, STRETCHES, AdviseSettings
from gradient_lars.cli.advise_task import Task
from gradient_lars.torch import scaled_lr

# Above this the batch of the whole training is too large for its beginning.
_GROWTH = 4
_LONGER_WARM_UP = 0.1


@dataclass(frozen=True)
class Proposal:
    """The settings to begin with.

    Attributes:
        batch: samples in a step, a power of two unless all of them are.
        lr: by the square-root rule; `linear_lr` by the linear one.
        warm_up: steps, of `steps`.
        preset: a name of `gradient_lars.presets`.
        reasons: one sentence or two for each of batch, learning rate, warm-up and preset.
    """

    batch: int
    lr: float
    linear_lr: float
    warm_up: int
    steps: int
    preset: str
    reasons: tuple[str, ...]


def propose(found: Sequence[Estimate], task: Task, settings: AdviseSettings) -> Proposal | None:
    """Return the proposal, or None where the noise hides the gradient at the end of the steps.

    B_simple decides: its interval is the narrower one, and it is what the paper uses for this.
    """
    scales = {estimate.stretch: estimate.scale for estimate in found if estimate.estimator == SIMPLE}
    start, end = scales[STRETCHES[0]], scales[STRETCHES[-1]]
    if not math.isfinite(end.value):
        return None
    batch = nearest_power(end.value, len(task))
    steps = max(1, settings.epochs * (len(task) // batch))
    share = _LONGER_WARM_UP if end.value > _GROWTH * start.value else RECIPE_WARM_UP
    warm_up = max(1, round(share * steps))
    lr, linear = (
        scaled_lr(settings.base_lr, batch, base_batch_size=settings.base_batch, rule=rule)
        for rule in ("sqrt", "linear")
    )
    reasons = (
        _why_batch(batch, end, len(task)),
        _why_lr(lr, linear, settings),
        _why_warm_up(warm_up, steps, start, end, share),
        _why_preset(task),
    )
    return Proposal(batch, lr, linear, warm_up, steps, preset_of(task).name, reasons)


def nearest_power(value: float, most: int) -> int:
    """Return the power of two nearest to `value` on a logarithmic scale, at least 2, or `most` where that is less."""
    if value >= most:
        return most
    return min(1 << max(1, round(math.log2(max(value, 1)))), most)


def _why_batch(batch: int, end: NoiseScale, n: int) -> str:
    if batch == n:
        return (
            f"all {n} samples are no more than the noise scale at the end, {end.value:.3g}: more parallelism pays up "
            "to the whole data set."
        )
    return (
        f"the noise scale at the end is {end.value:.3g}. There both steps and samples are twice the fewest possible; "
        "beyond it more parallelism costs more samples than it saves steps."
    )


def _why_lr(lr: float, linear: float, settings: AdviseSettings) -> str:
    recipe = (settings.base_lr, settings.base_batch) == (RECIPE_LR, RECIPE_BATCH)
    source = "MLPerf's ResNet-50" if recipe else "your"
    text = (
        f"square-root rule from {source} {settings.base_lr:g} at {settings.base_batch}. LARS divides by the gradient's "
        f"norm, which noise makes 1 / sqrt(batch) below the noise scale; the linear rule gives {linear:.3g}."
    )
    return text + (
        " A training of few epochs wants more: try 3, 10 and 30 times it, or give --base-lr and --base-batch."
        if recipe
        else ""
    )


def _why_warm_up(warm_up: int, steps: int, start: NoiseScale, end: NoiseScale, share: float) -> str:
    growth = end.value / start.value if start.value > 0 else math.inf
    if share == _LONGER_WARM_UP:
        return (
            f"{warm_up} of {steps} steps. The noise scale grew {growth:.3g}-fold: at first the batch is far larger "
            "than useful, and its steps are few, so 10 % instead of the 5 % (2 of 37 epochs) of MLPerf."
        )
    return f"{warm_up} of {steps} steps, the share of MLPerf's 2 of 37 epochs; the noise scale grew {growth:.3g}-fold."


def _why_preset(task: Task) -> str:
    if task.has_batch_norm:
        return (
            "the model has batch normalisation, whose weights and biases it leaves out of the rates and of the decay."
        )
    return "the model has no batch normalisation: the paper's algorithm, every layer adapted."
