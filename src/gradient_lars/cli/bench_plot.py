"""The plot of ``gradient-lars bench``, made from its results file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradient_lars.cli.bench_implementations import YARDSTICK
from gradient_lars.cli.bench_results import Row
from gradient_lars.cli.bench_table import Line, figure, lines_of, setting_of, title_of
from gradient_lars.cli.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OWN, TORCH, PEER = "#00798c", "#4a4e69", "#d1a15b"
FLOOR = "#d1495b"


def save_bench_plot(path: Path, runs: Sequence[Sequence[Row]]) -> None:
    """Draw one panel a run, with a bar an implementation, and save them in one piece."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    sizes = [len(lines_of(run)) for run in runs]
    heights = [0.9 + 0.27 * size for size in sizes]
    canvas = Figure(figsize=(9.2, 0.75 + sum(heights)), layout="constrained")
    panels = canvas.subplots(len(runs), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, run in zip(panels, runs, strict=True):
        _draw(axes, run)
    handles = [
        Patch(color=OWN, label="gradient-lars"),
        Patch(color=TORCH, label="PyTorch's SGD, no LARS"),
        Patch(color=PEER, label="other LARS"),
        Line2D([], [], color=FLOOR, linestyle="--", linewidth=1.1, label="floor: a copy of as many bytes"),
    ]
    canvas.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=150)


def _draw(axes: "Axes", run: Sequence[Row]) -> None:
    lines = lines_of(run)[::-1]
    for position, line in enumerate(lines):
        row = line.rows["eager"]
        error = [[row.p50 - row.p20], [row.p80 - row.p50]]
        axes.barh(position, row.p50, xerr=error, color=_color(line), height=0.66, error_kw={"lw": 0.9, "alpha": 0.6})
        if "graph" in line.rows:
            axes.plot(line.rows["graph"].p50, position, "|", color="black", markersize=11, markeredgewidth=1.8)
    right = max(line.rows["eager"].p80 for line in lines)
    for position, line in enumerate(lines):
        row = line.rows["eager"]
        ratio = "" if row.ratio_to_fused_sgd is None else f"   {row.ratio_to_fused_sgd:.2f} x"
        axes.text(row.p80 + 0.01 * right, position, f"{figure(row.p50)} ms{ratio}", va="center", fontsize=8)
    _draw_floor(axes, lines)
    axes.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=8.5)
    axes.set_xlim(0, 1.2 * right)
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.set_title(f"{title_of(run)}\n{setting_of(run)}", fontsize=9, loc="left")
    graphs = "; stroke: as a CUDA graph" if any("graph" in line.rows for line in lines) else ""
    axes.set_xlabel(f"ms a step, with p20 and p80; x: ratio to PyTorch's fused SGD{graphs}", fontsize=8.5)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_floor(axes: "Axes", lines: Sequence[Line]) -> None:
    """Mark the time in which the copy's bandwidth moves the bytes of an SGD step."""
    row = next((line.rows["eager"] for line in lines if line.to_floor("eager")), None)
    if row is None or row.ratio_to_floor is None:
        return
    floor = row.p50 / row.ratio_to_floor
    axes.axvline(floor, color=FLOOR, linewidth=1.1, linestyle="--", zorder=3)


def _color(line: Line) -> str:
    if line.name.startswith(("lars", "hook")):
        return OWN
    return TORCH if line.name.startswith(YARDSTICK.partition("-")[0]) else PEER
