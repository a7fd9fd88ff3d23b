"""Mutants of the formula, each caught by the tests of every path that computes it.

A mutant is one textual change in a copy of the package. Its suite, a small set of tests, runs on the copy in a process
of its own and has to fail there, by a failed assertion; on an unchanged copy it has to pass. To add a path, add its
tests to `SUITES` and its mutants to `MUTANTS`.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import gradient_lars

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]

# Name: the arguments of pytest, files relative to the folder of the tests.
SUITES = {
    "numpy": ["core/test_hook_numpy.py", "-k", "test_table and float64"],
    "chainer": ["chainer_hook/test_chainer_goldens.py", "-k", "float64"],
    "loop": ["torch_hook/test_values.py", "-k", "one_layer and loop"],
    "foreach": ["torch_hook/test_values.py", "-k", "one_layer and foreach"],
    "optax": ["optax_lars/test_optax_values.py", "-k", "test_all_layers_in_one_tree and eager"],
    "fused": ["torch_hook/test_values.py", "-k", "one_layer and fused"],
}
PATHS = ("numpy", "chainer", "loop", "foreach", "optax")


@dataclass(frozen=True)
class Mutant:
    """In `file` the text `old`, which occurs `count` times, becomes `new`; every suite of `suites` must fail."""

    name: str
    file: str
    old: str
    new: str
    suites: tuple[str, ...] = ("numpy", "chainer")
    count: int = 1


MUTANTS = [
    Mutant("threshold not strict", "_formula.py", "return p_norm > threshold", "return p_norm >= threshold", PATHS),
    Mutant("eps ignored", "_formula.py", "denominator = eps + g_norm", "denominator = g_norm", PATHS),
    Mutant("decay missing in the rate", "_formula.py", "g_norm + weight_decay * p_norm\n", "g_norm\n", PATHS),
    Mutant("no threshold", "_formula.py", "return p_norm > threshold", "return p_norm == p_norm", PATHS),
    Mutant(
        "zero denominator divides",
        "_formula.py",
        "adapted(p_norm, threshold=threshold) & (denominator != 0.0)",
        "adapted(p_norm, threshold=threshold)",
        suites=("numpy", "loop", "foreach", "optax"),
    ),
    Mutant(
        "no decay below the threshold",
        "_arrays.py",
        "library.scale(grad, data, rate, decay)",
        "library.scale(grad, data, rate, decay if p_norm > threshold else 0.0)",
    ),
    Mutant(
        "decay not scaled by the rate",
        "_arrays.py",
        "        if decay:\n            wide += decay * self._widened(data)\n        wide *= rate\n",
        "        wide *= rate\n        if decay:\n            wide += decay * self._widened(data)\n",
    ),
    Mutant(
        "norm after the decay",
        "_arrays.py",
        "p_norm, g_norm = library.norm(data), library.norm(grad)",
        "p_norm, g_norm = library.norm(data), library.norm(grad + weight_decay * data)",
    ),
    Mutant(
        "no decay below the threshold",
        "torch/_loop.py",
        "ARRAYS.scale(layer.grad, layer.param, factor.reshape(()), decay)",
        "ARRAYS.scale(layer.grad, layer.param, factor.reshape(()), decay * (p_norm > threshold))",
        suites=("loop",),
    ),
    Mutant(
        "no decay below the threshold",
        "torch/_foreach.py",
        "factor, decay = loss_scale.applied(rate, layers[0].sign * weight_decay)",
        "factor, decay = loss_scale.applied(rate, layers[0].sign * weight_decay * bool((rate != 1).all()))",
        suites=("foreach",),
    ),
    Mutant(
        "decay not scaled by the rate",
        "_arrays.py",
        "            wide.mul_(rate)\n",
        "            wide.add_(data.to(wide_dtype) * decay, alpha=-1).mul_(rate).add_(data.to(wide_dtype) * decay)\n",
        suites=("loop",),
    ),
    Mutant(
        "decay not scaled by the rate",
        "torch/_foreach.py",
        "    torch._foreach_mul_(wide, list(factor.unbind()))\n",
        "    torch._foreach_mul_(wide, list(factor.unbind()))\n"
        "    for grad, param, one in zip(wide, params, factor, strict=True):\n"
        "        grad.add_(_workable(param) * decay * (1 - one))\n",
        suites=("foreach",),
    ),
    Mutant(
        "norm after the decay",
        "torch/_loop.py",
        "ARRAYS.norm(layer.grad)",
        "ARRAYS.norm(layer.grad + layer.weight_decay * layer.param)",
        suites=("loop",),
    ),
    Mutant(
        "norm after the decay",
        "torch/_foreach.py",
        "norms([layer.grad for layer in bucket])",
        "norms([layer.grad + layer.weight_decay * layer.param for layer in bucket])",
        suites=("foreach",),
    ),
    Mutant(
        "no decay below the threshold",
        "optax/_rescale.py",
        "scaled + decay * _widened(p)",
        "scaled + decay * _widened(p) * (p_norm > threshold)",
        suites=("optax",),
    ),
    Mutant(
        "decay not scaled by the rate",
        "optax/_rescale.py",
        "(rate * scaled).astype(g.dtype)",
        "(rate * _widened(g) + (scaled - _widened(g))).astype(g.dtype)",
        suites=("optax",),
    ),
    Mutant(
        "norm after the decay",
        "optax/_rescale.py",
        "_norm(p), _norm(g)",
        "_norm(p), _norm(g + weight_decay * p)",
        suites=("optax",),
    ),
    Mutant(
        "threshold not strict",
        "torch/_triton_math.py",
        "(p_norm > setting(row_ptr, const.THRESHOLD, WIDE))",
        "(p_norm >= setting(row_ptr, const.THRESHOLD, WIDE))",
        suites=("fused",),
    ),
    Mutant(
        "eps ignored",
        "torch/_triton_math.py",
        "setting(row_ptr, const.EPS, WIDE) + g_norm",
        "g_norm",
        suites=("fused",),
    ),
    Mutant("decay missing in the rate", "torch/_triton_math.py", " + decay * p_norm", "", suites=("fused",)),
    Mutant(
        "no decay below the threshold",
        "torch/_triton_hook.py",
        "return rate, tl.where(",
        "return rate, (rate != 1.0) * tl.where(",
        suites=("fused",),
    ),
    Mutant(
        "decay not scaled by the rate",
        "torch/_triton_hook.py",
        "narrow(rate * value, G)",
        "narrow(rate * value + (1.0 - rate) * decay * weights if DECAY else rate * value, G)",
        suites=("fused",),
    ),
    Mutant(
        "last chunk of a layer left out",
        "torch/_fused_order.py",
        "reversed(range(chunks[t]))]",
        "reversed(range(max(1, chunks[t] - 1)))]",
        suites=("fused",),
    ),
    Mutant(
        "the sums of one chunk only",
        "torch/_triton_hook.py",
        "    i = column(table_ptr, const.FIRST, t, layers) + c\n",
        "    i = column(table_ptr, const.FIRST, t, layers)\n",
        suites=("fused",),
    ),
]


@pytest.mark.parametrize("suite", SUITES)
def test_an_unchanged_copy_passes(suite, tmp_path):
    result = run_suite(suite, copy_package(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("mutant", "suite"),
    [pytest.param(mutant, suite, id=f"{mutant.name}-{suite}") for mutant in MUTANTS for suite in mutant.suites],
)
def test_a_mutant_is_caught(mutant, suite, tmp_path):
    package = copy_package(tmp_path)
    file = package / mutant.file
    source = file.read_text(encoding="utf-8")
    assert source.count(mutant.old) == mutant.count, f"{mutant.file} has changed: adapt the mutant {mutant.name!r}"
    file.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    result = run_suite(suite, package)
    # 1 is a failed test; 2 to 5 would be an error of the mutant or of this test.
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 failed" in result.stdout, result.stdout
    assert "AssertionError" in result.stdout, result.stdout


def test_a_suite_does_not_run_on_another_package(tmp_path):
    package = copy_package(tmp_path)
    plugin(package, elsewhere=tmp_path / "elsewhere")
    result = run_suite("numpy", package, write_plugin=False)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR, result.stdout + result.stderr
    assert "is not the package under test" in result.stderr


def copy_package(folder):
    source = Path(gradient_lars.__file__).parent
    return Path(shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__")))


def plugin(package, elsewhere=None):
    """Write a plugin of pytest that refuses to run on any other copy, such as the installed one."""
    expected = (elsewhere or package) / "__init__.py"
    (package.parent / "package_under_test.py").write_text(
        "import gradient_lars\nimport pytest\n\n\ndef pytest_configure(config):\n"
        f"    if gradient_lars.__file__ != {str(expected)!r}:\n"
        "        raise pytest.UsageError(f'{gradient_lars.__file__} is not the package under test')\n",
        encoding="utf-8",
    )


def run_suite(suite, package, *, write_plugin=True):
    if write_plugin:
        plugin(package)
    folder = package.parent
    # The project's own settings would put its own package first.
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    env |= {"PYTHONPATH": os.pathsep.join([str(folder), str(TESTS)]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-c", str(folder / "pytest.ini"), "--rootdir", str(TESTS), "-x", "-q"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "package_under_test", *SUITES[suite]]
    return subprocess.run(command, cwd=TESTS, env=env, capture_output=True, text=True, check=False, timeout=120)
