"""The command line run in this process, and small data sets for it."""

import gzip
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gradient_lars.cli import main


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Standard error in one line, as the terminal's width breaks it anywhere."""
        return re.sub(r"\s+", " ", self.err).strip()


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch, capsys) -> Cli:
    """Run ``gradient-lars`` with arguments, as its console script does."""

    def run(*arguments: object) -> Result:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "argv", ["gradient-lars", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as raised:
            main()
        captured = capsys.readouterr()
        return Result(int(raised.value.code or 0), captured.out, captured.err)

    return run


def make_arrays(n_train: int = 96, n_test: int = 30, n_classes: int = 3) -> dict[str, np.ndarray]:
    """Noisy 8x8 images, each class with its own bright rows."""
    rng = np.random.default_rng(7)
    arrays = {}
    for part, n in (("train", n_train), ("test", n_test)):
        y = np.arange(n) % n_classes
        x = rng.normal(size=(n, 8, 8))
        x[np.arange(n)[:, None], (2 * y)[:, None] + np.arange(2)] += 1.5
        arrays |= {f"x_{part}": (100 + 20 * x).astype(np.float32), f"y_{part}": y}
    return arrays


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return make_arrays()


@pytest.fixture
def npz(tmp_path, arrays) -> Path:
    path = tmp_path / "shapes.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def quick(npz) -> list[str]:
    """Arguments of a comparison of 20 runs that takes about a second: 80 training images, 2 x 2 x (2 x 2 + 1) runs."""
    rates = ["--learning-rates", "sgd:0.05,0.5", "--learning-rates", "lars:0.01,0.1"]
    return ["compare", "--data", str(npz), "--batch-sizes", "16,full", "--epochs", "2", "--seeds", "1", *rates]


def write_idx(path: Path, array: np.ndarray) -> None:
    """An IDX file of unsigned bytes; compressed if the name ends with ``.gz``."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def idx_folder(tmp_path, arrays) -> Path:
    """Two files compressed, two not."""
    folder = tmp_path / "idx"
    folder.mkdir()
    write_idx(folder / "train-images-idx3-ubyte.gz", arrays["x_train"])
    write_idx(folder / "train-labels-idx1-ubyte", arrays["y_train"])
    write_idx(folder / "t10k-images-idx3-ubyte", arrays["x_test"])
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", arrays["y_test"])
    return folder
