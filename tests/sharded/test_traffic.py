"""benchmarks/traffic.py counts what is sent, and its committed results are what is promised of the hook and `LARS`."""

import csv
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from sharded.ranks import on_ranks

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHAPES = [(7, 5), (3,), (1, 4)]
OURS = ("LARS fused", "LARS foreach", "hook + SGD")


def _traffic():
    spec = importlib.util.spec_from_file_location("traffic", BENCHMARKS / "traffic.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _counted(traffic):
    return traffic.get_total_counts(), traffic.bytes


def _count_known_collectives():
    module = _traffic()
    mesh = init_device_mesh("cpu", (2,))
    partial = DTensor.from_local(torch.ones(5), mesh, [Partial()])
    rows = DTensor.from_local(torch.ones(3, 2, dtype=torch.float64), mesh, [Shard(0)])
    with module.Traffic() as traffic:
        partial.redistribute(mesh, [Replicate()]).to_local().sum()
        rows.redistribute(mesh, [Replicate()]).to_local().sum()
        dist.all_reduce(torch.ones(4, dtype=torch.bfloat16))
        torch.ones(100).sum()
    assert _counted(traffic) == (3, 5 * 4 + 6 * 8 + 4 * 2)
    with module.Traffic(), pytest.raises(NotImplementedError, match="which of its arguments are sent"):
        dist.broadcast(torch.ones(2), 0)


def test_known_collectives_are_counted():
    on_ranks(2, _count_known_collectives)


def _count_steps():
    module = _traffic()
    found = {}
    for name, distribution, make, options in module.IMPLEMENTATIONS:
        if not distribution:
            found[name] = _counted(module._measured(make, options, SHAPES))
    return found


def test_a_step_sends_two_numbers_a_layer():
    for found in on_ranks(2, _count_steps):
        assert found == {"SGD": (0, 0), **dict.fromkeys(OURS, (1, 16 * len(SHAPES)))}


def test_the_committed_results():
    with (BENCHMARKS / "results" / "traffic.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["workload"] for row in rows} == {"resnet50", "gpt2"}
    assert list(rows[0]) == list(_traffic().Row.__dataclass_fields__)
    ours = [row for row in rows if row["implementation"] in OURS]
    assert len(ours) == 2 * len(OURS)
    for row in ours:
        assert (row["collectives"], int(row["bytes"]), row["error"]) == ("1", 16 * int(row["tensors"]), "")
