"""Records as CSV: written at once or step by step, and read again, also where the writing was interrupted."""

import csv
import functools
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradient_lars.monitor._records import Record, Records

REQUIRED = ("step", "layer", "p_norm", "g_norm", "rate", "adapted")
_SWITCH = {"true": True, "false": False}


def lines(rows: Iterable["Record"]) -> str:
    """Return `rows` as lines of a CSV; nine digits hold every float32."""
    # Written out, for this is what a streamed record costs: a fourth of what the csv module takes.
    return "".join(
        f"{step},{_quoted(layer)},{p_norm:.9g},{g_norm:.9g},{rate:.9g},{'true' if adapted else 'false'},{update:.9g},"
        f"{lr:.9g},{weight_decay:.9g},{threshold:.9g},{held_by}\n"
        for step, layer, p_norm, g_norm, rate, adapted, update, lr, weight_decay, threshold, held_by in rows
    )


@functools.lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    """Return `text` as the csv module writes it."""
    buffer = io.StringIO()
    # Which breaks of a line it quotes depends on what it ends lines with.
    csv.writer(buffer, lineterminator="\r\n").writerow([text])
    return buffer.getvalue()[:-2]


def _header(columns: Sequence[str]) -> str:
    return f"{','.join(columns)}\n"


def write(path: Path, columns: Sequence[str], rows: Iterable["Record"]) -> None:
    """Write a CSV, which takes the place of `path` when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(_header(columns) + lines(rows), encoding="utf-8", newline="")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class CsvStream:
    """A CSV to which rows are added; every `add` leaves whole lines.

    Args:
        path: the file; its folder is made.
        columns: names of the columns.
        append: whether to go on with a file that is there.

    Raises:
        FileExistsError: the file is there, and `append` is False.
        ValueError: the file is there and has other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, append: bool) -> None:
        header = _header(columns)
        if path.exists() and path.stat().st_size:
            if not append:
                raise FileExistsError(
                    f"`csv` {str(path)!r} is there already. Name another file, or go on with it by `append=True`."
                )
            _repair(path, header)
            self._file = path.open("a", encoding="utf-8", newline="")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8", newline="")
            self._file.write(header)
            self._file.flush()

    def add(self, rows: Iterable["Record"]) -> None:
        """Write rows, and hand them to the system."""
        self._file.write(lines(rows))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _repair(path: Path, header: str) -> None:
    """Cut off a last line that an interruption has left unfinished."""
    with path.open("rb+") as file:
        if file.readline() != header.encode():
            raise ValueError(f"`csv` {str(path)!r} has other columns than the monitor writes. Name another file.")
        file.seek(0)
        end = 0
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
        file.truncate(end)


def read(path: str | Path, *, keep: int | None = None) -> "Records":
    """Read a CSV that a monitor has written; one of ``gradient-lars compare``'s rates is understood too.

    A last line that an interruption has cut short is left out. Where a run was resumed from before its last row, the
    later rows of a step count.

    Args:
        path: the file.
        keep: the most steps to keep: of more, every second is dropped, so that a file of any length can be read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, holds no row, or is damaged; the message names the line.
    """
    from gradient_lars.monitor._records import Records

    path = Path(path)
    steps: dict[int, dict[str, Record]] = {}
    current, kept, stride, seen = None, False, 1, 0
    for row in _rows(path):
        if row.step != current:
            current = row.step
            if keep is not None and len(steps) >= keep and current not in steps:
                steps, stride = {step: steps[step] for step in list(steps)[::2]}, 2 * stride
            kept = current in steps or seen % stride == 0
            seen += current not in steps
            if kept:
                steps.setdefault(current, {})
        if kept:
            steps[row.step][row.layer] = row
    if not steps:
        raise ValueError(f"{path} holds no row. Record a step first, or close the monitor, which writes the last ones.")
    return Records(row for step in sorted(steps) for row in steps[step].values())


def _rows(path: Path) -> Iterator["Record"]:
    try:
        # A cut may go through a character: only whole lines are decoded.
        with path.open("rb") as file:
            reader = csv.reader(line.decode("utf-8") for line in file if line.endswith(b"\n"))
            columns = next(reader, [])
            _check_columns(path, columns)
            for line in reader:
                yield _parse(path, reader.line_num, columns, line)
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(f"{path} is not a text file. Give the CSV that a monitor has written.") from None


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [f"`{name}`" for name in REQUIRED if name not in columns]
    if not columns:
        raise ValueError(f"{path} is empty. Give the CSV that a monitor has written.")
    if missing:
        raise ValueError(
            f"{path} is not a record of LARS: it has no column {', '.join(missing)}. Give the CSV that a monitor has "
            "written."
        )


def _parse(path: Path, number: int, columns: Sequence[str], line: Sequence[str]) -> "Record":
    from gradient_lars.monitor._records import Record

    try:
        if len(line) != len(columns):
            raise ValueError(f"{len(line)} cells, where there are {len(columns)} columns")
        cells = dict(zip(columns, line, strict=True))
        found: dict[str, Any] = {"step": int(cells["step"]), "layer": cells["layer"]}
        found["adapted"] = _SWITCH[cells["adapted"].lower()]
        for name in Record._fields:
            if name in cells and name not in found:
                found[name] = cells[name] if name == "held_by" else float(cells[name])
        return Record(**found)
    except KeyError as error:
        reason = f"`adapted` is {error}, neither true nor false"
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{path}: line {number} is damaged ({reason}). Remove that line.")
