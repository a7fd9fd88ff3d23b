"""Writes the tables of README.md and docs/ from the results files; ``--check`` only says whether they are current."""

import argparse
import csv
import math
import sys
from pathlib import Path

from gradient_lars import presets
from gradient_lars.cli.bench_results import latest, read_rows
from gradient_lars.cli.bench_table import figure, lines_of, setting_of, title_of
from gradient_lars.cli.bench_workloads import WORKLOADS
from gradient_lars.cli.results import read_results
from gradient_lars.cli.summary import Cell, conclusion, summarise
from gradient_lars.cli.variants import MEANINGS, cell, chosen, differing

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DISTRIBUTED = ROOT / "docs" / "distributed.md"
CHOOSE = ROOT / "docs" / "choose.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
VARIANTS = ROOT / "docs" / "variants.md"
RESULTS = ROOT / "benchmarks" / "results"

# What the calculation for many ranks assumes of their network.
RANKS = 1024
LATENCY = 5e-6  # seconds for a small message from one rank to another
BANDWIDTH = 25e9  # bytes a second out of each rank


def compare_digits() -> str:
    """Return the table of ``gradient-lars compare`` with its defaults, and what its numbers say."""
    experiment, runs = read_results(RESULTS / "compare-digits" / "results.csv")
    if experiment is None:
        raise SystemExit("benchmarks/results/compare-digits/results.csv holds no run. Run `make results`.")
    cells = summarise(experiment, runs)
    lines = [
        "| batch size | steps | SGD: lr | test accuracy | LARS: lr | test accuracy |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for sgd, lars in zip(cells[::2], cells[1::2], strict=True):
        row = f"{sgd.batch_size} | {sgd.steps} | {sgd.lr:g} | {_accuracy(sgd)} | {lars.lr:g} | {_accuracy(lars)}"
        lines.append(f"| {row} |")
    setting = (
        f"scikit-learn's digits, {experiment.n_train} training images, {experiment.epochs} epochs, mean and standard "
        f"deviation of {experiment.seeds} seeds, {len(experiment.sgd_learning_rates)} learning rates tried for each."
    )
    return "\n".join([setting, "", *lines, "", conclusion(experiment, cells)])


def _accuracy(cell: Cell) -> str:
    return f"{100 * cell.mean:.1f} ± {100 * cell.deviation:.1f} %"


def bench() -> str:
    """Return the tables of ``gradient-lars bench``: the last run of each workload and device."""
    blocks = []
    for name in ("step-cpu.csv", "step-cuda.csv"):
        path = RESULTS / name
        if not path.exists():
            continue
        for run in latest(read_rows(path)):
            graphs = any("graph" in line.rows for line in lines_of(run))
            head = ["", "step (ms)", "to fused SGD", *(["CUDA graph (ms)", "to fused SGD"] if graphs else [])]
            lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
            for line in lines_of(run):
                cells = [line.label, figure(line.p50("eager")), _times(line.ratio("eager"))]
                if graphs:
                    cells += [figure(line.p50("graph")), _times(line.ratio("graph"))]
                lines.append(f"| {' | '.join(cells)} |")
            blocks.append("\n".join([f"**{title_of(run)}.** {setting_of(run)}", "", *lines]))
    if not blocks:
        raise SystemExit("benchmarks/results holds no times. Run `make bench`.")
    return "\n\n".join(blocks)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} x"


def bench_full() -> str:
    """Return the same runs with versions, scatter, and the floor."""
    blocks = []
    for name in ("step-cpu.csv", "step-cuda.csv"):
        path = RESULTS / name
        for run in latest(read_rows(path)) if path.exists() else []:
            lines = ["| | step (ms) | p20 | p80 | to fused SGD | to floor |", "|---|---:|---:|---:|---:|---:|"]
            for line in lines_of(run):
                step = line.rows["eager"]
                label = f"{line.label} {line.package.split()[-1]}" if line.package else line.label
                times = [figure(value) for value in (step.p50, step.p20, step.p80)]
                ratios = [_times(line.ratio("eager")), _times(line.to_floor("eager"))]
                lines.append(f"| {' | '.join([label, *times, *ratios])} |")
            blocks.append("\n".join([f"**{title_of(run)}.** {setting_of(run)}", "", *lines]))
    return "\n\n".join(blocks)


def host() -> str:
    """Return the table of the host's time of a fused step."""
    with (RESULTS / "host.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first, prefix = rows[0], "lars-fused-"
    kinds = list(dict.fromkeys(row["implementation"].removeprefix(prefix) for row in rows))
    lines = [f"| tensors | {' | '.join(kinds)} |", "|---:|" + "---:|" * len(kinds)]
    for tensors in dict.fromkeys(row["tensors"] for row in rows):
        times = [f"{float(row['p50']):.3g} ms" for row in rows if row["tensors"] == tensors]
        lines.append(f"| {int(tensors):,} | {' | '.join(times)} |")
    where = f"{first['device_name']}, {first['threads']} thread, Python {first['python']}, PyTorch {first['torch']}"
    return "\n".join([f"{where}, medians.", "", *lines])


def recipes() -> str:
    """Return the table of the published recipes among the presets."""
    lines = ["| preset | lr (gamma) | eta | weight decay | momentum | adapted |", "|---|---|---:|---:|---:|---|"]
    for name in ("paper", "mlperf_resnet", "simclr", "byol", "barlow_twins", "vicreg", "swav"):
        preset = presets.named(name)
        numbers = [
            f"{preset[setting]:g}".replace("e-0", "e-") for setting in ("trust_coefficient", "weight_decay", "momentum")
        ]
        adapted = "all layers" if preset["adapt"] else "not biases, nor norms"
        lines.append(f"| {' | '.join([f'`{name}`', preset.lr, *numbers, adapted])} |")
    return "\n".join(lines)


def settings() -> str:
    """Return two tables of the settings in which the presets differ: the numbers, and the rules."""
    blocks = []
    names = differing(chosen(None))
    numbers = names[: names.index("norm_of")]
    for part in (numbers, names[len(numbers) :]):
        rows = [[f"`{preset.name}`", *(cell(preset[name]) for name in part)] for preset in chosen(None)]
        lines = [f"| | {' | '.join(f'`{name}`' for name in part)} |", "|---|" + "---:|" * len(part)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        blocks.append("\n".join(lines))
    same = [f"`{name}={presets.paper[name]!r}`" for name in MEANINGS if name not in names]
    return "\n\n".join([*blocks, f"All have {' and '.join(same)}."])


def variants() -> str:
    """Return what each preset says of itself."""
    lines = ["| | what it is | learning rate | source |", "|---|---|---|---|"]
    rows = [[f"`{preset.name}`", preset.about, preset.lr, preset.source] for preset in chosen(None)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def parity() -> str:
    """Return the table of how far every path is from every variant's goldens."""
    with (RESULTS / "parity.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = list(dict.fromkeys(row["path"] for row in rows))
    lines = [f"| | goldens | {' | '.join(paths)} | the goldens are |", f"|---|---:|{'---:|' * len(paths)}---|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        figures = []
        for row in own:
            error = f"{float(row['error']):.0e}".replace("e-0", "e-") if row["error"] else "-"
            figures.append(f"{error} ({row['refused']})" if int(row["refused"]) else error)
        proof = f"{own[0]['proof']}: {own[0]['peer']}" if own[0]["peer"] else own[0]["proof"]
        lines.append(f"| `{variant}` | {own[0]['goldens']} | {' | '.join(figures)} | {proof} |")
    first = rows[0]
    versions = ", ".join(f"{name} {first[key]}" for name, key in _VERSIONS.items())
    return "\n".join([*lines, "", f"{first['date'][:10]}, {versions}."])


_VERSIONS = {"PyTorch": "torch", "Triton": "triton", "JAX": "jax", "optax": "optax"}


def _traffic() -> list[dict[str, str]]:
    with (RESULTS / "traffic.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def traffic() -> str:
    """Return the table of what a step sends."""
    rows = _traffic()
    first, names = rows[0], list(dict.fromkeys(row["workload"] for row in rows))
    titles = [f"{WORKLOADS[name].title}: collectives" for name in names]
    lines = ["| | " + " | bytes | ".join(titles) + " | bytes |", "|---|" + "---:|---:|" * len(names)]
    errors: list[str] = []
    for implementation in dict.fromkeys(row["implementation"] for row in rows):
        own = [row for row in rows if row["implementation"] == implementation]
        cells = [implementation]
        for row in own:
            if row["error"] and row["error"] not in errors:
                errors.append(row["error"])
            cells += ["fails", ""] if row["error"] else [f"{int(row['collectives']):,}", f"{int(row['bytes']):,}"]
        lines.append(f"| {' | '.join(cells)} |")
    tensors = {row["workload"]: f"{WORKLOADS[row['workload']].title} {row['tensors']}" for row in rows}
    packages = [row["package"] for row in rows if row["package"]]
    setting = (
        f"{first['world_size']} ranks, float32, tensors: {', '.join(tensors.values())}. "
        f"PyTorch {first['torch']}, {', '.join(dict.fromkeys(packages))}."
    )
    return "\n".join([setting, "", *lines, *(f"\nWhat fails: `{error}`" for error in errors)])


def at_scale() -> str:
    """Return on paper what the counts of the first workload cost at many ranks."""
    rows = _traffic()
    rows = [row for row in rows if row["workload"] == rows[0]["workload"] and not row["error"]]
    lines = [
        f"P = {RANKS:,}, a = {1e6 * LATENCY:g} µs, b = {BANDWIDTH / 1e9:g} GB/s:",
        "",
        f"| {WORKLOADS[rows[0]['workload']].title} | collectives | tree: latency | ring: latency | bytes |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        count = int(row["collectives"])
        times = (count * 2 * math.log2(RANKS) * LATENCY, count * 2 * (RANKS - 1) * LATENCY)
        moving = 2 * int(row["bytes"]) / BANDWIDTH
        cells = [row["implementation"], f"{count:,}", *map(_milliseconds, times), f"{1e6 * moving:.2f} µs"]
        lines.append(f"| {' | '.join(cells)} |")
    size = 4 * int(rows[0]["parameters"])
    whole = 3 * size / BANDWIDTH
    lines += [
        "",
        f"Beside it, what FSDP2 itself moves in forward and backward of this network: {size / 1e6:.0f} MB three times "
        f"(two all-gathers, one reduce-scatter), {_milliseconds(whole)} at this bandwidth.",
    ]
    return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g} ms" if seconds < 1 else f"{1e3 * seconds:,.0f} ms"


BLOCKS = {"compare-digits": compare_digits, "bench": bench}
PAGES = {
    README: BLOCKS,
    DISTRIBUTED: {"traffic": traffic, "at-scale": at_scale},
    CHOOSE: {"compare-digits": compare_digits, "recipes": recipes},
    PERFORMANCE: {"bench-full": bench_full, "host": host},
    VARIANTS: {"settings": settings, "variants": variants, "parity": parity},
}


def filled(text: str, page: Path = README) -> str:
    """Return the text of `page` with the content of every generated block made anew."""
    for name, make in PAGES[page].items():
        begin, end = text.index(f"<!-- {name}:"), text.index(f"<!-- end of {name} -->")
        head = text[begin : text.index("\n", begin) + 1]
        text = f"{text[:begin]}{head}{make()}\n{text[end:]}"
    return text


def main() -> None:
    """Write the pages, or with ``--check`` fail if that would change one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = filled(old, page)
        if check and new != old:
            sys.exit(f"{page.relative_to(ROOT)} is out of date: run benchmarks/make_readme.py.")
        if not check:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
