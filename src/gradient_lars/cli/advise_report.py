"""Table, proposal and CSV of ``gradient-lars advise``."""

import csv
import datetime
import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import gradient_lars
from gradient_lars.cli.advise_measure import SIMPLE, WITH_HESSIAN, Estimate, Measured
from gradient_lars.cli.advise_noise import NoiseScale, samples_factor, steps_factor
from gradient_lars.cli.advise_proposal import Proposal, counted, figure, nearest_power, whole, why_none
from gradient_lars.cli.advise_settings import AdviseSettings
from gradient_lars.cli.advise_task import Task
from gradient_lars.cli.bench_results import processor_name, source_commit
from gradient_lars.cli.files import atomic, write_errors

_SPAN = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
# In fewer steps of a stretch the bootstrap's interval is clearly too narrow; see the tests of its coverage.
_STEADY_STEPS = 30


def print_report(
    console: Console,
    task: Task,
    settings: AdviseSettings,
    measured: Measured,
    found: Sequence[Estimate],
    proposal: Proposal | None,
) -> None:
    """Print the noise scales, the trade-off, the proposal and what must be known of them."""
    console.print(_scales(task, settings, found), crop=False)
    for note in _notes(task, settings, measured, found):
        console.print(Text(note))
    scale = whole(found, SIMPLE, settings.seed)
    if proposal is None:
        console.print(Text(f"\nNo proposal: {why_none(scale)}"))
        return
    console.print()
    console.print(_trade_off(task, scale.value), crop=False)
    console.print(
        Text("As the batch grows, steps shrink faster than samples grow up to the noise scale, and slower beyond it.")
    )
    console.print()
    _print_proposal(console, proposal, settings)


def write_csv(
    path: Path, task: Task, settings: AdviseSettings, found: Sequence[Estimate], proposal: Proposal | None
) -> None:
    """Write one row for each noise scale, with settings and proposal, in one piece; `path`'s folder is made.

    Raises:
        CommandError: `path` cannot be written to.
    """
    device = torch.device(settings.device)
    shared = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "data": task.name,
        "samples": len(task),
        "batch_norm": str(task.has_batch_norm).lower(),
        "device": settings.device,
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "torch": importlib.metadata.version("torch"),
        "gradient_lars": gradient_lars.__version__,
        "commit": source_commit(),
        "seed": settings.seed,
        "steps": found[-1].last,
        "micro_batch": settings.micro_batch,
        "micro_batches": settings.micro_batches,
        "hessian": str(settings.hessian).lower(),
        "epochs": settings.epochs,
        "base_lr": settings.base_lr,
        "base_batch": settings.base_batch,
        "proposed_batch": proposal.batch if proposal else "",
        "proposed_lr": proposal.lr if proposal else "",
        "proposed_warm_up": proposal.warm_up if proposal else "",
        "proposed_steps": proposal.steps if proposal else "",
        "proposed_preset": proposal.preset if proposal else "",
    }
    rows = [
        {
            **shared,
            "stretch": estimate.stretch,
            "first_step": estimate.first,
            "last_step": estimate.last,
            "loss": estimate.loss,
            "estimator": estimate.estimator,
            "noise_scale": estimate.scale.value,
            "low": estimate.scale.low,
            "high": estimate.scale.high,
            "signal": estimate.scale.signal,
            "noise": estimate.scale.noise,
        }
        for estimate in found
    ]
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _scales(task: Task, settings: AdviseSettings, found: Sequence[Estimate]) -> Table:
    number = found[-1].last
    size = f"{counted(number, 'step')} of {settings.micro_batches} x {settings.micro_batch}"
    title = Text(f"{task.name}: {counted(len(task), 'sample')}, {size}")
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold")
    for heading in ("stretch", "steps", "loss", "estimator", "noise scale", "95 % interval"):
        table.add_column(heading, justify="left" if heading in ("stretch", "estimator") else "right", no_wrap=True)
    for estimate in found:
        steps = f"{estimate.first}-{estimate.last}"
        table.add_row(estimate.stretch, steps, f"{estimate.loss:.3g}", estimate.estimator, *_cells(estimate.scale))
    table.add_section()
    for estimator in dict.fromkeys(estimate.estimator for estimate in found):
        own = [estimate for estimate in found if estimate.estimator == estimator]
        loss = sum(estimate.loss * (estimate.last - estimate.first + 1) for estimate in own) / number
        scale = whole(found, estimator, settings.seed)
        table.add_row("all", f"1-{number}", f"{loss:.3g}", estimator, *_cells(scale))
    return table


def _cells(scale: NoiseScale) -> tuple[str, str]:
    if math.isnan(scale.value):
        return figure(scale.value), "none"
    return figure(scale.value), f"{figure(scale.low)} to {figure(scale.high)}"


def _notes(task: Task, settings: AdviseSettings, measured: Measured, found: Sequence[Estimate]) -> list[str]:
    notes = [
        "Noise scales in samples: B_simple = tr(Sigma) / |G|^2 from gradients of "
        f"{settings.micro_batch} and {settings.big_batch} samples"
        + (f", {WITH_HESSIAN} = tr(H Sigma) / (G^T H G). " if not measured.no_hessian else ". ")
        + "Means over the steps of a stretch; the interval, by bootstrap over them, is for this one training: another "
        "seed may lie outside it."
    ]
    shortest = min(len(estimate.scale.steps) for estimate in found)
    if shortest < _STEADY_STEPS:
        notes.append(
            f"The intervals of start, middle and end are approximate and too narrow: {counted(shortest, 'step')} of "
            f"each, and {_STEADY_STEPS} are wanted. Give more --steps."
        )
    if measured.no_hessian:
        notes.append(f"{WITH_HESSIAN} was not measured: {measured.no_hessian}.")
    elif math.isnan(whole(found, WITH_HESSIAN, settings.seed).value):
        notes.append(f"{WITH_HESSIAN} is 0 / 0: the loss has no curvature along the gradients.")
    if task.has_batch_norm:
        notes.append(
            f"Batch normalisation saw {settings.micro_batch} samples at a time: the figures hold for a training whose "
            "statistics are of so many (per device, or per accumulated batch)."
        )
    return notes


def _trade_off(task: Task, scale: float) -> Table:
    title = Text(f"Trade-off over all the steps, B_simple = {figure(scale)}")
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold")
    for heading in ("batch", "steps (1 = fewest)", "samples (1 = fewest)"):
        table.add_column(heading, justify="right")
    centre = nearest_power(scale, len(task))
    batches = sorted({min(max(2, round(centre * factor)), len(task)) for factor in _SPAN})
    for batch in batches:
        table.add_row(str(batch), f"{steps_factor(batch, scale):.2f}", f"{samples_factor(batch, scale):.2f}")
    return table


def _print_proposal(console: Console, proposal: Proposal, settings: AdviseSettings) -> None:
    console.print(Text(f"Proposal, for {counted(settings.epochs, 'epoch')}:"))
    rates = [f"{lr:.3g}" for lr in (proposal.lr, *proposal.other_lrs)]
    values = (
        f"batch {proposal.batch}",
        f"lr {rates[0]}" + (f"\n(try {', '.join(rates[1:])})" if rates[1:] else ""),
        f"warm-up {proposal.warm_up}",
        f"preset {proposal.preset}",
    )
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column()
    for value, reason in zip(values, proposal.reasons, strict=True):
        table.add_row(value, Text(reason))
    console.print(table)
    tries = f"  # and {' and '.join(rates[1:])}, keeping the best" if rates[1:] else ""
    console.print(
        Text(
            f"\n    lr = {rates[0]}{tries}\n"
            f"    optimizer = LARS(params, lr=lr, **presets.{proposal.preset})\n"
            f"    warmup_polynomial(optimizer, warmup_steps={proposal.warm_up}, total_steps={proposal.steps})\n"
        )
    )
