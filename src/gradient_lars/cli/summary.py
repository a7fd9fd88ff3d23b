"""What the runs of a comparison amount to: the chosen rates, the accuracies, and who is ahead where."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gradient_lars.cli.results import FINAL, TUNE, Experiment, Run
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
        accuracies=tuple(run.test_accuracy or 0.0 for run in finals),
        diverged=sum(run.diverged for run in finals),
        seconds=statistics.fmean(run.seconds for run in finals),
    )


def conclusion(experiment: Experiment, cells: Sequence[Cell]) -> str:
    """Return what the numbers say, in three sentences at most.

    An optimizer is ahead where its worst seed is better than the best one of the other.
    """
    pairs = list(zip(cells[::2], cells[1::2], strict=True))
    ahead: dict[str, list[int]] = {SGD: [], LARS: [], "": []}
    for sgd, lars in pairs:
        ahead[_leader(sgd, lars)].append(sgd.batch_size)
    sgd, lars = pairs[-1]
    points = 100 * (lars.mean - sgd.mean)
    whole = ", the whole training split" if lars.batch_size == experiment.n_train else ""
    relation = {
        SGD: f"LARS is {-points:.1f} points behind SGD",
        LARS: f"LARS is {points:.1f} points ahead of SGD",
        "": f"LARS and SGD are level within the spread of the seeds (difference {points:+.1f} points)",
    }[_leader(sgd, lars)]
    sentences = [f"At the largest batch ({lars.batch_size}{whole}) {relation}."]
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


def _leader(sgd: Cell, lars: Cell) -> str:
    if min(lars.accuracies) > max(sgd.accuracies):
        return LARS
    if min(sgd.accuracies) > max(lars.accuracies):
        return SGD
    return ""


def _drop(cells: Sequence[Cell]) -> float:
    return 100 * (max(cell.mean for cell in cells) - cells[-1].mean)


def _join(sizes: Sequence[int]) -> str:
    return ", ".join(str(size) for size in sizes)
