"""What the runs of a comparison amount to: the chosen rates, the accuracies, and who is ahead where."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.records import FINAL, TUNE, Experiment, Run
from gradient_lars.cli.settings import LARS, OPTIMIZERS, SGD

LABELS = {SGD: "SGD", LARS: "LARS"}


@dataclass(frozen=True)
class Cell:
    """One optimizer at one batch size.

    Attributes:
        at_edge: the chosen rate is the smallest or largest of its grid: a better one may lie outside.
        accuracies: test accuracies (0 to 1) of the final runs, in the order of their seeds.
        diverged: how many final runs diverged.
        seconds: mean training time of a final run.
    """

    batch_size: int
    optimizer: str
    steps: int
    lr: float
    at_edge: bool
    accuracies: tuple[float, ...]
    diverged: int
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


def choose(runs: Sequence[Run]) -> Tuned:
    """Return the rate with the best validation accuracy, mean over the tuning seeds.

    Ties go to the lower validation loss, then to the smaller rate. A diverged run counts as measured, its loss as
    infinite.
    """
    tuned = []
    for lr in sorted({run.lr for run in runs}):
        own = [run for run in runs if run.lr == lr]
        accuracy = statistics.fmean(run.val_accuracy for run in own)
        tuned.append(Tuned(lr, accuracy, statistics.fmean(run.val_loss for run in own)))
    return max(tuned, key=lambda one: (one.val_accuracy, -one.val_loss, -one.lr))


def summarise(experiment: Experiment, runs: Sequence[Run]) -> list[Cell]:
    """Return the cells of a finished comparison, by batch size and then in the order of `OPTIMIZERS`."""
    return [
        _cell(experiment, batch_size, optimizer, runs)
        for batch_size in experiment.batch_sizes
        for optimizer in OPTIMIZERS
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
        seconds=statistics.fmean(run.seconds for run in finals),
    )


def check_choices(path: Path, experiment: Experiment, runs: Sequence[Run]) -> None:
    """Check that the final runs of a cell have the rate that its tuning runs choose, once these are complete.

    Raises:
        CommandError: they have another, so `path`, where the distinct `runs` come from, was changed.
    """
    for batch_size in experiment.batch_sizes:
        for optimizer in OPTIMIZERS:
            own = [run for run in runs if (run.batch_size, run.optimizer) == (batch_size, optimizer)]
            tuned = [run for run in own if run.phase == TUNE]
            if len(tuned) < len(experiment.grid(optimizer)) * experiment.tuning_seeds:
                continue
            best = choose(tuned)
            others = [run.lr for run in own if run.phase == FINAL and run.lr != best.lr]
            if others:
                raise CommandError(
                    f"{path}: {LABELS[optimizer]} at batch {batch_size} has a final run with lr {others[0]:g}, but its "
                    f"tuning runs choose {best.lr:g}: remove the line of that run and run it again with `--resume`."
                )


def conclusion(experiment: Experiment, cells: Sequence[Cell]) -> str:
    """Return what the numbers say, in three sentences at most.

    An optimizer is ahead where its worst seed is better than the best one of the other, and its mean by more than one
    test image. Of a single seed only the differences are told.
    """
    pairs = list(zip(cells[::2], cells[1::2], strict=True))
    if experiment.seeds == 1:
        return _differences(experiment, pairs)
    ahead: dict[str, list[int]] = {SGD: [], LARS: [], "": []}
    for sgd, lars in pairs:
        ahead[_leader(sgd, lars, experiment.n_test)].append(sgd.batch_size)
    sgd, lars = pairs[-1]
    points = _points(sgd, lars)
    within = "the spread of the seeds" if _overlap(sgd, lars) else "one test image"
    relation = {
        SGD: f"LARS is {-points:.1f} points behind SGD",
        LARS: f"LARS is {points:.1f} points ahead of SGD",
        "": f"LARS and SGD are level within {within} (difference {points:+.1f} points)",
    }[_leader(sgd, lars, experiment.n_test)]
    sentences = [f"At the largest batch ({_largest(experiment)}) {relation}."]
    if len(pairs) > 1:
        parts = [f"{LABELS[name]} ahead at {_join(ahead[name])}" for name in (LARS, SGD) if ahead[name]]
        if ahead[""]:
            parts.append(f"level at {_join(ahead[''])}")
        sentences.append(f"By batch size: {'; '.join(parts)}.")
        drops = {name: _drop([cell for cell in cells if cell.optimizer == name]) for name in OPTIMIZERS}
        sentences.append(
            f"From its own best batch size to the largest one, SGD loses {drops[SGD]:.1f} points and LARS "
            f"{drops[LARS]:.1f}."
        )
    return " ".join(sentences)


def _differences(experiment: Experiment, pairs: Sequence[tuple[Cell, Cell]]) -> str:
    points = [f"{_points(sgd, lars):+.1f}" for sgd, lars in pairs]
    sentences = [f"At the largest batch ({_largest(experiment)}) LARS minus SGD is {points[-1]} points."]
    if len(pairs) > 1:
        parts = [f"{own} at {sgd.batch_size}" for own, (sgd, _) in zip(points, pairs, strict=True)]
        sentences.append(f"By batch size: {', '.join(parts)}.")
    sentences.append("One seed shows no spread: whether this is more than chance takes several, such as `--seeds 3`.")
    return " ".join(sentences)


def _points(sgd: Cell, lars: Cell) -> float:
    return 100 * (lars.mean - sgd.mean)


def _largest(experiment: Experiment) -> str:
    size = experiment.batch_sizes[-1]
    return f"{size}, the whole training split" if size == experiment.n_train else f"{size}"


def _overlap(sgd: Cell, lars: Cell) -> bool:
    return min(lars.accuracies) <= max(sgd.accuracies) and min(sgd.accuracies) <= max(lars.accuracies)


def _leader(sgd: Cell, lars: Cell, n_test: int) -> str:
    images = (lars.mean - sgd.mean) * n_test
    if _overlap(sgd, lars) or abs(images) < 1 + 1e-6:  # exactly one, up to the rounding of the means, is no lead
        return ""
    return LARS if images > 0 else SGD


def _drop(cells: Sequence[Cell]) -> float:
    return 100 * (max(cell.mean for cell in cells) - cells[-1].mean)


def _join(sizes: Sequence[int]) -> str:
    return ", ".join(str(size) for size in sizes)
