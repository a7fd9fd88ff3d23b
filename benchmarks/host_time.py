"""Measures what a fused step costs the host without its launches, which need no GPU then, and adds rows to a CSV."""

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from gradient_lars.cli.bench_results import Row, append_rows, environment, percentiles, processor_name
from gradient_lars.cli.bench_workloads import WORKLOADS, Shapes, n_parameters
from gradient_lars.torch import LARS

# The host does the same for tensors of any size. Small ones leave it the caches, as tensors on a GPU would.
LISTS: dict[str, Shapes] = {
    "resnet50": [tuple(min(size, 2) for size in shape) for shape in WORKLOADS["resnet50"].shapes],
    "1000-tensors": [(16, 4)] * 1000,
}
WARM_UP = 20


class NoLaunch:
    """A kernel that does nothing."""

    def __getitem__(self, grid: Any) -> "NoLaunch":
        return self

    def __call__(self, *args: Any, **options: Any) -> None:
        """Launch nothing."""


def fixed(params: list[torch.nn.Parameter]) -> None:
    """Leave the gradients where they are."""
    if params[0].grad is None:
        assigned(params)


def assigned(params: list[torch.nn.Parameter]) -> None:
    """Give every parameter another gradient tensor, while the one before still has its memory."""
    for param in params:
        param.grad = torch.empty_like(param)


def backward(params: list[torch.nn.Parameter]) -> None:
    """Free the gradients and have autograd make new ones, as a training loop does."""
    for param in params:
        param.grad = None
    losses = torch._foreach_mul(list[torch.Tensor](params), 2.0)
    torch.autograd.backward(losses, [torch.ones_like(loss) for loss in losses])


GRADIENTS = {"fixed": fixed, "assigned": assigned, "backward": backward}


def measure(shapes: Shapes, prepare: Callable[[list[torch.nn.Parameter]], None], steps: int) -> list[float]:
    """Return the microseconds of each step, the launches left out."""
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = LARS(params, lr=0.5, weight_decay=1e-4, fused=True)
    times = []
    for step in range(WARM_UP + steps):
        prepare(params)
        gc.disable()
        start = time.perf_counter()
        optimizer.step()
        taken = time.perf_counter() - start
        gc.enable()
        if step >= WARM_UP:
            times.append(1e6 * taken)
    return times


def rows(steps: int) -> list[Row]:
    """Return the rows of one run, and print them."""
    date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    where = environment("cpu", processor_name(), date, torch.get_num_threads())
    found = []
    for workload, shapes in LISTS.items():
        for name, prepare in GRADIENTS.items():
            samples = measure(shapes, prepare, steps)
            p20, p50, p80 = percentiles(samples)
            row = Row(
                where, "float32", workload, n_parameters(shapes), len(shapes), f"lars-fused-{name}", "", "host",
                len(samples), p20 / 1e3, p50 / 1e3, p80 / 1e3, "ms", None, None,
            )  # fmt: skip
            found.append(row)
            print(f"{workload:>12}  gradients {name:<8}  min {min(samples):6.1f}  p20 {p20:6.1f}  p50 {p50:6.1f} us")
    return found


def main() -> None:
    """Measure, print, and with ``--out`` add the rows to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500, help="steps measured of each (default: 500)")
    parser.add_argument("--out", type=Path, help="CSV to which the rows are added")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        sys.exit("`--steps` must be at least 1.")
    # Before Triton is imported: only so does `fused=True` take the kernels' path on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"
    from gradient_lars.torch import _triton

    _triton.norms = _triton.update = NoLaunch()
    torch.set_num_threads(1)
    found = rows(arguments.steps)
    if arguments.out is not None:
        append_rows(arguments.out, found)


if __name__ == "__main__":
    main()
