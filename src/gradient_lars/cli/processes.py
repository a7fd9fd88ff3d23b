"""The processes that ``torchrun`` started, on ``torch.distributed``."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import Store
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from gradient_lars.cli.cluster import Cluster
from gradient_lars.cli.errors import USAGE, CommandError
from gradient_lars.cli.launch import Told, local_rank
from gradient_lars.cli.settings import FSDP2
from gradient_lars.cli.sync_norm import SyncBatchNormCPU

T = TypeVar("T")
# The second is deprecated since PyTorch 2.13, which brought the first.
_KNOWN = inspect.signature(DistributedDataParallel).parameters
_LEAVE_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers": False
}


@contextmanager
def connected(shard: str) -> Iterator["Processes"]:
    """Connect the processes of ``torchrun`` for the time of the block.

    Raises:
        CommandError: they cannot reach each other.
    """
    try:
        store, rank, size = next(rendezvous("env://"))
        # What is agreed on travels between the hosts, also where a device is the mistake.
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    except RuntimeError as error:
        raise CommandError(
            f"the processes that torchrun started cannot reach each other ({_reason(error)}): "
            "name the network between the machines in the variable GLOO_SOCKET_IFNAME, such as eth0."
        ) from None
    processes = Processes(rank, size, shard, store)
    try:
        yield processes
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise processes.failure(
            f"the processes have lost each other ({_reason(error)}): one of them ended early, or the network failed; "
            "the finished runs are kept, give the same command with `--resume` to go on."
        ) from None
    finally:
        dist.destroy_process_group()  # whose threads would otherwise abort the process where it ends


def _reason(error: Exception) -> str:
    """Return the first sentence of an error of PyTorch's, without the place in its source that gloo puts before it."""
    text = str(error).partition("\n")[0]
    return (text.partition("] ")[2] or text).partition(". ")[0].rstrip(".")


class Processes(Cluster):
    """This process among `size`."""

    def __init__(self, rank: int, size: int, shard: str, store: Store) -> None:
        self.rank = rank
        self.size = size
        self.shard = shard
        self._store = store

    def own_device(self, device: torch.device) -> torch.device:
        """Return the device of this process's place on its machine."""
        if device.type == "cpu":
            return device
        if device.index is None:
            return torch.device(device.type, local_rank())
        if self.size > 1:
            raise CommandError(
                f"`--device {device}` is one device for {self.size} processes: give `{device.type}`, "
                "and each process takes one of its own."
            )
        return device

    def use(self, device: torch.device) -> None:
        """Make a group that communicates between devices such as `device`; all processes come here together.

        Raises:
            CommandError: PyTorch was built without what that takes.
        """
        torch.get_device_module(device).set_device(device)
        self._device = device
        try:
            self._group = dist.new_group(backend=dist.get_default_backend_for_device(device))
        except (RuntimeError, ValueError) as error:
            raise CommandError(
                f"`--device {device.type}` cannot be shared by processes here ({_reason(error)}): "
                "give `cpu`, or start the command without torchrun."
            ) from None

    def norm(self, channels: int) -> nn.Module:
        """Return PyTorch's ``SyncBatchNorm``; on a CPU, where it does not run, its like."""
        kind = SyncBatchNormCPU if self._device.type == "cpu" else nn.SyncBatchNorm
        return kind(channels, process_group=self._group)

    def spread(self, network: nn.Sequential) -> nn.Module:
        """Return `network` in ``DistributedDataParallel``; with `FSDP2` shard each layer, in place."""
        if self.shard != FSDP2:
            # The running statistics, its buffers, are the same everywhere already.
            return DistributedDataParallel(network, process_group=self._group, **_LEAVE_BUFFERS)
        mesh = DeviceMesh.from_group(self._group, self._device.type)
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for layer in network:
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
        return network

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of this rank."""
        return rows.tensor_split(self.size)[self.rank]

    def total(self, own: torch.Tensor) -> torch.Tensor:
        """Return the sum; `own` is overwritten."""
        dist.all_reduce(own)
        return own

    def gather(self, own: T) -> list[T]:
        """Return what every process gave."""
        values = [own] * self.size
        dist.all_gather_object(values, own)
        return values

    def once(self, make: Callable[[], T]) -> T:
        """Call `make` in process 0 and send what it returned, or its mistake, to the others."""
        outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.rank == 0:
            try:
                outcome = [(make(), None)]
            except (CommandError, OSError) as error:
                outcome = [(None, error)]
        dist.broadcast_object_list(outcome)
        value, mistake = outcome[0]
        if mistake is not None:
            raise self._ended(mistake)
        return value  # type: ignore[return-value]

    @contextmanager
    def agree(self) -> Iterator[None]:
        """Ask all processes at the end of the block."""
        own: CommandError | None = None
        try:
            yield
        except CommandError as error:
            own = error
        mistake = next((error for error in self.gather(own) if error is not None), None)
        if mistake is not None:
            raise self._ended(mistake) from None

    def failure(self, text: str) -> BaseException:
        """Tell `text` unless another process was quicker."""
        try:
            late = self._store.add("gradient-lars told", 1) > 1
        except RuntimeError:  # the store has ended together with its machine
            late = False
        if late:
            return SystemExit(USAGE)
        print(f"gradient-lars: {text}", file=sys.__stderr__, flush=True)
        return Told(USAGE)

    def _ended(self, mistake: Exception) -> BaseException:
        return mistake if self.rank == 0 else SystemExit(USAGE)
