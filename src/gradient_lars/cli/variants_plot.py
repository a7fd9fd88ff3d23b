"""The plot of ``gradient-lars variants``: the step of each variant as one figure of a layer varies."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.files import atomic, check_writable, write_errors
from gradient_lars.cli.variants_steps import BIAS, MATRIX, USUAL, VARIED, grouped, least
from gradient_lars.presets import Preset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
_LABELS = {"weight_decay": "weight decay", "g_norm": "gradient norm ||g||", "p_norm": "weight norm ||p||"}
_SYMBOLS = {"weight_decay": "weight decay", "g_norm": "||g||", "p_norm": "||p||"}
_COLORS = ("#00798c", "#d1495b", "#edae49", "#4a4e69", "#66a182", "#a05ab5", "#111111", "#c17c53", "#8aa61b", "#4f9bd9")


def check_plot(path: Path) -> None:
    """Raise `CommandError` if no plot can be written to `path`."""
    if path.is_dir():
        raise CommandError(f"`--out`: {path} is a folder: name a file.")
    if path.suffix.lower() not in FORMATS:
        raise CommandError(f"`--out`: {path} must end in {' or '.join(FORMATS)}: name such a file.")
    check_writable(path.parent)


def save_variants_plot(path: Path, shown: Sequence[Preset], *, bias: bool, lr: float) -> None:
    """Draw one panel for each figure that varies, with one line for all variants that coincide, and save them."""
    import matplotlib
    from matplotlib.figure import Figure

    shape = BIAS if bias else MATRIX
    lines = list(grouped(shown, shape, lr))
    bottom = least([steps for _, steps in lines])
    labels = [textwrap.fill(names, 62, subsequent_indent="  ", break_on_hyphens=False) for names, _ in lines]
    rows = -(-len(labels) // 2) + sum(label.count("\n") for label in labels) / 2
    figure = Figure(figsize=(12.0, 4.6 + 0.2 * rows), layout="constrained")
    panels = figure.subplots(1, len(VARIED), sharey=True)
    for axes, varied in zip(panels, VARIED, strict=True):
        for number, (label, (_, steps)) in enumerate(zip(labels, lines, strict=True)):
            place = number / max(1, len(lines) - 1)
            _draw(axes, varied, steps[varied], place, color=_COLORS[number % len(_COLORS)], label=label)
        _style(axes, varied, bottom)
    top = max(float(values.max()) for _, steps in lines for values in steps.values())
    panels[0].set_ylim(0, 2 * max(top, bottom))
    panels[0].set_ylabel("step of the layer, ||dp|| / ||p||")
    what = f"A bias of {shape[0]}" if bias else f"A weight matrix of {' x '.join(map(str, shape))}"
    usual = ", ".join(f"{_SYMBOLS[name]} = {value:g}" for name, value in USUAL.items())
    figure.suptitle(f"{what}: the first step at lr = {lr:g}. Unless it varies: {usual}", fontsize=11)
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    with write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the date and random names, the same plot is the same file.
        with atomic(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "gradient-lars"}):
            form = path.suffix[1:].lower()
            figure.savefig(temporary, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)


def _draw(axes: "Axes", varied: str, steps: np.ndarray, place: float, *, color: str, label: str) -> None:
    """Draw a line, and its value at 0 as a point, for there it may jump; `place` from 0 to 1 is among the lines."""
    values = np.array(VARIED[varied])
    positive = values > 0
    # Thinner over thicker, so that lines which coincide here and part elsewhere can all be seen.
    axes.plot(values[positive], steps[positive], color=color, lw=5.4 - 4 * place, label=label, solid_capstyle="butt")
    if not positive[0]:
        beside = 10 ** (0.9 * (place - 0.5))
        axes.plot(_place_of_zero(varied) * beside, steps[0], "o", color=color, ms=5.5, clip_on=False)


def _place_of_zero(varied: str) -> float:
    """Return where 0 is on a logarithmic axis: a decade to the left."""
    return min(value for value in VARIED[varied] if value > 0) / 10


def _style(axes: "Axes", varied: str, bottom: float) -> None:
    # Linear between 0 and the least power of ten, so that 0 has a place.
    axes.set_yscale("symlog", linthresh=bottom, linscale=0.4)
    axes.set_xscale("log")
    axes.margins(x=0.02)
    low, high = (round(np.log10(VARIED[varied][end])) for end in (1 if VARIED[varied][0] == 0 else 0, -1))
    ticks = {10.0**power: f"$10^{{{power}}}$" for power in range(low, high + 1, 2)}
    if VARIED[varied][0] == 0:
        ticks[_place_of_zero(varied)] = "0"
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.axvline(USUAL[varied], color="black", lw=0.7, ls=":", alpha=0.5)
    axes.set_xlabel(_LABELS[varied])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.minorticks_off()
