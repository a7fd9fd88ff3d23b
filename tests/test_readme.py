"""README.md: its code runs, its tables are those of the results files, its files exist."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def _make_readme():
    spec = importlib.util.spec_from_file_location("make_readme", ROOT / "benchmarks" / "make_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_code_blocks_run_one_after_the_other(capsys):
    assert len(BLOCKS) == 3
    namespace = {}
    for block in (BLOCKS[1], BLOCKS[0], BLOCKS[2]):  # the Chainer one stands for itself; the last needs the first
        exec(compile(block, "README.md", "exec"), namespace)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0.weight", "2.weight"]
    assert all(line.endswith("True") for line in lines)


def test_tables_are_current():
    assert _make_readme().filled(README) == README


def test_a_stale_table_is_noticed():
    stale = README.replace("±", "+-", 1)
    assert stale != README
    assert _make_readme().filled(stale) == README


def test_linked_files_exist():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
