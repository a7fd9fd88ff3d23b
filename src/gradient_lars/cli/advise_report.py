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
from gradient_lars.cli.advise_noise import samples_factor, steps_factor
from gradient_lars.cli.advise_proposal import Proposal, nearest_power
from gradient_lars.cli.advise_settings import STRETCHES, AdviseSettings
from gradient_lars.cli.advise_task import Task
from gradient_lars.cli.bench_results import processor_name, source_commit
from gradient_lars.cli.files import atomic, write_errors

_SPAN = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


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
    for note in _notes(task, settings, measured):
        console.print(Text(note))
    if proposal is None:
        console.print(
            Text(
                "\nNo proposal: at the end the noise hides the gradient. Give more --micro-batches or --steps; the "
                "noise scale is then far above the batch of a step, and larger batches pay."
            )
        )
        return
    console.print()
    console.print(_trade_off(task, found), crop=False)
    console.print(
        Text("The smallest batch below the noise scale costs the fewest samples, the largest the fewest steps.")
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
    size = f"{found[-1].last} steps of {settings.micro_batches} x {settings.micro_batch}"
    title = Text(f"{task.name}: {len(task)} samples, {size}")
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold")
    for heading in ("stretch", "steps", "loss", "estimator", "noise scale", "95 % interval"):
        table.add_column(heading, justify="left" if heading in ("stretch", "estimator") else "right", no_wrap=True)
    for estimate in found:
        scale = estimate.scale
        table.add_row(
            estimate.stretch,
            f"{estimate.first}-{estimate.last}",
            f"{estimate.loss:.3g}",
            estimate.estimator,
            _figure(scale.value),
            f"{_figure(scale.low)} to {_figure(scale.high)}",
        )
    return table


def _notes(task: Task, settings: AdviseSettings, measured: Measured) -> list[str]:
    notes = [
        "Noise scales in samples: B_simple = tr(Sigma) / |G|^2 from gradients of "
        f"{settings.micro_batch} and {settings.big_batch} samples"
        + (f", {WITH_HESSIAN} = tr(H Sigma) / (G^T H G). " if not measured.no_hessian else ". ")
        + "Means over the steps of a stretch, interval by bootstrap over them."
    ]
    if measured.no_hessian:
        notes.append(f"{WITH_HESSIAN} was not measured: {measured.no_hessian}.")
    if task.has_batch_norm:
        notes.append(
            f"Batch normalisation saw {settings.micro_batch} samples at a time: the figures hold for a training whose "
            "statistics are of so many (per device, or per accumulated batch)."
        )
    return notes


def _trade_off(task: Task, found: Sequence[Estimate]) -> Table:
    scale = next(e.scale.value for e in found if e.estimator == SIMPLE and e.stretch == STRETCHES[-1])
    table = Table(
        title=Text(f"Trade-off at the end, B_simple = {_figure(scale)}"), box=box.SIMPLE_HEAD, title_style="bold"
    )
    for heading in ("batch", "steps (1 = fewest)", "samples (1 = fewest)"):
        table.add_column(heading, justify="right")
    centre = nearest_power(scale, len(task))
    batches = sorted({min(max(2, round(centre * factor)), len(task)) for factor in _SPAN})
    for batch in batches:
        table.add_row(str(batch), f"{steps_factor(batch, scale):.2f}", f"{samples_factor(batch, scale):.2f}")
    return table


def _print_proposal(console: Console, proposal: Proposal, settings: AdviseSettings) -> None:
    console.print(Text(f"Proposal, for {settings.epochs} epochs:"))
    values = (
        f"batch {proposal.batch}",
        f"lr {proposal.lr:.3g}",
        f"warm-up {proposal.warm_up}",
        f"preset {proposal.preset}",
    )
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column()
    for value, reason in zip(values, proposal.reasons, strict=True):
        table.add_row(value, Text(reason))
    console.print(table)
    console.print(
        Text(
            f"\n    optimizer = LARS(params, lr={proposal.lr:.3g}, **presets.{proposal.preset})\n"
            f"    warmup_polynomial(optimizer, warmup_steps={proposal.warm_up}, total_steps={proposal.steps})\n"
        )
    )


def _figure(value: float) -> str:
    if math.isinf(value):
        return "inf"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
