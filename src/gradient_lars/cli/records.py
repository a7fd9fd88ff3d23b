"""What a comparison consists of, its runs and their rates, and the checks of records read from a file."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradient_lars.cli.recipe import Training
from gradient_lars.cli.settings import FSDP2, LARS, NESTEROV, OPTIMIZERS, SGD, UNSHARDED, n_steps

TUNE = "tune"
FINAL = "final"
_LARGEST = 10**12  # a larger count is damage; without a bound 400 digits would not fit into a float


@dataclass(frozen=True)
class Experiment(Training):
    """What all runs of one comparison share; repeated in each row, so that the CSV stands alone.

    An optimizer that is not compared has no learning rates. What has a default may be missing in a file.
    """

    data: str
    data_digest: str
    n_train: int
    n_val: int
    n_test: int
    batch_sizes: tuple[int, ...]
    sgd_learning_rates: tuple[float, ...]
    lars_learning_rates: tuple[float, ...]
    tuning_seeds: int
    seeds: int
    epochs: int
    momentum: float
    weight_decay: float
    threshold: float
    eps: float
    device: str
    torch: str
    gradient_lars: str
    world_size: int = 1
    shard: str = UNSHARDED
    nesterov_learning_rates: tuple[float, ...] = ()
    halving: bool = False

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Return what is compared, in the order of `OPTIMIZERS`."""
        return tuple(name for name in OPTIMIZERS if self.grid(name))

    def grid(self, optimizer: str) -> tuple[float, ...]:
        """Return the learning rates tried for `optimizer`, ascending."""
        grids = {SGD: self.sgd_learning_rates, NESTEROV: self.nesterov_learning_rates, LARS: self.lars_learning_rates}
        return grids[optimizer]

    def seed_range(self, phase: str) -> range:
        """Return the seeds of `TUNE`: 0, 1, ..., or of `FINAL`: those that follow, so that no run counts in both."""
        return range(self.tuning_seeds) if phase == TUNE else range(self.tuning_seeds, self.tuning_seeds + self.seeds)

    def n_tried(self, seed: int) -> int:
        """Return how many learning rates of an optimizer the tuning seed `seed` is for."""
        tried = len(self.lars_learning_rates)
        return -(-tried // 2**seed) if self.halving else tried

    @property
    def budget(self) -> int:
        """Return the number of tuning runs of an optimizer at a batch size."""
        return sum(map(self.n_tried, self.seed_range(TUNE)))

    @property
    def n_runs(self) -> int:
        """Return the number of rows of a finished comparison."""
        return len(self.batch_sizes) * len(self.optimizers) * (self.budget + self.seeds)


@dataclass(frozen=True)
class Run:
    """One training run; `test_accuracy` is None in the phase `TUNE`, accuracies are between 0 and 1.

    `machine` is the name of the processor or GPU, `commit` that of the package's source; "" where they are not known.
    """

    phase: str
    batch_size: int
    steps: int
    optimizer: str
    lr: float
    seed: int
    val_accuracy: float
    val_loss: float
    test_accuracy: float | None
    diverged: bool
    seconds: float
    machine: str = ""
    commit: str = ""

    @property
    def key(self) -> tuple[str, int, str, float, int]:
        """What tells this run from the others of its experiment."""
        return (self.phase, self.batch_size, self.optimizer, self.lr, self.seed)

    @property
    def tested(self) -> float:
        """The test accuracy of a run of the phase `FINAL`.

        Raises:
            ValueError: it has none.
        """
        if self.test_accuracy is None:
            raise ValueError(f"`test_accuracy` must be there for a run of the phase `{FINAL}`, this is `{self.phase}`")
        return self.test_accuracy


@dataclass(frozen=True)
class RateSample:
    """The rate of one layer in one step."""

    step: int
    layer: str
    p_norm: float
    g_norm: float
    rate: float
    adapted: bool


def check_experiment(experiment: Experiment) -> None:
    """Raise ValueError where `experiment` has what no comparison has."""
    for name in ("n_train", "n_val", "n_test", "tuning_seeds", "seeds", "epochs", "world_size"):
        value = getattr(experiment, name)
        _require(1 <= value <= _LARGEST, name, "a whole number from 1 to 1e12", value)
    _require(0 <= experiment.momentum < 1, "momentum", "in [0, 1)", experiment.momentum)
    for name in ("weight_decay", "eps"):
        value = getattr(experiment, name)
        _require(0 <= value < math.inf, name, "finite and >= 0", value)
    _require(experiment.threshold >= 0, "threshold", ">= 0", experiment.threshold)
    grids = ["sgd_learning_rates", "nesterov_learning_rates"]
    grids = [name for name in grids if getattr(experiment, name)] or grids[:1]
    for name in ("batch_sizes", *grids, "lars_learning_rates"):
        values = getattr(experiment, name)
        _require(_ascending(values), name, "ascending numbers, at least one", " ".join(map(str, values)))
    sizes = experiment.batch_sizes
    _require(sizes[0] >= 2 and sizes[-1] <= experiment.n_train, "batch_sizes", "from 2 to `n_train`", sizes)
    _require(sizes[0] >= experiment.world_size, "world_size", "at most the smallest batch", experiment.world_size)
    _among((UNSHARDED, FSDP2), "shard", experiment.shard)
    for name in (*grids, "lars_learning_rates"):
        grid = getattr(experiment, name)
        _require(grid[0] > 0 and grid[-1] < math.inf, name, "positive and finite", grid)
        _require(len(grid) == len(getattr(experiment, grids[0])), name, f"as many as `{grids[0]}`", grid)
    for name, rule, _ in experiment.broken_rules(experiment.world_size):
        _require(False, name, rule, getattr(experiment, name))


def check_run(experiment: Experiment, run: Run) -> None:
    """Raise ValueError where `run` is none of the runs of `experiment`, or its measures are not possible."""
    _among((TUNE, FINAL), "phase", run.phase)
    _among(experiment.optimizers, "optimizer", run.optimizer)
    _among(experiment.batch_sizes, "batch_size", run.batch_size)
    _among(experiment.grid(run.optimizer), "lr", run.lr)
    seeds = experiment.seed_range(run.phase)
    _require(run.seed in seeds, "seed", f"from {seeds[0]} to {seeds[-1]} in the phase `{run.phase}`", run.seed)
    steps = n_steps(experiment.n_train, run.batch_size, experiment.epochs)
    _require(run.steps == steps, "steps", f"{steps}", run.steps)
    _require(0 <= run.val_accuracy <= 1, "val_accuracy", "from 0 to 1", run.val_accuracy)
    _require(run.val_loss >= 0, "val_loss", ">= 0", run.val_loss)
    if run.phase == TUNE:
        _require(run.test_accuracy is None, "test_accuracy", f"empty in the phase `{TUNE}`", run.test_accuracy)
    else:
        tested = math.nan if run.test_accuracy is None else run.test_accuracy
        shown = "none" if run.test_accuracy is None else run.test_accuracy
        _require(0 <= tested <= 1, "test_accuracy", f"from 0 to 1 in the phase `{FINAL}`", shown)
    _require(0 <= run.seconds < math.inf, "seconds", "finite and >= 0", run.seconds)


def check_samples(samples: Sequence[RateSample]) -> None:
    """Raise ValueError unless `samples` are one of every layer for each step, and the steps evenly spaced from 0."""
    steps = list(dict.fromkeys(sample.step for sample in samples))
    layers = list(dict.fromkeys(sample.layer for sample in samples))
    expected = [(step, layer) for step in steps for layer in layers]
    if [(sample.step, sample.layer) for sample in samples] != expected:
        raise ValueError("not every step has each layer once")
    if not steps or any(step != index * _stride(steps) for index, step in enumerate(steps)):
        raise ValueError("steps are missing")
    for sample in samples:
        if sample.rate < 0 or sample.p_norm < 0 or sample.g_norm < 0:
            raise ValueError(f"step {sample.step} has a negative rate or norm")


def check_recorded(samples: Sequence[RateSample], run: Run) -> None:
    """Raise ValueError unless `samples`, which `check_samples` passes, go on to the last steps of `run`.

    A run that diverged ends before.
    """
    steps = list(dict.fromkeys(sample.step for sample in samples))
    next_step = steps[-1] + _stride(steps)
    if steps[-1] >= run.steps or (next_step < run.steps and not run.diverged):
        raise ValueError(f"its last step is {steps[-1]}, the run has {run.steps} steps")


def _stride(steps: Sequence[int]) -> int:
    return max(1, steps[1] - steps[0]) if len(steps) > 1 else 1


def _ascending(values: Sequence[float]) -> bool:
    return len(values) > 0 and all(first < second for first, second in itertools.pairwise(values))


def _among(known: Sequence[object], name: str, value: object) -> None:
    _require(value in known, name, f"one of {', '.join(map(str, known))}", value)


def _require(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"`{name}` must be {rule}, got {value}")
