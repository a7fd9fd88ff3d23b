"""The plot of a comparison: accuracy against batch size, and the rate of each layer over the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradient_lars.cli.files import atomic
from gradient_lars.cli.records import Experiment, RateSample
from gradient_lars.cli.settings import LARS, NESTEROV, SGD
from gradient_lars.cli.summary import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {
    SGD: ("SGD", "#d1495b", "o"),
    NESTEROV: ("Nesterov SGD", "#b8860b", "^"),
    LARS: ("SGD + GradientLARS", "#00798c", "s"),
}


def save_plot(path: Path, experiment: Experiment, cells: Sequence[Cell], samples: Sequence[RateSample]) -> None:
    """Draw and save the plot in one piece; without `samples` the second panel is left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 4.8) if samples else (6.2, 4.8), layout="constrained")
    panels = figure.subplots(1, 2 if samples else 1, squeeze=False)[0]
    _draw_accuracies(panels[0], experiment, cells)
    if samples:
        _draw_rates(panels[1], experiment, samples)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_accuracies(axes: "Axes", experiment: Experiment, cells: Sequence[Cell]) -> None:
    middle = (len(experiment.optimizers) - 1) / 2
    for index, optimizer in enumerate(experiment.optimizers):
        label, color, marker = _STYLES[optimizer]
        own = [cell for cell in cells if cell.optimizer == optimizer]
        # Moved apart a little, so that the error bars of equal accuracies can be told from each other.
        x = [cell.batch_size * (1 + 0.06 * (index - middle)) for cell in own]
        mean = [100 * cell.mean for cell in own]
        spread = [100 * cell.deviation for cell in own]
        axes.errorbar(x, mean, spread, color=color, marker=marker, markersize=6, capsize=3, label=label, zorder=3)
        for position, cell in zip(x, own, strict=True):
            points = [100 * accuracy for accuracy in cell.accuracies]
            axes.scatter([position] * len(points), points, s=10, color=color, alpha=0.45, linewidths=0)
    sizes = list(experiment.batch_sizes)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size}\n(all)" if size == experiment.n_train else str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("batch size")
    axes.set_ylabel("test accuracy (%)")
    seeds = f"{experiment.seeds} seeds" if experiment.seeds > 1 else "one seed"
    epochs = f"{experiment.epochs} epochs" if experiment.epochs > 1 else "one epoch"
    # No mathematics in it: a file may well be called `a$b$.npz`.
    axes.set_title(f"{experiment.data}, {epochs}, {seeds}", fontsize=11, parse_math=False)
    axes.legend(frameon=False, loc="best")


def _draw_rates(axes: "Axes", experiment: Experiment, samples: Sequence[RateSample]) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    layers = list(dict.fromkeys(sample.layer for sample in samples))
    modules = list(dict.fromkeys(layer.rpartition(".")[0] for layer in layers))
    for layer in layers:
        own = [sample for sample in samples if sample.layer == layer]
        module, _, kind = layer.rpartition(".")
        position = modules.index(module) / max(1, len(modules) - 1)
        axes.plot(
            [sample.step for sample in own],
            [sample.rate if sample.rate > 0 else float("nan") for sample in own],
            color=colormaps["viridis"](0.92 * position),
            linestyle=":" if kind == "bias" else "--" if module.startswith("norm") else "-",
            linewidth=1.6,
            marker="." if len(own) <= 50 else None,
            markersize=5,
            label=layer,
        )
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("rate = ||p|| / (||g|| + wd ||p||), or 1")
    axes.set_title(f"Rate of each layer, batch {max(experiment.batch_sizes)}, one seed", fontsize=11)
    legend = axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
