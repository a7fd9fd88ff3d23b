"""What the runs of a comparison amount to: the chosen rates, the accuracies, and who is ahead where."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.records import FINAL, TUNE, Experiment, Run
from gradient_lars.cli.settings import LARS, NESTEROV, SGD

LABELS = {SGD: "SGD", NESTEROV: "Nesterov SGD", LARS: "LARS"}


@dataclass(frozen=True)
class Cell:
    """One optimizer at one batch size.

    Attributes:
        at_edge: the chosen rate is the smallest or largest of its grid: a better one may lie outside.
        accuracies: test accuracies (0 to 1) of the final runs, in the order of their seeds.
        diverged: how many final runs diverged.
        tuning_runs: how many runs chose the rate.
        seconds: mean training time of a final run.
    """

    batch_size: int
    optimizer: str
    steps: int
    lr: float
    at_edge: bool
    accuracies: tuple[float, ...]
    diverged: int
    tuning_runs: int
    seconds: float

    @property
    def mean(self) -> float:
        """Return the mean test accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Return the standard deviation over the seeds (n - 1); 0 with a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


@dataclass(frozen=True)
class Tuned:
    """One learning rate of one optimizer at one batch size: means over the tuning seeds."""

    lr: float
    val_accuracy: float
    val_loss: float


def ranked(runs: Sequence[Run]) -> list[Tuned]:
    """Return the learning rates that have the most runs, best first: by validation accuracy, mean over the seeds.

    Ties go to the lower validation loss, then to the smaller rate. A diverged run counts as measured, its loss as
    infinite.
    """
    by_rate: dict[float, list[Run]] = {}
    for run in runs:
        by_rate.setdefault(run.lr, []).append(run)
    most = max(map(len, by_rate.values()))
    tuned = []
    for lr, own in by_rate.items():
        if len(own) == most:
            accuracy = statistics.fmean(run.val_accuracy for run in own)
            tuned.append(Tuned(lr, accuracy, statistics.fmean(run.val_loss for run in own)))
    return sorted(tuned, key=lambda one: (-one.val_accuracy, one.val_loss, one.lr))


def choose(runs: Sequence[Run]) -> Tuned:
    """Return the best of `ranked`."""
    return ranked(runs)[0]


def summarise(experiment: Experiment, runs: Sequence[Run]) -> list[Cell]:
    """Return the cells of a finished comparison, by batch size and then in the order of its optimizers."""
    return [
        _cell(experiment, batch_size, optimizer, runs)
        for batch_size in experiment.batch_sizes
        for optimizer in experiment.optimizers
    ]


def _cell(experiment: Experiment, batch_size: int, optimizer: str, runs: Sequence[Run]) -> Cell:
    own = [run for run in runs if (run.batch_size, run.optimizer) == (batch_size, optimizer)]
    best = choose([run for run in own if run.phase == TUNE])
    finals = sorted((run for run in own if run.phase == FINAL), key=lambda run: run.seed)
    grid = experiment.grid(optimizer)
    return Cell(
        batch_size,
        optimizer,
        finals[0].steps,
        best.lr,
        at_edge=best.lr in (grid[0], grid[-1]),
        accuracies=tuple(run.tested for run in finals),
        diverged=sum(run.diverged for run in finals),
        tuning_runs=len(own) - len(finals),
        seconds=statistics.fmean(run.seconds for run in finals),
    )


def check_choices(path: Path, experiment: Experiment, runs: Sequence[Run]) -> None:
    """Check that the final runs of a cell have the rate that its tuning runs choose, once these are complete.

    Raises:
        CommandError: they have another, so `path`, where the distinct `runs` come from, was changed.
    """
    for batch_size in experiment.batch_sizes:
        for optimizer in experiment.optimizers:
            own = [run for run in runs if (run.batch_size, run.optimizer) == (batch_size, optimizer)]
            tuned = [run for run in own if run.phase == TUNE]
            if len(tuned) < experiment.budget:
                continue
            best = choose(tuned)
            others = [run.lr for run in own if run.phase == FINAL and run.lr != best.lr]
            if others:
                raise CommandError(
                    f"{path}: {LABELS[optimizer]} at batch {batch_size} has a final run with lr {others[0]:g}, but its "
                    f"tuning runs choose {best.lr:g}: remove the line of that run and run it again with `--resume`."
                )


def conclusion(experiment: Experiment, cells: Sequence[Cell]) -> str:
    """Return what the numbers say, in a few sentences.

    An optimizer is ahead where its worst seed is better than the best one of the other, and its mean by more than one
    test image. Of a single seed only the differences are told.
    """
    of = {name: [cell for cell in cells if cell.optimizer == name] for name in experiment.optimizers}
    sentences = []
    for baseline in experiment.optimizers[:-1]:
        pairs = list(zip(of[baseline], of[LARS], strict=True))
        sentences += _differences(experiment, pairs) if experiment.seeds == 1 else _leads(experiment, pairs)
    if experiment.seeds == 1:
        sentences.append(
            "One seed shows no spread: whether this is more than chance takes several, such as `--seeds 3`."
        )
    elif len(experiment.batch_sizes) > 1:
        first, *others = ((LABELS[name], _drop(own)) for name, own in of.items())
        drops = [f"{first[0]} loses {first[1]:.1f} points", *(f"{label} {points:.1f}" for label, points in others)]
        sentences.append(f"From its own best batch size to the largest one, {_and(drops)}.")
    return " ".join(sentences)


def _leads(experiment: Experiment, pairs: Sequence[tuple[Cell, Cell]]) -> list[str]:
    """Return where LARS and a baseline lead."""
    name = pairs[0][0].optimizer
    label = LABELS[name]
    ahead: dict[str, list[int]] = {name: [], LARS: [], "": []}
    for baseline, lars in pairs:
        ahead[_leader(baseline, lars, experiment.n_test)].append(lars.batch_size)
    baseline, lars = pairs[-1]
    points = _points(baseline, lars)
    within = "the spread of the seeds" if _overlap(baseline, lars) else "one test image"
    relation = {
        name: f"LARS is {-points:.1f} points behind {label}",
        LARS: f"LARS is {points:.1f} points ahead of {label}",
        "": f"LARS and {label} are level within {within} (difference {points:+.1f} points)",
    }[_leader(baseline, lars, experiment.n_test)]
    sentences = [f"At the largest batch ({_largest(experiment)}) {relation}."]
    if len(pairs) > 1:
        parts = [f"{LABELS[one]} ahead at {_join(ahead[one])}" for one in (LARS, name) if ahead[one]]
        if ahead[""]:
            parts.append(f"level at {_join(ahead[''])}")
        sentences.append(f"By batch size: {'; '.join(parts)}.")
    return sentences


def _differences(experiment: Experiment, pairs: Sequence[tuple[Cell, Cell]]) -> list[str]:
    label = LABELS[pairs[0][0].optimizer]
    points = [f"{_points(baseline, lars):+.1f}" for baseline, lars in pairs]
    sentences = [f"At the largest batch ({_largest(experiment)}) LARS minus {label} is {points[-1]} points."]
    if len(pairs) > 1:
        parts = [f"{own} at {lars.batch_size}" for own, (_, lars) in zip(points, pairs, strict=True)]
        sentences.append(f"By batch size: {', '.join(parts)}.")
    return sentences


def _points(baseline: Cell, lars: Cell) -> float:
    return 100 * (lars.mean - baseline.mean)


def _largest(experiment: Experiment) -> str:
    size = experiment.batch_sizes[-1]
    return f"{size}, the whole training split" if size == experiment.n_train else f"{size}"


def _overlap(baseline: Cell, lars: Cell) -> bool:
    return min(lars.accuracies) <= max(baseline.accuracies) and min(baseline.accuracies) <= max(lars.accuracies)


def _leader(baseline: Cell, lars: Cell, n_test: int) -> str:
    images = (lars.mean - baseline.mean) * n_test
    if _overlap(baseline, lars) or abs(images) < 1 + 1e-6:  # exactly one, up to the rounding of the means, is no lead
        return ""
    return LARS if images > 0 else baseline.optimizer


def _drop(cells: Sequence[Cell]) -> float:
    return 100 * (max(cell.mean for cell in cells) - cells[-1].mean)


def _join(sizes: Sequence[int]) -> str:
    return ", ".join(str(size) for size in sizes)


def _and(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
