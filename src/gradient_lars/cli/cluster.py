"""The processes of a comparison as one of them sees them: this one alone, or those that ``torchrun`` started."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.launch import launched
from gradient_lars.cli.settings import UNSHARDED

T = TypeVar("T")


@contextmanager
def joined(shard: str) -> Iterator["Cluster"]:
    """Yield this process alone, or, under ``torchrun``, those it started; without it nothing distributed is loaded.

    Raises:
        CommandError: the processes cannot reach each other.
    """
    if not launched():
        yield ALONE
        return
    from gradient_lars.cli.processes import connected

    with connected(shard) as cluster:
        yield cluster


class Cluster:
    """One process alone: the base of ``processes.Processes``, whose methods do the same for several.

    Attributes:
        rank: the number of this process, from 0; process 0 prints and writes.
        size: the number of processes.
        shard: how they hold the parameters.
    """

    rank = 0
    size = 1
    shard = UNSHARDED

    def own_device(self, device: torch.device) -> torch.device:
        """Return this process's device where the user named `device`: ``cuda:1`` for ``cuda``, say."""
        return device

    def use(self, device: torch.device) -> None:
        """Prepare to train on `device`, which `own_device` returned."""

    def norm(self, channels: int) -> nn.Module:
        """Return a batch normalisation that sees the images of all processes."""
        return nn.BatchNorm2d(channels)

    def spread(self, network: nn.Sequential) -> nn.Module:
        """Return `network` as it is to be called in training: its gradients are then the mean over the processes."""
        return network

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this process's share of `rows`; shares differ by one row at most."""
        return rows

    def total(self, own: torch.Tensor) -> torch.Tensor:
        """Return the sum of the processes' `own`, a tensor on the CPU; every process gets the same bits."""
        return own

    def gather(self, own: T) -> list[T]:
        """Return what the processes have given, in the order of their ranks."""
        return [own]

    def once(self, make: Callable[[], T]) -> T:
        """Return what process 0's `make` returns; a mistake of the user's that it raises ends all of them."""
        return make()

    @contextmanager
    def agree(self) -> Iterator[None]:
        """End all processes if the block raises a mistake of the user's in any of them; process 0 tells the first."""
        yield

    def failure(self, text: str) -> BaseException:
        """Return what to raise for a mistake that not all may meet; it is told once."""
        return CommandError(text)


ALONE = Cluster()
