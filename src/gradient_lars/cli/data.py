"""Data sets of ``gradient-lars compare``: read, checked, split and standardised, as NumPy arrays."""

import hashlib
import importlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.idx import read_folder
from gradient_lars.cli.settings import DIGITS, FASHION_MNIST

Array = npt.NDArray[Any]

# This leaves 1024 training images, which 512, 256 and 64 divide; 300 choose the rate and 473 measure.
DIGITS_TEST = 473
DIGITS_VALIDATION = 300
VALIDATION_PART = 1 / 6
_SPLIT_SEED = 0
_NAMES = ("x_train", "y_train", "x_test", "y_test")
_SHAPES = "(N, height, width) or (N, channels, height, width)"


@dataclass(frozen=True)
class Split:
    """Images `x` (N, channels, height, width), float32, and labels `y` (N,), int64 from 0."""

    x: Array
    y: Array

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.y)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits, standardised per channel with the mean and deviation of the training split.

    Attributes:
        name: what `--data` named, without the folder of a file.
        digest: the first 12 hexadecimal digits of the SHA-256 of the raw arrays.
    """

    name: str
    digest: str
    n_classes: int
    train: Split
    val: Split
    test: Split


def load(data: str, data_dir: Path | None, train_size: int | None = None) -> Dataset:
    """Read the data set that `--data` (and `--data-dir`) name, and keep `train_size` images to train on.

    The validation split is a sixth of the training images, drawn with a fixed seed and the same share of each class;
    digits, which has no test split of its own, gives 473 images to it first.

    Raises:
        CommandError: the files are missing or damaged, the arrays are not images and labels, or there are fewer.
    """
    if data == DIGITS:
        return _build(data, "`--data digits`", _digits(), DIGITS_VALIDATION, train_size)
    if data == FASHION_MNIST and data_dir is not None:
        return _build(data, "`--data-dir`", read_folder(data_dir), None, train_size)
    path = Path(data)
    return _build(path.name, f"`--data`: {path}", _npz(path), None, train_size)


def _digits() -> dict[str, Array]:
    x, y = importlib.import_module("sklearn.datasets").load_digits(return_X_y=True)
    images = x.reshape(-1, 8, 8)
    test, rest = stratified(y, DIGITS_TEST)
    return {"x_train": images[rest], "y_train": y[rest], "x_test": images[test], "y_test": y[test]}


def _npz(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise CommandError(f"`--data`: there is no file {path}: give the path of an .npz file that exists.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in _NAMES if name not in archive.files]
            if missing:
                raise CommandError(
                    f"`--data`: {path} has no {' and no '.join(missing)}: "
                    f"save the four arrays {', '.join(_NAMES)} with numpy.savez."
                )
            return {name: archive[name] for name in _NAMES}
    except (OSError, ValueError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise CommandError(
            f"`--data`: {path} is not a readable .npz file of plain arrays ({reason}): save it with numpy.savez."
        ) from None


def stratified(y: Array, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Draw `size` indices with the same share of each class, and return them and the others, both ascending.

    The draw has a fixed seed: equal `y` and `size` give equal splits. What does not divide evenly goes to the classes
    with the largest remainders.
    """
    classes, counts = np.unique(y, return_counts=True)
    exact = counts * (size / len(y))
    take = np.floor(exact).astype(int)
    order = np.argsort(-(exact - take), kind="stable")
    take[order[: size - take.sum()]] += 1
    generator = np.random.default_rng(_SPLIT_SEED)
    chosen = [generator.permutation(np.flatnonzero(y == label))[:n] for label, n in zip(classes, take, strict=True)]
    mask = np.zeros(len(y), bool)
    mask[np.concatenate(chosen)] = True
    return np.flatnonzero(mask), np.flatnonzero(~mask)


def _build(name: str, source: str, arrays: Mapping[str, Array], n_val: int | None, train_size: int | None) -> Dataset:
    for part in ("train", "test"):
        _check_pair(source, part, arrays[f"x_{part}"], arrays[f"y_{part}"])
    x_train, x_test = _images(arrays["x_train"]), _images(arrays["x_test"])
    if x_train.shape[1:] != x_test.shape[1:]:
        raise CommandError(
            f"{source}: the images of x_train have the shape {x_train.shape[1:]} (channels, height, width) and those "
            f"of x_test {x_test.shape[1:]}: make them alike."
        )
    classes, y_train = np.unique(arrays["y_train"], return_inverse=True)
    unknown = np.setdiff1d(arrays["y_test"], classes)
    if unknown.size:
        raise CommandError(f"{source}: y_test has the label {unknown[0]}, y_train has not: remove those images.")
    if len(classes) < 2:
        raise CommandError(f"{source}: y_train has only one label, {classes[0]}: give at least two classes.")
    val, train = stratified(y_train, n_val or max(1, round(len(y_train) * VALIDATION_PART)))
    if len(train) < 2 or len(val) < 1:
        raise CommandError(f"{source}: x_train has {len(y_train)} images, too few to split: give at least 3.")
    if train_size is not None:
        if not 2 <= train_size <= len(train):
            raise CommandError(
                f"`--train-size` is {train_size}, but the training split has {len(train)} images: give from 2 to "
                "that many, or leave it out."
            )
        train = train[stratified(y_train[train], train_size)[0]]
    mean = x_train[train].mean((0, 2, 3), np.float64, keepdims=True)
    deviation = x_train[train].std((0, 2, 3), np.float64, keepdims=True)
    deviation[deviation == 0] = 1

    def split(x: Array, y: Array) -> Split:
        scaled = (x - mean.astype(np.float32)) / deviation.astype(np.float32)
        return Split(scaled.astype(np.float32, copy=False), y.astype(np.int64))

    return Dataset(
        name,
        _digest(arrays),
        len(classes),
        train=split(x_train[train], y_train[train]),
        val=split(x_train[val], y_train[val]),
        test=split(x_test, np.searchsorted(classes, arrays["y_test"])),
    )


def _check_pair(source: str, part: str, x: Array, y: Array) -> None:
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise CommandError(f"{source}: x_{part} has the shape {x.shape}: it must be {_SHAPES}, none of them 0.")
    if x.ndim == 4 and _channels_last(*x.shape[1:]):
        raise CommandError(
            f"{source}: x_{part} has the shape {x.shape}, channels last, but it must be {_SHAPES}: "
            f"save x_{part}.transpose(0, 3, 1, 2)."
        )
    if x.dtype.kind not in "biuf":
        raise CommandError(f"{source}: x_{part} has the type {x.dtype}: convert it to numbers such as float32.")
    if y.shape != x.shape[:1]:
        raise CommandError(
            f"{source}: y_{part} has the shape {y.shape} but x_{part} has {len(x)} images: "
            f"y_{part} must have one label each, the shape ({len(x)},)."
        )
    if y.dtype.kind not in "iu":
        raise CommandError(f"{source}: y_{part} has the type {y.dtype}: convert the labels to whole numbers.")
    with np.errstate(over="ignore"):
        finite = np.isfinite(x.astype(np.float32))
    if not finite.all():
        raise CommandError(
            f"{source}: x_{part} has {x.size - np.count_nonzero(finite)} pixels that are NaN or infinite in float32: "
            "replace them or leave those images out."
        )


def _channels_last(first: int, second: int, last: int) -> bool:
    """Say whether the axes of an image look like height, width, channels."""
    square = first == second > last
    return (last in (1, 3, 4) and square) or (last in (1, 3) and first not in (1, 3))


def _images(x: Array) -> Array:
    return x[:, np.newaxis] if x.ndim == 3 else x


def _digest(arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in _NAMES:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]
