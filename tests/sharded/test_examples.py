"""The scripts of examples/ as their users start them: they end cleanly, learn, and do not depend on the world size."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
EPOCH = re.compile(r"epoch (\d+): loss (\d+\.\d{4}), test accuracy (\d+\.\d)%")


def _run(script, ranks, *arguments):
    """Return loss and accuracy of each epoch; raise AssertionError if anything but these was printed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launcher, str(EXAMPLES / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "default"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    found = [EPOCH.fullmatch(line) for line in done.stdout.splitlines()]
    assert all(found), done.stdout
    return {int(match[1]): (float(match[2]), float(match[3])) for match in found}


def _assert_learnt(epochs, last):
    assert list(epochs) == list(range(1, last + 1))
    assert epochs[last][0] < 0.1 * epochs[1][0]
    assert epochs[last][1] > 88


def test_ddp_learns_the_same_on_one_rank_and_on_two():
    alone, shared = _run("ddp.py", 1), _run("ddp.py", 2)
    _assert_learnt(shared, last=12)
    # Rounding alone sets them apart, and later epochs magnify it.
    for epoch in range(1, 6):
        assert shared[epoch] == pytest.approx(alone[epoch], abs=5e-4)


def test_fsdp2_resumes_on_another_number_of_ranks(tmp_path):
    epochs = _run("fsdp2.py", 2, tmp_path)
    _assert_learnt(epochs, last=10)
    # As an interruption leaves it: the last checkpoint without the file that is written at its end.
    (tmp_path / "epoch-0010" / ".metadata").unlink()
    resumed = _run("fsdp2.py", 1, tmp_path)
    assert resumed == {10: pytest.approx(epochs[10], abs=5e-4)}


@pytest.mark.slow
def test_fsdp2_and_tensor_parallel_learn():
    _assert_learnt(_run("fsdp2_tp.py", 4), last=8)


@pytest.mark.parametrize(
    "script", [EXAMPLES / name for name in ("ddp.py", "fsdp2.py", "fsdp2_tp.py")], ids=lambda path: path.name
)
def test_scripts_are_short_and_say_how_to_start_them(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    head = text.split('"""')[1]
    assert len(re.findall(rf"^    torchrun .*examples/{script.name}", head, flags=re.MULTILINE)) == 2
