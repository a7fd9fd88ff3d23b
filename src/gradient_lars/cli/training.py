"""One training run: the same steps, schedule and batches for both optimizers."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LinearLR, LRScheduler, PolynomialLR, SequentialLR

from gradient_lars import GradientLARS
from gradient_lars.cli.network import build_network, recompute_statistics
from gradient_lars.cli.records import RateSample
from gradient_lars.cli.settings import LARS, n_steps
from gradient_lars.torch import HookHandle, add_hook

WARM_UP = 0.1
DECAY_POWER = 1.0
RECORDED_STEPS = 200
_EVALUATION_CHUNK = 4096


@dataclass(frozen=True)
class Recipe:
    """Everything that decides one run, apart from the data and the device."""

    optimizer: str
    lr: float
    batch_size: int
    epochs: int
    seed: int
    momentum: float
    weight_decay: float
    threshold: float
    eps: float


@dataclass(frozen=True)
class Batch:
    """Images and labels of one split on the device of the run."""

    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True)
class Fitted:
    """A trained network; `diverged` says that its loss was not finite at some step (training ended there)."""

    network: nn.Module
    diverged: bool
    seconds: float
    rates: tuple[RateSample, ...]


def warm_up_steps(steps: int) -> int:
    """Return how many of `steps` belong to the warm-up: a tenth, at least 1."""
    return max(1, round(WARM_UP * steps))


def build_schedule(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Return a schedule, stepped once per optimizer step, that warms up linearly and then decays to zero.

    With ``w = warm_up_steps(steps)`` step t (from 0) has the factor ``(t + 1) / w`` while t < w, then
    ``(1 - (t - w) / (steps - w)) ** DECAY_POWER``. A power of 1 served both optimizers better than the paper's 2 on the
    validation split of digits at the largest batch.
    """
    warm_up = warm_up_steps(steps)
    if warm_up == 1:
        return PolynomialLR(optimizer, total_iters=steps, power=DECAY_POWER)
    return SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=1 / warm_up, total_iters=warm_up - 1),
            PolynomialLR(optimizer, total_iters=steps - warm_up, power=DECAY_POWER),
        ],
        milestones=[warm_up],
    )


def batch_order(n_train: int, recipe: Recipe) -> Iterator[Iterator[torch.Tensor]]:
    """Yield, for each epoch, the index tensors of its batches; they depend on the seed, not on the optimizer."""
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.epochs):
        order = torch.randperm(n_train, generator=generator)
        yield (batch for batch in torch.split(order, recipe.batch_size) if len(batch) == recipe.batch_size)


def fit(
    recipe: Recipe,
    train: Batch,
    n_classes: int,
    *,
    record_rates: bool = False,
    on_epoch: Callable[[], None] = lambda: None,
) -> Fitted:
    """Train one network on `train` and recompute its batch statistics there.

    Args:
        recipe: the optimizer and its settings.
        train: the training split, on the device to use.
        n_classes: number of outputs.
        record_rates: keep the rates of the layers (LARS only), of at most `RECORDED_STEPS` steps evenly spaced.
        on_epoch: called after each epoch, also for those that a diverged run no longer trains.

    Returns:
        The network, whether it diverged, the time that training took, and the rates.
    """
    device = train.x.device
    network = build_network(train.x.shape[1], n_classes, recipe.seed).to(device)
    optimizer, handle = _build_optimizer(recipe, network)
    steps = n_steps(len(train.y), recipe.batch_size, recipe.epochs)
    schedule = build_schedule(optimizer, steps)
    stride = math.ceil(steps / RECORDED_STEPS)
    rates: list[RateSample] = []
    failed = torch.zeros((), dtype=torch.bool, device=device)
    step, diverged, start = 0, False, time.perf_counter()
    network.train()
    for batches in batch_order(len(train.y), recipe):
        for indices in batches if not diverged else ():
            chosen = indices.to(device)
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(train.x[chosen]), train.y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            failed |= ~loss.detach().isfinite()
            if record_rates and handle is not None and step % stride == 0:
                rates.extend(_read_rates(handle, step))
            step += 1
        diverged = bool(failed)  # the host waits for the device here only, once per epoch
        on_epoch()
    seconds = time.perf_counter() - start
    recompute_statistics(network, train.x)
    return Fitted(network, diverged, seconds, tuple(rates))


@torch.no_grad()
def evaluate(network: nn.Module, split: Batch) -> tuple[float, float]:
    """Return accuracy (0 to 1) and mean cross-entropy; a loss that is not finite is returned as infinity."""
    network.eval()
    correct, loss = 0.0, 0.0
    for x, y in zip(*(torch.split(part, _EVALUATION_CHUNK) for part in (split.x, split.y)), strict=True):
        outputs = network(x)
        correct += (outputs.argmax(1) == y).sum().item()
        loss += functional.cross_entropy(outputs, y, reduction="sum").item()
    mean = loss / len(split.y)
    return correct / len(split.y), mean if math.isfinite(mean) else math.inf


def _build_optimizer(recipe: Recipe, network: nn.Module) -> tuple[torch.optim.Optimizer, HookHandle | None]:
    decay = 0.0 if recipe.optimizer == LARS else recipe.weight_decay
    optimizer = torch.optim.SGD(network.named_parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=decay)
    if recipe.optimizer != LARS:
        return optimizer, None
    hook = GradientLARS(threshold=recipe.threshold, weight_decay=recipe.weight_decay, eps=recipe.eps)
    return optimizer, add_hook(optimizer, hook)


def _read_rates(handle: HookHandle, step: int) -> list[RateSample]:
    rates = handle.rates()
    columns = (rates.p_norm.tolist(), rates.g_norm.tolist(), rates.rate.tolist(), rates.adapted.tolist())
    return [
        RateSample(step, name, p_norm, g_norm, rate, bool(adapted))
        for name, p_norm, g_norm, rate, adapted in zip(rates.names, *columns, strict=True)
    ]
