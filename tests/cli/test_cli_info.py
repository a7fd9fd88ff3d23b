"""``gradient-lars info``, ``--version`` and ``--help``."""

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys

import pytest
import torch

import gradient_lars
from gradient_lars.torch import hook_path


def test_info_shows_versions_and_the_path_of_the_cpu(cli):
    result = cli("info")
    assert (result.code, result.err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if line.split()}
    assert rows["python"] == [platform.python_version()]
    assert rows["gradient-lars"] == [gradient_lars.__version__]
    assert rows["torch"] == [importlib.metadata.version("torch")]
    assert rows["scikit-learn"] == [importlib.metadata.version("scikit-learn")]
    assert rows["cpu"][-1] == hook_path(torch.device("cpu"))
    assert all(len(line) <= 80 for line in result.out.splitlines())


def test_info_lists_each_cuda_device_with_its_name(cli, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Accelerator {device.index}")
    monkeypatch.setattr("gradient_lars.torch.hook_path", lambda device: f"path-{device.type}")
    lines = [line.split() for line in cli("info").out.splitlines()]
    assert ["cuda:0", "Accelerator", "0", "path-cuda"] in lines
    assert ["cuda:1", "Accelerator", "1", "path-cuda"] in lines


def test_info_without_torch(cli, monkeypatch):
    find, discover = importlib.util.find_spec, importlib.metadata.Distribution.discover

    def discover_others(**options):
        return [] if options["name"] in ("torch", "cupy") else discover(**options)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    monkeypatch.setattr(importlib.metadata.Distribution, "discover", discover_others)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = cli("info")
    assert result.code == 0
    assert ["torch", "not", "installed"] in [line.split() for line in result.out.splitlines()]
    assert "none: PyTorch is not installed" in result.out


def test_cupy_is_found_under_the_name_of_its_cuda_version(cli, monkeypatch):
    class Found:
        version = "13.3.0"

    monkeypatch.setattr(
        importlib.metadata.Distribution,
        "discover",
        lambda **options: [Found] if options["name"] == "cupy-cuda12x" else [],
    )
    assert ["cupy", "13.3.0"] in [line.split() for line in cli("info").out.splitlines()]


def test_version(cli):
    assert cli("--version").out == f"gradient-lars {gradient_lars.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--help"], ["compare", "info"]),
        (
            ["compare", "--help"],
            ["--replot", "--resume", "gradient-lars compare --data fashion-mnist --data-dir DIR", "x_train, y_train"],
        ),
        (["info", "--help"], ["gradient-lars info"]),
    ],
)
def test_help_has_examples_and_fits_into_80_columns(cli, arguments, texts):
    result = cli(*arguments)
    assert result.code == 0
    assert all(text in result.out for text in texts)
    assert all(len(line) <= 80 for line in result.out.splitlines())


def test_help_loads_no_framework():
    code = (
        "import sys\n"
        "from gradient_lars.cli import main\n"
        "sys.argv = ['gradient-lars', 'compare', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
