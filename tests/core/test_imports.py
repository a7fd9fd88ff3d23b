"""Importing the package loads no framework, and its modules import in one direction only."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradient_lars

PACKAGE = Path(gradient_lars.__file__).parent
FRAMEWORKS = [
    "torch",
    "numpy",
    "chainer",
    "chainerx",
    "jax",
    "optax",
    "cupy",
    "triton",
    "matplotlib",
    "sklearn",
    "rich",
    "lightning",
    "pytorch_lightning",
    "transformers",
    "accelerate",
    "timm",
]

# Modules of kernels, which need Triton.
KERNELS = {"_triton", "_triton_hook"}

# A module imports from lower ranks and from its own part. `__init__` offers the hook, so it stands just above it.
RANKS = {
    "_formula": 0,
    "_variants": 0,
    "_arrays": 1,
    "hook": 2,
    "__init__": 3,
    "torch": 4,
    "optax": 4,
    "presets": 5,
    "monitor": 6,
    "integrations": 7,
    "cli": 7,
    "__main__": 8,
}
CORE = ("_formula", "_variants", "_arrays", "hook", "__init__")


def loaded_after(code):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    code += f"\nimport sys\nprint(*[name for name in {FRAMEWORKS} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize(
    "code",
    [
        "import gradient_lars",
        "from gradient_lars import *",
        "from gradient_lars import GradientLARS, __version__; repr(GradientLARS(0.1, 0.2, 0.3))",
        "import gradient_lars.hook, gradient_lars._arrays, gradient_lars._formula",
    ],
)
def test_no_framework_is_loaded(code):
    assert loaded_after(code) == []


def test_a_call_loads_no_other_framework():
    code = """
import types, numpy
from gradient_lars import GradientLARS
GradientLARS(weight_decay=0.1)(None, types.SimpleNamespace(data=numpy.ones(3), grad=numpy.ones(3)))
"""
    assert loaded_after(code) == ["numpy"]


def test_the_jax_side_loads_only_jax():
    assert loaded_after("import gradient_lars.optax") == ["numpy", "jax", "optax"]


def violations(sources):
    """Return what is wrong with the imports of a package, given as source text by path below it."""
    found = []
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in sources}
    for path, source in sources.items():
        part = _part(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        if part not in RANKS:
            found.append(f"{path}: {part} has no place in the layout")
            continue
        tree = ast.parse(source)
        inside_functions = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            for name in _imported(node, path, modules):
                lazily = id(node) in inside_functions
                found += [f"{path}:{node.lineno}: {wrong}" for wrong in _wrong(path, part, name, lazily)]
    return found


def _imported(node, path, modules):
    """Return the full names of the modules that an import statement loads."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        folder = ["gradient_lars", *path.split("/")[:-1]]
        base = ".".join([*folder[: len(folder) - node.level + 1], *([base] if base else [])])
    names = []
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        names.append(inner if inner.removeprefix("gradient_lars.") in modules else base)
    return names


def _wrong(path, part, name, lazily):
    root, _, below = name.partition(".")
    if root != "gradient_lars":
        if part in CORE and root not in sys.stdlib_module_names:
            yield f"{part} imports {root}"
        return
    target = _part(below or "__init__")
    if target not in RANKS:
        yield f"{part} imports {target}, which has no place in the layout"
    elif target != part and RANKS[target] >= RANKS[part]:
        yield f"{part} imports {target}"
    kernels = below.removeprefix("torch.")
    if kernels in KERNELS and path != "torch/_dispatch.py":
        yield f"only torch/_dispatch.py imports {kernels}"
    elif kernels in KERNELS and not lazily:
        yield f"{kernels} is to be imported lazily"


def _part(module):
    return module.partition(".")[0]


def test_imports_go_one_way():
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert {"__init__.py", "_formula.py", "_arrays.py", "hook.py"} <= sources.keys()
    assert violations(sources) == []


GOOD = {
    "__init__.py": "from gradient_lars.hook import GradientLARS",
    "_formula.py": "import math",
    "_arrays.py": "from gradient_lars import _formula",
    "hook.py": "from gradient_lars import _arrays",
    "torch/__init__.py": "from gradient_lars.torch.hooks import add_hook",
    "torch/hooks.py": "import torch\nfrom gradient_lars.torch import _dispatch\nfrom gradient_lars import GradientLARS",
    "torch/_dispatch.py": "def fused():\n    from gradient_lars.torch import _triton\n    return _triton",
    "torch/_triton.py": "import triton",
    "torch/_triton_hook.py": "import triton",
    "optax.py": "import jax\nfrom gradient_lars import _formula",
    "cli/__init__.py": "from gradient_lars import __version__, torch",
}


def test_the_check_accepts_the_layout():
    assert violations(GOOD) == []


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("_formula.py", "from gradient_lars import hook", "_formula.py:1: _formula imports hook"),
        ("_formula.py", "def f():\n    import numpy", "_formula.py:2: _formula imports numpy"),
        ("hook.py", "import gradient_lars", "hook.py:1: hook imports __init__"),
        ("hook.py", "import gradient_lars.torch.hooks", "hook.py:1: hook imports torch"),
        ("hook.py", "from . import cli", "hook.py:1: hook imports cli"),
        ("optax.py", "from gradient_lars.torch import add_hook", "optax.py:1: optax imports torch"),
        ("torch/hooks.py", "from gradient_lars import optax", "torch/hooks.py:1: torch imports optax"),
        ("torch/hooks.py", "from .. import optax", "torch/hooks.py:1: torch imports optax"),
        ("torch/hooks.py", "from ..cli import main", "torch/hooks.py:1: torch imports cli"),
        (
            "torch/hooks.py",
            "def f():\n    from . import _triton",
            "torch/hooks.py:2: only torch/_dispatch.py imports _triton",
        ),
        (
            "torch/_dispatch.py",
            "from gradient_lars.torch import _triton",
            "torch/_dispatch.py:1: _triton is to be imported lazily",
        ),
        (
            "torch/_fused_hook.py",
            "def f():\n    from . import _triton_hook",
            "torch/_fused_hook.py:2: only torch/_dispatch.py imports _triton_hook",
        ),
        (
            "torch/_dispatch.py",
            "import gradient_lars.torch._triton",
            "torch/_dispatch.py:1: _triton is to be imported lazily",
        ),
        ("extra.py", "", "extra.py: extra has no place in the layout"),
        (
            "cli/__init__.py",
            "import gradient_lars.extra",
            "cli/__init__.py:1: cli imports extra, which has no place in the layout",
        ),
    ],
)
def test_the_check_can_fail(path, source, wrong):
    assert violations({**GOOD, path: source}) == [wrong]
