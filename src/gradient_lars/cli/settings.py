"""The options of ``gradient-lars compare``, parsed and checked before anything is read or written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.launch import launched, world_size
from gradient_lars.cli.recipe import Training

SGD = "sgd"
NESTEROV = "nesterov"
LARS = "lars"
OPTIMIZERS = (SGD, NESTEROV, LARS)
BOTH = "both"
_BASELINES = {SGD: (SGD,), NESTEROV: (NESTEROV,), BOTH: (SGD, NESTEROV)}
FULL = "full"
DIGITS = "digits"
FASHION_MNIST = "fashion-mnist"
UNSHARDED = "none"
FSDP2 = "fsdp2"

# All grids have 6 values a factor of 3 apart over 2.5 decades. They bracket the best rate of the default run (digits,
# 20 epochs) at every default batch size; LARS's rates are lower because its lr is about the relative change of a layer
# in one step.
DEFAULT_LEARNING_RATES = {
    SGD: (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    NESTEROV: (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    LARS: (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
}


FLOAT32 = 3.4e38  # no number that PyTorch multiplies a float32 tensor by may be larger

# Where Debian's package dataset-fashion-mnist puts the files.
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def folder_of(data: str | None, data_dir: Path | None) -> Path | None:
    """Return the folder of the IDX files of a data set: what was given, or where Debian has them, or None."""
    if data == FASHION_MNIST and data_dir is None and _DEBIAN_FASHION_MNIST.is_dir():
        return _DEBIAN_FASHION_MNIST
    return data_dir


@dataclass(frozen=True)
class Settings(Training):
    """Checked options of one comparison.

    Attributes:
        train_size: images that remain of the training split, the same share of each class; None means all.
        batch_sizes: integers and possibly `FULL`; empty means that they are derived from the size of the training
            split (see `resolve_batch_sizes`).
        learning_rates: for each optimizer that is compared its grid, ascending.
        seeds: the number of final runs of each cell.
        tuning_seeds: the number of runs, with other seeds, of each learning rate.
        halving: give each further tuning seed only to the better half of the learning rates.
    """

    data: str
    data_dir: Path | None
    batch_sizes: tuple[int | str, ...]
    learning_rates: dict[str, tuple[float, ...]]
    epochs: int
    seeds: int
    momentum: float
    weight_decay: float
    threshold: float
    eps: float
    device: str
    out: Path
    shard: str = UNSHARDED
    train_size: int | None = None
    tuning_seeds: int = 2
    halving: bool = False

    def __post_init__(self) -> None:
        """Check every number and the data set's name."""
        known = f"`{DIGITS}`, `{FASHION_MNIST}` or the path of an .npz file"
        if self.data not in (DIGITS, FASHION_MNIST) and not self.data.endswith(".npz"):
            raise CommandError(f"`--data` is `{self.data}`, which is unknown: give {known}.")
        if self.data == FASHION_MNIST and self.folder is None:
            raise CommandError(
                "`--data fashion-mnist` needs `--data-dir DIR`, the folder of its four IDX files "
                "(https://github.com/zalandoresearch/fashion-mnist has them, and Debian's dataset-fashion-mnist)."
            )
        if self.data != FASHION_MNIST and self.data_dir is not None:
            raise CommandError(f"`--data-dir` belongs to `--data {FASHION_MNIST}` only: leave it out.")
        counts = {"--epochs": self.epochs, "--seeds": self.seeds, "--tuning-seeds": self.tuning_seeds}
        for name, value in counts.items():
            if value < 1:
                raise CommandError(f"`{name}` must be at least 1, got {value}: give a positive whole number.")
        for name, number in (("--weight-decay", self.weight_decay), ("--eps", self.eps)):
            if not (number <= FLOAT32 and number >= 0):
                raise CommandError(
                    f"`{name}` must be >= 0 and finite in float32, got {number:g}: give 0 to switch it off."
                )
        if not self.threshold >= 0:
            raise CommandError(f"`--threshold` must be >= 0, got {self.threshold:g}: 0 adapts every layer.")
        if not 0 <= self.momentum < 1:
            raise CommandError(f"`--momentum` must be in [0, 1), got {self.momentum:g}: 0.9 is usual.")
        if NESTEROV in self.learning_rates and self.momentum == 0:
            raise CommandError("`--momentum` must be above 0 for Nesterov SGD: raise it, or give `--baseline sgd`.")
        if self.shard not in (UNSHARDED, FSDP2):
            raise CommandError(f"`--shard` is `{self.shard}`, which is unknown: give `{FSDP2}` or `{UNSHARDED}`.")
        if self.shard == FSDP2 and not launched():
            raise CommandError(
                f"`--shard {FSDP2}` divides the parameters among processes, and this is one alone: "
                f"start them with `torchrun --nproc-per-node 4 -m gradient_lars compare --shard {FSDP2}`, "
                "or leave `--shard` out."
            )
        if self.compiled and launched():
            raise CommandError("`--compile` is for one process: leave it out under torchrun.")
        if self.halving and self.tuning_seeds < 2:
            raise CommandError("`--halving` gives the better half another seed: give `--tuning-seeds` 2 or more.")
        for field, rule, remedy in self.broken_rules(world_size()):
            option, value = f"--{field.replace('_', '-')}", getattr(self, field)
            raise CommandError(f"`{option}` must be {rule}, got {_shown(value)}: {remedy}.")

    @property
    def folder(self) -> Path | None:
        """Return the folder of the IDX files: what was given, or where Debian has them."""
        return folder_of(self.data, self.data_dir)


def parse_batch_sizes(text: str | None) -> tuple[int | str, ...]:
    """Read ``32,128,full``; None gives the empty tuple.

    Raises:
        CommandError: an item is neither a whole number >= 2 nor ``full``, or there is none.
    """
    if text is None:
        return ()
    remedy = "give whole numbers >= 2, or `full` for the whole training split, such as 32,128,full"
    sizes: list[int | str] = []
    for item in _items(text, "--batch-sizes", remedy):
        if item == FULL:
            sizes.append(FULL)
        elif item.isdecimal() and int(item) >= 2:  # batch normalisation needs two samples
            sizes.append(int(item))
        else:
            raise CommandError(f"`--batch-sizes` has the item `{item}`: {remedy}.")
    return tuple(sizes)


def resolve_batch_sizes(sizes: Sequence[int | str], n_train: int, world_size: int = 1) -> tuple[int, ...]:
    """Return ascending, distinct batch sizes for a training split of `n_train` images.

    Without `sizes` they are the whole split and the powers of two at or below its half, quarter and sixteenth, of
    which those that do not give each of `world_size` processes an image are left out.

    Raises:
        CommandError: a batch is larger than the split, or has fewer images than there are processes.
    """
    if not sizes:
        powers = [2 ** int(math.log2(n_train / part)) for part in (2, 4, 16) if n_train / part >= 2]
        sizes = [*(power for power in powers if power >= world_size), n_train]
    resolved = sorted({n_train if size == FULL else int(size) for size in sizes})
    if resolved[-1] > n_train:
        raise CommandError(
            f"`--batch-sizes` asks for {resolved[-1]}, but the training split has {n_train} images: "
            "give a smaller one, or `full` for all of them."
        )
    if resolved[0] < world_size:
        raise CommandError(
            f"`--batch-sizes`: a batch of {resolved[0]} has no image for some of the {world_size} processes: "
            "give a larger one, or start fewer processes."
        )
    return tuple(resolved)


def n_steps(n_train: int, batch_size: int, epochs: int) -> int:
    """Return the number of optimizer steps; images that do not fill the last batch of an epoch are left out of it."""
    return epochs * (n_train // batch_size)


def compared(baseline: str) -> tuple[str, ...]:
    """Return the optimizers of a comparison with `baseline`, in the order of `OPTIMIZERS`.

    Raises:
        CommandError: there is no such baseline.
    """
    if baseline not in _BASELINES:
        known = ", ".join(f"`{name}`" for name in _BASELINES)
        raise CommandError(f"`--baseline` is `{baseline}`, which is unknown: give one of {known}.")
    return (*_BASELINES[baseline], LARS)


def parse_learning_rates(texts: Sequence[str], optimizers: Sequence[str] = (SGD, LARS)) -> dict[str, tuple[float, ...]]:
    """Read ``0.1,0.3`` (all of `optimizers`) and ``sgd:0.1,0.3`` (one); what is not given is the default.

    Raises:
        CommandError: not positive numbers, the same optimizer twice, or grids of different lengths.
    """
    remedy = "give positive numbers, such as 0.1,0.3 or sgd:0.1,0.3 or lars:0.01,0.03"
    given: dict[str, tuple[float, ...]] = {}
    for text in texts:
        prefix, colon, values = text.rpartition(":")
        names = (prefix.strip().lower(),) if colon else optimizers
        if names[0] not in optimizers:
            known = ", ".join(f"`{name}`" for name in optimizers[:-1])
            raise CommandError(
                f"`--learning-rates` names `{prefix}`: the optimizers are {known} and `{optimizers[-1]}`."
            )
        grid = tuple(sorted(_positive(item, remedy) for item in _items(values, "--learning-rates", remedy)))
        if len(set(grid)) < len(grid):
            raise CommandError(f"`--learning-rates {text}` has a value twice: give each one once.")
        for name in names:
            if name in given:
                raise CommandError(f"`--learning-rates` gives the rates of `{name}` twice: give them once.")
            given[name] = grid
    grids = {name: given.get(name, DEFAULT_LEARNING_RATES[name]) for name in optimizers}
    if len({len(grid) for grid in grids.values()}) > 1:
        counts = " and ".join(
            f"{len(grid)} {'rates ' if name == optimizers[0] else ''}to {name}" for name, grid in grids.items()
        )
        raise CommandError(
            f"`--learning-rates` gives {counts}: give all the same number, so that they are tuned equally."
        )
    return grids


def _items(text: str, option: str, remedy: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise CommandError(f"`{option}` is an empty list: {remedy}.")
    return items


def _positive(item: str, remedy: str) -> float:
    try:
        value = float(item)
    except ValueError:
        value = math.nan
    if not 0 < value <= FLOAT32:
        raise CommandError(f"`--learning-rates` has the item `{item}`: {remedy}.")
    return value


def _shown(value: object) -> str:
    return f"`{value}`" if isinstance(value, str) else str(value)
