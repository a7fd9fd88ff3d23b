"""The scripts of examples/integrations as their users start them: they end cleanly and learn."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "integrations"
ACCURACY = re.compile(r"test accuracy (\d+\.\d)%")
# Arguments, and the accuracy in per cent that the script reaches at least.
RUNS = {
    "accelerate": ([], 90),
    "amp": ([], 90),
    "compile": (["aot_eager"], 90),
    "equinox": ([], 88),
    "flax": ([], 90),
    "lightning": (["checkpoints"], 90),
    "timm": ([], 90),
}
# Those that have a process of their own.
ALONE = ("chainer", "transformers")


@pytest.mark.filterwarnings("ignore")  # the frameworks' own
@pytest.mark.parametrize("name", RUNS)
def test_examples_learn(name, tmp_path, monkeypatch, capsys, timm_optim):
    arguments, least = RUNS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"train_{name}.py", *arguments])
    # In this process, which has loaded the frameworks already.
    runpy.run_path(str(EXAMPLES / f"train_{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert float(ACCURACY.findall(out)[-1]) > least, out


def _alone(name, folder, *arguments):
    command = [sys.executable, str(EXAMPLES / f"train_{name}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_chainer_learns(tmp_path):
    # Without what the tests do so that Chainer can be imported. The last column is the accuracy, as a share.
    assert float(_alone("chainer", tmp_path, "results").split()[-1]) > 0.88


@pytest.mark.slow
def test_transformers_learn(tmp_path):
    assert all(float(found) > 70 for found in ACCURACY.findall(_alone("transformers", tmp_path, "checkpoints")))


@pytest.mark.slow
def test_compiled_by_inductor(tmp_path):
    assert float(ACCURACY.findall(_alone("compile", tmp_path))[-1]) > RUNS["compile"][1]


def test_every_example_is_run():
    assert {script.stem.removeprefix("train_") for script in EXAMPLES.glob("*.py")} == {*RUNS, *ALONE}


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_short_and_say_how_to_start_them(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    head = text.split('"""')[1]
    assert re.search(r"^    pip install .*gradient-lars", head, flags=re.MULTILINE)
    assert re.search(rf"^    (python|accelerate launch) examples/integrations/{script.name}", head, flags=re.MULTILINE)
