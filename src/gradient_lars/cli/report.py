"""Table and plot of a finished comparison, from its results file alone."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.plot import save_plot
from gradient_lars.cli.records import FINAL, Experiment, RateSample, Run, check_recorded
from gradient_lars.cli.results import damaged_rates, read_rates, read_results
from gradient_lars.cli.settings import LARS
from gradient_lars.cli.summary import check_choices, summarise
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
    if experiment is None or len(runs) < experiment.n_runs:
        total = f" of {experiment.n_runs}" if experiment is not None else ""
        raise CommandError(
            f"`--replot`: {results} has {len(runs)}{total} runs: finish the comparison with `--resume` first."
        )
    check_choices(results, experiment, runs)
    cells = summarise(experiment, runs)
    samples = recorded_rates(results, experiment, runs)
    out.mkdir(parents=True, exist_ok=True)
    save_plot(out / PLOT, experiment, cells, samples)
    print_report(output, experiment, cells)
    output.print()
    output.print(Text(f"Plot: {out / PLOT}"), soft_wrap=True)
    output.print(Text(f"Runs: {results}"), soft_wrap=True)


def recorded_rates(results: Path, experiment: Experiment, runs: Sequence[Run]) -> list[RateSample]:
    """Return the rates beside `results`; none if there is no such file, or the run that records them is to come.

    Raises:
        CommandError: the file is damaged, or ends before that run.
    """
    path = results.with_name(RATES)
    recorded = (FINAL, LARS, experiment.batch_sizes[-1], experiment.seed_range(FINAL)[0])
    own = [run for run in runs if (run.phase, run.optimizer, run.batch_size, run.seed) == recorded]
    samples = read_rates(path) if own else []
    if samples:
        try:
            check_recorded(samples, own[0])
        except ValueError as error:
            raise damaged_rates(path, error) from None
    return samples
