"""``gradient-lars inspect``: the summary of a recorded training, its plots, and a page of both."""

from pathlib import Path

from rich.console import Console

from gradient_lars.cli.bench_results import check_file
from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.files import atomic, write_errors
from gradient_lars.cli.inspect_page import page
from gradient_lars.monitor import Records, plot_rates, read

# As many steps as a plot has pixels for; a longer file is thinned while it is read.
STEPS = 1000


def inspect(path: Path, plot: Path | None, html: Path | None, output: Console) -> None:
    """Print the summary of a CSV, and save the plots and the page that are asked for.

    Raises:
        CommandError: the CSV cannot be read or is none of the monitor's, or a file cannot be written.
    """
    for target, option in ((plot, "--plot"), (html, "--html")):
        if target is not None:
            check_file(target, option)
            if target.resolve() == path.resolve():
                raise CommandError(f"`{option}`: {target} is the record itself: name another file.")
    records = _read(path)
    output.print(records.summary())
    if not _drawable(records):
        output.print("Nothing to draw: no rate is above 0.")
        plot = None
    if plot is not None:
        with write_errors(plot, "--plot"):
            plot.parent.mkdir(parents=True, exist_ok=True)
            with atomic(plot) as temporary:
                plot_rates(records).savefig(temporary, format="png", dpi=150)
        output.print(f"\nPlot: {plot}", soft_wrap=True, markup=False)
    if html is not None:
        with write_errors(html, "--html"):
            html.parent.mkdir(parents=True, exist_ok=True)
            with atomic(html) as temporary:
                temporary.write_text(page(path.name, records, drawable=_drawable(records)), encoding="utf-8")
        output.print(f"\nPage: {html}", soft_wrap=True, markup=False)


def _read(path: Path) -> Records:
    try:
        return read(path, keep=STEPS)
    except ValueError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(
            f"{path} cannot be read ({error.strerror or error}): give the CSV that a monitor has written."
        ) from None


def _drawable(records: Records) -> bool:
    return any(0 < row.rate < float("inf") for row in records)
