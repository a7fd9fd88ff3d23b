"""The device that a user names, and its compiler: tried before anything is measured."""

import torch

from gradient_lars.cli.cluster import ALONE, Cluster
from gradient_lars.cli.errors import CommandError


def resolve_device(name: str, cluster: Cluster = ALONE) -> torch.device:
    """Return this process's device where the user named `name`, after trying it.

    Raises:
        CommandError: there is no such device here.
    """
    try:
        device = cluster.own_device(torch.device(name))
        torch.zeros(1, device=device).add_(1).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        # The first sentence: PyTorch goes on with the kernels of every other device.
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        if reason.startswith("Expected one of"):  # and names twenty types
            reason = "PyTorch has no such type of device"
        raise CommandError(
            f"`--device {name}` cannot be used here ({reason}): give `cpu`, or one that `gradient-lars info` lists."
        ) from None
    return device


def try_compiler(device: torch.device) -> None:
    """Compile and run one addition, so that a compiler that is not there is told before anything is trained.

    Raises:
        CommandError: ``torch.compile`` does not work here.
    """
    try:
        torch.compile(torch.add)(torch.zeros(1, device=device), 1)
    except (RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CommandError(
            f"`--compile` cannot be used on {device} here ({lines[0].rstrip('.')}): "
            "install the compiler that torch.compile needs, or leave it out."
        ) from None
