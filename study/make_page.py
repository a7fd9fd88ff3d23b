"""Writes the tables of docs/study.md from what ``study/run.py`` left; ``--check`` only says if they are current."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gradient_lars.cli.records import FINAL, TUNE, Experiment, Run
from gradient_lars.cli.results import read_results
from gradient_lars.cli.summary import LABELS, Cell, conclusion, ranked, summarise

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "study.md"
RESULTS = ROOT / "study" / "results"
PREFIX = "digits-"
BASE = "as-it-is"


def read(name: str) -> tuple[Experiment, list[Run]]:
    """Return a finished comparison."""
    experiment, runs = read_results(RESULTS / name / "results.csv")
    if experiment is None or len(runs) < experiment.n_runs:
        raise SystemExit(f"study/results/{name} is not finished. Run study/run.py.")
    return experiment, runs


def compared(name: str) -> str:
    """Return the table of a comparison, its setting and budget, and what its numbers say."""
    experiment, runs = read(name)
    cells = summarise(experiment, runs)
    head = ["batch size", "steps", *(text for one in experiment.optimizers for text in (f"{LABELS[one]}: lr", "test"))]
    lines = [_row(head), "|" + "---:|" * len(head)]
    width = len(experiment.optimizers)
    for row in (cells[start : start + width] for start in range(0, len(cells), width)):
        own = [text for cell in row for text in (f"{cell.lr:g}{'*' if cell.at_edge else ''}", _accuracy(cell))]
        lines.append(_row([f"{row[0].batch_size:,}", f"{row[0].steps:,}", *own]))
    tail = " A star marks a learning rate at the edge of its grid." if any(cell.at_edge for cell in cells) else ""
    return "\n".join([_setting(experiment, runs), "", *lines, "", conclusion(experiment, cells) + tail])


def _setting(experiment: Experiment, runs: Sequence[Run]) -> str:
    times = [run.seconds for run in runs]
    tried, seeds = len(experiment.lars_learning_rates), experiment.tuning_seeds
    diverged, minutes = sum(run.diverged for run in runs), max(1, round(sum(times) / 60))
    training = f"{minutes} minute{'s' if minutes > 1 else ''} of training"
    machines, commits = (sorted({getattr(run, name) for run in runs}) for name in ("machine", "commit"))
    return (
        f"{experiment.n_train:,} training, {experiment.n_val:,} validation and {experiment.n_test:,} test images, "
        f"{experiment.epochs} epochs. Each optimizer at each batch size: {tried} learning rates x {seeds} "
        f"seed{'s' if seeds > 1 else ''} = {experiment.budget} tuning runs, and {experiment.seeds} final runs with "
        f"other seeds, of which mean and standard deviation are given. {len(runs)} runs in all, {diverged} of them "
        f"diverged; {training} on {experiment.device} ({', '.join(machines)}), "
        f"PyTorch {experiment.torch}, commit {', '.join(commits)}."
    )


def variations() -> str:
    """Return what each change does at the largest batch of digits, beside the comparison without it."""
    names = sorted(path.parent.name.removeprefix(PREFIX) for path in RESULTS.glob(f"{PREFIX}*/results.csv"))
    names.remove(BASE)
    experiment, _ = read(PREFIX + BASE)
    head = ["", *(LABELS[one] for one in experiment.optimizers), "LARS to the better baseline"]
    lines = [_row(head), "|---|" + "---:|" * (len(head) - 1)]
    for name in (BASE, *names):
        own, runs = read(PREFIX + name)
        cells = summarise(own, runs)
        points = 100 * (cells[-1].mean - max(cell.mean for cell in cells[:-1]))
        label = "as above" if name == BASE else ", ".join(_differences(experiment, own))
        lines.append(_row([label, *map(_accuracy, cells), f"{points:+.1f}"]))
    return "\n".join(
        [f"Batch {experiment.batch_sizes[-1]:,}, {experiment.seeds} seeds, every row tuned anew:", "", *lines]
    )


def distances(name: str) -> str:
    """Return how far every optimizer is from the best of all at the smallest batch."""
    experiment, runs = read(name)
    cells = summarise(experiment, runs)
    width = len(experiment.optimizers)
    best = max(cells[:width], key=lambda cell: cell.mean)
    head = ["batch size", *(LABELS[one] for one in experiment.optimizers)]
    larger = (cells[start : start + width] for start in range(width, len(cells), width))
    lines = [
        _row([f"{row[0].batch_size:,}", *(f"{100 * (cell.mean - best.mean):+.2f}" for cell in row)]) for row in larger
    ]
    setting = (
        f"Points of test accuracy from {LABELS[best.optimizer]} at batch {best.batch_size}, the best of all there with "
        f"{100 * best.mean:.2f} %:"
    )
    return "\n".join([setting, "", _row(head), "|" + "---:|" * len(head), *lines])


def _differences(base: Experiment, other: Experiment) -> Iterator[str]:
    for name in (*base.choices(), "threshold"):
        if getattr(other, name) != getattr(base, name):
            yield f"`{name} {getattr(other, name)}`"


def halving() -> str:
    """Return what `--halving` would have chosen from the tuning runs of digits."""
    experiment, runs = read("digits")
    same, lost, cells = 0, [], 0
    for batch_size in experiment.batch_sizes:
        for optimizer in experiment.optimizers:
            own = [run for run in runs if (run.batch_size, run.optimizer) == (batch_size, optimizer)]
            tuned = [run for run in own if run.phase == TUNE]
            best = ranked(tuned)[0]
            left = list(experiment.grid(optimizer))
            for seed in experiment.seed_range(TUNE):
                kept = left[: -(-len(experiment.grid(optimizer)) // 2**seed)]
                seen = [run for run in tuned if run.lr in kept and run.seed <= seed]
                left = [one.lr for one in ranked(seen)]
            cells += 1
            same += left[0] == best.lr
            chosen = next(one for one in ranked(tuned) if one.lr == left[0])
            lost.append(best.val_accuracy - chosen.val_accuracy)
    halved = sum(-(-len(experiment.lars_learning_rates) // 2**seed) for seed in experiment.seed_range(TUNE))
    others = "" if same == cells else f"; the others lose {100 * max(lost):.1f} points of validation accuracy at most"
    return (
        f"Of the {cells} choices above, halving would have made {same} alike, from {halved} runs instead of "
        f"{experiment.budget} each{others}."
    )


def _accuracy(cell: Cell) -> str:
    return f"{100 * cell.mean:.1f} ± {100 * cell.deviation:.1f} %"


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def failed() -> str:
    """Return which runs diverged."""
    found = []
    for path in sorted(RESULTS.glob("*/results.csv")):
        _, runs = read(path.parent.name)
        bad = [run for run in runs if run.diverged]
        if bad:
            finals = sum(run.phase == FINAL for run in bad)
            rates = ", ".join(sorted({f"{LABELS[run.optimizer]} at lr {run.lr:g}" for run in bad}))
            found.append(f"`{path.parent.name}`: {len(bad)} of {len(runs)} runs ({finals} of them final): {rates}.")
    return "\n".join(f"- {text}" for text in found) or "No run of the study diverged."


BLOCKS = {
    "digits": lambda: compared("digits"),
    "fashion-mnist-80-epochs": lambda: compared("fashion-mnist-80-epochs"),
    "distances": lambda: distances("fashion-mnist-80-epochs"),
    "fashion-mnist-cpu": lambda: compared("fashion-mnist-cpu"),
    "fashion-mnist-cpu-whole-norm": lambda: compared("fashion-mnist-cpu-whole-norm"),
    "variations": variations,
    "halving": halving,
    "failed": failed,
}


def filled(text: str) -> str:
    """Return the text of the page with the content of every generated block made anew."""
    for name, make in BLOCKS.items():
        begin, end = text.index(f"<!-- {name}:"), text.index(f"<!-- end of {name} -->")
        head = text[begin : text.index("\n", begin) + 1]
        text = f"{text[:begin]}{head}{make()}\n{text[end:]}"
    return text


def main() -> None:
    """Write the page, or with ``--check`` fail if that would change it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is out of date")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if check and new != old:
        sys.exit("docs/study.md is out of date: run study/make_page.py.")
    if not check:
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
