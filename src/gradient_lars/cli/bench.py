"""``gradient-lars bench``: the step of LARS beside that of PyTorch's SGD and of the peers."""

import datetime
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gradient_lars.cli import bench_timing as timing
from gradient_lars.cli.bench_implementations import YARDSTICK, Implementation, Unavailable, implementations
from gradient_lars.cli.bench_results import (
    Environment,
    Row,
    append_rows,
    environment,
    percentiles,
    processor_name,
)
from gradient_lars.cli.bench_settings import DEFAULT_WORKLOADS, BenchSettings
from gradient_lars.cli.bench_workloads import WORKLOADS, Workload, n_parameters
from gradient_lars.cli.device import resolve_device
from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.files import write_errors

COPY = "copy"
# Of one SGD step with momentum: parameter, gradient and momentum read, parameter and momentum written.
ACCESSES = 5

Skipped = dict[str, str]


def bench(settings: BenchSettings, *, log: Console) -> tuple[list[Row], Skipped]:
    """Measure each workload and add its rows to the results file when it is done.

    Returns:
        The new rows, and for each implementation that was not measured the reason.

    Raises:
        CommandError: the device is absent, or a workload does not fit into its memory.
        KeyboardInterrupt: the workloads that ended are kept.
    """
    device = resolve_device(settings.device)
    kind = device.type
    if kind not in DEFAULT_WORKLOADS:
        raise CommandError(f"`--device {settings.device}` has no clock here: give `cpu` or `cuda`.")
    chosen, skipped = usable(settings.implementations, kind)
    name = torch.cuda.get_device_name(device) if kind == "cuda" else processor_name()
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    where = environment(kind, name, date, torch.get_num_threads())
    rows: list[Row] = []
    with torch.cuda.device(device) if kind == "cuda" else nullcontext():
        for workload in settings.workloads or DEFAULT_WORKLOADS[kind]:
            session = _Session(settings, WORKLOADS[workload], device, chosen, where, log)
            found = session.run()
            skipped |= session.skipped
            if not found:
                continue
            with write_errors(settings.out):
                append_rows(settings.out, found)
            rows += found
    if not rows:
        label, reason = next(iter(skipped.items()))
        raise CommandError(f"nothing could be measured; {label}: {reason}.")
    return rows, skipped


def usable(names: Sequence[str], device: str) -> tuple[list[Implementation], Skipped]:
    """Return the implementations that can be measured on a kind of device, and why the others cannot."""
    chosen: list[Implementation] = []
    skipped: Skipped = {}
    known = implementations()
    for name in known:
        if name in names:
            try:
                known[name].check(device)
                chosen.append(known[name])
            except Unavailable as reason:
                skipped[known[name].label] = str(reason)
    return chosen, skipped


@dataclass
class _Session:
    """One workload, round after round."""

    settings: BenchSettings
    workload: Workload
    device: torch.device
    chosen: Sequence[Implementation]
    where: Environment
    log: Console

    def run(self) -> list[Row]:
        """Measure in rounds and return the rows."""
        self.skipped: Skipped = {}
        samples: dict[str, timing.Samples] = defaultdict(lambda: defaultdict(list))
        clock = timing.clock_for(self.device)
        tensors = self._tensors()
        by_name = {implementation.name: implementation for implementation in self.chosen}
        bandwidths: list[float] = []
        began = time.perf_counter()
        with self._progress() as progress:
            task = progress.add_task(self.workload.title, total=self.settings.rounds * len(by_name))
            last = -1
            for i, name in timing.in_rounds(list(by_name), self.settings.rounds):
                if i > last:
                    if i and time.perf_counter() - began > self.settings.seconds:
                        break
                    last = i
                    bandwidths.append(clock.bandwidth(self.device))
                progress.update(task, advance=1, description=f"{self.workload.title} {by_name[name].label}")
                if by_name[name].label in self.skipped:
                    continue
                try:
                    found = clock.measure(by_name[name], tensors)
                except Unavailable as reason:
                    self.skipped[by_name[name].label] = f"{reason} ({self.workload.title})"
                    samples.pop(name, None)
                    continue
                for quantity, values in found.items():
                    samples[name][quantity] += values
        return self._rows(samples, bandwidths) if any(samples.values()) else []

    def _tensors(self) -> timing.Tensors:
        try:
            return timing.Tensors(self.workload.shapes, getattr(torch, self.settings.dtype), self.device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise CommandError(
                f"`--workloads`: {self.workload.name} cannot be made on {self.device} ({reason}): leave it out."
            ) from None

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
        return Progress(*columns, console=self.log, transient=True, disable=not self.log.is_terminal)

    def _rows(self, samples: dict[str, timing.Samples], bandwidths: list[float]) -> list[Row]:
        shapes = self.workload.shapes
        parameters = n_parameters(shapes)
        n_bytes = ACCESSES * parameters * getattr(torch, self.settings.dtype).itemsize
        floor = 1e3 * n_bytes / (1e9 * percentiles(bandwidths)[1])
        medians = {quantity: percentiles(values)[1] for quantity, values in samples.get(YARDSTICK, {}).items()}

        def row(name: str, package: str, quantity: str, values: list[float]) -> Row:
            p20, p50, p80 = percentiles(values)
            in_time = timing.UNITS[quantity] == "ms"
            return Row(
                environment=self.where,
                dtype=self.settings.dtype,
                workload=self.workload.name,
                parameters=parameters,
                tensors=len(shapes),
                implementation=name,
                package=package,
                quantity=quantity,
                samples=len(values),
                p20=p20,
                p50=p50,
                p80=p80,
                unit=timing.UNITS[quantity],
                ratio_to_fused_sgd=p50 / medians[quantity] if in_time and quantity in medians else None,
                ratio_to_floor=p50 / floor if quantity in (timing.EAGER, timing.GRAPH) else None,
            )

        rows = [row(COPY, "", timing.BANDWIDTH, bandwidths)]
        for implementation in self.chosen:
            for quantity, values in samples.get(implementation.name, {}).items():
                rows.append(row(implementation.name, implementation.version, quantity, values))
        return rows
