"""docs/monitor.md and examples/monitor.py: their code runs as it stands, and shows what the text says."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
EXAMPLE = ROOT / "examples" / "monitor.py"


def test_code_blocks_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, "docs/monitor.md", "exec"), namespace)
    assert len(BLOCKS) == 7
    files = {path.name for path in tmp_path.iterdir()}
    assert files >= {"run.csv", "rates.png", "run.parquet", "tensorboard"}
    assert "so that the rate is 1" in capsys.readouterr().out


def test_linked_files_exist():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]
    assert targets
    for target in targets:
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize(("lr", "verdict"), [("0.1", "Nothing to remark."), ("1e-5", "Raise `lr`")])
def test_the_example(tmp_path, monkeypatch, capsys, lr, verdict):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path / "out"), "--lr", lr])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    done = capsys.readouterr()
    assert done.err == ""
    assert verdict in done.out.splitlines()[-1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run.csv", "rates.png"}
    if lr == "0.1":
        assert float(re.search(r"test accuracy (\d+\.\d)%", done.out)[1]) > 88


def test_the_example_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 80
