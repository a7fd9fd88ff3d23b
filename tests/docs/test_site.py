"""The pages build without a warning, and the API pages have every public name."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys

import pytest

import gradient_lars
from docs.pages import DOCS, ROOT

# Parts that are the command line's own affair, and so have no public names.
PROGRAMS = {"gradient_lars.cli", "gradient_lars.__main__"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("html")
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(folder / "doctrees")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*sphinx, str(DOCS), str(folder / "html")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def documented(built):
    from sphinx.util.inventory import InventoryFile

    with (built / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    return {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}


def public_modules():
    """Return the names of the package and of its modules that have an ``__all__``."""
    found = [module.name for module in pkgutil.iter_modules(gradient_lars.__path__, "gradient_lars.")]
    names = [name for name in found if name not in PROGRAMS and not name.split(".")[1].startswith("_")]
    return [name for name in ["gradient_lars", *names] if hasattr(importlib.import_module(name), "__all__")]


def public_names(module):
    """Return the public names of a module, and those of its classes' own methods and properties."""
    names = []
    for name in importlib.import_module(module).__all__:
        names.append(f"{module}.{name}")
        value = getattr(importlib.import_module(module), name)
        if inspect.isclass(value) and not issubclass(value, tuple):
            own = [member for member, what in vars(value).items() if _is_documented(member, what)]
            names += [f"{module}.{name}.{member}" for member in own]
    return names


def _is_documented(member, what):
    return not member.startswith("_") and (inspect.isfunction(what) or isinstance(what, property | classmethod))


def test_public_modules_are_known():
    assert {"gradient_lars", "gradient_lars.torch", "gradient_lars.optax"} <= set(public_modules())


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_documented(module, documented):
    missing = [name for name in public_names(module) if name not in documented]
    assert not missing, f"Add them to docs/api/: {missing}"


def test_a_name_that_is_missing_is_noticed(documented, monkeypatch):
    def undocumented():
        pass

    module = importlib.import_module("gradient_lars.torch")
    monkeypatch.setattr(module, "undocumented", undocumented, raising=False)
    monkeypatch.setattr(module, "__all__", [*module.__all__, "undocumented"])
    with pytest.raises(AssertionError, match=r"gradient_lars\.torch\.undocumented"):
        test_every_public_name_is_documented("gradient_lars.torch", documented)


def test_pages_link_to_files_that_exist(built):
    # Sphinx has checked links between pages and copied what else they link to.
    assert (built / "index.html").stat().st_size > 1000
    assert list((built / "_images").glob("*.png"))
