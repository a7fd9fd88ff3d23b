"""Learning rates for large batches: warm-up with polynomial decay, TVLARS, and scaling with the batch size."""

import math
import operator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

# name: (least, least allowed, greatest, remedy)
_RANGES: dict[str, tuple[float, bool, float, str]] = {
    "power": (0.0, False, math.inf, "2 is the LARS paper's, 1 a straight line."),
    "start_factor": (0.0, True, 1.0, "It is the share of `lr` in the first step; the recipes start at 0."),
    "end_factor": (0.0, True, 1.0, "It is the share of `lr` that is left at the end."),
    "decay_coefficient": (0.0, False, math.inf, "It is the paper's lambda, per step; its authors try 1e-6 to 0.05."),
    "alpha": (0.0, False, math.inf, "1 starts near the groups' own `lr`."),
    "gamma_min": (0.0, True, math.inf, "It is the share of `lr` that is left at the end."),
    "base_lr": (0.0, True, math.inf, "It is the learning rate at `base_batch_size`."),
}
_COUNTS: dict[str, tuple[int, str]] = {
    "warmup_steps": (0, "Count optimizer steps, not epochs; 0 means no warm-up."),
    "total_steps": (1, "Count the optimizer steps of the whole training, warm-up included."),
    "delay_steps": (0, "Count optimizer steps, not epochs."),
    "batch_size": (1, "It is the batch of all devices and accumulated gradients together."),
    "base_batch_size": (1, "It is the batch size that `base_lr` is meant for."),
}
_RULES = ("linear", "sqrt")


@dataclass(frozen=True)
class _WarmupPolynomial:
    """The factor of `warmup_polynomial`. An object, not a closure: LambdaLR saves its attributes."""

    warmup_steps: int
    total_steps: int
    power: float
    start_factor: float
    end_factor: float

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.start_factor + (1.0 - self.start_factor) * step / self.warmup_steps
        left = max(self.total_steps - step, 0) / (self.total_steps - self.warmup_steps)
        return self.end_factor + (1.0 - self.end_factor) * math.pow(left, self.power)


@dataclass(frozen=True)
class _TimeVarying:
    """The factor of `tvlars`."""

    delay_steps: int
    decay_coefficient: float
    alpha: float
    gamma_min: float

    def __call__(self, step: int) -> float:
        exponent = self.decay_coefficient * (step - self.delay_steps)
        if exponent > 0.0:  # 1 / (alpha + exp(x)), written so that a large x does not overflow
            small = math.exp(-exponent)
            return small / (self.alpha * small + 1.0) + self.gamma_min
        return 1.0 / (self.alpha + math.exp(exponent)) + self.gamma_min


class _Schedule(LambdaLR):
    """LambdaLR whose ``load_state_dict`` refuses another schedule's state and sets the optimizer's learning rate.

    LambdaLR takes any state, and leaves the optimizer at the learning rate of step 0 where the schedule was made after
    the optimizer's state was loaded.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = [sorted(settings or ()) for settings in state_dict.get("lr_lambdas", ())]
        own = [sorted(vars(factor)) for factor in self.lr_lambdas]
        if saved != own:
            raise ValueError(
                f"`state_dict` must be of this schedule on {len(own)} groups, with {own[0]}, got {saved}. Make the "
                "schedule with the same function, on an optimizer with as many groups."
            )
        super().load_state_dict(state_dict)
        for group, base_lr, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=False):
            lr = base_lr * factor(self.last_epoch)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(float(lr))
            else:
                group["lr"] = lr


def warmup_polynomial(
    optimizer: torch.optim.Optimizer,
    *,
    warmup_steps: int,
    total_steps: int,
    power: float = 2.0,
    start_factor: float = 0.0,
    end_factor: float = 0.0,
) -> LambdaLR:
    """Warm the learning rate up linearly, then let it decay polynomially: the LARS paper's and MLPerf's schedule.

    Step t, counted from 0, is taken with ``lr * factor(t)``; ``lr`` is what each group has when the schedule is made,
    or its ``initial_lr`` if it has had a schedule before, as with torch's own::

        factor(t) = start_factor + (1 - start_factor) * t / warmup_steps              for t < warmup_steps
        factor(t) = end_factor + (1 - end_factor) * ((total_steps - t) / (total_steps - warmup_steps)) ** power
                                                                                      for t < total_steps
        factor(t) = end_factor                                                        from there on

    so that step `warmup_steps` is the one at full ``lr``. Call ``scheduler.step()`` after every ``optimizer.step()``.

    How soon a changed ``lr`` is felt depends on where it sits. In ``torch.optim.SGD``, and so under `add_hook`, and in
    `LARS` with ``lr_in_momentum=False``, it multiplies the whole momentum: the change acts at once, and gradients seen
    at ``lr`` 0 move the weights later. In `LARS` with ``lr_in_momentum=True``, the default, every gradient keeps the
    ``lr`` of its own step: the change spreads over about ``1 / (1 - momentum)`` steps.

    Args:
        optimizer: any ``torch.optim.Optimizer``. Groups keep the proportion of their learning rates; where ``lr`` is a
            tensor, it is changed in place.
        warmup_steps: optimizer steps below the full ``lr``, >= 0 and below `total_steps`; 0 means no warm-up.
        total_steps: optimizer steps of the training, warm-up included, >= 1.
        power: of the decay, > 0. 2 in the LARS paper and MLPerf.
        start_factor: share of ``lr`` in the first step of the warm-up, from 0 to 1. At 0, as in MLPerf's and SimCLR's
            code, the first step moves nothing.
        end_factor: share of ``lr`` that is left at the end, from 0 to 1.

    Returns:
        A ``torch.optim.lr_scheduler.LambdaLR``. Its ``state_dict`` holds step and settings; once loaded into a schedule
        on the restored optimizer, training goes on at the ``lr`` it had.

    Raises:
        TypeError: `optimizer` is none, or a setting is not a number.
        ValueError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from gradient_lars.torch import LARS, warmup_polynomial
        >>> optimizer = LARS([torch.nn.Parameter(torch.ones(2, 2))], lr=8.0)
        >>> scheduler = warmup_polynomial(optimizer, warmup_steps=2, total_steps=6)
        >>> lrs = []
        >>> for _ in range(7):
        ...     lrs.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     scheduler.step()
        >>> lrs
        [0.0, 4.0, 8.0, 4.5, 2.0, 0.5, 0.0]

    It is a LambdaLR because torch's LinearLR cannot start at 0, PolynomialLR ends at 0 only, SequentialLR, which would
    join them, warns in torch 2.6, and each step multiplies the ``lr`` of the one before, so that rounding adds up.
    MLPerf's reference decays over one step more, to 1e-4: ``total_steps=steps + 1, end_factor=1e-4 / lr`` here.

    References:
        You, Gitman, Ginsburg, arXiv 1708.03888; ``PolynomialDecayWithWarmup`` in mlcommons/training,
        image_classification/tensorflow2/lars_util.py.
    """
    _check_optimizer(optimizer)
    warmup, total = _count("warmup_steps", warmup_steps), _count("total_steps", total_steps)
    if warmup >= total:
        raise ValueError(
            f"`warmup_steps` must be below `total_steps`, got {warmup} and {total}. The decay needs a step as well."
        )
    factor = _WarmupPolynomial(
        warmup_steps=warmup,
        total_steps=total,
        power=_number("power", power),
        start_factor=_number("start_factor", start_factor),
        end_factor=_number("end_factor", end_factor),
    )
    return _Schedule(optimizer, factor)


def tvlars(
    optimizer: torch.optim.Optimizer,
    *,
    delay_steps: int,
    decay_coefficient: float,
    alpha: float = 1.0,
    gamma_min: float = 0.0,
) -> LambdaLR:
    """Start at a high learning rate and let it fall along a sigmoid, without a warm-up: time-varying LARS (TVLARS).

    Step t, counted from 0, is taken with ``lr * factor(t)``; ``lr`` is what each group has when the schedule is made,
    or its ``initial_lr`` if it has had a schedule before, as with torch's own::

        factor(t) = 1 / (alpha + exp(decay_coefficient * (t - delay_steps))) + gamma_min

    which falls from ``1 / alpha + gamma_min``, or less where ``decay_coefficient * delay_steps`` is small, to
    `gamma_min`; for ``alpha=1`` it is half-way down at `delay_steps`. Call ``scheduler.step()`` after every
    ``optimizer.step()``. How soon the fall is felt depends on where ``lr`` sits in the update: see `warmup_polynomial`.

    Args:
        optimizer: any ``torch.optim.Optimizer``. Groups keep the proportion of their learning rates; where ``lr`` is a
            tensor, it is changed in place.
        delay_steps: the paper's d_e in optimizer steps, >= 0: about how long the first phase lasts.
        decay_coefficient: the paper's lambda per optimizer step, > 0: the fall takes about ``4 / decay_coefficient``.
        alpha: inverse of the greatest factor, > 0. With less than 1 the first phase is above the groups' own ``lr``.
        gamma_min: share of ``lr`` that is left at the end, >= 0.

    Returns:
        A ``torch.optim.lr_scheduler.LambdaLR``, to be saved and loaded as that of `warmup_polynomial`.

    Raises:
        TypeError: `optimizer` is none, or a setting is not a number.
        ValueError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from gradient_lars.torch import LARS, tvlars
        >>> optimizer = LARS([torch.nn.Parameter(torch.ones(2, 2))], lr=8.0)
        >>> scheduler = tvlars(optimizer, delay_steps=3, decay_coefficient=2.0, gamma_min=0.01)
        >>> lrs = []
        >>> for _ in range(7):
        ...     lrs.append(round(optimizer.param_groups[0]["lr"], 2))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> lrs
        [8.06, 7.94, 7.13, 4.08, 1.03, 0.22, 0.1]

    This is the paper's formula on the learning rate of every group. Its authors' code differs: there the factor is on
    the rates of adapted layers alone, 1 until the delay is over and ``1 / (0.1 + exp(lambda * (t + 1)))`` afterwards.

    References:
        Do et al., "Revisiting LARS for Large Batch Training Generalization of Neural Networks", arXiv 2309.14053; their
        code is github.com/KhoiDOO/tvlars.
    """
    _check_optimizer(optimizer)
    factor = _TimeVarying(
        delay_steps=_count("delay_steps", delay_steps),
        decay_coefficient=_number("decay_coefficient", decay_coefficient),
        alpha=_number("alpha", alpha),
        gamma_min=_number("gamma_min", gamma_min),
    )
    return _Schedule(optimizer, factor)


def scaled_lr(
    base_lr: float, batch_size: int, *, base_batch_size: int = 256, rule: Literal["linear", "sqrt"] = "linear"
) -> float:
    """Return the learning rate for a batch size, from the one at another, by the linear or the square-root rule.

    With ``k = batch_size / base_batch_size``, the number of small batches that one step takes the place of::

        linear:  base_lr * k
        sqrt:    base_lr * sqrt(k)

    An adapted layer moves by about ``lr * trust_coefficient`` of its norm in a step, whatever the batch size. There are
    k times fewer steps in an epoch, so the linear rule keeps how far a layer can move in an epoch, and the square-root
    rule lets that shrink by ``sqrt(k)``. Both are rules of thumb that end somewhere: try values around what they give.

    Args:
        base_lr: learning rate at `base_batch_size`, >= 0.
        batch_size: examples in one optimizer step, of all devices and accumulated gradients together, >= 1.
        base_batch_size: the batch size that `base_lr` is meant for, >= 1; 256 in most recipes.
        rule: "linear" or "sqrt".

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of its range, or the rule is unknown.

    Example:
        SimCLR's 0.3 * B / 256, BYOL's 0.2 * B / 256, and SimCLR's rule for smaller batches, 0.075 * sqrt(B), which
        meets the first at 4096:

        >>> from gradient_lars.torch import scaled_lr
        >>> [f"{scaled_lr(0.3, batch_size):.2f}" for batch_size in (256, 1024, 4096)]
        ['0.30', '1.20', '4.80']
        >>> f"{scaled_lr(0.2, 4096):.2f}"
        '3.20'
        >>> [f"{scaled_lr(0.075, b, base_batch_size=1, rule='sqrt'):.2f}" for b in (256, 1024, 4096)]
        ['1.20', '2.40', '4.80']

    References:
        Linear: Goyal et al., arXiv 1706.02677. Square root: Krizhevsky, arXiv 1404.5997. SimCLR: arXiv 2002.05709,
        appendix B.1. BYOL: arXiv 2006.07733.
    """
    if rule not in _RULES:
        raise ValueError(f"`rule` must be one of {', '.join(map(repr, _RULES))}, got {rule!r}.")
    k = _count("batch_size", batch_size) / _count("base_batch_size", base_batch_size)
    return _number("base_lr", base_lr) * (k if rule == "linear" else math.sqrt(k))


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}. Pass the optimizer that "
            "your wrapper holds."
        )


def _count(name: str, value: Any) -> int:
    least, remedy = _COUNTS[name]
    if isinstance(value, bool | Tensor) or not hasattr(value, "__index__"):
        raise TypeError(f"`{name}` must be a whole number, got {value!r}. {remedy}")
    count = operator.index(value)
    if count < least:
        raise ValueError(f"`{name}` must be >= {least}, got {value!r}. {remedy}")
    return count


def _number(name: str, value: Any) -> float:
    least, least_allowed, greatest, remedy = _RANGES[name]
    if isinstance(value, bool | str | bytes | Tensor) or not hasattr(value, "__float__"):
        raise TypeError(f"`{name}` must be a number, got {value!r}. {remedy}")
    number = float(value)
    above = number >= least if least_allowed else number > least
    if not (above and number <= greatest and number < math.inf):
        bound = f"{'>=' if least_allowed else '>'} {least:g}" + (f" and <= {greatest:g}" if greatest < math.inf else "")
        raise ValueError(f"`{name}` must be {bound}, got {value!r}. {remedy}")
    return number
