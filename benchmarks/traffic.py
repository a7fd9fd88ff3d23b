"""Counts what one optimizer step sends over the network when FSDP2 has sharded the parameters: collectives and bytes.

    python benchmarks/traffic.py --out benchmarks/results/traffic.csv

The step of LARS and of the hook beside those of the other LARS for PyTorch that are installed, and of plain SGD, which
sends nothing. Processes on the CPU, over gloo; the counts follow from the list of layers, not from the device. Bytes
are those that each rank hands to collectives; what an all-reduce makes of them on the wire is its algorithm's affair.
Gradients are set by hand, sharded as FSDP2's backward leaves them: what forward and backward send is not counted.
"""

import argparse
import csv
import dataclasses
import datetime
import importlib
import importlib.metadata
import importlib.util
import platform
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._pytree import tree_leaves

import gradient_lars
from gradient_lars import GradientLARS
from gradient_lars.cli.bench_results import source_commit
from gradient_lars.cli.bench_workloads import WORKLOADS, n_parameters
from gradient_lars.torch import LARS, add_hook

DEFAULT_WORKLOADS = ("resnet50", "gpt2")
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
# A rank that fails alone must not leave the others waiting for longer.
TIMEOUT = datetime.timedelta(seconds=120)

Step = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the results: what one step of one implementation sends, or the first line of its error."""

    date: str
    commit: str
    python: str
    torch: str
    gradient_lars: str
    workload: str
    tensors: int
    parameters: int
    world_size: int
    implementation: str
    package: str
    collectives: int | None
    bytes: int | None
    error: str


class Traffic(CommDebugMode):
    """CommDebugMode, and the bytes of the tensors that this rank hands to what it counts."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and add up its tensors if it is a collective."""
        before = self.get_total_counts()
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.get_total_counts() > before:
            # Those of another form have tensors for their results among the arguments.
            if func.namespace != "_c10d_functional" and func is not torch.ops.c10d.allreduce_.default:
                raise NotImplementedError(f"{func} is not known: say which of its arguments are sent")
            sent = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in sent)
        return result


def _lars(params: Sequence[Tensor], **options: Any) -> Step:
    return LARS(params, lr=0.1, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **options).step


def _hook(params: Sequence[Tensor]) -> Step:
    optimizer = torch.optim.SGD(params, lr=1e-4, momentum=MOMENTUM)
    add_hook(optimizer, GradientLARS(weight_decay=WEIGHT_DECAY))
    return optimizer.step


def _sgd(params: Sequence[Tensor]) -> Step:
    return torch.optim.SGD(params, lr=1e-4, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY).step


def _timm(params: Sequence[Tensor], foreach: bool | None = None) -> Step:
    """Return the step of timm's Lars, from its own file: importing timm needs a torchvision that fits PyTorch."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("timm")
    package = types.ModuleType("timm_optim")
    package.__path__ = [str(Path(spec.submodule_search_locations[0], "optim"))]
    sys.modules[package.__name__] = package
    lars = importlib.import_module("timm_optim.lars").Lars
    step: Step = lars(params, lr=0.1, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, foreach=foreach).step
    return step


def _pytorch_optimizer(params: Sequence[Tensor], foreach: bool | None = None) -> Step:
    lars = importlib.import_module("pytorch_optimizer").LARS
    step: Step = lars(params, lr=0.1, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, foreach=foreach).step
    return step


# Name, distribution of a peer, and what makes the step.
IMPLEMENTATIONS: list[tuple[str, str, Callable[..., Step], dict[str, Any]]] = [
    ("SGD", "", _sgd, {}),
    ("LARS fused", "", _lars, {"fused": True}),
    ("LARS foreach", "", _lars, {"foreach": True}),
    ("hook + SGD", "", _hook, {}),
    ("timm Lars", "timm", _timm, {}),
    ("timm Lars foreach", "timm", _timm, {"foreach": True}),
    ("pytorch_optimizer LARS", "pytorch-optimizer", _pytorch_optimizer, {}),
    ("pytorch_optimizer LARS loop", "pytorch-optimizer", _pytorch_optimizer, {"foreach": False}),
]


def _sharded(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return parameters of these shapes, sharded by FSDP2, with gradients."""
    module = nn.Module()
    for i, shape in enumerate(shapes):
        module.register_parameter(f"layer{i}", nn.Parameter(torch.randn(shape)))
    fully_shard(module)
    for param in module.parameters():
        assert isinstance(param, DTensor)
        piece = torch.randn_like(param.to_local())
        param.grad = DTensor.from_local(
            piece, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
        )
    return list(module.parameters())


def _measured(make: Callable[..., Step], options: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> Traffic:
    """Return the traffic of a second step: the first one may also make state."""
    torch.manual_seed(0)
    step = make(_sharded(shapes), **options)
    step()
    with Traffic() as traffic:
        step()
    return traffic


def _rank(rank: int, ranks: int, folder: str, row: Row, index: int) -> None:
    """Measure one implementation on this rank; the first one writes the row."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=TIMEOUT)
    _, _, make, options = IMPLEMENTATIONS[index]
    try:
        traffic = _measured(make, options, WORKLOADS[row.workload].shapes)
        row = dataclasses.replace(row, collectives=traffic.get_total_counts(), bytes=traffic.bytes)
    except Exception as error:  # a peer may fail in any way
        row = dataclasses.replace(row, error=f"{type(error).__name__}: {error}".partition("\n")[0])
    if rank == 0:
        with Path(folder, "row.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(dataclasses.astuple(row))
    dist.barrier()
    dist.destroy_process_group()


def _version(distribution: str) -> str | None:
    """Return name and version of a peer, "" for what is there anyway, None for what is missing."""
    if not distribution:
        return ""
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def measure(workloads: Sequence[str], ranks: int) -> list[list[str]]:
    """Return the rows of all implementations that are installed; say which are not."""
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    versions = (platform.python_version(), torch.__version__, gradient_lars.__version__)
    rows = []
    multiprocessing.set_forkserver_preload(
        ["torch.distributed.fsdp", "torch.distributed.tensor.debug", "gradient_lars"]
    )
    for workload in workloads:
        shapes = WORKLOADS[workload].shapes
        for index, (name, distribution, _, _) in enumerate(IMPLEMENTATIONS):
            package = _version(distribution)
            if package is None:
                print(f"{name}: left out, {distribution} is not installed", file=sys.stderr)
                continue
            sizes = (len(shapes), n_parameters(shapes))
            row = Row(date, source_commit(), *versions, workload, *sizes, ranks, name, package, None, None, "")
            with tempfile.TemporaryDirectory() as folder:
                multiprocessing.start_processes(_rank, (ranks, folder, row, index), ranks, start_method="forkserver")
                text = Path(folder, "row.csv").read_text(encoding="utf-8")
            rows += csv.reader([text])
            print(text.strip().split(",", 5)[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write the results file anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the results file, written anew")
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="default: resnet50 and gpt2")
    parser.add_argument("--ranks", type=int, default=4, help="number of processes (4)")
    args = parser.parse_args()
    rows = measure(args.workload or DEFAULT_WORKLOADS, args.ranks)
    with args.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(Row)])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
