"""``gradient-lars info``: what is installed, and the path that each device would take."""

import importlib.metadata
import importlib.util
import platform

from rich import box
from rich.console import Console
from rich.table import Table

import gradient_lars

PACKAGES = (
    "torch",
    "triton",
    "chainer",
    "cupy",
    "jax",
    "optax",
    "numpy",
    "scikit-learn",
    "matplotlib",
    "typer",
    "rich",
)


def print_info(output: Console) -> None:
    """Print versions and devices; works without any framework."""
    versions = Table(title="Versions", box=box.SIMPLE_HEAD, title_style="bold")
    versions.add_column("package")
    versions.add_column("version")
    versions.add_row("python", platform.python_version())
    versions.add_row("gradient-lars", gradient_lars.__version__)
    for package in PACKAGES:
        versions.add_row(package, installed_version(package) or "not installed")
    output.print(versions)
    devices = Table(title="Devices", box=box.SIMPLE_HEAD, title_style="bold")
    for heading in ("device", "name", "path of the hook in PyTorch"):
        devices.add_column(heading)
    for row in device_rows():
        devices.add_row(*row)
    output.print(devices)


def installed_version(package: str) -> str | None:
    """Return the version of a distribution, or None; builds for one CUDA version (``cupy-cuda12x``) count as well."""
    names = [package]
    if package == "cupy":
        names += [f"cupy-cuda{major}x" for major in (11, 12, 13)]
    found = (dist for name in names for dist in importlib.metadata.Distribution.discover(name=name))
    return next((dist.version for dist in found), None)


def device_rows() -> list[tuple[str, str, str]]:
    """Return device, its name, and the path that the hook takes there; without PyTorch the CPU alone."""
    cpu = platform.processor() or platform.machine()
    if importlib.util.find_spec("torch") is None:
        return [("cpu", cpu, "none: PyTorch is not installed")]
    import torch

    from gradient_lars.torch import hook_path

    rows = [("cpu", cpu, hook_path(torch.device("cpu")))]
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        rows.append((str(device), torch.cuda.get_device_name(device), hook_path(device)))
    return rows
