"""``Summary``: one line a layer, and what is wrong."""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gradient_lars.monitor._findings import Finding, find
from gradient_lars.monitor._records import NO_GRADIENT, Record, Records

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = ("layer", "weights", "gradient", "rate", "from", "to", "update", "adapted")
LEGEND = (
    "weights: norm at the last record. gradient: median norm. rate: median, from the smallest to the greatest. update: "
    "median of lr * rate * (gradient + decay) / weights, the step's length relative to the weights, before momentum."
)

# A narrower terminal leaves the rate's smallest and greatest out, or there is no room for names.
WIDE = 100
_SPREAD = ("from", "to")


class LayerSummary(NamedTuple):
    """The figures of one layer over all records; NaN where there is none.

    Attributes:
        layer: its name.
        records: in how many steps it had a gradient.
        p_norm: norm of the weights at the last record.
        g_norm: median norm of the gradient.
        rate: median rate.
        least_rate: the smallest rate.
        greatest_rate: the greatest rate.
        update: median of the relative update.
        adapted: share of the records in which it was adapted, from 0 to 1.
    """

    layer: str
    records: int
    p_norm: float
    g_norm: float
    rate: float
    least_rate: float
    greatest_rate: float
    update: float
    adapted: float


class Summary:
    """What LARS has done to each layer, and what is wrong with it.

    ``print(summary)`` shows a plain table; rich's ``print`` a coloured one.

    Args:
        records: as of a monitor or from a CSV.

    Attributes:
        layers: one `LayerSummary` a layer, in the optimizer's order.
        findings: one `Finding` for each thing that is wrong; empty if nothing is.
        steps: first and last recorded step, or None if there is none.
    """

    def __init__(self, records: Records) -> None:
        by_layer = records.by_layer()
        self.layers = [_line(layer, rows) for layer, rows in by_layer.items()]
        self.findings: list[Finding] = find(by_layer)  # type: ignore[arg-type]
        steps = records.steps
        self.steps = (steps[0], steps[-1]) if steps else None
        self._n_steps = len(steps)

    @property
    def title(self) -> str:
        """How much was recorded."""
        if self.steps is None:
            return "no step recorded"
        layers = f"{len(self.layers)} layer{'s' if len(self.layers) != 1 else ''}"
        steps = f"{self._n_steps} step{'s' if self._n_steps != 1 else ''}"
        return f"{layers}, {steps} recorded from {self.steps[0]} to {self.steps[1]}"

    def cells(self) -> list[tuple[str, ...]]:
        """Return the table's cells as text, one tuple a layer, under `HEADINGS`."""
        return [(line.layer, *(_cells(line) if line.records else ["-"] * (len(HEADINGS) - 1))) for line in self.layers]

    def __str__(self) -> str:
        rows = [HEADINGS, *self.cells()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        ]
        return "\n".join([self.title, "", *lines, "", LEGEND, "", *self._verdict()])

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.text import Text

        narrow = options.max_width < WIDE
        yield self._table(narrow=narrow)
        yield Text(LEGEND.replace(", from the smallest to the greatest", "") if narrow else LEGEND, style="dim")
        yield Text()
        style = "yellow" if self.findings else "green"
        for line in self._verdict():
            yield Text(line, style=style)

    def _verdict(self) -> list[str]:
        if self.steps is None:
            return ["Nothing to judge yet. Take a step; of several processes, ask the monitor of rank 0."]
        return [f"! {finding.text}" for finding in self.findings] or ["Nothing to remark."]

    def _table(self, *, narrow: bool) -> "Table":
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title), box=box.SIMPLE_HEAD, title_style="bold", padding=(0, 1))
        table.add_column(HEADINGS[0], overflow="fold")
        shown = [i for i, heading in enumerate(HEADINGS) if i and not (narrow and heading in _SPREAD)]
        for i in shown:
            table.add_column(HEADINGS[i], justify="right", no_wrap=True)
        marked = {layer for finding in self.findings for layer in finding.layers}
        for cells in self.cells():
            name = Text(cells[0], style="yellow" if cells[0] in marked else "")
            table.add_row(name, *(cells[i] for i in shown))
        return table


def _cells(line: LayerSummary) -> list[str]:
    # Relative updates are not in every file.
    figures = [f"{value:.3g}" for value in line[2:7]]
    return [*figures, "-" if math.isnan(line.update) else f"{line.update:.3g}", f"{100 * line.adapted:.0f} %"]


def _line(layer: str, rows: Sequence[Record]) -> LayerSummary:
    rows = [row for row in rows if row.held_by != NO_GRADIENT]
    if not rows:
        return LayerSummary(layer, 0, *[math.nan] * 7)
    rates = _numbers(row.rate for row in rows)
    return LayerSummary(
        layer,
        len(rows),
        rows[-1].p_norm,
        _median([row.g_norm for row in rows]),
        _median(rates),
        min(rates, default=math.nan),
        max(rates, default=math.nan),
        _median([row.update for row in rows]),
        sum(row.adapted for row in rows) / len(rows),
    )


def _numbers(values: Any) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _median(values: Sequence[float]) -> float:
    numbers = _numbers(values)
    return statistics.median_low(numbers) if numbers else math.nan
