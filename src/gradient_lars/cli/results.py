"""``results.csv`` and ``rates.csv``: one row per run, readable again for resuming and plotting."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.files import atomic

TUNE = "tune"
FINAL = "final"


@dataclass(frozen=True)
class Experiment:
    """What all runs of one comparison share; repeated in each row, so that the CSV stands alone."""

    data: str
    data_digest: str
    n_train: int
    n_val: int
    n_test: int
    batch_sizes: tuple[int, ...]
    sgd_learning_rates: tuple[float, ...]
    lars_learning_rates: tuple[float, ...]
    tuning_seeds: int
    seeds: int
    epochs: int
    momentum: float
    weight_decay: float
    threshold: float
    eps: float
    device: str
    torch: str
    gradient_lars: str

    def grid(self, optimizer: str) -> tuple[float, ...]:
        """Return the learning rates tried for `optimizer`, ascending."""
        return self.sgd_learning_rates if optimizer == "sgd" else self.lars_learning_rates

    @property
    def n_runs(self) -> int:
        """Return the number of rows of a finished comparison."""
        tuned = len(self.sgd_learning_rates) + len(self.lars_learning_rates)
        return len(self.batch_sizes) * (tuned * self.tuning_seeds + 2 * self.seeds)


@dataclass(frozen=True)
class Run:
    """One training run; `test_accuracy` is None in the phase `TUNE`, accuracies are between 0 and 1."""

    phase: str
    batch_size: int
    steps: int
    optimizer: str
    lr: float
    seed: int
    val_accuracy: float
    val_loss: float
    test_accuracy: float | None
    diverged: bool
    seconds: float

    @property
    def key(self) -> tuple[str, int, str, float, int]:
        """What tells this run from the others of its experiment."""
        return (self.phase, self.batch_size, self.optimizer, self.lr, self.seed)


@dataclass(frozen=True)
class RateSample:
    """The rate of one layer in one step."""

    step: int
    layer: str
    p_norm: float
    g_norm: float
    rate: float
    adapted: bool


_COLUMNS = [field.name for kind in (Experiment, Run) for field in fields(kind)]


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
            text = _lines([_COLUMNS, *(self._row(run) for run in self.runs)])
            temporary.write_text(text, encoding="utf-8", newline="")
        return self

    def _row(self, run: Run) -> list[str]:
        cells = {**_plain(self.experiment), **_plain(run)}
        return [_cell(cells[column]) for column in _COLUMNS]


def read_results(path: Path) -> tuple[Experiment | None, list[Run]]:
    """Read a results CSV; the experiment is None if there is no row yet, and a torn last line is left out.

    Raises:
        CommandError: the file cannot be read, is not such a file, or mixes experiments.
    """
    header, *lines = _read_rows(path) or [[]]
    if header != _COLUMNS:
        raise CommandError(f"{path} is not a results file of this version: its columns are others. Name another one.")
    experiment: Experiment | None = None
    runs: list[Run] = []
    for number, line in enumerate(lines, start=2):
        try:
            cells = dict(zip(_COLUMNS, line, strict=True))
            found, run = _parse(Experiment, cells), _parse(Run, cells)
        except ValueError as error:
            raise CommandError(f"{path}: line {number} is damaged ({error}): remove that line.") from None
        if experiment is not None and found != experiment:
            raise CommandError(f"{path}: line {number} has other settings than line 2: keep one comparison per file.")
        experiment = found
        runs.append(run)
    return experiment, runs


def write_rates(path: Path, samples: Iterable[RateSample]) -> None:
    """Write the rates of one run in one piece."""
    rows = [[_cell(value) for value in asdict(sample).values()] for sample in samples]
    with atomic(path) as temporary:
        text = _lines([[field.name for field in fields(RateSample)], *rows])
        temporary.write_text(text, encoding="utf-8", newline="")


def read_rates(path: Path) -> list[RateSample]:
    """Read what `write_rates` wrote; a missing file gives an empty list."""
    if not path.is_file():
        return []
    header, *lines = _read_rows(path) or [[]]
    try:
        return [_parse(RateSample, dict(zip(header, line, strict=True))) for line in lines]
    except (ValueError, KeyError) as error:
        raise CommandError(f"{path} is damaged ({error}): remove it to plot without the rates.") from None


def _check_same(path: Path, found: Experiment, wanted: Experiment) -> None:
    for field in fields(Experiment):
        old, new = getattr(found, field.name), getattr(wanted, field.name)
        if old != new:
            raise CommandError(
                f"`--resume`: {path} was made with {field.name} = {_cell(old)}, this command has {_cell(new)}: "
                "give the same settings, or `--overwrite` to begin again."
            )


def _read_rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise CommandError(f"{path} cannot be read ({reason}): give the results.csv of a comparison.") from None
    whole = text[: text.rfind("\n") + 1]  # a line without its end was torn by an interruption
    return list(csv.reader(io.StringIO(whole)))


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
