r"""The gradient noise scale, from gradients at two batch sizes; plain mathematics on tensors.

With G the gradient of the mean loss over all the data, Sigma the covariance of one sample's gradient and H the Hessian,
a batch of B samples has ``E |g_B|^2 = |G|^2 + tr(Sigma) / B`` and ``E g_B^T H g_B = G^T H G + tr(H Sigma) / B``. Each
is one equation in two unknowns, so two batch sizes give them, without bias (McCandlish et al., arXiv 1812.06162,
appendix A.1). Their quotients are the paper's two noise scales, ``B_simple = tr(Sigma) / |G|^2`` and
``B_noise = tr(H Sigma) / (G^T H G)``; the means over the steps are taken before the quotient, which has a bias else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class NoiseScale:
    """A noise scale in samples, and the ends of its interval.

    Attributes:
        value: infinity where the estimated `signal` is not positive: the noise hides the gradient, or for B_noise the
            curvature along it is not positive. NaN where signal and noise are both 0, and then `low` and `high` too.
        low: of the interval with a confidence of 95 %.
        high: infinity where the noise may hide the gradient.
        signal: mean estimate of ``|G|^2``, or of ``G^T H G``.
        noise: mean estimate of ``tr(Sigma)``, or of ``tr(H Sigma)``.
        steps: signal and noise of each step, (steps, 2).
    """

    value: float
    low: float
    high: float
    signal: float
    noise: float
    steps: Tensor = field(repr=False, compare=False)


def split_signal(small: Tensor, big: Tensor, small_batch: int, big_batch: int) -> tuple[Tensor, Tensor]:
    """Return unbiased estimates of the signal and of the noise of one sample, for each step.

    ``signal = (B b_B - b b_b) / (B - b)`` and ``noise = (b_b - b_B) / (1 / b - 1 / B)``, where ``b_b`` and ``b_B`` are
    the quadratic forms of the gradients of b and of B samples.

    Args:
        small: ``|g|^2`` (or ``g^T H g``) of batches of `small_batch` samples; a mean over several of them is fine.
        big: the same of batches of `big_batch` samples, which may consist of the small ones. Then the noise is
            `small_batch` times the sample variance of the small batches' gradients.
        small_batch: samples in a small batch, >= 1.
        big_batch: samples in a big batch, > `small_batch`.

    Raises:
        ValueError: `big_batch` is not the larger one.
    """
    if not 1 <= small_batch < big_batch:
        raise ValueError(
            f"`big_batch` must be > `small_batch` >= 1, got {big_batch} and {small_batch}. One batch size does "
            "not tell the gradient from its noise."
        )
    signal = (big_batch * big - small_batch * small) / (big_batch - small_batch)
    noise = (small - big) / (1 / small_batch - 1 / big_batch)
    return signal, noise


def split_curvature(of_mean: Tensor, of_difference: Tensor, small_batch: int, number: int) -> tuple[Tensor, Tensor]:
    """Return unbiased estimates of ``G^T H G`` and ``tr(H Sigma)``, from `number` small batches.

    The difference of one small batch's gradient from the mean of all has the covariance ``Sigma / b * (1 - 1 / k)``.
    Its form is less noisy than that of the small batch's gradient itself, in which the mean enters too.

    Args:
        of_mean: ``m^T H m`` of the mean gradient m, with a Hessian that is independent of it.
        of_difference: ``d^T H d`` of one small batch's gradient less m.
        small_batch: b, samples in a small batch.
        number: k, small batches, >= 2.

    Raises:
        ValueError: there is one small batch only.
    """
    if number < 2:
        raise ValueError(f"`number` must be >= 2, got {number}. One batch does not tell the gradient from its noise.")
    noise = of_difference * (small_batch * number / (number - 1))
    return of_mean - noise / (small_batch * number), noise


def noise_scale(signal: Tensor, noise: Tensor, *, seed: int = 0) -> NoiseScale:
    """Return mean noise over mean signal, with a bootstrap interval.

    The interval is the 2.5th to 97.5th percentile of the same quotient over `RESAMPLES` draws of the steps with
    replacement. Signal and noise of a step are drawn together, as they are not independent. A draw whose mean signal is
    not positive counts as infinity.

    Args:
        signal: one estimate for each step, (steps,).
        noise: the same.
        seed: of the draws.

    Raises:
        ValueError: fewer than two steps, or another number of each.
    """
    if signal.ndim != 1 or signal.shape != noise.shape or len(signal) < 2:
        raise ValueError(
            f"`signal` and `noise` must be of the same two steps or more, got the shapes {tuple(signal.shape)} and "
            f"{tuple(noise.shape)}. A single step has no error bar."
        )
    return _estimate([torch.stack([signal, noise], 1).double().cpu()], seed)


def pooled(scales: Sequence[NoiseScale], *, seed: int = 0) -> NoiseScale:
    """Return mean noise over mean signal of all the steps of several stretches, which are drawn within each.

    This is the one figure for a training with one batch size B. A step of learning rate r lowers the loss by
    ``r G^T G - r^2 / 2 (G^T H G + tr(H Sigma) / B)`` in expectation. Summed over the steps, with the best r, that is
    proportional to ``1 / (1 + scale / B)`` with the quotient of the sums as the scale, and a Hessian that is a multiple
    of the identity makes it B_simple. A step counts by its ``|G|^2``: by how much it can lower the loss.

    Args:
        scales: of the stretches, one or more.
        seed: of the draws.
    """
    return _estimate([scale.steps for scale in scales], seed)


def _estimate(stretches: Sequence[Tensor], seed: int) -> NoiseScale:
    generator = torch.Generator().manual_seed(seed)
    number = sum(len(steps) for steps in stretches)
    drawn = torch.zeros(RESAMPLES, 2, dtype=torch.float64)
    for steps in stretches:
        drawn += steps[torch.randint(len(steps), (RESAMPLES, len(steps)), generator=generator)].sum(1)
    steps = torch.cat(list(stretches))
    signal, noise = steps.mean(0).tolist()
    value = _quotient(signal, noise)
    quotients = sorted(q for q in (_quotient(*means) for means in (drawn / number).tolist()) if not math.isnan(q))
    if math.isnan(value) or not quotients:
        return NoiseScale(math.nan, math.nan, math.nan, signal, noise, steps)
    low, high = (_percentile(quotients, share) for share in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return NoiseScale(value, low, high, signal, noise, steps)


def steps_factor(batch_size: float, scale: float) -> float:
    """Return the optimizer steps to the same loss, as a multiple of the fewest: ``1 + B_noise / B``."""
    return 1 + scale / batch_size


def samples_factor(batch_size: float, scale: float) -> float:
    """Return the samples to the same loss, as a multiple of the fewest: ``1 + B / B_noise``."""
    return 1 + batch_size / scale if scale > 0 else math.inf


def _quotient(signal: float, noise: float) -> float:
    if math.isnan(signal) or math.isnan(noise) or signal == noise == 0:
        return math.nan
    return max(noise, 0.0) / signal if signal > 0 else math.inf


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))]
