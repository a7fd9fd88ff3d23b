"""The table of a comparison, at most 80 columns wide."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from gradient_lars.cli.records import Experiment
from gradient_lars.cli.settings import OPTIMIZERS, UNSHARDED
from gradient_lars.cli.summary import LABELS, Cell, conclusion

WIDTH = 80
EDGE = "*"
DIVERGED = "!"


def print_report(console: Console, experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Print the table, its footnotes, and the conclusion."""
    # A narrower terminal breaks the lines, where rich would leave columns out of the table.
    console.print(build_table(console, experiment, cells), crop=False)
    for note in footnotes(experiment, cells):
        console.print(Text(note))
    console.print()
    console.print(Text(conclusion(experiment, cells)))


def build_table(console: Console, experiment: Experiment, cells: Sequence[Cell]) -> Table:
    """Return one line per batch size; per optimizer the chosen rate, the test accuracy and the time of a run."""
    epochs = f"{experiment.epochs} epoch{'s' if experiment.epochs > 1 else ''}"
    title = f"{experiment.data}: {experiment.n_train} training images, {epochs}"
    if experiment.world_size > 1:
        title += f", {experiment.world_size} processes"
    if experiment.shard != UNSHARDED:
        title += f", {experiment.shard}"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_style="bold", padding=(0, 1))
    table.add_column("batch", justify="right")
    table.add_column("steps", justify="right")
    for optimizer in OPTIMIZERS:
        label = LABELS[optimizer]
        table.add_column(f"{label}\nlr", justify="right", no_wrap=True)
        table.add_column("test\naccuracy %", justify="right", no_wrap=True)
        table.add_column("time\ns/run", justify="right", no_wrap=True)
    plus_minus = "±" if console.encoding.lower().startswith("utf") else "+-"
    for sgd, lars in zip(cells[::2], cells[1::2], strict=True):
        row = [str(sgd.batch_size), str(sgd.steps)]
        for cell in (sgd, lars):
            row += [_rate(cell), _accuracy(cell, plus_minus), _seconds(cell.seconds)]
        table.add_row(*row)
    room = console.options.update(width=max(WIDTH, console.width))
    table.width = Measurement.get(console, room, table).maximum
    return table


def footnotes(experiment: Experiment, cells: Sequence[Cell]) -> list[str]:
    """Return what a reader must know about the numbers."""
    seeds = f"mean and standard deviation over {experiment.seeds} seeds" if experiment.seeds > 1 else "one seed"
    tried = len(experiment.sgd_learning_rates)
    notes = [
        f"Test accuracy: {seeds}; one of the {experiment.n_test} test images is {100 / experiment.n_test:.2f} points. "
        f"For each optimizer and batch size {tried} learning rate{'s were' if tried > 1 else ' was'} tried with "
        f"{experiment.tuning_seeds} other seeds, and chosen on {experiment.n_val} validation images."
    ]
    if any(cell.at_edge for cell in cells):
        notes.append(f"{EDGE} at the edge of its grid: a better rate may lie outside; widen it with --learning-rates.")
    diverged = sum(cell.diverged for cell in cells)
    if diverged:
        notes.append(f"{DIVERGED} with {diverged} diverged run{'s' if diverged > 1 else ''}, counted as measured.")
    return notes


def _rate(cell: Cell) -> str:
    return f"{cell.lr:g}{EDGE if cell.at_edge else ' '}"


def _accuracy(cell: Cell, plus_minus: str) -> str:
    spread = f" {plus_minus} {100 * cell.deviation:4.2f}" if len(cell.accuracies) > 1 else ""
    return f"{100 * cell.mean:.2f}{spread}{DIVERGED if cell.diverged else ' '}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 100 else f"{seconds:.0f}"
