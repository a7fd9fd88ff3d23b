"""What ``gradient-lars advise`` says of an error that the user's function, loss, data or model raised."""

import re
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path

import torch

import gradient_lars
from gradient_lars.cli.errors import CommandError

_LONGEST = 400
_HEADING = "Traceback (most recent call last):\n"
_FRAME = re.compile(r'  File "(.+)", line (\d+)')
_STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
_CALLED = tuple(Path(str(module.__file__)).parent for module in (torch, gradient_lars))


@contextmanager
def reported(name: str, part: str) -> Iterator[None]:
    """Turn what the user's code raises in the block into a `CommandError` that says where.

    Too little memory of a device is left to `enough_memory`.

    Args:
        name: of the user's function.
        part: what the block calls, for errors in which no line is the user's.
    """
    try:
        yield
    except (CommandError, torch.OutOfMemoryError):
        raise
    except SystemExit as error:
        reason = error.code if isinstance(error.code, str) else f"exit code {error.code or 0}"
        raise CommandError(
            f"`{name}` ended the program in {part} ({_shortened(reason)}): nothing that is called here may exit or "
            "need options of a command line."
        ) from None
    except Exception as error:
        raise failed(name, part, error) from None


@contextmanager
def enough_memory(sentence: str) -> Iterator[None]:
    """Raise `CommandError` with `sentence` where the memory of a device runs out in the block."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise CommandError(sentence) from None


def failed(name: str, part: str, error: Exception) -> CommandError:
    """Return what is said of `error`: the last line of the user's code, or `part`, and the reason."""
    text = str(error)
    if f"\nOriginal {_HEADING}" in text:  # of a loader's worker: the message is the traceback
        lines = text.rpartition(_HEADING)[2].splitlines()
        frames = [(found[1], found[2]) for line in lines if (found := _FRAME.match(line))]
        reason = "\n".join(dropwhile(lambda line: line.startswith(" "), lines))
    else:
        frames = [(frame.filename, str(frame.lineno)) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            frames.append((error.filename, str(error.lineno)))
        reason = f"{type(error).__name__}: {text}" if text.strip() else f"{type(error).__name__}, without a message"
    return CommandError(f"`{name}` failed {_where(frames, part)}: {_shortened(reason)}.")


def _where(frames: Iterable[tuple[str, str]], part: str) -> str:
    own = [f"at {file}, line {line}" for file, line in frames if _is_users(file)]
    return own[-1] if own else f"in {part}"


def _is_users(file: str) -> bool:
    """Say whether a frame is of the user's code or packages: not of PyTorch's, Python's or ours."""
    path = Path(file)
    if file.startswith("<") or any(path.is_relative_to(folder) for folder in _CALLED):
        return False
    return not path.is_relative_to(_STANDARD_LIBRARY) or "site-packages" in path.parts


def _shortened(text: str) -> str:
    """Return `text` as one line of at most `_LONGEST` characters, without its full stop."""
    line = " ".join(text.split())
    return line.rstrip(". ") if len(line) <= _LONGEST else f"{line[:_LONGEST].rstrip('. ')} .."
