"""benchmarks/host_time.py runs without a GPU and adds rows to a results file."""

import os
import subprocess
import sys
from pathlib import Path

from gradient_lars.cli.bench_results import read_rows

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "host_time.py"


def test_rows_of_both_lists_with_gradients_of_each_kind(tmp_path):
    out = tmp_path / "host.csv"
    command = [sys.executable, str(SCRIPT), "--steps", "3", "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = read_rows(out)
    assert len(result.stdout.splitlines()) == len(rows)
    kinds = ["lars-fused-fixed", "lars-fused-assigned", "lars-fused-backward"]
    assert [(row.workload, row.tensors, row.implementation) for row in rows] == [
        *(("resnet50", 161, kind) for kind in kinds),
        *(("1000-tensors", 1000, kind) for kind in kinds),
    ]
    for row in rows:
        assert (row.quantity, row.unit, row.samples) == ("host", "ms", 3)
        assert 0 < row.p20 <= row.p50 <= row.p80 < 1e3


def test_a_number_of_steps_that_is_none():
    command = [sys.executable, str(SCRIPT), "--steps", "0"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "`--steps` must be at least 1" in result.stderr
