"""Checks `gradient-lars advise` against training: samples to an accuracy at several batch sizes, beside the proposal.

    python benchmarks/advise_check.py --data digits
    python benchmarks/advise_check.py --data fashion-mnist --data-dir DIR
    python benchmarks/advise_check.py --page        only the tables of docs/advise.md, from the CSV

For each batch size, optimizer and learning rate of a grid a network is trained, without decay of the learning rate,
until the validation accuracy reaches a target; of each batch size the fastest learning rate counts (median over the
seeds), as the noise scale's theory supposes. The trade-off ``samples = fewest * (1 + B / B_crit)`` is fitted to these:
`B_crit` is the measured batch size at which twice the samples are needed.
"""

import argparse
import csv
import datetime
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gradient_lars import GradientLARS
from gradient_lars.cli.advise import advise
from gradient_lars.cli.advise_settings import RECIPE_BATCH, RECIPE_LR, AdviseSettings
from gradient_lars.cli.bench_results import processor_name, source_commit
from gradient_lars.cli.data import load
from gradient_lars.cli.network import build_network
from gradient_lars.torch import add_hook

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "advise-check.csv"
PAGE = ROOT / "docs" / "advise.md"
RATES = {"sgd": (0.03, 0.1, 0.3, 1.0, 3.0), "lars": (0.003, 0.01, 0.03, 0.1, 0.3)}
BATCHES = (32, 64, 128, 256, 512, 1024)
# Images, target of the validation accuracy, most epochs, seeds.
CHECKS = {"digits": (1024, 0.95, 24, 2), "fashion-mnist": (4096, 0.75, 6, 1)}
MICRO_BATCH = 32
EVALUATIONS = 4  # in an epoch, at most


def main() -> None:
    """Measure what is asked for, and write the CSV or the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=CHECKS)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    if arguments.data:
        torch.set_num_threads(1)
        kept = [row for row in _rows() if row["data"] != arguments.data] if RESULTS.exists() else []
        _write([*kept, *check(arguments.data, arguments.data_dir)])
    if arguments.page:
        write_page()


def check(data: str, data_dir: Path | None) -> list[dict[str, Any]]:
    """Return the rows of one data set: what was advised, and every run."""
    shared = {
        "data": data,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": source_commit(),
        "torch": torch.__version__,
        "device": processor_name(),
    }
    rows = [{**shared, **row} for row in advised(data, data_dir)]
    for row in runs(data, data_dir):
        rows.append({**shared, **row})
        print(*row.values(), flush=True)
    return rows


def advised(data: str, data_dir: Path | None) -> Iterator[dict[str, Any]]:
    """Yield what `advise` estimates and proposes, with three seeds."""
    quiet = Console(quiet=True)
    for seed in range(3):
        settings = AdviseSettings(
            task=None,
            data=data,
            data_dir=data_dir,
            steps=None,
            micro_batch=MICRO_BATCH,
            micro_batches=8,
            epochs=20,
            base_lr=RECIPE_LR,
            base_batch=RECIPE_BATCH,
            hessian=True,
            device="cpu",
            seed=seed,
            out=None,
        )
        start = time.perf_counter()
        found, proposal = advise(settings, output=quiet, log=quiet)
        seconds = round(time.perf_counter() - start, 2)
        for estimate in found:
            yield {
                "kind": "advise",
                "seed": seed,
                "name": f"{estimate.estimator} {estimate.stretch}",
                "value": estimate.scale.value,
                "low": estimate.scale.low,
                "high": estimate.scale.high,
                "seconds": seconds,
            }
        if proposal:
            for name, value in (("batch", proposal.batch), ("lr", proposal.lr)):
                yield {"kind": "advise", "seed": seed, "name": f"proposed {name}", "value": value, "seconds": seconds}


def runs(data: str, data_dir: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the samples to the target for every optimizer, batch size, learning rate and seed."""
    n, target, epochs, seeds = CHECKS[data]
    found = load(data, data_dir)
    train = torch.from_numpy(found.train.x[:n]), torch.from_numpy(found.train.y[:n])
    val = torch.from_numpy(found.val.x[:1000]), torch.from_numpy(found.val.y[:1000])
    for optimizer, rates in RATES.items():
        for batch in (size for size in BATCHES if size <= n):
            for lr in rates:
                for seed in range(seeds):
                    start = time.perf_counter()
                    samples = to_target(train, val, found.n_classes, optimizer, batch, lr, seed, target, epochs)
                    yield {
                        "kind": "run",
                        "seed": seed,
                        "name": optimizer,
                        "batch": batch,
                        "lr": lr,
                        "value": samples,
                        "seconds": round(time.perf_counter() - start, 2),
                    }


def to_target(
    train: tuple[torch.Tensor, torch.Tensor],
    val: tuple[torch.Tensor, torch.Tensor],
    n_classes: int,
    optimizer: str,
    batch: int,
    lr: float,
    seed: int,
    target: float,
    epochs: int,
) -> float:
    """Return the samples trained on until the accuracy on `val` is `target`; infinity if it is not within `epochs`.

    Batch normalisation sees `MICRO_BATCH` images at a time for every batch size, so that only the noise differs, and
    batch statistics are used for the accuracy too: running ones would lag behind where steps are few.
    """
    network = build_network(train[0].shape[1], n_classes, seed)
    sgd = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    if optimizer == "lars":
        add_hook(sgd, GradientLARS())
    generator = torch.Generator().manual_seed(seed)
    n, done = len(train[1]), 0
    every = max(1, n // batch // EVALUATIONS)
    for _ in range(epochs):
        order = torch.randperm(n, generator=generator)
        for step, chosen in enumerate(order[: n - n % batch].split(batch), start=1):
            sgd.zero_grad()
            for part in chosen.split(MICRO_BATCH):
                loss = torch.nn.functional.cross_entropy(network(train[0][part]), train[1][part])
                (loss * len(part) / batch).backward()
            sgd.step()
            done += batch
            if step % every == 0:
                with torch.no_grad():
                    accuracy = (network(val[0]).argmax(1) == val[1]).float().mean().item()
                if accuracy >= target:
                    return done
    return math.inf


def _rows() -> list[dict[str, str]]:
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)


def fastest(rows: list[dict[str, str]], optimizer: str) -> dict[int, tuple[float, float]]:
    """Return, for each batch size, the fewest samples to the target over the grid and the learning rate of these."""
    found: dict[int, tuple[float, float]] = {}
    runs_of = [row for row in rows if row["kind"] == "run" and row["name"] == optimizer]
    for batch in sorted({int(row["batch"]) for row in runs_of}):
        own = [row for row in runs_of if int(row["batch"]) == batch]
        found[batch] = min(
            (statistics.median(float(row["value"]) for row in own if row["lr"] == lr), float(lr))
            for lr in dict.fromkeys(row["lr"] for row in own)
        )
    return found


def critical_batch(points: dict[int, tuple[float, float]]) -> float:
    """Return B_crit of ``samples = fewest * (1 + B / B_crit)``, fitted to the logarithms by least squares."""
    known = [(batch, samples) for batch, (samples, _) in points.items() if math.isfinite(samples)]
    if len(known) < 3:
        return math.nan
    scales = [2 ** (k / 8) for k in range(8, 8 * 17)]
    return min(scales, key=lambda scale: _spread([s / (1 + b / scale) for b, s in known]))


def _spread(values: list[float]) -> float:
    return statistics.pvariance([math.log(value) for value in values])


def tables() -> str:
    """Return the tables of the page."""
    rows = _rows()
    blocks = []
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        n, target, _, seeds = CHECKS[data]
        sides = {name: fastest(own, name) for name in RATES}
        lines = [
            f"**{data}**, {n:,} training images, to {100 * target:.0f} % of the validation images; median of {seeds} "
            f"seed{'s' if seeds > 1 else ''}, the fastest of {len(RATES['sgd'])} learning rates at each batch size.",
            "",
            "| batch | SGD: samples | steps | lr | LARS: samples | steps | lr |",
            "|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for batch in sides["sgd"]:
            cells = [cell for side in sides.values() for cell in _cells(batch, *side[batch])]
            lines.append(f"| {batch} | {' | '.join(cells)} |")
        lines += ["", *_verdict(own, sides)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _cells(batch: int, samples: float, lr: float) -> list[str]:
    return [f"{samples:,.0f}", f"{samples / batch:,.0f}", f"{lr:g}"] if math.isfinite(samples) else ["never", "", ""]


def _verdict(own: list[dict[str, str]], sides: dict[str, dict[int, tuple[float, float]]]) -> list[str]:
    lines = ["| | samples |", "|---|---:|"]
    for name, side in sides.items():
        lines.append(f"| measured: batch of twice the samples, {name.upper()} | {critical_batch(side):,.0f} |")
    for name in dict.fromkeys(row["name"] for row in own if row["kind"] == "advise"):
        if name != "proposed lr":
            values = [float(row["value"]) for row in own if row["name"] == name]
            shown = ", ".join("inf" if math.isinf(value) else f"{value:,.0f}" for value in values)
            lines.append(f"| advised: {name}, seeds 0 to {len(values) - 1} | {shown} |")
    return lines


def write_page() -> None:
    """Put the tables between the marks of the page."""
    text = PAGE.read_text(encoding="utf-8")
    head, mark, rest = text.partition("<!-- begin advise-check -->\n")
    _, end, tail = rest.partition("<!-- end advise-check -->")
    if not (mark and end):
        raise SystemExit(f"{PAGE} has no marks for the tables.")
    PAGE.write_text(f"{head}{mark}\n{tables()}\n\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
