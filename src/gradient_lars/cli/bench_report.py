"""Table and plot of ``gradient-lars bench``: of the rows just measured, or of a results file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from gradient_lars.cli.bench_plot import save_bench_plot
from gradient_lars.cli.bench_results import Row, latest, read_rows
from gradient_lars.cli.bench_table import print_runs
from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.files import write_errors


def report(results: Path, rows: Sequence[Row], skipped: Mapping[str, str], plot: Path | None, output: Console) -> None:
    """Print the new rows, and draw the last run of everything that the results file holds."""
    print_runs(output, latest(rows), skipped)
    output.print()
    _draw(results, plot, output)
    output.print(f"Results: {results}", soft_wrap=True)


def replot(results: Path, plot: Path | None, output: Console) -> None:
    """Print and draw the last runs of a results file.

    Raises:
        CommandError: it cannot be read, is no such file, or holds nothing; the plot cannot be written.
    """
    runs = latest(read_rows(results))
    if not runs:
        raise CommandError(f"{results} holds no measurement: run `gradient-lars bench` first.")
    print_runs(output, runs, {})
    _draw(results, plot, output)


def _draw(results: Path, plot: Path | None, output: Console) -> None:
    if plot is None:
        return
    with write_errors(plot, "--plot"):
        save_bench_plot(plot, latest(read_rows(results)))
    output.print(f"Plot: {plot}", soft_wrap=True)
