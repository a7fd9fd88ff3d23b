"""The table of ``gradient-lars bench``, at most 80 columns wide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from gradient_lars.cli.bench_implementations import implementations
from gradient_lars.cli.bench_results import Row
from gradient_lars.cli.bench_workloads import WORKLOADS

ABSENT = "-"


@dataclass(frozen=True)
class Line:
    """All quantities of one implementation in one run of a workload."""

    name: str
    label: str
    package: str
    rows: Mapping[str, Row]

    def p50(self, quantity: str) -> float | None:
        """Return the median, or None where it was not measured."""
        row = self.rows.get(quantity)
        return None if row is None else row.p50

    def ratio(self, quantity: str) -> float | None:
        """Return the ratio to fused SGD, or None where there is none."""
        row = self.rows.get(quantity)
        return None if row is None else row.ratio_to_fused_sgd

    def to_floor(self, quantity: str) -> float | None:
        """Return the ratio to the floor, or None where there is none."""
        row = self.rows.get(quantity)
        return None if row is None else row.ratio_to_floor


def lines_of(run: Sequence[Row]) -> list[Line]:
    """Return one line for each implementation of a run, the fastest step first."""
    known = implementations()
    found: dict[str, dict[str, Row]] = {}
    for row in run:
        if row.quantity != "bandwidth":
            found.setdefault(row.implementation, {})[row.quantity] = row
    lines = []
    for name, rows in found.items():
        label = known[name].label if name in known else name
        lines.append(Line(name, label, next(iter(rows.values())).package, rows))
    return sorted(lines, key=lambda line: line.p50("eager") or 0.0)


def bandwidth_of(run: Sequence[Row]) -> float:
    """Return the median GB/s of a copy in this run; NaN if it was not kept."""
    return next((row.p50 for row in run if row.quantity == "bandwidth"), float("nan"))


def title_of(run: Sequence[Row]) -> str:
    """Return what was stepped: the workload, its size and type."""
    row = run[0]
    workload = WORKLOADS.get(row.workload)
    title = workload.title if workload else row.workload
    return f"{title}: {row.parameters / 1e6:.2f} M parameters in {row.tensors} tensors, {row.dtype}"


def setting_of(run: Sequence[Row]) -> str:
    """Return where the run was made."""
    where = run[0].environment
    threads = f"{where.threads} threads, " if where.device == "cpu" else ""
    return f"{where.device_name}, {threads}PyTorch {where.torch}, a copy moves {bandwidth_of(run):.3g} GB/s."


def print_runs(console: Console, runs: Sequence[Sequence[Row]], skipped: Mapping[str, str]) -> None:
    """Print one table a run, what its columns are, and what was left out and why."""
    for run in runs:
        console.print(build_table(run))
        console.print(setting_of(run))
        console.print()
    console.print(
        "Medians in ms. x SGD: ratio to PyTorch's fused SGD. x floor: ratio to the time in which that copy's bandwidth "
        "moves the bytes of an SGD step (20 per parameter in float32); on a processor a copy also reads what it "
        "overwrites, so that a step can be below 1."
    )
    if any(run[0].environment.device != "cpu" for run in runs):
        console.print(
            "step: device time around a call. host: until the call returns. graph: replay of the captured step. "
            "MB: peak memory beyond parameters, gradients and momentum."
        )
    shown = {line.name for run in runs for line in lines_of(run)}
    for name, implementation in implementations().items():
        if name in shown and implementation.note:
            console.print(f"{implementation.label}: {implementation.note}.")
    for label, reason in skipped.items():
        console.print(f"Not measured: {label} ({reason}).", markup=False)


def build_table(run: Sequence[Row]) -> Table:
    """Return the table of one run."""
    table = Table(title=title_of(run), box=box.SIMPLE_HEAD, title_style="bold", padding=(0, 1))
    table.add_column("implementation", no_wrap=True)
    lines = lines_of(run)
    on_device = run[0].environment.device != "cpu"
    headings = ["step", "x SGD", "host", "graph", "x SGD", "x floor", "MB"] if on_device else _CPU_HEADINGS
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(line.label, *(_device_cells(line) if on_device else _cpu_cells(line)))
    return table


_CPU_HEADINGS = ["step", "p20", "p80", "x SGD", "x floor"]


def _cpu_cells(line: Line) -> list[str]:
    row = line.rows["eager"]
    spread = [figure(row.p50), figure(row.p20), figure(row.p80)]
    return [*spread, _ratio(row.ratio_to_fused_sgd), _ratio(row.ratio_to_floor)]


def _device_cells(line: Line) -> list[str]:
    times = [figure(line.p50("eager")), _ratio(line.ratio("eager")), figure(line.p50("host"))]
    graph = [figure(line.p50("graph")), _ratio(line.ratio("graph"))]
    floor = line.to_floor("graph") if "graph" in line.rows else line.to_floor("eager")
    return [*times, *graph, _ratio(floor), figure(line.p50("memory"))]


def figure(value: float | None) -> str:
    """Return three significant digits, without an exponent."""
    if value is None:
        return ABSENT
    decimals = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}"


def _ratio(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"
