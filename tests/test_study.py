"""docs/study.md: its tables are those of the results files, and its commands those that made them."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gradient_lars.cli import app as app_module
from gradient_lars.cli.results import read_results
from gradient_lars.cli.settings import resolve_batch_sizes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")


def module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "study" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_tables_are_current_and_a_stale_one_is_noticed():
    filled = module("make_page").filled
    assert filled(PAGE) == PAGE
    stale = PAGE.replace("±", "+-", 1)
    assert stale != PAGE
    assert filled(stale) == PAGE


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert "://" in target or (ROOT / "docs" / target).exists(), target


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make ([\w-]+)", PAGE, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


COMMANDS = {name: text for group in module("run").GROUPS.values() for name, text in group.items()}


def parsed(command, monkeypatch):
    """The settings that `gradient-lars compare` reads from the options of a command."""
    found = []
    monkeypatch.setattr(app_module, "_compare", lambda settings, **_: found.append(settings))
    app_module.app(["compare", *shlex.split(command)], standalone_mode=False)
    return found[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_results_are_those_of_the_command(monkeypatch, name):
    settings = parsed(COMMANDS[name], monkeypatch)
    path = ROOT / "study" / "results" / name / "results.csv"
    if name == "fashion-mnist-gpu":  # which has not been run
        assert settings.device == "cuda"
        assert not path.exists()
        return
    experiment, runs = read_results(path)
    assert len(runs) == experiment.n_runs
    assert all(run.commit and run.machine for run in runs)
    assert resolve_batch_sizes(settings.batch_sizes, experiment.n_train) == experiment.batch_sizes
    assert {one: experiment.grid(one) for one in experiment.optimizers} == settings.learning_rates
    assert settings.choices() == experiment.choices()
    assert settings.data == experiment.data
    for field in (
        "epochs",
        "seeds",
        "tuning_seeds",
        "halving",
        "momentum",
        "weight_decay",
        "threshold",
        "eps",
        "device",
    ):
        assert getattr(settings, field) == getattr(experiment, field), field


def test_every_result_has_a_command():
    assert {path.parent.name for path in (ROOT / "study" / "results").glob("*/results.csv")} <= {*COMMANDS}


def test_commands_are_shown_and_not_run(tmp_path):
    command = [sys.executable, ROOT / "study" / "run.py", "small", "--out", tmp_path / "out", "--show"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(shown) == 14
    assert shown[0] == (
        f"gradient-lars compare --baseline both --batch-sizes 64,256,full --out {tmp_path}/out/digits --resume"
    )
    assert not (tmp_path / "out").exists()
