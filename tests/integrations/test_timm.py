"""`LARS` by name from timm's registry, beside a training in NumPy and float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradient_lars.integrations import timm as integration
from gradient_lars.integrations.timm import main, register
from gradient_lars.torch import LARS
from integrations.plain import LR, assert_equal, batches, linear, plain


def assert_trains_as(optimizer, layer, **settings):
    """Assert that the optimizer does what the reference does, with biases as timm's groups leave them."""
    reference = plain(lars_names=("weight",), **settings)
    for x, y in batches(4):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(layer(torch.tensor(x)), torch.tensor(y)).backward()
        optimizer.step()
        reference.step((x, y))
    assert_equal(layer, reference)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_by_name(timm_optim, weight_decay):
    assert register() == "gradientlars"
    layer = linear()
    optimizer = timm_optim.create_optimizer_v2(
        layer, "gradientlars", lr=LR, weight_decay=weight_decay, eps=1e-9, betas=(0.9, 0.99), trust_coefficient=0.5
    )
    assert type(optimizer) is LARS
    assert_trains_as(optimizer, layer, trust=0.5, weight_decay=weight_decay)


def test_under_a_name_and_with_settings_of_ones_own(timm_optim):
    assert register("MyLARS", trust_coefficient=0.5, trust_clip=True) == "mylars"
    register()
    mine = timm_optim.create_optimizer_v2(linear(), "mylars", lr=LR, momentum=0.8)
    assert [mine.defaults[name] for name in ("trust_coefficient", "trust_clip", "momentum")] == [0.5, True, 0.8]
    other = timm_optim.create_optimizer_v2(linear(), "gradientlars", lr=LR)
    assert [other.defaults[name] for name in ("trust_coefficient", "trust_clip", "momentum")] == [1e-3, False, 0.9]


def test_registered_again(timm_optim, caplog):
    register()
    register()
    assert not caplog.records
    register(trust_coefficient=0.5)
    assert timm_optim.create_optimizer_v2(linear(), "gradientlars", lr=LR).defaults["trust_coefficient"] == 0.5


def test_lookahead(timm_optim):
    if not hasattr(timm_optim, "Lookahead"):
        pytest.skip("timm is not installed")
    register()
    optimizer = timm_optim.create_optimizer_v2(linear(), "lookahead_gradientlars", lr=LR)
    assert type(optimizer._base_optimizer) is LARS


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        (("gradient_lars",), {}, ValueError, "`name` must be a text without underscores, got 'gradient_lars'. timm"),
        (("",), {}, ValueError, "`name` must be a text without underscores, got ''"),
        ((LARS,), {}, TypeError, "`name` must be a text, got <class"),
        (("lars",), {}, ValueError, "`name` 'lars' is another optimizer of timm's. Choose a name that is free."),
        ((), {"momentum": -1.0}, ValueError, "`momentum` must be >= 0, got -1.0"),
        ((), {"trust": 1.0}, TypeError, "unexpected keyword argument 'trust'"),
    ],
)
def test_mistakes(timm_optim, arguments, settings, error, message):
    with pytest.raises(error, match=message):
        register(*arguments, **settings)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="timm's registry of optimizers cannot be loaded: .*pip install"):
        register()


SCRIPT = """
import sys

from helper import LR
from timm.optim import create_optimizer_v2

if __name__ == "__main__":
    import torch

    optimizer = create_optimizer_v2(torch.nn.Linear(2, 2), sys.argv[sys.argv.index("--opt") + 1], lr=LR)
    print(type(optimizer).__module__, sys.argv[1:], __file__)
"""


def test_a_script_of_timm_as_it_is(timm_optim, tmp_path, capsys, monkeypatch):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("LR = 4.8")
    monkeypatch.setattr(sys, "argv", ["as it was"])
    monkeypatch.setattr(sys, "path", ["the folder of -m", *sys.path[1:]])
    assert main([str(script), "--opt", "gradientlars"]) == 0
    assert capsys.readouterr().out == f"gradient_lars.torch.optimizer ['--opt', 'gradientlars'] {script}\n"


def test_a_script_that_there_is_not(capsys):
    assert main(["trian.py"]) == 2
    assert "there is no file 'trian.py'. usage: python -m gradient_lars.integrations.timm SCRIPT" in (
        capsys.readouterr().err
    )


def test_help(capsys):
    assert main(["--help"]) == 0
    assert main([]) == 2
    assert capsys.readouterr().out.count("usage: python -m gradient_lars.integrations.timm SCRIPT") == 2


def test_as_a_module_without_timm(tmp_path):
    (tmp_path / "timm.py").write_text("raise ImportError('of a user whose timm is broken')")
    (tmp_path / "train.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(integration.__file__).parents[2]}"}
    command = [sys.executable, "-m", "gradient_lars.integrations.timm", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "gradient_lars.integrations.timm: timm's registry of optimizers cannot be loaded: of a user whose timm is "
        'broken. `pip install "timm>=1.0.12"`.\n'
    )
