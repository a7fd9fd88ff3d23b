"""Replays the golden trajectories of every published variant on every path of LARS and writes how far each is off.

    python benchmarks/parity.py --out benchmarks/results/parity.csv

One row a variant and path: the largest difference of a layer from its golden, of the layer's scale there, over all of
the variant's goldens, after each stored step. What a path refuses is not counted, and its refusal is kept. The goldens
and what replays them are those of ``tests/variants``. Needs the development dependencies; the kernels run in Triton's
interpreter, which takes minutes.
"""

import argparse
import csv
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gradient_lars
from gradient_lars.cli.bench_results import source_commit

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))
# Triton's own functions are made for its interpreter only if it is asked for when they are imported.
os.environ["TRITON_INTERPRET"] = "1"
import triton  # noqa: E402, F401

del os.environ["TRITON_INTERPRET"]

from fused.common import took_the_kernels  # noqa: E402
from variants import Golden, load  # noqa: E402
from variants.ours import error_of, replayed, replayed_in_optax  # noqa: E402

Trajectory = Sequence[dict[str, Any]]

# How a golden, which a transcription has made, is known to be the peer: tests/variants/test_peers.py runs these.
INSTALLED = {
    "chainer": "chainer",
    "optax": "optax",
    "open_lars": "open-lars",
    "pytorch_optimizer": "pytorch-optimizer",
}
FROM_WHEELS = {"timm": "timm 1.0.31", "bolts": "lightning-bolts 0.7.0, lightly 1.6.0"}
RUN, OWN_FILE, TRANSCRIBED = "peer run by the tests", "peer's own file run where it can be had", "transcription"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the results; `error` is empty where a path refuses all of a variant's goldens."""

    date: str
    commit: str
    python: str
    torch: str
    triton: str
    jax: str
    optax: str
    gradient_lars: str
    variant: str
    proof: str
    peer: str
    path: str
    goldens: int
    refused: int
    error: float | None
    refusal: str


def _kernels(golden: Golden) -> Trajectory:
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        # The interpreter computes in NumPy, which warns of what kernels may do.
        with np.errstate(all="ignore"):
            trajectory, optimizer = replayed(golden, fused=True)
    finally:
        del os.environ["TRITON_INTERPRET"]
    if not took_the_kernels(optimizer):
        raise AssertionError(f"{golden} did not take the kernels")
    return trajectory


PATHS: dict[str, Callable[[Golden], Trajectory]] = {
    "loop": lambda golden: replayed(golden, foreach=False, fused=False)[0],
    "foreach": lambda golden: replayed(golden, foreach=True)[0],
    "fused": lambda golden: replayed(golden, fused=True)[0],
    "kernels": _kernels,
    "optax": replayed_in_optax,
    "float32": lambda golden: replayed(golden, torch.float32)[0],
}


def measured(variant: str, path: str, goldens: Sequence[Golden]) -> tuple[int, int, float | None, str]:
    """Return how many goldens there are and how many were refused, the largest difference and the refusals' texts."""
    found = [_error(golden, path) for golden in goldens if golden.variant == variant]
    refusals = [refusal for refusal in found if isinstance(refusal, str)]
    errors = [error for error in found if not isinstance(error, str)]
    return len(found), len(refusals), max(errors, default=None), " / ".join(dict.fromkeys(refusals))


def _error(golden: Golden, path: str) -> float | str:
    """Return the difference from the golden, or why the path refuses it."""
    try:
        trajectory = PATHS[path](golden)
    except (RuntimeError, ValueError) as refusal:
        return str(refusal)
    return error_of(golden, trajectory)


def proof_of(variant: str) -> tuple[str, str]:
    """Return how the variant's goldens are proven, and by which release of the peer."""
    if variant in INSTALLED:
        return RUN, f"{INSTALLED[variant]} {importlib.metadata.version(INSTALLED[variant])}"
    return (OWN_FILE, FROM_WHEELS[variant]) if variant in FROM_WHEELS else (TRANSCRIBED, "")


def main() -> None:
    """Measure and write the results file anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the results file, written anew")
    args = parser.parse_args()
    goldens = load()
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    installed = [importlib.metadata.version(package) for package in ("torch", "triton", "jax", "optax")]
    versions = (date, source_commit(), platform.python_version(), *installed, gradient_lars.__version__)
    rows = []
    for variant in dict.fromkeys(golden.variant for golden in goldens):
        for path in PATHS:
            row = Row(*versions, variant, *proof_of(variant), path, *measured(variant, path, goldens))
            rows.append(row)
            print(*dataclasses.astuple(row)[8:], sep=", ", flush=True)
    with args.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(Row)])
        writer.writerows(dataclasses.astuple(row) for row in rows)


if __name__ == "__main__":
    main()
