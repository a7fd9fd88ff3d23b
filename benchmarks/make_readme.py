"""Writes the tables of README.md from the results files; ``--check`` only says whether they are current."""

import argparse
import sys
from pathlib import Path

from gradient_lars.cli.bench_results import latest, read_rows
from gradient_lars.cli.bench_table import figure, lines_of, setting_of, title_of
from gradient_lars.cli.results import read_results
from gradient_lars.cli.summary import Cell, conclusion, summarise

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


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


BLOCKS = {"compare-digits": compare_digits, "bench": bench}


def filled(text: str) -> str:
    """Return `text` with the content of every generated block made anew."""
    for name, make in BLOCKS.items():
        begin, end = text.index(f"<!-- {name}:"), text.index(f"<!-- end of {name} -->")
        head = text[begin : text.index("\n", begin) + 1]
        text = f"{text[:begin]}{head}{make()}\n{text[end:]}"
    return text


def main() -> None:
    """Write README.md, or with ``--check`` fail if that would change it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if README.md is out of date")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if check and new != old:
        sys.exit("README.md is out of date: run benchmarks/make_readme.py.")
    if not check:
        README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
