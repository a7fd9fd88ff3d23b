"""What ``gradient-lars bench`` leaves: the results file, the table and the plot made from it."""

import csv
import io
import statistics
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from bench_rows import CPU, GPU, gpu_run, row
from gradient_lars.cli import bench_results
from gradient_lars.cli.bench_plot import save_bench_plot
from gradient_lars.cli.bench_table import build_table, figure, lines_of, print_runs
from gradient_lars.cli.errors import CommandError


def test_percentiles():
    assert bench_results.percentiles([7.0]) == (7.0, 7.0, 7.0)
    values = [float(x) for x in range(11)]
    assert bench_results.percentiles(values[::-1]) == (2.0, 5.0, 8.0)
    rng = np.random.default_rng(1)
    samples = rng.normal(size=37)
    assert bench_results.percentiles(list(samples)) == pytest.approx(np.percentile(samples, [20, 50, 80]))
    assert statistics.median(samples) == bench_results.percentiles(list(samples))[1]


def test_rows_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "step.csv"
    first = [row(), row("copy", "bandwidth", 12.5, to_sgd=None, to_floor=None)]
    bench_results.append_rows(path, first)
    text = path.read_text()
    assert text.splitlines()[0] == (
        "date,commit,device,device_name,python,torch,triton,gradient_lars,threads,dtype,workload,parameters,tensors,"
        "implementation,package,quantity,samples,p20,p50,p80,unit,ratio_to_fused_sgd,ratio_to_floor"
    )
    assert bench_results.read_rows(path) == first
    path.write_text(text.rstrip("\n"))  # as an editor may leave it
    second = [row("open-lars", p50=0.125)]
    bench_results.append_rows(path, second)
    assert path.read_text().startswith(text)
    assert bench_results.read_rows(path) == [*first, *second]
    assert [file.name for file in path.parent.iterdir()] == ["step.csv"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("a,b\n1,2\n", "is not a results file of `gradient-lars bench`"),
        (b"\xff\xfe\x00", "cannot be read (not a text file)"),
        ("HEADER\n1,2\n", "line 2 is damaged"),
    ],
)
def test_files_that_are_no_results(tmp_path, content, match):
    path = tmp_path / "x.csv"
    if isinstance(content, str):
        path.write_text(content.replace("HEADER", ",".join(bench_results.COLUMNS)))
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    for call in (lambda: bench_results.read_rows(path), lambda: bench_results.append_rows(path, [row()])):
        with pytest.raises(CommandError) as raised:
            call()
        assert match in str(raised.value)
    assert path.read_bytes() == before


def test_a_number_that_is_none(tmp_path):
    path = tmp_path / "x.csv"
    bench_results.append_rows(path, [row()])
    lines = list(csv.reader(io.StringIO(path.read_text())))
    lines[1][bench_results.COLUMNS.index("p50")] = "fast"
    path.write_text("\n".join(",".join(line) for line in lines) + "\n")
    with pytest.raises(CommandError, match="line 2 is damaged .could not convert string to float: 'fast'."):
        bench_results.read_rows(path)


def test_the_last_run_of_each_workload_counts():
    old, new = CPU, replace(CPU, date="2026-02-01T00:00:00Z")
    rows = [row(p50=1.0, where=old), row(p50=2.0, where=new), row("sgd-fused", p50=3.0, where=new)]
    other = [row(p50=4.0, where=old, workload="gpt2"), row(p50=5.0, where=GPU)]
    assert bench_results.latest([*rows, *other]) == [rows[1:], [other[0]], [other[1]]]
    assert bench_results.latest([*rows[1:], rows[0]]) == [rows[1:]]


def test_the_commit_of_the_source(tmp_path, monkeypatch):
    def git(*arguments):
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True)

    assert bench_results.source_commit(tmp_path) == ""
    git("init")
    (tmp_path / "__init__.py").write_text("")
    assert bench_results.source_commit(tmp_path) == ""  # a repository, but not this file's
    git("add", "__init__.py")
    git("commit", "-m", "x")
    commit = bench_results.source_commit(tmp_path)
    assert commit.isalnum()
    (tmp_path / "__init__.py").write_text("changed")
    assert bench_results.source_commit(tmp_path) == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert bench_results.source_commit(tmp_path) == ""


def test_the_name_of_the_processor(monkeypatch):
    assert bench_results.processor_name()
    monkeypatch.setattr(bench_results.Path, "read_text", lambda *_, **__: "model name\t: A B\nflags: x\n")
    assert bench_results.processor_name() == "A B"

    def fail(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(bench_results.Path, "read_text", fail)
    monkeypatch.setattr(bench_results.platform, "processor", lambda: "")
    monkeypatch.setattr(bench_results.platform, "machine", lambda: "z80")
    assert bench_results.processor_name() == "z80"


def printed(runs, skipped=None):
    console = Console(file=io.StringIO(), width=80, highlight=False)
    print_runs(console, runs, skipped or {})
    return console.file.getvalue()


def test_the_table_of_a_gpu():
    text = printed([gpu_run("gpt-1b")], {"timm Lars": "not installed", "X [y]": "reason"})
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert ["LARS", "1.00", "0.50", "0.500", "0.210", "1.03", "1.24", "1.50"] in lines
    assert ["open-lars", "20.0", "10.00", "10.0", "-", "-", "117.65", "1.50"] in lines
    names = [line[0] for line in lines if line and line[0] in ("LARS", "SGD", "open-lars")]
    assert names == ["LARS", "SGD", "open-lars"]  # the fastest first
    assert "A GPU, PyTorch 2.13.0, a copy moves 3e+03 GB/s." in text
    text = " ".join(text.split())  # the terminal breaks lines anywhere
    assert "graph: replay of the captured step" in text
    assert "open-lars: waits for the device at every layer" in text
    assert "Not measured: timm Lars (not installed)." in text
    assert "Not measured: X [y] (reason)." in text


def test_the_table_of_a_processor():
    text = printed([[row("lars", p50=30.0), row("gone", p50=0.25, workload="resnet50")]])
    assert max(map(len, text.splitlines())) <= 80
    assert "ResNet-50: 25.56 M parameters in 161 tensors, float32" in text
    assert ["LARS", "30.0", "27.0", "36.0", "1.50", "2.00"] in [line.split() for line in text.splitlines()]
    assert ["gone", "0.250", "0.225", "0.300", "1.50", "2.00"] in [line.split() for line in text.splitlines()]
    assert "graph" not in text
    assert "2 threads" in text


def test_a_workload_of_another_version():
    assert build_table([row(workload="alexnet")]).title.startswith("alexnet: ")


@pytest.mark.parametrize(("value", "text"), [(0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")])
def test_three_digits(value, text):
    assert figure(value) == text


def test_lines_without_a_quantity():
    (line,) = lines_of([row(quantity="eager")])
    assert (line.p50("graph"), line.ratio("graph"), line.to_floor("graph")) == (None, None, None)


@pytest.mark.parametrize("runs", [[gpu_run(), gpu_run("gpt2")], [[row(to_floor=None, to_sgd=None)]]])
def test_the_plot(tmp_path, runs):
    path = tmp_path / "new" / "plot.png"
    save_bench_plot(path, runs)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]
