"""Files of a comparison: whole files are written in one piece, mistakes become sentences."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradient_lars.cli.errors import CommandError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends, and is removed if it raises."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path, option: str = "--out") -> None:
    """Raise `CommandError` if `folder` is no folder to write to, and could not be made; nothing is made here."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise CommandError(f"`{option}`: {nearest} is a file, not a folder: name another folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise CommandError(f"`{option}`: no permission to write to {nearest}: name another folder.")


@contextmanager
def write_errors(folder: Path, option: str = "--out") -> Iterator[None]:
    """Turn an `OSError` of the block (disk full, permission) into a `CommandError` that names `option`."""
    try:
        yield
    except OSError as error:
        raise CommandError(
            f"`{option}`: {folder} cannot be written to ({error.strerror or error}): free it or name another folder."
        ) from None
