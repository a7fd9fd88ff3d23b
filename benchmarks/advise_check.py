"""Checks `gradient-lars advise` against training: samples to an accuracy at several batch sizes, beside the proposal.

    python benchmarks/advise_check.py --data digits
    python benchmarks/advise_check.py --data fashion-mnist --data-dir DIR
    python benchmarks/advise_check.py --page        only the tables of docs/advise.md, from the CSV

For each batch size, optimizer and learning rate of a grid a network is trained, without decay of the learning rate,
until the validation accuracy reaches a target; of each batch size the fastest learning rate counts (median over the
seeds), as the noise scale's theory supposes. The trade-off ``samples = fewest * (1 + B / B_crit)`` is fitted to these:
`B_crit` is the measured batch size at which twice the samples are needed. The advice is measured on the same images.
"""

import argparse
import csv
import datetime
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import TensorDataset

from gradient_lars import GradientLARS
from gradient_lars.cli.advise_measure import SIMPLE, WITH_HESSIAN, estimates, measure
from gradient_lars.cli.advise_proposal import propose, whole
from gradient_lars.cli.advise_settings import RECIPE_BATCH, RECIPE_LR, AdviseSettings
from gradient_lars.cli.advise_task import Task, cross_entropy
from gradient_lars.cli.bench_results import processor_name, source_commit
from gradient_lars.cli.data import load
from gradient_lars.cli.network import build_network
from gradient_lars.torch import add_hook, scaled_lr

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "advise-check.csv"
PAGE = ROOT / "docs" / "advise.md"
RATES = {"sgd": (0.03, 0.1, 0.3, 1.0, 3.0), "lars": (0.001, 0.003, 0.01, 0.03, 0.1)}
BATCHES = (32, 64, 128, 256, 512, 1024)
# LARS of the proposal has MLPerf's trust coefficient, the hook of the runs has none.
TRUST_COEFFICIENT = 0.001
MICRO_BATCH = 32
EVALUATIONS = 4  # in an epoch, at most
ADVICE_SEEDS = 3


class Check(NamedTuple):
    """How a data set is trained: on the first `images`, to a validation accuracy of `target` in at most `epochs`."""

    images: int
    target: float
    epochs: int
    seeds: int


CHECKS = {"digits": Check(1024, 0.95, 24, 3), "fashion-mnist": Check(4096, 0.72, 12, 2)}


class Images(NamedTuple):
    """The images to train on and to measure the accuracy on, and their labels."""

    train: tuple[torch.Tensor, torch.Tensor]
    val: tuple[torch.Tensor, torch.Tensor]
    n_classes: int


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
    images = images_of(data, data_dir)
    rows = [{**shared, **row} for row in advised(data, images)]
    for row in runs(data, images):
        rows.append({**shared, **row})
        print(*row.values(), flush=True)
    return rows


def images_of(data: str, data_dir: Path | None) -> Images:
    """Return the images of a check, which training and advice share."""
    found = load(data, data_dir)
    n = CHECKS[data].images
    train, val = (
        (torch.from_numpy(split.x[:most]), torch.from_numpy(split.y[:most]))
        for split, most in ((found.train, n), (found.val, 1000))
    )
    return Images(train, val, found.n_classes)


def advised(data: str, images: Images) -> Iterator[dict[str, Any]]:
    """Yield what `advise` estimates and proposes for the epochs of the check, with several seeds."""
    options: dict[str, Any] = {"data": None, "data_dir": None, "steps": None, "out": None, "device": "cpu"}
    options |= {"micro_batch": MICRO_BATCH, "micro_batches": 8, "hessian": True}
    options |= {"base_lr": RECIPE_LR, "base_batch": RECIPE_BATCH}
    for seed in range(ADVICE_SEEDS):
        settings = AdviseSettings(
            **{**options, "task": f"advise_check.py:{data}", "epochs": CHECKS[data].epochs, "seed": seed}
        )
        start = time.perf_counter()
        network = build_network(images.train[0].shape[1], images.n_classes, seed)
        task = Task(data, network, TensorDataset(*images.train), cross_entropy)
        found = estimates(measure(task, settings, torch.device("cpu"), lambda: None), settings)
        proposal = propose(found, task, settings)
        shared = {"kind": "advise", "seed": seed, "seconds": round(time.perf_counter() - start, 2)}
        scales = [(f"{estimate.estimator} {estimate.stretch}", estimate.scale) for estimate in found]
        scales += [(f"{name} all", whole(found, name, seed)) for name in (SIMPLE, WITH_HESSIAN)]
        for name, scale in scales:
            yield {**shared, "name": name, "value": scale.value, "low": scale.low, "high": scale.high}
        if proposal:
            for name, value in (("batch", proposal.batch), ("lr", proposal.lr)):
                yield {**shared, "name": f"proposed {name}", "value": value}


def runs(data: str, images: Images) -> Iterator[dict[str, Any]]:
    """Yield the samples to the target for every optimizer, batch size, learning rate and seed.

    A learning rate with which the first seed does not get there is not tried with the others.
    """
    n, target, epochs, seeds = CHECKS[data]
    for optimizer, rates in RATES.items():
        for batch in (size for size in BATCHES if size <= n):
            for lr in rates:
                for seed in range(seeds):
                    start = time.perf_counter()
                    samples = to_target(images, optimizer, batch, lr, seed, target, epochs)
                    row = {"kind": "run", "seed": seed, "name": optimizer, "batch": batch, "lr": lr, "value": samples}
                    yield {**row, "seconds": round(time.perf_counter() - start, 2)}
                    if math.isinf(samples) and seed == 0:
                        break


def to_target(images: Images, optimizer: str, batch: int, lr: float, seed: int, target: float, epochs: int) -> float:
    """Return the samples trained on until the accuracy on `val` is `target`; infinity if it is not within `epochs`.

    Batch normalisation sees `MICRO_BATCH` images at a time for every batch size, so that only the noise differs, and
    batch statistics are used for the accuracy too: running ones would lag behind where steps are few.
    """
    train, val = images.train, images.val
    network = build_network(train[0].shape[1], images.n_classes, seed)
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


def fastest(rows: list[dict[str, str]], optimizer: str) -> dict[int, tuple[float, float, list[float]]]:
    """Return, for each batch size, the fewest samples to the target, the learning rate of these, and every seed's."""
    found: dict[int, tuple[float, float, list[float]]] = {}
    runs_of = [row for row in rows if row["kind"] == "run" and row["name"] == optimizer]
    for batch in sorted({int(row["batch"]) for row in runs_of}):
        own = [row for row in runs_of if int(row["batch"]) == batch]
        found[batch] = min(
            (statistics.median(values), lr, values)
            for lr in sorted({float(row["lr"]) for row in own})
            for values in [[float(row["value"]) for row in own if float(row["lr"]) == lr]]
        )
    return found


def critical_batch(points: dict[int, float]) -> float:
    """Return B_crit of ``samples = fewest * (1 + B / B_crit)``, fitted to the logarithms by least squares."""
    known = [(batch, samples) for batch, samples in points.items() if math.isfinite(samples)]
    if len(known) < 3:
        return math.nan
    scales = [2 ** (k / 8) for k in range(8, 8 * 17)]
    return min(scales, key=lambda scale: _spread([s / (1 + b / scale) for b, s in known]))


def _spread(values: list[float]) -> float:
    return statistics.pvariance([math.log(value) for value in values])


def tables() -> str:
    """Return the tables of the page."""
    rows = _rows()
    return "\n\n".join(_tables_of(data, [r for r in rows if r["data"] == data]) for data in CHECKS)


def _tables_of(data: str, own: list[dict[str, str]]) -> str:
    n, target, epochs, seeds = CHECKS[data]
    sides = {name: fastest(own, name) for name in RATES}
    lines = [
        f"**{data}**, {n:,} training images, to {100 * target:.0f} % of the validation images: the samples of the "
        f"fastest of {len(RATES['sgd'])} learning rates at each batch size, median of {seeds} seeds (in brackets the "
        f"range of the seeds). A star: the rate is at the edge of the grid, and one beyond it may be faster. "
        f"`> {epochs} epochs`: not reached in so many.",
        "",
        "| batch | SGD: samples | steps | lr | LARS: samples | steps | lr |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for batch in sides["sgd"]:
        cells = [cell for name, side in sides.items() for cell in _cells(name, batch, side[batch], epochs)]
        lines.append(f"| {batch} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_verdict(own, sides)])


def _cells(optimizer: str, batch: int, point: tuple[float, float, list[float]], epochs: int) -> list[str]:
    samples, lr, values = point
    if math.isinf(samples):
        return [f"> {epochs} epochs", "", ""]
    edge = "*" if lr in (RATES[optimizer][0], RATES[optimizer][-1]) else ""
    ends = [f"{value:,.0f}" if math.isfinite(value) else f"> {epochs} epochs" for value in (min(values), max(values))]
    shown = f"{samples:,.0f}" if ends[0] == ends[1] else f"{samples:,.0f} ({ends[0]} to {ends[1]})"
    return [shown, f"{samples / batch:,.0f}", f"{lr:g}{edge}"]


def _verdict(own: list[dict[str, str]], sides: dict[str, dict[int, tuple[float, float, list[float]]]]) -> list[str]:
    lines = ["| | samples |", "|---|---:|"]
    for name, side in sides.items():
        points = {batch: point[0] for batch, point in side.items()}
        number = sum(map(math.isfinite, points.values()))
        ends = _ends(own, name)
        lines.append(
            f"| measured: batch of twice the samples, {name.upper()}, from {number} batch sizes (each seed alone) | "
            f"{critical_batch(points):,.0f} ({ends[0]:,.0f} to {ends[1]:,.0f}) |"
        )
    for name in dict.fromkeys(row["name"] for row in own if row["kind"] == "advise"):
        if name != "proposed lr":
            values = [float(row["value"]) for row in own if row["name"] == name]
            shown = ", ".join("inf" if math.isinf(value) else f"{value:,.0f}" for value in values)
            lines.append(f"| advised: {name}, seeds 0 to {len(values) - 1} | {shown} |")
    factors = sorted(
        lr / TRUST_COEFFICIENT / scaled_lr(RECIPE_LR, batch, base_batch_size=RECIPE_BATCH, rule="sqrt")
        for batch, (samples, lr, _) in sides["lars"].items()
        if math.isfinite(samples)
    )
    return [
        *lines,
        "",
        f"The fastest rates of LARS, for a trust coefficient of {TRUST_COEFFICIENT:g}, were {factors[0]:.2g} to "
        f"{factors[-1]:.2g} times what the square-root rule gives from MLPerf's.",
    ]


def _ends(own: list[dict[str, str]], optimizer: str) -> tuple[float, float]:
    """Return the least and the greatest B_crit of one seed alone."""
    seeds = sorted({row["seed"] for row in own if row["kind"] == "run"})
    sides = [fastest([row for row in own if row["seed"] == seed], optimizer) for seed in seeds]
    found = [critical_batch({batch: point[0] for batch, point in side.items()}) for side in sides]
    return min(found), max(found)


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
