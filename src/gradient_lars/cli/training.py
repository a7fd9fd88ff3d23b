"""One training run: the same steps, schedule and batches for all optimizers."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import gradient_lars.torch
from gradient_lars import GradientLARS
from gradient_lars.cli.augment import augmentation
from gradient_lars.cli.cluster import ALONE, Cluster
from gradient_lars.cli.network import build_network, recompute_statistics
from gradient_lars.cli.recipe import MATRICES, Recipe
from gradient_lars.cli.records import RateSample
from gradient_lars.cli.schedule import build_schedule
from gradient_lars.cli.settings import LARS, NESTEROV, n_steps
from gradient_lars.torch import HookHandle, add_hook

RECORDED_STEPS = 200
_EVALUATION_CHUNK = 4096


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
    network = build_network(train.x.shape[1], n_classes, recipe.seed, cluster.norm, recipe.network).to(device)
    model = cluster.spread(network)
    optimizer, handle = _build_optimizer(recipe, network)
    steps = n_steps(len(train.y), recipe.batch_size, recipe.epochs)
    schedule = build_schedule(optimizer, steps, recipe.schedule, recipe.warm_up)
    # Compiled once a process: another network of the same kind finds the code of the first.
    gradient = _Gradient(recipe, torch.compile(model) if recipe.compiled else model, train, cluster)
    stride = math.ceil(steps / RECORDED_STEPS)
    rates: list[RateSample] = []
    losses: list[float] = []
    step, diverged, start = 0, False, time.perf_counter()
    model.train()
    for batches in batch_order(len(train.y), recipe):
        own_losses = []
        for indices in batches if not diverged else ():
            optimizer.zero_grad()
            own_losses.append(gradient.accumulate(indices))
            optimizer.step()
            schedule.step()
            if record_rates and handle is not None and step % stride == 0:
                rates.extend(_read_rates(handle, step))
            step += 1
        if own_losses:
            # The host waits for the device here only, once per epoch. All processes see the same losses and agree.
            losses += cluster.total(torch.stack(own_losses).cpu() / cluster.size).tolist()
            diverged = not all(map(math.isfinite, losses))
        on_epoch()
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    seconds = time.perf_counter() - start
    if recipe.recompute_norm:
        recompute_statistics(network, train.x, cluster.part)
    return Fitted(network, diverged, tuple(losses), seconds, tuple(rates))


class _Gradient:
    """The gradient of a batch, in as many pieces as `Recipe.micro_batch` asks for."""

    def __init__(
        self, recipe: Recipe, model: Callable[[torch.Tensor], torch.Tensor], train: Batch, cluster: Cluster
    ) -> None:
        self._recipe = recipe
        self._model = model
        self._train = train
        self._cluster = cluster
        self._moved = augmentation(recipe.augment, recipe.seed, cluster.part)

    def accumulate(self, indices: torch.Tensor) -> torch.Tensor:
        """Add the gradient of the mean loss over `indices`, and return this process's share of `size` times it."""
        total = torch.zeros((), device=self._train.x.device)
        for piece in self._pieces(indices):
            chosen = self._cluster.part(piece).to(self._train.x.device)
            # Of parts that differ in size the mean over the processes is weighted: it is that over the batch.
            loss = len(chosen) * self._cluster.size / len(indices) * self._loss(chosen, len(piece))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _pieces(self, indices: torch.Tensor) -> Sequence[torch.Tensor]:
        # Of equal size, up to one, so that none is too small for batch normalisation or has no image for a process.
        most = self._recipe.micro_batch or len(indices)
        least = 2 * self._cluster.size
        return indices.tensor_split(max(1, min(math.ceil(len(indices) / most), len(indices) // least)))

    def _loss(self, chosen: torch.Tensor, size: int) -> torch.Tensor:
        x = self._moved(self._train.x[chosen], size)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._recipe.bf16):
            outputs = self._model(x)
        outputs = outputs.float() if self._recipe.bf16 else outputs
        return functional.cross_entropy(outputs, self._train.y[chosen], label_smoothing=self._recipe.label_smoothing)


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


def _build_optimizer(
    recipe: Recipe, network: nn.Module
) -> tuple[torch.optim.Optimizer, HookHandle | gradient_lars.torch.LARS | None]:
    if recipe.optimizer == LARS and recipe.lr_in_momentum:
        lars = _lars(recipe, network)
        return lars, lars
    optimizer = torch.optim.SGD(
        network.named_parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=0.0 if recipe.optimizer == LARS else recipe.weight_decay,
        nesterov=recipe.optimizer == NESTEROV,
    )
    if recipe.optimizer != LARS:
        return optimizer, None
    hook = GradientLARS(threshold=recipe.threshold, weight_decay=recipe.weight_decay, eps=recipe.eps)
    params = (lambda name, p: p.ndim > 1) if recipe.adapt == MATRICES else None
    return optimizer, add_hook(optimizer, hook, params=params)


def _lars(recipe: Recipe, network: nn.Module) -> gradient_lars.torch.LARS:
    """Return what the hook computes, with the learning rate inside the momentum."""
    every = recipe.adapt != MATRICES
    adapted = [(name, p) for name, p in network.named_parameters() if every or p.ndim > 1]
    others = [(name, p) for name, p in network.named_parameters() if not (every or p.ndim > 1)]
    groups: list[dict[str, Any]] = [{"params": adapted, "adapt": True}]
    if others:
        groups.append({"params": others, "adapt": False, "weight_decay": 0.0})
    return gradient_lars.torch.LARS(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        trust_coefficient=1.0,
        threshold=recipe.threshold,
        eps=recipe.eps,
        lr_in_momentum=True,
    )


def _read_rates(handle: HookHandle | gradient_lars.torch.LARS, step: int) -> list[RateSample]:
    rates = handle.rates()
    columns = (rates.p_norm.tolist(), rates.g_norm.tolist(), rates.rate.tolist(), rates.adapted.tolist())
    return [
        RateSample(step, name, p_norm, g_norm, rate, bool(adapted))
        for name, p_norm, g_norm, rate, adapted in zip(rates.names, *columns, strict=True)
    ]
