"""The options of ``gradient-lars advise``, checked before anything is read or trained."""

import math
from dataclasses import dataclass
from pathlib import Path

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.launch import launched
from gradient_lars.cli.settings import DIGITS, FASHION_MNIST, folder_of

STRETCHES = ("start", "middle", "end")
LEAST_STEPS = 30
# MLPerf's reference for ResNet-50: learning rate 10.5 at a batch of 3,264, 2 of 37 epochs of warm-up.
RECIPE_LR = 10.5
RECIPE_BATCH = 3264
RECIPE_WARM_UP = 2 / 37
_MOST = 2**63 - 1


@dataclass(frozen=True)
class AdviseSettings:
    """Checked options of one measurement.

    Attributes:
        task: where the user's function is, ``module:function`` or ``file.py:function``; None for `data`.
        steps: to measure; None for as many as the training has, see `n_steps`.
        micro_batch: samples in a small batch of the estimate.
        micro_batches: how many of them make a step.
        base_lr: learning rate of LARS that served at `base_batch`.
        hessian: measure B_noise too.
        overwrite: replace `out` if it is there.
    """

    task: str | None
    data: str | None
    data_dir: Path | None
    steps: int | None
    micro_batch: int
    micro_batches: int
    epochs: int
    base_lr: float
    base_batch: int
    hessian: bool
    device: str
    seed: int
    out: Path | None
    overwrite: bool = False

    @property
    def big_batch(self) -> int:
        """Return the samples in a step, the larger of the two batch sizes."""
        return self.micro_batch * self.micro_batches

    def __post_init__(self) -> None:
        """Check every number, and that there is one source of data."""
        if launched():
            raise CommandError("`gradient-lars advise` measures in one process: start it without torchrun.")
        if (self.task is None) == (self.data is None):
            raise CommandError(
                "give either your own function, such as `train.py:task`, or one of "
                f"`--data {DIGITS}` and `--data {FASHION_MNIST}`."
            )
        if self.data not in (None, DIGITS, FASHION_MNIST):
            raise CommandError(
                f"`--data` is `{self.data}`, which is unknown: give `{DIGITS}` or `{FASHION_MNIST}`, or your own "
                "function, such as `train.py:task`."
            )
        if self.data == FASHION_MNIST and folder_of(self.data, self.data_dir) is None:
            raise CommandError(
                "`--data fashion-mnist` needs `--data-dir DIR`, the folder of its four IDX files "
                "(https://github.com/zalandoresearch/fashion-mnist has them, and Debian's dataset-fashion-mnist)."
            )
        if self.data != FASHION_MNIST and self.data_dir is not None:
            raise CommandError(f"`--data-dir` belongs to `--data {FASHION_MNIST}` only: leave it out.")
        if self.steps is not None and self.steps < LEAST_STEPS:
            raise CommandError(
                f"`--steps` must be at least {LEAST_STEPS}, got {self.steps}: each third of them has an error bar."
            )
        for name, value, least in (
            ("--micro-batch", self.micro_batch, 1),
            ("--micro-batches", self.micro_batches, 2),
            ("--epochs", self.epochs, 1),
            ("--base-batch", self.base_batch, 1),
            ("--seed", self.seed, 0),
        ):
            if value < least:
                raise CommandError(f"`{name}` must be at least {least}, got {value}: give a larger whole number.")
            if value > _MOST:
                raise CommandError(f"`{name}` must be at most {_MOST}, got {value}: give a smaller whole number.")
        if self.overwrite and self.out is None:
            raise CommandError("`--overwrite` is of the CSV: add `--out FILE.csv`.")
        if not (math.isfinite(self.base_lr) and self.base_lr > 0):
            raise CommandError(f"`--base-lr` must be > 0 and finite, got {self.base_lr:g}: {RECIPE_LR} is MLPerf's.")
