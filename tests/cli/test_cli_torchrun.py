"""``gradient-lars compare`` under ``torchrun``: the numbers of one process, one that speaks, and every way to end."""

import csv
import io
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

from gradient_lars.cli import launch
from gradient_lars.cli.cluster import ALONE
from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.processes import Processes
from torchrun_fits import CASES, float64, trained

FITS = Path(__file__).parents[1] / "torchrun_fits.py"
COMPARE = ["-m", "gradient_lars"]


def start(*arguments):
    """Start ``torchrun``; `arguments` are its own, then what every process runs."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Return exit code, standard output, and what the command itself wrote to standard error."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    # What follows is the launcher's own report of a process that failed.
    lines = err.splitlines()
    end = next((n for n, line in enumerate(lines) if "torch/distributed/elastic/" in line), len(lines))
    assert "/gradient_lars/" not in err, err  # no traceback of ours
    return process.returncode, out, "\n".join(lines[:end])


def alone(n):
    return ["--standalone", "--nproc-per-node", n]


def rows_of(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def rates_of(folder):
    with (folder / "rates.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def wait_for_rows(process, folder, n):
    path = folder / "results.csv"
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") <= n):
        time.sleep(0.01)


def assert_same_run(row, other):
    """The same run with equal figures, up to the rounding of float32; `seconds` differs."""
    for name in (
        "phase",
        "batch_size",
        "steps",
        "optimizer",
        "lr",
        "seed",
        "val_accuracy",
        "test_accuracy",
        "diverged",
    ):
        assert row[name] == other[name], name
    assert float(row["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=1e-5)


def assert_same_runs(folder, other):
    rows, expected = rows_of(folder), rows_of(other)
    assert len(rows) == len(expected) == 20
    for row, one in zip(rows, expected, strict=True):
        assert_same_run(row, one)


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
    assert {(row["world_size"], row["shard"], row["device"]) for row in rows_of(folder)} == {("4", "none", "cpu")}
    rates, expected_rates = rates_of(folder), rates_of(finished)
    assert len(rates) == len(expected_rates) == 22
    for row, one in zip(rates, expected_rates, strict=True):
        assert [row[name] for name in ("step", "layer", "adapted")] == [
            one[name] for name in ("step", "layer", "adapted")
        ]
        for name in ("p_norm", "g_norm", "rate"):
            assert float(row[name]) == pytest.approx(float(one[name]), rel=1e-4), (row["layer"], name)


def test_interrupted_and_resumed_on_two_ranks(finished, quick, tmp_path):
    folder = tmp_path / "two"
    process = start(*alone(2), *COMPARE, *quick, "--out", folder)
    wait_for_rows(process, folder, 3)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code != 0
    assert out == ""
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


def test_two_machines(finished, quick, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    ends = nodes(quick, folders)
    assert [code for code, _, _ in ends] == [0, 0]
    # The launchers number the machines as they meet: process 0 may be on either.
    (writer,) = [n for n, folder in enumerate(folders) if folder.exists()]
    assert ends[1 - writer][1:] == ("", "")
    assert "2 epochs, 2 processes" in ends[writer][1]
    assert_same_runs(folders[writer], finished)


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


def test_of_several_failures_the_first_is_told(monkeypatch):
    told = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", told)
    store = torch.distributed.HashStore()
    ends = [Processes(rank, 3, "none", store).failure(f"{rank} has no memory left.") for rank in (1, 0, 2)]
    assert [type(end) for end in ends] == [launch.Told, SystemExit, SystemExit]
    assert [end.code for end in ends] == [2, 2, 2]
    assert told.getvalue() == "gradient-lars: 1 has no memory left.\n"


def test_a_failure_is_told_where_the_store_is_lost(monkeypatch):
    told = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", told)

    class Lost:
        def add(self, *arguments):
            raise RuntimeError

    assert isinstance(Processes(1, 2, "none", Lost()).failure("alone."), launch.Told)
    assert told.getvalue() == "gradient-lars: alone.\n"


@pytest.mark.parametrize(
    ("name", "size", "own"), [("cpu", 4, "cpu"), ("cuda", 4, "cuda:3"), ("cuda:1", 1, "cuda:1"), ("cuda", 1, "cuda:3")]
)
def test_each_process_takes_its_own_device(monkeypatch, name, size, own):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert Processes(0, size, "none", None).own_device(torch.device(name)) == torch.device(own)
    assert ALONE.own_device(torch.device(name)) == torch.device(name)


def test_one_device_for_several_processes_is_refused():
    with pytest.raises(CommandError, match="`--device cuda:1` is one device for 2 processes: give `cuda`, and each"):
        Processes(0, 2, "none", None).own_device(torch.device("cuda", 1))


@pytest.fixture
def second(monkeypatch):
    """This process as the second of two on its machine; the mistakes that it waits for."""
    waited = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def test_the_second_process_is_silent_and_lets_the_first_end_before_it(cli, second):
    result = cli("compare", "--epochs", "0")
    assert (result.code, result.out, result.err) == (2, "", "")
    assert len(second) == 1
    assert cli("--version").out == ""
    assert len(second) == 1


def test_the_second_process_draws_nothing(cli, second, tmp_path):
    assert cli("compare", "--replot", tmp_path / "gone.csv").code == 0


def test_what_the_second_process_has_told_it_does_not_wait_for(second):
    with pytest.raises(launch.Told), launch.one_speaks():
        raise launch.Told(2)
    assert second == []


def test_errors_of_ours_are_not_silenced(second, capsys):
    with pytest.raises(ZeroDivisionError), launch.one_speaks():
        1 / 0  # noqa: B018
    print("heard")
    assert capsys.readouterr().out == "heard\n"
