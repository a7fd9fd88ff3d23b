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
from gradient_lars.cli.cluster import ALONE, Cluster
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
    """A trained network; `diverged` says that its loss was not finite at some step (training ended there).

    `losses` are the mean losses of the batches, one for each step.
    """

    network: nn.Module
    diverged: bool
    losses: tuple[float, ...]
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
    cluster: Cluster = ALONE,
) -> Fitted:
    """Train one network on `train` and recompute its batch statistics there.

    Every process of `cluster` takes its part of the same batches; the network that comes out is that of one process.

    Args:
        recipe: the optimizer and its settings.
        train: the training split, on the device to use.
        n_classes: number of outputs.
        record_rates: keep the rates of the layers (LARS only), of at most `RECORDED_STEPS` steps evenly spaced.
        on_epoch: called after each epoch, also for those that a diverged run no longer trains.
        cluster: the processes that train together.

    Returns:
        The network, whether it diverged, the losses, the time that training took, and the rates.
    """
    device = train.x.device
    network = build_network(train.x.shape[1], n_classes, recipe.seed, cluster.norm).to(device)
    model = cluster.spread(network)
    optimizer, handle = _build_optimizer(recipe, network)
    steps = n_steps(len(train.y), recipe.batch_size, recipe.epochs)
    schedule = build_schedule(optimizer, steps)
    stride = math.ceil(steps / RECORDED_STEPS)
    rates: list[RateSample] = []
    losses: list[float] = []
    step, diverged, start = 0, False, time.perf_counter()
    model.train()
    for batches in batch_order(len(train.y), recipe):
        own_losses = []
        for indices in batches if not diverged else ():
            chosen = cluster.part(indices).to(device)
            optimizer.zero_grad()
            # Of parts that differ in size the mean over the processes is weighted: it is that over the batch.
            weight = len(chosen) * cluster.size / len(indices)
            loss = weight * functional.cross_entropy(model(train.x[chosen]), train.y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            own_losses.append(loss.detach())
            if record_rates and handle is not None and step % stride == 0:
                rates.extend(_read_rates(handle, step))
            step += 1
        if own_losses:
            # The host waits for the device here only, once per epoch. All processes see the same losses and agree.
            losses += cluster.total(torch.stack(own_losses).cpu() / cluster.size).tolist()
            diverged = not all(map(math.isfinite, losses))
        on_epoch()
    seconds = time.perf_counter() - start
    recompute_statistics(network, train.x, cluster.part)
    return Fitted(network, diverged, tuple(losses), seconds, tuple(rates))


@torch.no_grad()
def evaluate(network: nn.Module, split: Batch, cluster: Cluster = ALONE) -> tuple[float, float]:
    """Return accuracy (0 to 1) and mean cross-entropy; a loss that is not finite is returned as infinity.

    Every process of `cluster` takes its part of `split`, and all return the result for the whole of it.
    """
    network.eval()
    correct, loss = 0.0, 0.0
    # Split before it is shared out, so that every process calls a sharded network as often as the others.
    size = _EVALUATION_CHUNK * cluster.size
    for x, y in zip(*(map(cluster.part, torch.split(part, size)) for part in (split.x, split.y)), strict=True):
        outputs = network(x)
        correct += (outputs.argmax(1) == y).sum().item()
        loss += functional.cross_entropy(outputs, y, reduction="sum").item()
    correct, loss = cluster.total(torch.tensor([correct, loss], dtype=torch.float64)).tolist()
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
