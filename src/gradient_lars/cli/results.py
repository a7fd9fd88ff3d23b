"""``results.csv`` and ``rates.csv``: one row per run, readable again for resuming and plotting."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.files import atomic
from gradient_lars.cli.records import Experiment, RateSample, Run, check_experiment, check_run, check_samples

# What has a default came later than the rest: a file may lack it, and settings that have their default are left out.
_REQUIRED = [field.name for kind in (Experiment, Run) for field in fields(kind) if field.default is MISSING]
_OPTIONAL = [field for field in fields(Experiment) if field.default is not MISSING]
_MEASURED_LATER = [field for field in fields(Run) if field.default is not MISSING]


class ResultsFile:
    """A results CSV that grows by one flushed row per run."""

    def __init__(self, path: Path, experiment: Experiment, runs: Sequence[Run]) -> None:
        self.path = path
        self.experiment = experiment
        self.runs = list(runs)

    @classmethod
    def create(cls, path: Path, experiment: Experiment) -> "ResultsFile":
        """Write a file without runs in place of what may be there."""
        return cls(path, experiment, [])._rewritten()

    @classmethod
    def resume(cls, path: Path, experiment: Experiment) -> "ResultsFile":
        """Read the finished runs of `path`; a last line that an interruption tore is dropped.

        Raises:
            CommandError: it was made with other settings, or is not such a file.
        """
        found, runs = read_results(path)
        if found is not None:
            _check_same(path, found, experiment)
        return cls(path, experiment, runs)._rewritten()

    def append(self, run: Run) -> None:
        """Add one row and hand it to the operating system."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_lines([self._row(run)]))
            file.flush()
            os.fsync(file.fileno())
        self.runs.append(run)

    def _rewritten(self) -> "ResultsFile":
        with atomic(self.path) as temporary:
            text = _lines([self._columns(), *(self._row(run) for run in self.runs)])
            temporary.write_text(text, encoding="utf-8", newline="")
        return self

    def _row(self, run: Run) -> list[str]:
        cells = {**_plain(self.experiment), **_plain(run)}
        return [_cell(cells[column]) for column in self._columns()]

    def _columns(self) -> list[str]:
        chosen = [field for field in _OPTIONAL if getattr(self.experiment, field.name) != field.default]
        return [*_REQUIRED, *(field.name for field in (*chosen, *_MEASURED_LATER))]


def read_results(path: Path) -> tuple[Experiment | None, list[Run]]:
    """Read a results CSV; the experiment is None if there is no row yet, and a torn last line is left out.

    Raises:
        CommandError: the file cannot be read, is not such a file, or mixes experiments.
    """
    (_, header), *lines = _read_rows(path) or [(1, [])]
    defaults = {field.name: _cell(field.default) for field in (*_OPTIONAL, *_MEASURED_LATER)}
    known = len(set(header)) == len(header) and {*_REQUIRED} <= {*header} <= {*_REQUIRED, *defaults}
    if not known:
        raise CommandError(f"{path} is not a results file of this version: its columns are others. Name another one.")
    experiment: Experiment | None = None
    runs: dict[Any, tuple[int, Run]] = {}
    for number, line in lines:
        try:
            cells = {**defaults, **_named(header, line)}
            found = _parse(Experiment, cells)
            if experiment is None:
                check_experiment(found)
            elif found != experiment:
                raise CommandError(
                    f"{path}: line {number} has other settings than line 2: keep one comparison per file."
                )
            run = _parse(Run, cells)
            check_run(found, run)
        except ValueError as error:
            raise CommandError(f"{path}: line {number} is damaged ({error}): remove that line.") from None
        if run.key in runs:
            raise CommandError(f"{path}: line {number} is the same run as line {runs[run.key][0]}: remove one of them.")
        experiment = found
        runs[run.key] = number, run
    return experiment, [run for _, run in runs.values()]


def write_rates(path: Path, samples: Iterable[RateSample]) -> None:
    """Write the rates of one run in one piece."""
    rows = [[_cell(value) for value in asdict(sample).values()] for sample in samples]
    with atomic(path) as temporary:
        text = _lines([[field.name for field in fields(RateSample)], *rows])
        temporary.write_text(text, encoding="utf-8", newline="")


def read_rates(path: Path) -> list[RateSample]:
    """Read what `write_rates` wrote; a missing file gives an empty list.

    Raises:
        CommandError: the file cannot be read, or rows of it are damaged or missing.
    """
    if not path.is_file():
        return []
    columns = [field.name for field in fields(RateSample)]
    (_, header), *lines = _read_rows(path) or [(1, [])]
    try:
        if header != columns:
            raise ValueError("its columns are others")
        samples = [_parse(RateSample, _named(columns, line)) for _, line in lines]
        check_samples(samples)
    except ValueError as error:
        raise damaged_rates(path, error) from None
    return samples


def damaged_rates(path: Path, error: ValueError) -> CommandError:
    """Return what is said of a rates file that `error` describes."""
    return CommandError(f"{path} is damaged ({error}): remove it to plot without the rates.")


def _check_same(path: Path, found: Experiment, wanted: Experiment) -> None:
    for field in fields(Experiment):
        old, new = getattr(found, field.name), getattr(wanted, field.name)
        if old != new:
            raise CommandError(
                f"`--resume`: {path} was made with {field.name} = {_cell(old)}, this command has {_cell(new)}: "
                "give the same settings, or `--overwrite` to begin again."
            )


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV, each with the number of its (last) line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise CommandError(f"{path} cannot be read ({reason}): give the results.csv of a comparison.") from None
    whole = text[: text.rfind("\n") + 1]  # a line without its end was torn by an interruption
    reader = csv.reader(io.StringIO(whole))
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise CommandError(f"{path}: line {reader.line_num} is damaged ({error}): remove that line.") from None


def _named(columns: Sequence[str], line: Sequence[str]) -> dict[str, str]:
    if len(line) != len(columns):
        raise ValueError(f"it has {len(line)} columns, not {len(columns)}")
    return dict(zip(columns, line, strict=True))


def _lines(rows: Iterable[Iterable[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _plain(record: Experiment | Run) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return " ".join(_cell(item) for item in value)
    return str(value)  # of a float: the shortest text that reads back as the same float


_READERS: dict[Any, Any] = {
    str: str,
    int: int,
    float: float,
    bool: {"true": True, "false": False}.__getitem__,
    float | None: lambda text: float(text) if text else None,
    tuple[int, ...]: lambda text: tuple(int(item) for item in text.split()),
    tuple[float, ...]: lambda text: tuple(float(item) for item in text.split()),
}


def _parse(kind: Any, cells: dict[str, str]) -> Any:
    try:
        return kind(**{field.name: _READERS[field.type](cells[field.name]) for field in fields(kind)})
    except KeyError as error:
        raise ValueError(f"unexpected {error}") from None
