"""``gradient-lars advise``: measure the gradient noise scale in training, and propose a batch size."""

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gradient_lars.cli.advise_measure import Estimate, estimates, measure, n_steps
from gradient_lars.cli.advise_proposal import Proposal, propose
from gradient_lars.cli.advise_report import print_report, write_csv
from gradient_lars.cli.advise_settings import AdviseSettings
from gradient_lars.cli.advise_task import load_task
from gradient_lars.cli.bench_results import check_file
from gradient_lars.cli.device import resolve_device
from gradient_lars.cli.errors import CommandError


def advise(settings: AdviseSettings, *, output: Console, log: Console) -> tuple[list[Estimate], Proposal | None]:
    """Measure, print, and write the CSV if there is to be one.

    Args:
        settings: the checked options.
        output: where the tables go.
        log: where the progress goes.

    Returns:
        The noise scales, and what was proposed from them.

    Raises:
        CommandError: a mistake of the user's, in an option or in the function that was named.
    """
    device = resolve_device(settings.device)
    if settings.out is not None:
        _check_out(settings.out, overwrite=settings.overwrite)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        task = load_task(settings)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as progress:
            bar = progress.add_task("measuring", total=n_steps(task, settings))
            measured = measure(task, settings, device, lambda: progress.advance(bar))
    found = estimates(measured, settings)
    proposal = propose(found, task, settings)
    print_report(output, task, settings, measured, found, proposal)
    if settings.out is not None:
        write_csv(settings.out, task, settings, found, proposal)
        output.print(f"Results: {settings.out}", soft_wrap=True)
    return found, proposal


def _check_out(path: Path, *, overwrite: bool) -> None:
    check_file(path, "--out")
    if path.exists() and not overwrite:
        raise CommandError(f"`--out`: {path} is there already: add `--overwrite` to replace it, or name another file.")
