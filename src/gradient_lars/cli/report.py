"""Table and plot of a finished comparison, from its results file alone."""

from pathlib import Path

from rich.console import Console

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.plot import save_plot
from gradient_lars.cli.results import read_rates, read_results
from gradient_lars.cli.summary import summarise
from gradient_lars.cli.table import print_report

RESULTS = "results.csv"
RATES = "rates.csv"
PLOT = "plot.png"


def report(results: Path, out: Path, output: Console) -> None:
    """Print the table of `results` and save the plot to the folder `out`.

    The rates of the layers are read from the `rates.csv` beside `results`; without it the plot has one panel.

    Raises:
        CommandError: the file is missing, damaged, or the comparison is not finished.
    """
    experiment, runs = read_results(results)
    if experiment is None or len({run.key for run in runs}) < experiment.n_runs:
        total = f" of {experiment.n_runs}" if experiment is not None else ""
        raise CommandError(
            f"`--replot`: {results} has {len(runs)}{total} runs: finish the comparison with `--resume` first."
        )
    cells = summarise(experiment, runs)
    samples = read_rates(results.with_name(RATES))
    out.mkdir(parents=True, exist_ok=True)
    save_plot(out / PLOT, experiment, cells, samples)
    print_report(output, experiment, cells)
    output.print()
    output.print(f"Plot: {out / PLOT}", soft_wrap=True)
    output.print(f"Runs: {results}", soft_wrap=True)
