"""The learning rate over the steps of a run: a warm-up, then a decay, the same for all optimizers."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, PolynomialLR, SequentialLR

from gradient_lars.cli.recipe import COSINE, POLYNOMIAL, TVLARS
from gradient_lars.torch import tvlars, warmup_polynomial

DECAY_POWER = 1.0
_LEFT = 0.01  # share of lr that TVLARS ends with


def warm_up_steps(steps: int, share: float = 0.1) -> int:
    """Return how many of `steps` belong to the warm-up: at least 1, which is at full rate, and fewer than all."""
    return max(1, min(round(share * steps), steps - 1))


def build_schedule(
    optimizer: torch.optim.Optimizer, steps: int, kind: str = "linear", warm_up: float = 0.1
) -> LRScheduler:
    """Return a schedule, stepped once per optimizer step, that warms up linearly and then decays to zero.

    With ``w = warm_up_steps(steps, warm_up)`` step t (from 0) has the factor ``(t + 1) / w`` while t < w, and then::

        linear:      (1 - (t - w) / (steps - w)) ** DECAY_POWER
        polynomial:  (1 - s) ** 2                with  s = (t - w + 1) / (steps - w + 1)
        cosine:      (1 + cos(pi * s)) / 2

    A power of 1 served both optimizers better than the paper's 2 on the validation split of digits at the largest
    batch. TVLARS has no warm-up: it starts high, is half-way down at step ``warm_up * steps``, and ends at `_LEFT`.
    """
    first = warm_up_steps(steps, warm_up)
    if kind == POLYNOMIAL:
        return warmup_polynomial(optimizer, warmup_steps=first - 1, total_steps=steps, start_factor=1 / first)
    if kind == COSINE:
        return LambdaLR(optimizer, lambda step: _cosine(step, first, steps))
    if kind == TVLARS:
        delay = min(round(warm_up * steps), steps - 1)
        fall = math.log(1 / _LEFT - 1) / (steps - delay)
        return tvlars(optimizer, delay_steps=delay, decay_coefficient=fall)
    if first == 1:
        return PolynomialLR(optimizer, total_iters=steps, power=DECAY_POWER)
    return SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=1 / first, total_iters=first - 1),
            PolynomialLR(optimizer, total_iters=steps - first, power=DECAY_POWER),
        ],
        milestones=[first],
    )


def _cosine(step: int, first: int, steps: int) -> float:
    if step < first:
        return (step + 1) / first
    return (1 + math.cos(math.pi * (step - first + 1) / (steps - first + 1))) / 2
