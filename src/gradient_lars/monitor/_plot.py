"""``plot_rates``: a heat map of layers and steps, and a curve for each layer."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradient_lars.monitor._monitor import Monitor
from gradient_lars.monitor._records import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "rate": "rate",
    "p_norm": "norm of the weights",
    "g_norm": "norm of the gradient",
    "update": "length of the step / norm of the weights",
}
KINDS = ("both", "map", "curves")
_INK = {False: ("#1f2328", "#ffffff", "#c8cdd3"), True: ("#e6e9ee", "#16191f", "#3b414b")}
# More names than these are not legible in a plot of this size: every second, third, ... is left out.
_NAMES, _LONGEST = 40, 32
_LEGEND = 12
_MARKERS_UP_TO = 40


def plot_rates(source: Records | Monitor, column: str = "rate", *, kind: str = "both", dark: bool = False) -> "Figure":
    """Draw a column of the records: a heat map of layers and steps, and a curve for each layer; both logarithmic.

    Args:
        source: a monitor, or records.
        column: 'rate', 'p_norm', 'g_norm' or 'update'.
        kind: 'map', 'curves' or 'both', one above the other.
        dark: light ink on a dark ground.

    Returns:
        A ``matplotlib.figure.Figure``; ``figure.savefig(path)`` saves it. What is zero or not finite is left blank.

    Raises:
        ValueError: `column` or `kind` is none of these, or there is nothing to draw.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if column not in LABELS:
        raise ValueError(f"`column` must be one of {', '.join(map(repr, LABELS))}, got {column!r}.")
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(map(repr, KINDS))}, got {kind!r}.")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`plot_rates` needs matplotlib, not installed here. Install it with `pip install matplotlib`.",
            name=error.name,
        ) from None
    records = source.records() if isinstance(source, Monitor) else source
    layers, steps = records.layers, records.steps
    values = records.matrix(column).tolist()
    if not any(_drawable(value) for line in values for value in line):
        raise ValueError(f"`source` has no `{column}` above 0 to draw. Record a step with gradients first.")
    map_height = min(9.0, 1.3 + 0.19 * max(5, min(len(layers), _NAMES)))
    heights = {"both": [map_height, 3.6], "map": [map_height], "curves": [4.0]}[kind]
    with matplotlib.rc_context(_colors(dark)):
        canvas = Figure(figsize=(9.0, sum(heights)), layout="constrained")
        panels = canvas.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        if kind != "curves":
            _draw_map(panels[0], layers, steps, values, column)
        if kind != "map":
            _draw_curves(panels[-1], layers, steps, values, column, dark=dark)
    return canvas


def _colors(dark: bool) -> Any:
    ink, ground, faint = _INK[dark]
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")
    grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return {**dict.fromkeys(inked, ink), **dict.fromkeys(grounds, ground), "grid.color": faint, "font.size": 9.0}


def _draw_map(
    axes: "Axes", layers: Sequence[str], steps: Sequence[int], values: list[list[float]], column: str
) -> None:
    from matplotlib.colors import LogNorm

    shown = [[value if _drawable(value) else math.nan for value in line] for line in values]
    ordered = sorted(value for line in shown for value in line if not math.isnan(value))
    # One layer that explodes should not take all colours from the others.
    low, high = ordered[len(ordered) // 200], ordered[-1 - len(ordered) // 200]
    low, high = (low, high) if low < high else (low / 2, high * 2)
    mesh = axes.pcolormesh(
        _edges(steps), range(len(layers) + 1), shown, norm=LogNorm(low, high), cmap="viridis", rasterized=True
    )
    axes.invert_yaxis()
    every = math.ceil(len(layers) / _NAMES)
    places = range(0, len(layers), every)
    axes.set_yticks([place + 0.5 for place in places], [_short(layers[place]) for place in places], fontsize=7.5)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    _label_steps(axes)
    axes.set_title(f"{_capital(LABELS[column])} of each layer", fontsize=10.5, loc="left")
    beside = axes.inset_axes((1.012, 0.0, 0.016, 1.0))
    bar = axes.figure.colorbar(mesh, cax=beside, extend="both" if len(ordered) >= 200 else "neither")
    bar.outline.set_visible(False)


def _draw_curves(
    axes: "Axes", layers: Sequence[str], steps: Sequence[int], values: list[list[float]], column: str, *, dark: bool
) -> None:
    from matplotlib import colormaps

    # The ends of the map are too dark on a dark ground.
    first, last = (0.2, 0.82) if dark else (0.08, 0.92)
    colors = colormaps["turbo"]
    few = len(layers) <= _LEGEND
    for i, (layer, line) in enumerate(zip(layers, values, strict=True)):
        axes.plot(
            steps,
            [value if _drawable(value) else math.nan for value in line],
            color=colors(first + (last - first) * i / max(1, len(layers) - 1)),
            linewidth=1.5 if few else 0.8,
            alpha=1.0 if few else 0.75,
            marker="." if len(steps) <= _MARKERS_UP_TO else None,
            markersize=5 if few else 3,
            label=_short(layer),
        )
    axes.set_yscale("log")
    axes.set_xlim(_edges(steps)[0], _edges(steps)[-1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.6, linewidth=0.6)
    _label_steps(axes)
    axes.set_ylabel(LABELS[column])
    if few:
        legend = axes.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        axes.set_title("One curve a layer: the first blue, the last red", fontsize=9, loc="left")


def _label_steps(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")


def _edges(steps: Sequence[int]) -> list[float]:
    """Return where the columns of the map begin and end: half-way between steps."""
    between = [(before + after) / 2 for before, after in itertools.pairwise(steps)]
    first = between[0] - steps[0] if between else 0.5
    last = steps[-1] - between[-1] if between else 0.5
    return [steps[0] - first, *between, steps[-1] + last]


def _drawable(value: float) -> bool:
    return 0 < value < math.inf


def _short(name: str) -> str:
    """Return a name that fits beside the plot: of a long one its end, which tells layers apart."""
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
