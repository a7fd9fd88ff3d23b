"""The table of a comparison, at most 80 columns wide."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from gradient_lars.cli.recipe import Training
from gradient_lars.cli.records import Experiment
from gradient_lars.cli.settings import UNSHARDED
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
    """Return one line per batch size and optimizer, with its tuning runs, the chosen rate, test accuracy and time."""
    epochs = f"{experiment.epochs} epoch{'s' if experiment.epochs > 1 else ''}"
    title = f"{experiment.data}: {experiment.n_train} training images, {epochs}"
    if experiment.world_size > 1:
        title += f", {experiment.world_size} processes"
    if experiment.shard != UNSHARDED:
        title += f", {experiment.shard}"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_style="bold", padding=(0, 1))
    for name in ("batch", "steps"):
        table.add_column(name, justify="right")
    table.add_column("optimizer", no_wrap=True)
    for name in ("tuning\nruns", "lr", "test\naccuracy %", "time\ns/run"):
        table.add_column(name, justify="right", no_wrap=True)
    plus_minus = "±" if console.encoding.lower().startswith("utf") else "+-"
    for cell in cells:
        first = cell.optimizer == experiment.optimizers[0]
        size = (str(cell.batch_size), str(cell.steps)) if first else ("", "")
        own = (str(cell.tuning_runs), _rate(cell), _accuracy(cell, plus_minus), _seconds(cell.seconds))
        last = cell.optimizer == experiment.optimizers[-1]
        table.add_row(*size, LABELS[cell.optimizer], *own, end_section=last and len(experiment.optimizers) > 2)
    room = console.options.update(width=max(WIDTH, console.width))
    table.width = Measurement.get(console, room, table).maximum
    return table


def footnotes(experiment: Experiment, cells: Sequence[Cell]) -> list[str]:
    """Return what a reader must know about the numbers."""
    seeds = f"mean and standard deviation over {experiment.seeds} seeds" if experiment.seeds > 1 else "one seed"
    tried = len(experiment.lars_learning_rates)
    halved = ", each further one for the better half," if experiment.halving else ""
    notes = [
        f"Test accuracy: {seeds}; one of the {experiment.n_test} test images is {100 / experiment.n_test:.2f} points. "
        f"For each optimizer and batch size {tried} learning rate{'s were' if tried > 1 else ' was'} tried with "
        f"{experiment.tuning_seeds} other seed{'s' if experiment.tuning_seeds > 1 else ''}{halved} and chosen on "
        f"{experiment.n_val} validation images: {experiment.budget} tuning runs of {experiment.epochs} "
        f"epoch{'s' if experiment.epochs > 1 else ''} each."
    ]
    if experiment.seeds > 1:
        alike = math.comb(2 * experiment.seeds, experiment.seeds) // 2
        notes.append(
            "Ahead is who is better with every seed than the other with any: of two that are alike, one or the other "
            f"is so in 1 of {alike} comparisons."
        )
    changed = [f"{name} {value}" for name, value in _changed(experiment)]
    if changed:
        notes.append(f"All of them with {', '.join(changed)}.")
    if any(cell.at_edge for cell in cells):
        notes.append(f"{EDGE} at the edge of its grid: a better rate may lie outside; widen it with --learning-rates.")
    diverged = sum(cell.diverged for cell in cells)
    if diverged:
        notes.append(f"{DIVERGED} with {diverged} diverged run{'s' if diverged > 1 else ''}, counted as measured.")
    return notes


def _changed(experiment: Experiment) -> list[tuple[str, object]]:
    """Return the choices that are not the usual ones."""
    usual = Training().choices()
    return [(name.replace("_", " "), value) for name, value in experiment.choices().items() if value != usual[name]]


def _rate(cell: Cell) -> str:
    return f"{cell.lr:g}{EDGE if cell.at_edge else ' '}"


def _accuracy(cell: Cell, plus_minus: str) -> str:
    spread = f" {plus_minus} {100 * cell.deviation:4.2f}" if len(cell.accuracies) > 1 else ""
    return f"{100 * cell.mean:.2f}{spread}{DIVERGED if cell.diverged else ' '}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 100 else f"{seconds:.0f}"
