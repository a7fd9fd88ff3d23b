"""docs/study.md: its tables are those of the results files, and its commands those that made them."""

import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import replace
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


def test_batch_sizes_run_at_once_are_joined_to_what_one_comparison_gives(monkeypatch, tmp_path):
    run = module("run")
    monkeypatch.setattr(
        run.Comparison, "run", lambda self, log=None: app_module.app(self.arguments, standalone_mode=False)
    )
    short = "--train-size 64 --epochs 1 --seeds 1 --tuning-seeds 1 --learning-rates 0.1,0.3 --batch-sizes 16,64"
    joined, whole = (run.Comparison(short, tmp_path / name) for name in ("joined", "whole"))
    run.at_once([joined], 1)  # in one process, whose random numbers are shared
    joined.run()
    whole.run()
    (setup, ours), (expected_setup, expected) = (read_results(one.out / "results.csv") for one in (joined, whole))
    assert setup == expected_setup
    assert [replace(one, seconds=0) for one in ours] == [replace(one, seconds=0) for one in expected]
    assert len(ours) == setup.n_runs
    rates, expected_rates = ((one.out / "rates.csv").read_text() for one in (joined, whole))
    assert rates == expected_rates


def test_a_part_that_fails_tells_why(tmp_path):
    run = module("run")
    with pytest.raises(SystemExit, match="(?s)part.log ends with.*`--data`: there is no file gone.npz"):
        run.at_once([run.Comparison("--data gone.npz", tmp_path / "part")], 2)


def test_parts_with_other_settings_are_not_joined(tmp_path):
    run = module("run")
    for part, epochs in (("a", 1), ("b", 2)):
        options = f"--train-size 64 --epochs {epochs} --seeds 1 --tuning-seeds 1 --learning-rates 0.1 --batch-sizes 64"
        app_module.app(run.Comparison(options, tmp_path / part).arguments, standalone_mode=False)
    with pytest.raises(SystemExit, match="b was run with other settings than .*a: remove one of them"):
        run.join([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


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
