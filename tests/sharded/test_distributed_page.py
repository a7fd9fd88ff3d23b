"""docs/distributed.md: its code runs on four ranks, its tables are those of the results file, its files exist."""

import importlib.util
import re
import tempfile
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

from sharded.layouts import full
from sharded.ranks import on_ranks

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "distributed.md"
TEXT = PAGE.read_text(encoding="utf-8")
PRELUDE, *BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
# What a step of each block's optimizer sends, as the page's first table says; ZeroRedundancyOptimizer sends parameters.
COLLECTIVES = {
    "**DDP.**": 0,
    "**FSDP2.**": 1,
    "**HSDP.**": 1,
    "**Tensor parallel": 2,
    "**The hook**": 1,
    "**ZeroRedundancyOptimizer**": None,
    "**GradScaler.**": 1,
    "**Checkpoints.**": 1,
}


def _make_readme():
    spec = importlib.util.spec_from_file_location("make_readme", ROOT / "benchmarks" / "make_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _whole(model):
    return [full(param).clone() for param in model.parameters()]


def _run_blocks(folder):
    """Run all blocks, and assert that the step of each trains every layer, alike on all ranks."""
    namespace = {"folder": folder}
    exec(compile(PRELUDE, PAGE.name, "exec"), namespace)
    start = _whole(namespace["network"]())
    for block, collectives in zip(BLOCKS, COLLECTIVES.values(), strict=True):
        exec(compile(block, PAGE.name, "exec"), namespace)
        # Data are the same on all ranks, and so is every network after its step.
        for value, before in zip(_whole(namespace["model"]), start, strict=True):
            assert not torch.equal(value, before), block
            first = value.clone()
            dist.broadcast(first, 0)
            assert torch.equal(value, first), block
        with CommDebugMode() as communication:
            namespace["optimizer"].step()
        assert collectives is None or communication.get_total_counts() == collectives, block


def test_code_blocks_run_one_after_the_other():
    places = [TEXT.index(title) for title in COLLECTIVES]
    assert places == sorted(places)
    with tempfile.TemporaryDirectory() as folder:
        on_ranks(4, _run_blocks, folder)


def test_tables_are_current():
    assert _make_readme().filled(TEXT, PAGE) == TEXT


@pytest.mark.parametrize("figure", ["| hook + SGD | 1 |", "µs, b = "])
def test_a_stale_table_is_noticed(figure):
    stale = TEXT.replace(figure, figure.replace(" ", "  "), 1)
    assert stale != TEXT
    assert _make_readme().filled(stale, PAGE) == TEXT


def test_linked_files_exist():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]
    assert len(targets) == 3
    for target in targets:
        assert (PAGE.parent / target).exists(), target
