"""The options of ``gradient-lars bench``, checked before anything is measured."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradient_lars.cli.bench_implementations import YARDSTICK, implementations
from gradient_lars.cli.bench_results import check_file, read_rows
from gradient_lars.cli.bench_workloads import WORKLOADS
from gradient_lars.cli.errors import CommandError

DTYPES = ("float32", "float64", "float16", "bfloat16")
DEFAULT_OUT = Path("gradient-lars-bench.csv")
# What a processor steps in a minute; and all that a GPU should be judged by.
DEFAULT_WORKLOADS = {
    "cpu": ("resnet50", "efficientnet-b0"),
    "cuda": ("resnet50", "efficientnet-b0", "vit-l-16", "gpt-1b"),
}


@dataclass(frozen=True)
class BenchSettings:
    """Checked options.

    Attributes:
        workloads: names; empty means those of the device.
        implementations: names, with `YARDSTICK` always among them.
        rounds: most rounds of each workload.
        seconds: a workload begins no round after this time.
        plot: where to draw the results, or None.
    """

    workloads: tuple[str, ...]
    implementations: tuple[str, ...]
    device: str
    dtype: str
    rounds: int
    seconds: float
    out: Path
    plot: Path | None

    def __post_init__(self) -> None:
        """Check everything that needs no framework."""
        if self.dtype not in DTYPES:
            raise CommandError(f"`--dtype` is `{self.dtype}`, which is unknown: give {_either(DTYPES)}.")
        if self.rounds < 1:
            raise CommandError(f"`--rounds` must be at least 1, got {self.rounds}: give a positive whole number.")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise CommandError(f"`--seconds` must be > 0 and finite, got {self.seconds:g}: give a positive number.")
        check_file(self.out, "--out")
        if self.out.exists() and self.out.stat().st_size:
            read_rows(self.out)
        if self.plot is not None:
            check_file(self.plot, "--plot")


def parse_workloads(text: str | None) -> tuple[str, ...]:
    """Read ``resnet50,gpt2``; None gives the empty tuple.

    Raises:
        CommandError: a name is unknown, or there is none.
    """
    return () if text is None else _names(text, "--workloads", tuple(WORKLOADS))


def parse_implementations(text: str | None) -> tuple[str, ...]:
    """Read ``lars,sgd-fused``; None gives all. Always with PyTorch's fused SGD, which ratios are taken to.

    Raises:
        CommandError: a name is unknown, or there is none.
    """
    known = tuple(implementations())
    chosen = known if text is None else _names(text, "--implementations", known)
    return chosen if YARDSTICK in chosen else (*chosen, YARDSTICK)


def _names(text: str, option: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))
    if not names:
        raise CommandError(f"`{option}` is an empty list: give some of {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise CommandError(
                f"`{option}` has the item `{name}`, which is unknown: the known ones are {', '.join(known)}."
            )
    return names


def _either(names: Iterable[str]) -> str:
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} or {last}"
