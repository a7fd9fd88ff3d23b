"""``Records``: what a monitor has recorded, or a CSV holds, one row for a layer and step."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gradient_lars.monitor import _csv, _sinks

if TYPE_CHECKING:
    from gradient_lars.monitor._summary import Summary

NAN = math.nan


class Record(NamedTuple):
    """One layer in one step.

    Attributes:
        step: number of the optimizer's step, the first is 0.
        layer: name of the parameter.
        p_norm: norm of the weights before the step.
        g_norm: norm of the raw gradient, without loss scale and before decay; with LARS's `norm_of`, the norm taken.
        rate: what LARS multiplied ``g + weight_decay * p`` by.
        adapted: whether the weight norm was above the threshold, in a layer that is to be adapted.
        update: how far the step moves the layer, relative to its weights and before momentum, at most:
            ``lr * rate * (g_norm + weight_decay * p_norm) / p_norm``. Without decay it is exactly that. Where `norm_of`
            is not 'gradient', `g_norm` holds the decay, and with 'update' the momentum as well: there it is
            ``lr * rate * g_norm / p_norm``, exactly.
        lr: learning rate of the layer's group in this step.
        weight_decay: the layer's decay in this step.
        threshold: of the layer's group.
        held_by: what sets the rate in place of the two norms: 'threshold' (the weight norm is not above it), 'adapt'
            (the layer is not to be adapted), 'no_decay' (`adapt_without_decay` is False and the decay 0), 'min_rate',
            'max_rate' or 'trust_clip'; '' if nothing does; 'no_gradient' in the one row of a layer that had none when
            recording began, whose figures are NaN.

    Figures that a file does not hold are NaN.
    """

    step: int
    layer: str
    p_norm: float
    g_norm: float
    rate: float
    adapted: bool
    update: float = NAN
    lr: float = NAN
    weight_decay: float = NAN
    threshold: float = NAN
    held_by: str = ""


COLUMNS = Record._fields
NO_GRADIENT = "no_gradient"


def relative_update(p_norm: float, g_norm: float, rate: float, lr: float, weight_decay: float) -> float:
    """Return ``lr * rate * (g_norm + weight_decay * p_norm) / p_norm``; of weights without length infinity, or 0."""
    length = lr * rate * (g_norm + weight_decay * p_norm)
    if p_norm == 0.0:
        return math.inf if length else 0.0
    return length / p_norm


class Records:
    """Rows in the order of their steps, and within a step in the optimizer's order.

    Example:
        A layer whose gradient is 100 times longer than its weights is slowed down 100 times:

        >>> import torch
        >>> from gradient_lars.monitor import Monitor
        >>> from gradient_lars.torch import LARS
        >>> layer = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = LARS([("layer", layer)], lr=0.1, trust_coefficient=1.0)
        >>> with Monitor(optimizer) as monitor:
        ...     layer.grad = torch.tensor([300.0, -400.0])
        ...     optimizer.step()
        >>> [f"{row.layer} {row.rate:.2f} {row.update:.2f}" for row in monitor.records()]
        ['layer 0.01 0.10']
    """

    def __init__(self, rows: Iterable[Record]) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"Records(rows={len(self)}, layers={len(self.layers)}, steps={len(self.steps)})"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the optimizer's order."""
        return tuple(dict.fromkeys(row.layer for row in self._rows))

    @property
    def steps(self) -> tuple[int, ...]:
        """The recorded steps, ascending."""
        return tuple(dict.fromkeys(row.step for row in self._rows))

    def by_layer(self) -> dict[str, list[Record]]:
        """Return the rows of each layer; the placeholder of a layer without gradient is among them."""
        found: dict[str, list[Record]] = {}
        for row in self._rows:
            found.setdefault(row.layer, []).append(row)
        return found

    def matrix(self, column: str = "rate") -> Tensor:
        """Return a column of numbers as float64, shape (layers, steps); NaN where a layer had no gradient.

        Raises:
            ValueError: there is no column of numbers of that name.
        """
        known = [name for name in COLUMNS if name not in ("step", "layer", "held_by")]
        if column not in known:
            raise ValueError(f"`column` must be one of {', '.join(map(repr, known))}, got {column!r}.")
        layers = {name: i for i, name in enumerate(self.layers)}
        steps = {step: i for i, step in enumerate(self.steps)}
        lines = [[NAN] * len(steps) for _ in layers]
        for row in self._rows:
            lines[layers[row.layer]][steps[row.step]] = float(getattr(row, column))
        return torch.tensor(lines, dtype=torch.float64).reshape(len(layers), len(steps))

    def since(self, step: int) -> "Records":
        """Return the rows of `step` and later ones."""
        return Records(row for row in self._rows if row.step >= step)

    def summary(self) -> "Summary":
        """Return one line a layer, and what is wrong with the training; see `Summary`."""
        from gradient_lars.monitor._summary import Summary

        return Summary(self)

    def to_csv(self, path: str | Path) -> None:
        """Write all rows to a CSV, which `read` reads; a file that is there is replaced."""
        _csv.write(Path(path), COLUMNS, self._rows)

    def to_parquet(self, path: str | Path) -> None:
        """Write all rows to a Parquet file.

        Raises:
            ModuleNotFoundError: pyarrow is not installed.
        """
        _sinks.to_parquet(path, COLUMNS, self._rows)

    def to_tensorboard(self, writer: Any) -> None:
        """Add the rows to a ``torch.utils.tensorboard.SummaryWriter``: scalars such as ``lars/rate/conv1.weight``."""
        _sinks.to_tensorboard(writer, self._rows)

    def to_logger(self, logger: Any) -> None:
        """Log the rows with a Lightning logger, or whatever has ``log_metrics(metrics, step)``: one call a step.

        Raises:
            TypeError: `logger` has no such method.
        """
        _sinks.to_logger(logger, self._rows)
