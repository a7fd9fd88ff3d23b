"""Reader of the IDX format (MNIST, Fashion-MNIST), gzip-compressed or not."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gradient_lars.cli.errors import CommandError

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Return the array of one IDX file of unsigned bytes; gzip is recognised by its content, not by its name.

    Raises:
        CommandError: the file cannot be read, is not IDX of unsigned bytes, or its length is not what it declares.
    """
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise CommandError(f"`--data-dir`: {path} cannot be read ({error}): copy or download the file again.") from None
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise CommandError(f"`--data-dir`: {path} is not an IDX file of unsigned bytes: download it again.")
    rank = content[3]
    header = 4 + 4 * rank
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    if len(content) != header + math.prod(shape):
        raise CommandError(
            f"`--data-dir`: {path} declares the shape {shape} but holds {len(content) - header} bytes: "
            "the file is cut short or damaged, download it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_folder(folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """Return x_train, y_train, x_test and y_test of a folder with the four files of (Fashion-)MNIST.

    Raises:
        CommandError: the folder or one of the files is missing or damaged.
    """
    if not folder.is_dir():
        raise CommandError(f"`--data-dir`: {folder} is not a folder: give the one with the four IDX files.")
    stems = {
        "x_train": "train-images-idx3-ubyte",
        "y_train": "train-labels-idx1-ubyte",
        "x_test": "t10k-images-idx3-ubyte",
        "y_test": "t10k-labels-idx1-ubyte",
    }
    paths = {}
    for name, stem in stems.items():
        found = [path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()]
        if not found:
            raise CommandError(f"`--data-dir`: {folder} has neither {stem} nor {stem}.gz: put one there.")
        paths[name] = found[0]
    return {name: read_idx(path) for name, path in paths.items()}
