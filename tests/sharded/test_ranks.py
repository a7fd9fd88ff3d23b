"""What runs functions on ranks: a crash is tried again once, and told when it comes again."""

import os
import signal
from pathlib import Path

import pytest

from sharded.ranks import on_ranks


def _crash(folder, times):
    from torch import distributed as dist

    rank = dist.get_rank()
    seen = Path(folder, f"rank{rank}")
    seen.write_text(seen.read_text() + "x" if seen.exists() else "x")
    if rank == 1 and len(seen.read_text()) <= times:
        os.kill(os.getpid(), signal.SIGSEGV)
    return len(seen.read_text())


def test_a_crash_is_tried_again_once(tmp_path):
    assert on_ranks(2, _crash, str(tmp_path), 1) == [2, 2]


def test_a_crash_that_comes_again_is_told(tmp_path):
    with pytest.raises(AssertionError, match="rank 1:\nended without an answer"):
        on_ranks(2, _crash, str(tmp_path), 9)
    assert (tmp_path / "rank1").read_text() == "xx"
