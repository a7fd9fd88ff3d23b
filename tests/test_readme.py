"""README.md: its code runs, its tables are those of the results files, its files exist."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def _make_readme():
    spec = importlib.util.spec_from_file_location("make_readme", ROOT / "benchmarks" / "make_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _blocks(chainer):
    """Return the code blocks of PyTorch, or those of Chainer in the order in which they have to run."""
    found = [block for block in BLOCKS if ("chainer" in block or "sctypes" in block) is chainer]
    return sorted(found, key=lambda block: "sctypes" not in block) if chainer else found


def test_chainer_blocks_run_in_a_process_of_their_own():
    # The tests' own set-up for Chainer must not help.
    code = "import warnings; warnings.simplefilter('ignore')\n" + "\n".join(_blocks(chainer=True))
    code += "\nprint(list(optimizer._hookable._pre_update_hooks))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "GradientLARS" in result.stdout


def test_code_blocks_run_one_after_the_other(capsys):
    assert len(BLOCKS) == 8
    assert len(_blocks(chainer=True)) == 2
    namespace = {}
    for block in _blocks(chainer=False):
        exec(compile(block, "README.md", "exec"), namespace)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["0.weight", "2.weight"]
    assert all(line.endswith("True") for line in lines[:2])
    assert any("0.bias" in line for line in lines[2:])
    rates = namespace["optax"].tree_utils.tree_get(namespace["state"], "rate")
    assert 0 < float(rates["kernel"]) < 0.1
    assert float(rates["bias"]) == 1.0


def test_tables_are_current():
    assert _make_readme().filled(README) == README


def test_a_stale_table_is_noticed():
    stale = README.replace("±", "+-", 1)
    assert stale != README
    assert _make_readme().filled(stale) == README


def test_linked_files_exist():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target and target[0] != "#"]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
