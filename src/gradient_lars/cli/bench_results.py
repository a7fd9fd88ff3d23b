"""The results of ``gradient-lars bench``: a CSV with one row a measurement, to which every run adds its own."""

import csv
import io
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import gradient_lars
from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.files import atomic, check_writable
from gradient_lars.cli.info import installed_version


@dataclass(frozen=True)
class Environment:
    """Where and with what a run was made.

    Attributes:
        date: its beginning, in UTC: what tells runs apart.
        commit: short hash of the measured source, with ``-dirty`` if that was changed; "" outside its repository.
        device: the kind, ``cpu`` or ``cuda``.
        device_name: the processor's or the GPU's name.
        threads: of PyTorch, on the host.
    """

    date: str
    commit: str
    device: str
    device_name: str
    python: str
    torch: str
    triton: str
    gradient_lars: str
    threads: int


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        package: name and version of a peer's distribution.
        quantity: ``eager``, ``host``, ``graph``, ``memory``, or ``bandwidth`` of a copy.
        samples: how many there were; p20, p50 and p80 are theirs, in `unit`.
        ratio_to_fused_sgd: of p50 to that of PyTorch's fused SGD in the same run, for the same quantity.
        ratio_to_floor: of p50 to the time in which the measured copy bandwidth moves the bytes of one SGD step.
    """

    environment: Environment
    dtype: str
    workload: str
    parameters: int
    tensors: int
    implementation: str
    package: str
    quantity: str
    samples: int
    p20: float
    p50: float
    p80: float
    unit: str
    ratio_to_fused_sgd: float | None
    ratio_to_floor: float | None

    @property
    def run(self) -> tuple[str, str, str, str]:
        """What tells a workload's run from another one."""
        return (self.environment.date, self.environment.device_name, self.workload, self.dtype)


_ENVIRONMENT = [field.name for field in fields(Environment)]
_MEASUREMENT = [field.name for field in fields(Row) if field.name != "environment"]
COLUMNS = [*_ENVIRONMENT, *_MEASUREMENT]


def percentiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return p20, p50 and p80, interpolated between samples; there must be one at least."""
    if len(samples) == 1:
        return (samples[0],) * 3
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return fifths[0], statistics.median(samples), fifths[3]


def environment(device: str, device_name: str, date: str, threads: int) -> Environment:
    """Return what is known about this run."""
    return Environment(
        date=date,
        commit=source_commit(),
        device=device,
        device_name=device_name,
        python=platform.python_version(),
        torch=installed_version("torch") or "",
        triton=installed_version("triton") or "",
        gradient_lars=gradient_lars.__version__,
        threads=threads,
    )


def processor_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def source_commit(folder: Path | None = None) -> str:
    """Return the commit of this package's source, or "" if that is in no repository."""
    folder = folder or Path(gradient_lars.__file__).parent
    # A package installed inside some other repository is not part of it.
    if not _git(folder, "ls-files", "__init__.py"):
        return ""
    commit = _git(folder, "rev-parse", "--short", "HEAD")
    return f"{commit}-dirty" if commit and _git(folder, "status", "--porcelain", ".") else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def check_file(path: Path, option: str) -> None:
    """Raise `CommandError` if `path` could not be written; nothing is written here."""
    if path.is_dir():
        raise CommandError(f"`{option}`: {path} is a folder: name a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise CommandError(f"`{option}`: no permission to write to {path}: name another file.")
    check_writable(path.parent, option)


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to the file, which is replaced in one piece; made with its folder if it is not there.

    Raises:
        CommandError: the file is there and has other columns.
    """
    old = _read_text(path) if path.exists() else ""
    if old:
        read_rows(path)
        old = f"{old.rstrip()}\n"
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if not old:
        writer.writerow(COLUMNS)
    writer.writerows([_cells(row) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(old + buffer.getvalue(), encoding="utf-8", newline="")


def read_rows(path: Path) -> list[Row]:
    """Read a results file.

    Raises:
        CommandError: it cannot be read, or is no such file.
    """
    header, *lines = list(csv.reader(io.StringIO(_read_text(path)))) or [[]]
    if header != COLUMNS:
        raise CommandError(
            f"{path} is not a results file of `gradient-lars bench`: its columns are others. Name another."
        )
    return [_parse(path, number, line) for number, line in enumerate(lines, start=2)]


def latest(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows of the last run of each device, workload and type, in the order in which these appear."""
    runs: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        key = (row.environment.device_name, row.workload, row.dtype)
        known = runs.setdefault(key, [])
        if known and known[0].run != row.run:
            if row.environment.date < known[0].environment.date:
                continue
            known.clear()
        known.append(row)
    return list(runs.values())


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise CommandError(f"{path} cannot be read ({reason}): give a results file of `gradient-lars bench`.") from None


def _cells(row: Row) -> list[str]:
    cells = {**asdict(row.environment), **{name: getattr(row, name) for name in _MEASUREMENT}}
    return [_cell(cells[column]) for column in COLUMNS]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _parse(path: Path, number: int, line: Sequence[str]) -> Row:
    try:
        return _row(dict(zip(COLUMNS, line, strict=True)))
    except ValueError as error:
        raise CommandError(f"{path}: line {number} is damaged ({error}): remove that line.") from None


def _row(cells: dict[str, str]) -> Row:
    where = {name: cells.pop(name) for name in _ENVIRONMENT}
    numbers = {name: int(cells.pop(name)) for name in ("parameters", "tensors", "samples")}
    floats = {name: float(cells.pop(name)) for name in ("p20", "p50", "p80")}
    ratios = {
        name: float(text) if (text := cells.pop(name)) else None for name in ("ratio_to_fused_sgd", "ratio_to_floor")
    }
    threads = int(where.pop("threads"))
    return Row(Environment(**where, threads=threads), **numbers, **floats, **ratios, **cells)  # type: ignore[arg-type]
