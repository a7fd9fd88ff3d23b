"""``gradient-lars inspect`` as a user runs it: summary, plots, page, and every mistake."""

import base64
import os
import re

import pytest
import torch

from gradient_lars.monitor import Monitor
from gradient_lars.torch import LARS


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = [(name, torch.nn.Parameter(torch.ones(4))) for name in ("first <b>", "second", "idle")]
    optimizer = LARS(params, lr=0.05, trust_coefficient=1.0)
    with Monitor(optimizer, csv="run.csv"):
        for step in range(5):
            for i, (_, param) in enumerate(params[:2]):
                param.grad = torch.full((4,), 0.1 * (1 + i + step))
            optimizer.step()
    return tmp_path / "run.csv"


def test_summary_and_plot(cli, record, tmp_path):
    result = cli("inspect", "run.csv")
    assert (result.code, result.err) == (0, "")
    assert "3 layers, 5 steps recorded from 0 to 4" in result.out
    assert "! idle: there was no gradient in any record" in result.out
    assert result.out.rstrip().endswith("Plot: run.png")
    assert max(map(len, result.out.splitlines())) <= 80
    assert (tmp_path / "run.png").read_bytes()[:4] == b"\x89PNG"
    assert {file.name for file in tmp_path.iterdir()} == {"run.csv", "run.png"}


def test_page(cli, record, tmp_path):
    result = cli("inspect", "run.csv", "--html", "deep/run.html")
    assert (result.code, result.err) == (0, "")
    assert "Page: deep/run.html" in result.out
    assert {file.name for file in tmp_path.iterdir()} == {"run.csv", "deep"}
    page = (tmp_path / "deep" / "run.html").read_text(encoding="utf-8")
    # Everything is in it: whatever it refers to is data.
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert len(sources) == 2 * 4
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data)[:4] == b"\x89PNG"
    assert "http" not in page
    assert "prefers-color-scheme: dark" in page
    assert '<meta name="viewport"' in page
    assert "<b>" not in page
    assert "first &lt;b&gt;" in page
    assert "there was no gradient in any record" in page
    assert "Traceback" not in page


def test_page_without_faults_and_without_rates(cli, record, tmp_path):
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(line for line in lines if "idle" not in line))
    assert cli("inspect", "run.csv", "--html", "run.html", "--plot", "other.png").code == 0
    assert "Nothing to remark." in (tmp_path / "run.html").read_text()
    assert (tmp_path / "other.png").exists()
    (tmp_path / "zero.csv").write_text("step,layer,p_norm,g_norm,rate,adapted\n0,a,0,0,0,false\n")
    result = cli("inspect", "zero.csv", "--html", "zero.html", "--plot", "zero.png")
    assert result.code == 0
    assert "Nothing to draw: no rate is above 0." in result.out
    assert "data:image" not in (tmp_path / "zero.html").read_text()
    assert not (tmp_path / "zero.png").exists()


@pytest.mark.parametrize(
    ("content", "arguments", "match"),
    [
        (None, [], "bad.csv cannot be read (No such file or directory): give the CSV that a monitor has written"),
        ("", [], "bad.csv is empty"),
        ("a,b\n1,2\n", [], "bad.csv is not a record of LARS: it has no column `step`, `layer`"),
        ("step,layer,p_norm,g_norm,rate,adapted\n", [], "bad.csv holds no row"),
        ("step,layer,p_norm,g_norm,rate,adapted\n0,a,1,1,1,2\n", [], "bad.csv: line 2 is damaged"),
        ("", ["--plot", "."], "`--plot`: . is a folder: name a file"),
        ("", ["--html", "bad.csv/run.html"], "`--html`: bad.csv is a file, not a folder"),
        ("", ["--html", "bad.csv"], "`--html`: bad.csv is the record itself: name another file"),
    ],
)
def test_mistakes(cli, tmp_path, monkeypatch, content, arguments, match):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "bad.csv").write_text(content)
    result = cli("inspect", "bad.csv", *arguments)
    assert result.code == 2
    assert result.out == ""
    assert match in result.message
    assert result.message.startswith("gradient-lars: ")
    assert "Traceback" not in result.err
    assert [file.name for file in tmp_path.iterdir()] == ([] if content is None else ["bad.csv"])


def test_a_folder_that_cannot_be_written(cli, record, monkeypatch):
    original = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode & os.W_OK == 0 and original(path, mode))
    result = cli("inspect", "run.csv")
    assert result.code == 2
    assert "`--plot`: no permission to write to" in result.message
