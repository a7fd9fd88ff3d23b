"""``gradient-lars compare`` under ``torchrun``: the numbers of one process, one that speaks, and every way to end."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from torchrun_fits import CASES, float64, trained

FITS = Path(__file__).parents[1] / "torchrun_fits.py"
COMPARE = ["-m", "gradient_lars"]


def start(*arguments):
    """Start ``torchrun``; `arguments` are its own, then what every process runs."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Return exit code, standard output, and standard error up to the launcher's report of failed processes."""
    code, out, err = finish_whole(process)
    lines = err.splitlines()
    end = next((n for n, line in enumerate(lines) if "torch/distributed/elastic/" in line), len(lines))
    return code, out, "\n".join(lines[:end])


def finish_whole(process):
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert "/gradient_lars/" not in err, err  # no traceback of ours
    return process.returncode, out, err


def alone(n):
    return ["--standalone", "--nproc-per-node", n]


def rows_of(folder, name="results.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def wait_for_rows(process, folder, n):
    path = folder / "results.csv"
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") <= n):
        time.sleep(0.01)


EXACT = ["phase", "batch_size", "steps", "optimizer", "lr", "seed", "val_accuracy", "test_accuracy", "diverged"]


def assert_same_runs(folder, other):
    """The same runs with equal figures, up to the rounding of float32; some of them diverged."""
    rows, expected = rows_of(folder), rows_of(other)
    assert len(rows) == len(expected) == 20
    for row, one in zip(rows, expected, strict=True):
        assert [row[name] for name in EXACT] == [one[name] for name in EXACT]
        assert float(row["val_loss"]) == pytest.approx(float(one["val_loss"]), rel=1e-5)
    assert sum(row["diverged"] == "true" for row in rows) == 4


@pytest.fixture
def quick(quick):
    """In which the larger learning rate of SGD ends in numbers that are not finite."""
    return [argument.replace("sgd:0.05,0.5", "sgd:0.3,1e30") for argument in quick]


@pytest.fixture(scope="module")
def expected():
    """What one process ends with in each of the cases."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with float64():
        runs = {(optimizer, batch): trained(optimizer, batch) for optimizer, batch, _ in CASES}
    torch.set_num_threads(threads)
    return runs


def assert_equal_fits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("n", [2, 4])
def test_training_on_several_ranks_is_that_of_one(n, expected, tmp_path):
    code, out, err = finish(start(*alone(n), FITS, tmp_path))
    assert (code, out, err) == (0, "", "")
    for optimizer, batch, shard in CASES:
        one = expected[optimizer, batch]
        assert len(one["losses"]) == 2 * (96 // batch)
        assert one["losses"][-1] < one["losses"][0] - 0.01
        for rank in range(n):
            with np.load(tmp_path / f"{optimizer}-{batch}-{shard}-{rank}.npz") as found:
                assert_equal_fits(dict(found), one)


def test_the_comparison_of_fits_can_fail(expected):
    one = expected["lars", 18]
    with pytest.raises(AssertionError, match="losses"):
        assert_equal_fits({**one, "losses": one["losses"] * (1 + 1e-8)}, one)


@pytest.fixture
def finished(cli, quick, tmp_path):
    """The folder of the same comparison in one process."""
    folder = tmp_path / "alone"
    assert cli(*quick, "--out", folder).code == 0
    return folder


def test_four_ranks_compare_as_one_does(finished, quick, tmp_path):
    folder = tmp_path / "four"
    code, out, err = finish(start(*alone(4), *COMPARE, *quick, "--out", folder))
    assert code == 0
    assert out.count("shapes.npz: 80 training images, 2 epochs, 4 processes") == 1
    assert out.count("At the largest batch") == out.count("Plot:") == 1
    assert [line.split(":")[0] for line in err.splitlines()] == [
        f"batch {batch}, {name}" for batch in (16, 80) for name in ("SGD", "LARS")
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["plot.png", "rates.csv", "results.csv"]
    assert_same_runs(folder, finished)
    assert {(row["world_size"], row["device"]) for row in rows_of(folder)} == {("4", "cpu")}
    rates, expected_rates = rows_of(folder, "rates.csv"), rows_of(finished, "rates.csv")
    assert len(rates) == len(expected_rates) == 22
    for row, one in zip(rates, expected_rates, strict=True):
        assert (row["step"], row["layer"], row["adapted"]) == (one["step"], one["layer"], one["adapted"])
        for name in ("p_norm", "g_norm", "rate"):
            assert float(row[name]) == pytest.approx(float(one[name]), rel=1e-4), (row["layer"], name)


@pytest.mark.parametrize("shard", ["none", "fsdp2"])
def test_bfloat16_on_two_ranks(quick, tmp_path, shard):
    options = ["--bf16", "--batch-sizes", 16, "--micro-batch", 8, "--shard", shard, "--network", "medium"]
    code, out, err = finish(start(*alone(2), *COMPARE, *quick, *options, "--out", tmp_path / "out"))
    assert (code, out.count("At the largest batch")) == (0, 1), err
    assert all(row["bf16"] == "true" for row in rows_of(tmp_path / "out"))


@pytest.mark.slow
def test_interrupted_and_resumed_on_two_ranks(finished, quick, tmp_path):
    folder = tmp_path / "two"
    process = start(*alone(2), *COMPARE, *quick, "--out", folder)
    wait_for_rows(process, folder, 3)
    process.send_signal(signal.SIGINT)
    code, out, err = finish_whole(process)
    assert code != 0
    assert out == ""
    assert err.count("Interrupted. The finished runs are kept: give the same command with `--resume`") == 1
    before = rows_of(folder)
    assert 3 <= len(before) < 20
    code, out, err = finish(start(*alone(2), *COMPARE, *quick, "--out", folder, "--resume"))
    assert code == 0
    assert err.count(f"Resuming: {len(before)} of 20 runs are there.") == 1
    assert out.count("At the largest batch") == 1
    assert rows_of(folder)[: len(before)] == before
    assert_same_runs(folder, finished)


def nodes(quick, folders, *second):
    """Two launchers with a process each, as on two machines; the second has other options as well."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ours = ["--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    first = start(*ours, *COMPARE, *quick, "--out", folders[0])
    return [finish(process) for process in (first, start(*ours, *COMPARE, *quick, "--out", folders[1], *second))]


@pytest.mark.slow
def test_two_machines_and_sharded_layers(finished, quick, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    ends = nodes([*quick, "--shard", "fsdp2"], folders)
    assert [code for code, _, _ in ends] == [0, 0]
    # The launchers number the machines as they meet: process 0 may be on either.
    (writer,) = [n for n, folder in enumerate(folders) if folder.exists()]
    assert ends[1 - writer][1:] == ("", "")
    assert "2 epochs, 2 processes, fsdp2" in ends[writer][1]
    assert {(row["world_size"], row["shard"]) for row in rows_of(folders[writer])} == {("2", "fsdp2")}
    assert_same_runs(folders[writer], finished)


@pytest.mark.slow
def test_machines_with_different_commands_are_refused_once(quick, tmp_path):
    ends = nodes(quick, [tmp_path / "first", tmp_path / "second"], "--epochs", 3)
    assert all(code != 0 for code, _, _ in ends)
    told = " ".join(" ".join(err.split()) for _, _, err in ends).strip()
    assert told.startswith("gradient-lars: process 1 has epochs = ")
    assert told.count("gradient-lars: ") == 1
    assert told.endswith("give the same command, data and versions on every machine.")
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--batch-sizes", "16,x"], "`--batch-sizes` has the item `x`: give whole numbers >= 2"),
        (
            ["--micro-batch", "3"],
            "`--micro-batch` must be 0 or at least 4, got 3: batch normalisation needs two images",
        ),
        (["--compile"], "`--compile` is for one process: leave it out under torchrun"),
        (["--out", "used"], "already holds the results of a comparison: add `--resume` to go on with it"),
    ],
)
def test_mistakes_are_told_once(quick, tmp_path, monkeypatch, options, match):
    monkeypatch.chdir(tmp_path)
    used = tmp_path / "used" / "results.csv"
    used.parent.mkdir()
    used.touch()
    code, out, err = finish(start(*alone(2), *COMPARE, *quick, *options))
    assert code != 0
    assert out == ""
    message = " ".join(err.split())
    assert match in message
    assert message.count("gradient-lars: ") == 1
    assert message.endswith(".")
    assert used.read_text() == ""
    assert not (tmp_path / "gradient-lars-compare").exists()


def test_a_killed_process_ends_all(quick, tmp_path):
    folder = tmp_path / "out"
    process = start(*alone(2), *COMPARE, *quick, "--epochs", 400, "--out", folder)
    wait_for_rows(process, folder, 0)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code, out, err = finish(process)
    assert (code, out) == (1, "")
    # The launcher, which reports the killed process, may end the others before they miss it.
    message = " ".join(err.split())
    if message:
        assert message.startswith("gradient-lars: the processes have lost each other (")
        assert message.endswith("the finished runs are kept, give the same command with `--resume` to go on.")
        assert message.count("gradient-lars: ") == 1
