"""``gradient-lars bench`` as a user runs it: table, results file, plot, and every mistake."""

import csv
import importlib
import os

import pytest
import torch

from bench_rows import TINY, gpu_run
from gradient_lars.cli import bench, bench_results, bench_timing, bench_workloads
from gradient_lars.cli import bench_implementations as made

QUICK = ["bench", "--rounds", "2", "--workloads", "tiny"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """A small list of parameters, a small tensor to copy, an empty folder, and no peer that takes long to import."""
    monkeypatch.setitem(bench_workloads.WORKLOADS, "tiny", TINY)
    monkeypatch.setattr(bench_timing, "COPY_BYTES", 4096)
    monkeypatch.chdir(tmp_path)
    real = importlib.import_module

    def without_peers(name, package=None):
        if name.partition(".")[0] in ("timm", "torchlars", "optax", "pytorch_optimizer"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_peers)


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run(cli, tmp_path):
    result = cli(*QUICK, "--out", "deep/step.csv", "--plot", "plots/step.png")
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    assert "Tiny: 0.00 M parameters in 4 tensors, float32" in result.out
    assert "Not measured: timm Lars (not installed)." in result.out
    assert "Not measured: LARS fused, strict (not for cpu)." in result.out
    assert "Plot: plots/step.png" in result.out
    assert "Results: deep/step.csv" in result.out
    assert (tmp_path / "plots" / "step.png").read_bytes()[:4] == b"\x89PNG"

    rows = table_of(tmp_path / "deep" / "step.csv")
    measured = {row["implementation"] for row in rows}
    assert {"copy", "lars", "lars-fused", "lars-foreach", "lars-loop", "hook-sgd-fused"} < measured
    assert {"hook-sgd-foreach", "sgd-fused", "sgd-foreach", "sgd-loop"} < measured
    (yardstick,) = (row for row in rows if row["implementation"] == "sgd-fused")
    (copy,) = (row for row in rows if row["implementation"] == "copy")
    assert (copy["quantity"], copy["unit"], copy["samples"]) == ("bandwidth", "GB/s", "2")
    floor = 1e3 * 20 * 297 / (1e9 * float(copy["p50"]))
    for row in rows:
        assert row["torch"] == torch.__version__
        assert (row["parameters"], row["tensors"], row["workload"]) == ("297", "4", "tiny")
        assert float(row["p20"]) <= float(row["p50"]) <= float(row["p80"])
        if row is copy:
            assert row["ratio_to_fused_sgd"] == row["ratio_to_floor"] == ""
            continue
        assert (row["quantity"], row["unit"], row["samples"]) == ("eager", "ms", str(2 * bench_timing.STEPS))
        want = float(row["p50"]) / float(yardstick["p50"])
        assert float(row["ratio_to_fused_sgd"]) == pytest.approx(want, rel=1e-4)
        assert float(row["ratio_to_floor"]) == pytest.approx(float(row["p50"]) / floor, rel=1e-4)


def test_a_second_run_is_added(cli, tmp_path):
    arguments = [*QUICK, "--implementations", "lars", "--out", "step.csv"]
    assert cli(*arguments).code == 0
    first = (tmp_path / "step.csv").read_text()
    assert cli(*arguments, "--dtype", "float64").code == 0
    assert (tmp_path / "step.csv").read_text().startswith(first)
    rows = table_of(tmp_path / "step.csv")
    assert [row["implementation"] for row in rows] == ["copy", "lars", "sgd-fused"] * 2
    assert [row["dtype"] for row in rows] == ["float32"] * 3 + ["float64"] * 3


def test_replot(cli, tmp_path):
    bench_results.append_rows(tmp_path / "gpu.csv", gpu_run())
    before = (tmp_path / "gpu.csv").read_bytes()
    result = cli("bench", "--replot", "gpu.csv", "--plot", "gpu.png")
    assert (result.code, result.err) == (0, "")
    assert "ResNet-50: 25.56 M parameters" in result.out
    assert {file.name for file in tmp_path.iterdir()} == {"gpu.csv", "gpu.png"}
    assert cli("bench", "--replot", "gpu.csv").code == 0
    assert (tmp_path / "gpu.csv").read_bytes() == before


def test_an_implementation_that_refuses_is_named(cli, tmp_path):
    result = cli(*QUICK, "--implementations", "lars,lars-fused", "--dtype", "bfloat16")
    assert result.code == 0
    assert "Not measured: LARS fused (`fused` cannot run here" in result.out
    assert {row["implementation"] for row in table_of(tmp_path / "gradient-lars-bench.csv")} == {
        "copy",
        "lars",
        "sgd-fused",
    }


def test_the_time_that_rounds_may_take(cli, tmp_path):
    arguments = ["--workloads", "tiny", "--implementations", "lars", "--rounds", "50", "--seconds", "1e-9"]
    assert cli("bench", *arguments).code == 0
    rows = table_of(tmp_path / "gradient-lars-bench.csv")
    assert {row["samples"] for row in rows} == {"1", str(bench_timing.STEPS)}  # one whole round


class OnDevice:
    """A clock that has all quantities, and fails for some implementation."""

    def measure(self, implementation, tensors):
        if implementation.name == "lars-loop":
            raise made.Unavailable("does not fit into the memory")
        factor = 1.0 if implementation.name == "sgd-fused" else 1.5
        return {"eager": [2.0 * factor], "host": [1.0 * factor], "graph": [0.5 * factor], "memory": [3.0]}

    def bandwidth(self, device):
        return 3000.0


def test_the_quantities_of_a_gpu(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_timing, "clock_for", lambda device: OnDevice())
    result = cli(*QUICK, "--implementations", "lars,lars-loop", "--out", "x.csv")
    assert result.code == 0
    assert "Not measured: LARS loop (does not fit into the memory (Tiny))." in result.out
    rows = {(row["implementation"], row["quantity"]): row for row in table_of(tmp_path / "x.csv")}
    for quantity in ("eager", "host", "graph"):
        assert float(rows["lars", quantity]["ratio_to_fused_sgd"]) == 1.5
    floor = 1e3 * 20 * 297 / 3e12
    assert float(rows["lars", "graph"]["ratio_to_floor"]) == pytest.approx(0.75 / floor, rel=1e-4)
    assert rows["lars", "host"]["ratio_to_floor"] == ""
    assert (rows["lars", "memory"]["unit"], rows["lars", "memory"]["ratio_to_fused_sgd"]) == ("MB", "")


KNOWN = "the known ones are resnet18, resnet50, efficientnet-b0, vit-l-16, gpt2, gpt-1b, tiny"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--workloads", "resnet50,alexnet"], f"`--workloads` has the item `alexnet`, which is unknown: {KNOWN}."),
        (["--workloads", " , "], "`--workloads` is an empty list: give some of resnet18"),
        (["--implementations", "adam"], "`--implementations` has the item `adam`, which is unknown: the known ones"),
        (["--dtype", "int8"], "`--dtype` is `int8`, which is unknown: give `float32`, `float64`, `float16` or"),
        (["--rounds", "0"], "`--rounds` must be at least 1, got 0"),
        (["--seconds", "0"], "`--seconds` must be > 0 and finite, got 0"),
        (["--seconds", "nan"], "`--seconds` must be > 0 and finite, got nan"),
        (["--device", "warp"], "`--device warp` cannot be used here"),
        (["--device", "meta"], "`--device meta` cannot be used here"),
        (["--out", "."], "`--out`: . is a folder: name a file."),
        (["--out", "text/x.csv"], "`--out`: text is a file, not a folder"),
        (["--out", "text"], "text is not a results file of `gradient-lars bench`"),
        (["--plot", "."], "`--plot`: . is a folder: name a file."),
        (["--plot", "text/x.png"], "`--plot`: text is a file, not a folder"),
        (["--replot", "gone.csv"], "gone.csv cannot be read (No such file or directory)"),
        (["--replot", "text"], "text is not a results file of `gradient-lars bench`"),
        (["--replot", "text", "--out", "x"], "`--replot` writes no results: leave `--out` out."),
        (["--replot", "none.csv"], "none.csv holds no measurement: run `gradient-lars bench` first."),
    ],
)
def test_mistakes(cli, tmp_path, arguments, match):
    (tmp_path / "text").write_text("a,b\n")
    bench_results.append_rows(tmp_path / "none.csv", [])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = cli("bench", *arguments)
    assert result.code == 2
    assert match in result.message
    assert result.message.startswith("gradient-lars: ")
    assert result.message.endswith(".")
    assert "Traceback" not in result.err
    assert result.out == ""
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_may_not_be_written(cli, tmp_path, monkeypatch):
    (tmp_path / "step.csv").touch()
    monkeypatch.setattr(bench_results.os, "access", lambda path, mode: not mode & os.W_OK)
    result = cli(*QUICK, "--out", "step.csv")
    assert (result.code, result.message) == (
        2,
        "gradient-lars: `--out`: no permission to write to step.csv: name another file.",
    )


def test_a_full_disk_leaves_the_file_as_it_was(cli, tmp_path, monkeypatch):
    arguments = [*QUICK, "--implementations", "lars", "--out", "step.csv"]
    assert cli(*arguments).code == 0
    before = (tmp_path / "step.csv").read_bytes()

    def fail(self, text, **_):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench_results.Path, "write_text", fail)
    result = cli(*arguments)
    assert result.code == 2
    assert "step.csv cannot be written to (No space left on device)" in result.message
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"step.csv": before}


def test_an_interruption_keeps_finished_workloads(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(bench_workloads.WORKLOADS, "second", bench_workloads.Workload("second", "Second", list))

    def interrupted(*_):
        raise KeyboardInterrupt

    real = bench_timing.Tensors
    monkeypatch.setattr(bench_timing, "Tensors", lambda shapes, *rest: real(shapes, *rest) if shapes else interrupted())
    result = cli("bench", "--rounds", "1", "--workloads", "tiny,second", "--implementations", "lars")
    assert result.code == 130
    assert "Interrupted. The workloads that were finished are in the results file." in result.message
    assert {row["workload"] for row in table_of(tmp_path / "gradient-lars-bench.csv")} == {"tiny"}


def test_a_workload_that_does_not_fit(cli, tmp_path, monkeypatch):
    def too_large(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory.\nmore")

    monkeypatch.setattr(bench_timing, "Tensors", too_large)
    result = cli(*QUICK)
    assert result.code == 2
    assert "`--workloads`: tiny cannot be made on cpu (DefaultCPUAllocator: can't allocate memory)" in result.message
    assert not list(tmp_path.iterdir())


def test_nothing_that_can_be_measured(cli, tmp_path, monkeypatch):
    def refuse(self, implementation, tensors):
        raise made.Unavailable("does not fit into the memory")

    monkeypatch.setattr(bench_timing.CpuClock, "measure", refuse)
    result = cli(*QUICK, "--implementations", "lars,timm")
    assert result.code == 2
    assert "nothing could be measured; timm Lars: not installed." in result.message
    assert not list(tmp_path.iterdir())


def test_a_device_without_a_clock(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "resolve_device", lambda name: torch.device("mps"))
    result = cli(*QUICK, "--device", "mps")
    assert (result.code, result.message) == (
        2,
        "gradient-lars: `--device mps` has no clock here: give `cpu` or `cuda`.",
    )
    assert not list(tmp_path.iterdir())


def test_help_shows_the_names(cli):
    result = cli("bench", "--help")
    assert result.code == 0
    for word in ("resnet50", "sgd-fused", "--replot", "gradient-lars bench --device cuda"):
        assert word in result.out
