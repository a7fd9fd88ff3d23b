"""What ``torchrun`` tells the processes it starts, and who of them speaks; read without loading PyTorch."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from gradient_lars.cli.errors import USAGE

_PATIENCE = 60.0  # seconds; loading PyTorch from a busy network drive can take most of them


class Told(SystemExit):
    """The end of a process that has told itself what went wrong."""


def launched() -> bool:
    """Say whether ``torchrun`` started this process: ``torch.distributed.is_torchelastic_launched``."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def first() -> bool:
    """Say whether this is process 0 of all, the one that prints and writes."""
    return not launched() or os.environ["RANK"] == "0"


def local_rank() -> int:
    """Return the number of this process among those of its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def world_size() -> int:
    """Return the number of processes that ``torchrun`` started on all machines, or 1."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


@contextmanager
def one_speaks() -> Iterator[None]:
    """Silence this process unless it is the first of its machine; an exception passes, and Python prints it.

    All processes find the same mistake, and ``torchrun`` ends the others as soon as one has ended: those that are
    silent wait for that, so that the first has its time to tell.
    """
    if local_rank() == 0:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            yield
        except SystemExit as end:
            if end.code == USAGE and not isinstance(end, Told):
                time.sleep(_PATIENCE)
            raise
