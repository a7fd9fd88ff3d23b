"""What can be wrong with a training by LARS, and how each fault shows in the records."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gradient_lars.monitor._records import NO_GRADIENT, Record

# A layer below the threshold, or without norms, in so great a share of its records is worth a word.
MOSTLY = 0.5
# A rate at a bound in so great a share is the bound's rate, and not the layer's.
STUCK = 0.9
# What published recipes reach at the peak of their schedule, as `lr` times the trust coefficient: 0.0016 (Barlow
# Twins) to 0.03 (ResNet-50 at a batch of 32768). An order of magnitude below or above is worth a word.
RECIPES = (1e-3, 4e-2)
OFF = 10.0
# Gradients that overflow in so few records, and leave the weights finite, are how GradScaler finds its scale.
OVERFLOWS = 0.05
# A layer whose norm keeps its last bit in so many records, though its steps add up to so much, does not move.
STILL_RECORDS, STILL_PATH = 10, 0.01
_SHOWN = 4

Rows = Sequence[Record]


class Finding(NamedTuple):
    """Something wrong.

    Attributes:
        kind: 'threshold', 'bound', 'zero_norm', 'not_finite', 'never_moves', 'lr' or 'no_decay'.
        layers: names of the layers that have it.
        text: the layers, the figure and the remedy, in words.
    """

    kind: str
    layers: tuple[str, ...]
    text: str


def find(by_layer: dict[str, Rows]) -> list[Finding]:
    """Return all findings, those first that explain others."""
    real = {layer: [row for row in rows if row.held_by != NO_GRADIENT] for layer, rows in by_layer.items()}
    absent = [layer for layer, rows in real.items() if not rows]
    real = {layer: rows for layer, rows in real.items() if rows}
    checks: list[Callable[[dict[str, Rows]], Iterable[Finding]]] = [
        _not_finite, _no_decay, _zero_norms, _below_threshold, _at_bounds, _still, _off_recipe,
    ]  # fmt: skip
    found = [finding for check in checks for finding in check(real)]  # type: ignore[arg-type]
    return [*found, *_without_gradient(absent)]


def _not_finite(by_layer: dict[str, Rows]) -> Iterable[Finding]:
    bad = {layer: [row for row in rows if not _finite(row)] for layer, rows in by_layer.items()}
    bad = {layer: rows for layer, rows in bad.items() if rows and not _left_out(rows, by_layer[layer])}
    if not bad:
        return
    first = min((row for rows in bad.values() for row in rows), key=lambda row: row.step)
    name, value = next(
        (name, getattr(first, name)) for name in ("p_norm", "g_norm", "rate") if not math.isfinite(getattr(first, name))
    )
    what = f"the norm of the {'weights' if name == 'p_norm' else 'gradient'}" if name != "rate" else "the rate"
    share = _share(len(max(bad.values(), key=len)), max(map(len, by_layer.values())))
    yield _finding(
        "not_finite",
        bad,
        f"{what} is {value} first in step {first.step} ({first.layer}), and not finite in {share}",
        "Train under GradScaler in float16, lower `lr` or warm it up for longer; LARS(skip_nonfinite=True) leaves such "
        "steps out",
    )


def _left_out(bad: Rows, rows: Rows) -> bool:
    """Say whether the `bad` ones of `rows` are but a few steps that changed nothing, as the weights show after."""
    harmless = all(math.isfinite(row.p_norm) for row in bad) and bad[-1] is not rows[-1]
    return harmless and len(bad) <= OVERFLOWS * len(rows)


def _no_decay(by_layer: dict[str, Rows]) -> Iterable[Finding]:
    held = {layer: rows for layer, rows in by_layer.items() if _count(rows, "no_decay") > MOSTLY * len(rows)}
    # Where other layers are adapted, these have been left out on purpose.
    if held and not any(row.adapted for rows in by_layer.values() for row in rows):
        share = _share(*_most(held, "no_decay"))
        yield _finding(
            "no_decay",
            held,
            f"`weight_decay` is 0 and `adapt_without_decay` False: no layer is adapted, and the rate is 1 in {share}; "
            "this is plain SGD",
            "Give a `weight_decay` above 0, or `adapt_without_decay=True`",
        )


def _zero_norms(by_layer: dict[str, Rows]) -> Iterable[Finding]:
    for column, what, remedy in (
        ("p_norm", "weights", "Initialise them, or see that `threshold` leaves them at rate 1, so that they can start"),
        ("g_norm", "gradient", "See that the loss depends on them (dead units, a detached part), or freeze them"),
    ):
        zero = {layer: [row for row in rows if getattr(row, column) == 0] for layer, rows in by_layer.items()}
        found = {layer: rows for layer, rows in zero.items() if len(rows) > MOSTLY * len(by_layer[layer])}
        if found:
            layer = max(found, key=lambda name: len(found[name]))
            share = _share(len(found[layer]), len(by_layer[layer]))
            yield _finding("zero_norm", found, f"the norm of the {what} is 0 in {share}", remedy)


def _below_threshold(by_layer: dict[str, Rows]) -> Iterable[Finding]:
    below = {
        layer: [row for row in rows if row.held_by == "threshold" and row.p_norm] for layer, rows in by_layer.items()
    }
    found = {layer: rows for layer, rows in below.items() if len(rows) > MOSTLY * len(by_layer[layer])}
    if found:
        layer = max(found, key=lambda name: len(found[name]))
        last = found[layer][-1]
        share = _share(len(found[layer]), len(by_layer[layer]))
        yield _finding(
            "threshold",
            found,
            f"the weight norm ({last.p_norm:.3g} in {layer}) is not above the threshold {last.threshold:g} in {share}, "
            "so that the rate is 1: the step of SGD",
            "Lower `threshold`; or, if that is meant, say so by `adapt=False` (LARS) or `params` (add_hook)",
        )


_BOUNDS = {
    "min_rate": "Lower `min_rate`, or the norms have no say; lower `lr` if the steps should be smaller",
    "max_rate": "Raise `max_rate`, or the norms have no say; raise `lr` if the steps should be larger",
    "trust_clip": "Raise `lr` above the trust ratios, or lower `trust_coefficient`; clipped, the layer's step is SGD's",
}


def _at_bounds(by_layer: dict[str, Rows]) -> Iterable[Finding]:
    for bound, remedy in _BOUNDS.items():
        found = {layer: rows for layer, rows in by_layer.items() if _count(rows, bound) >= STUCK * len(rows)}
        if found:
            rate = next(row.rate for row in reversed(next(iter(found.values()))) if row.held_by == bound)
            share = _share(*_most(found, bound))
            yield _finding("bound", found, f"the rate is held at {rate:.3g} by `{bound}` in {share}", remedy)


def _still(by_layer: dict[str, Rows]) -> Iterable[Finding]:
    no_lr, no_rate, no_bits = {}, {}, {}
    for layer, rows in by_layer.items():
        if all(row.lr == 0 for row in rows):
            no_lr[layer] = rows
        elif all(row.rate == 0 for row in rows) and any(row.g_norm for row in rows):
            no_rate[layer] = rows
        elif len(rows) >= STILL_RECORDS and len({row.p_norm for row in rows}) == 1 and _path(rows) >= STILL_PATH:
            no_bits[layer] = rows
    if no_lr:
        yield _finding("never_moves", no_lr, f"`lr` is 0 in {_all(no_lr)}", "Raise `lr` in this group")
    if no_rate:
        yield _finding(
            "never_moves",
            no_rate,
            f"the rate is 0 in {_all(no_rate)}, so that the layer stays where it is",
            "Look for gradients without bound in it; `min_rate` gives it a start",
        )
    if no_bits:
        layer = max(no_bits, key=lambda name: _path(no_bits[name]))
        yield _finding(
            "never_moves",
            no_bits,
            f"the weight norm of {layer} is {no_bits[layer][0].p_norm:.6g} to the last bit in {_all(no_bits)}, though "
            f"its steps add up to {_path(no_bits[layer]):.2g} of it",
            "Steps are lost in the rounding of the weights (LARS(master_weights=True) keeps them), or something writes "
            "the old weights back",
        )


def _off_recipe(by_layer: dict[str, Rows]) -> Iterable[Finding]:
    peaks = {}
    for layer, rows in by_layer.items():
        steps = [row.update for row in rows if row.adapted and not row.held_by and math.isfinite(row.update)]
        if steps and max(steps) > 0:
            peaks[layer] = max(steps)
    for far, worst, word in (
        ({name: peak for name, peak in peaks.items() if peak < RECIPES[0] / OFF}, min, "Raise"),
        ({name: peak for name, peak in peaks.items() if peak > RECIPES[1] * OFF}, max, "Lower"),
    ):
        if far:
            layer = worst(far, key=lambda name: far[name])
            lr = max(row.lr for row in by_layer[layer])
            aim = lr * math.sqrt(RECIPES[0] * RECIPES[1]) / far[layer]
            yield _finding(
                "lr",
                far,
                f"a step moves {layer} by {far[layer]:.2g} of its norm at most, before momentum, at `lr` {lr:.3g}; "
                f"recipes reach {RECIPES[0]:g} to {RECIPES[1]:g}",
                f"{word} `lr`, to about {aim:.1g}, or `trust_coefficient`",
            )


def _without_gradient(layers: Sequence[str]) -> Iterable[Finding]:
    if layers:
        yield _finding(
            "never_moves",
            layers,
            "there was no gradient in any record, 0 steps taken",
            "See that the loss depends on them, or leave them out of the optimizer",
        )


def _finite(row: Record) -> bool:
    return math.isfinite(row.p_norm) and math.isfinite(row.g_norm) and math.isfinite(row.rate)


def _count(rows: Rows, held_by: str) -> int:
    return sum(row.held_by == held_by for row in rows)


def _most(found: dict[str, Rows], held_by: str) -> tuple[int, int]:
    return max((_count(rows, held_by), len(rows)) for rows in found.values())


def _share(count: int, of: int) -> str:
    return f"{count} of {of} record{'s' if of > 1 else ''}"


def _all(found: dict[str, Rows]) -> str:
    records = max(map(len, found.values()))
    return _share(records, records)


def _path(rows: Rows) -> float:
    """Return how far the steps between the first and the last record go, relative to the weights."""
    gaps = [(row.update, after.step - row.step) for row, after in itertools.pairwise(rows)]
    return sum(update * gap for update, gap in gaps if math.isfinite(update))


def _finding(kind: str, layers: Iterable[str], figure: str, remedy: str) -> Finding:
    names = tuple(layers)
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return Finding(kind, names, f"{shown}: {figure}. {remedy}.")
