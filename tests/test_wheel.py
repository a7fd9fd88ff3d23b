"""The built wheel and the source archive: complete, and importable where nothing else is installed."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_source_archive_holds_what_its_tests_and_its_makefile_need(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    expected = {
        path.relative_to(ROOT).as_posix()
        for folder in ("src", "tests", "docs", "examples", "benchmarks", "study")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "_build"} & set(path.parts)
    }
    assert expected | {"Makefile", "constraints.txt", "pyproject.toml", "README.md"} <= names


def test_every_module_and_the_type_marker_are_inside(wheel):
    package = ROOT / "src" / "gradient_lars"
    expected = {path.relative_to(ROOT / "src").as_posix() for path in package.rglob("*.py")} | {
        "gradient_lars/py.typed"
    }
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        metadata = next(file.read(name).decode() for name in file.namelist() if name.endswith("/METADATA"))
    assert names == expected
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert required == []


@pytest.mark.parametrize("extra", ["", "; import gradient_lars.cli"])
def test_it_imports_without_any_other_package(wheel, tmp_path, extra):
    # -I and -S: no site-packages, no environment, no current folder.
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import gradient_lars as g{extra}"
    code += "; print(g.GradientLARS(), g.__file__)"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"GradientLARS(threshold=0.01, weight_decay=0.0, eps=1e-09) {tmp_path}")
