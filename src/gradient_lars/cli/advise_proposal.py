"""What ``gradient-lars advise`` proposes from the noise scales, and why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradient_lars.cli.advise_measure import SIMPLE, Estimate, preset_of
from gradient_lars.cli.advise_noise import NoiseScale, pooled
from gradient_lars.cli.advise_settings import RECIPE_BATCH, RECIPE_LR, RECIPE_WARM_UP, STRETCHES, AdviseSettings
from gradient_lars.cli.advise_task import Task
from gradient_lars.torch import scaled_lr

# Above this the batch of the whole training is too large for its beginning.
_GROWTH = 4
_LONGER_WARM_UP = 0.1
# The optimizer steps of MLPerf's ResNet-50: 37 epochs of 1,281,167 images. A shorter training wants a larger rate.
_RECIPE_STEPS = 14000
_TRIES = (3, 10)


@dataclass(frozen=True)
class Proposal:
    """The settings to begin with.

    Attributes:
        batch: samples in a step, a power of two unless all of them are.
        lr: by the square-root rule; `linear_lr` by the linear one.
        other_lrs: to try as well; none where the user named a learning rate that served.
        warm_up: steps, of `steps`.
        preset: a name of `gradient_lars.presets`.
        reasons: one sentence or two for each of batch, learning rate, warm-up and preset.
    """

    batch: int
    lr: float
    linear_lr: float
    other_lrs: tuple[float, ...]
    warm_up: int
    steps: int
    preset: str
    reasons: tuple[str, ...]


def whole(found: Sequence[Estimate], estimator: str, seed: int) -> NoiseScale:
    """Return the noise scale of all the steps, which decides for B_simple; see `pooled`."""
    return pooled([estimate.scale for estimate in found if estimate.estimator == estimator], seed=seed)


def propose(found: Sequence[Estimate], task: Task, settings: AdviseSettings) -> Proposal | None:
    """Return the proposal, or None where `why_none` says why there is none.

    B_simple decides: its interval is the narrower one.
    """
    scale = whole(found, SIMPLE, settings.seed)
    if why_none(scale):
        return None
    scales = {estimate.stretch: estimate.scale for estimate in found if estimate.estimator == SIMPLE}
    start, end = scales[STRETCHES[0]], scales[STRETCHES[-1]]
    batch = nearest_power(scale.value, len(task))
    steps = max(1, settings.epochs * (len(task) // batch))
    share = _LONGER_WARM_UP if end.low > _GROWTH * start.high else RECIPE_WARM_UP
    warm_up = min(max(1, round(share * steps)), steps - 1)
    lr, linear = (
        scaled_lr(settings.base_lr, batch, base_batch_size=settings.base_batch, rule=rule)
        for rule in ("sqrt", "linear")
    )
    others = tuple(factor * lr for factor in _TRIES) if _of_recipe(settings) and steps < _RECIPE_STEPS else ()
    reasons = (
        _why_batch(batch, scale, len(task)),
        _why_lr(linear, others, settings),
        _why_warm_up(warm_up, steps, start, end, share),
        _why_preset(task),
    )
    return Proposal(batch, lr, linear, others, warm_up, steps, preset_of(task).name, reasons)


def why_none(scale: NoiseScale) -> str:
    """Return why no batch is proposed from the noise scale of all the steps; "" where one is."""
    if math.isnan(scale.value):
        return "the gradient is 0 in every step, and so is its noise: the model learns nothing from this loss."
    if math.isinf(scale.value):
        above = (
            f"It is above {figure(scale.low)}, the lower end of its interval: batches up to that size pay, of larger "
            "ones the figures say nothing."
            if math.isfinite(scale.low)
            else "The figures give no lower end of the noise scale either."
        )
        return f"the noise hides the gradient. {above} Give more --micro-batches or --steps."
    if scale.value < 1:
        return (
            f"the noise scale is {figure(scale.value)}, below a single sample: all samples have nearly the same "
            "gradient, so a larger batch saves hardly any steps. Take the smallest batch that keeps the device busy."
        )
    return ""


def nearest_power(value: float, most: int) -> int:
    """Return the power of two nearest to `value` on a logarithmic scale, at least 2, or `most` where that is less.

    `most` itself only where `value` reaches it: else the power of two below it.
    """
    if value >= most:
        return most
    nearest = 1 << max(1, round(math.log2(max(value, 1))))
    return nearest if nearest < most else min(2, most) if most <= 2 else 1 << ((most - 1).bit_length() - 1)


def figure(value: float) -> str:
    """Return a noise scale as it is printed."""
    if math.isnan(value):
        return "0 / 0"
    if math.isinf(value):
        return "inf"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def counted(number: int, noun: str) -> str:
    """Return ``1 step`` or ``2 steps``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _why_batch(batch: int, scale: NoiseScale, n: int) -> str:
    if scale.value >= n:
        text = (
            f"all {counted(n, 'sample')} are no more than the noise scale of all the steps, {figure(scale.value)}: "
            "more parallelism pays up to the whole data set. "
        )
    else:
        text = (
            f"a power of two near the noise scale of all the steps, {figure(scale.value)}, where both steps and "
            "samples are twice the fewest possible; beyond it samples grow faster than steps shrink. "
        )
    return text + _fitting(scale, n)


def _fitting(scale: NoiseScale, n: int) -> str:
    low = figure(max(1.0, scale.low))
    if math.isinf(scale.high):
        return (
            f"Anything from {low} up fits its interval: the noise may hide the gradient, so this batch is a guess. "
            "Give more --micro-batches or --steps."
        )
    if scale.low >= n:
        return "Its interval says so too."
    return f"Anything from {low} to {f'all {n}' if scale.high >= n else figure(scale.high)} fits its interval."


def _of_recipe(settings: AdviseSettings) -> bool:
    return (settings.base_lr, settings.base_batch) == (RECIPE_LR, RECIPE_BATCH)


def _why_lr(linear: float, others: Sequence[float], settings: AdviseSettings) -> str:
    source = "MLPerf's ResNet-50," if _of_recipe(settings) else "your"
    text = (
        f"square-root rule from {source} {settings.base_lr:g} at {settings.base_batch}. LARS divides by the gradient's "
        f"norm, which noise makes 1 / sqrt(batch) below the noise scale; the linear rule gives {linear:.3g}."
    )
    if not others:
        return text
    return (
        f"{text} That is for {_RECIPE_STEPS} steps; fewer want more, so try the others as well, or give --base-lr and "
        "--base-batch that served you."
    )


def _why_warm_up(warm_up: int, steps: int, start: NoiseScale, end: NoiseScale, share: float) -> str:
    if steps == 1:
        return "the training is a single step."
    text = f"{warm_up} of {counted(steps, 'step')}"
    if share == _LONGER_WARM_UP:
        return (
            f"{text}. {_growth(start, end)}: at first the batch is far larger than useful, and its steps are few, so "
            "10 % instead of the 5 % (2 of 37 epochs) of MLPerf."
        )
    return f"{text}, the share of MLPerf's 2 of 37 epochs. {_growth(start, end)}."


def _growth(start: NoiseScale, end: NoiseScale) -> str:
    """Say how the noise scale went, as far as the intervals of start and end tell."""
    first, last = f"from {figure(start.value)} at the start", f"{figure(end.value)} at the end"
    hidden = [name for name, scale in (("start", start), ("end", end)) if not math.isfinite(scale.value)]
    if hidden == ["end"] and start.high < end.low < math.inf:
        return f"The noise scale grew {first} to more than {figure(end.low)} at the end"
    if hidden:
        where = " and at the ".join(hidden)
        return f"Whether the noise scale grew is not known: noise hides the gradient at the {where}"
    if start.low <= end.high and end.low <= start.high:
        return f"The noise scale went {first} to {last}, no more than their intervals allow by chance"
    return f"The noise scale {'grew' if end.value > start.value else 'fell'} {first} to {last}"


def _why_preset(task: Task) -> str:
    if task.has_batch_norm:
        return (
            "the model has batch normalisation, whose weights and biases it leaves out of the rates and of the decay."
        )
    return "the model has no batch normalisation: the paper's algorithm, every layer adapted."
