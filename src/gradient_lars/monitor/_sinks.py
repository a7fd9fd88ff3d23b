"""Where records go beside a CSV: Parquet, TensorBoard, Lightning's loggers; imported when asked for."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradient_lars.monitor._records import Record

SCALARS = ("rate", "p_norm", "g_norm", "update")


def to_parquet(path: str | Path, columns: Sequence[str], rows: Sequence["Record"]) -> None:
    """Write `rows` to a Parquet file, one column a field."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`to_parquet` needs pyarrow, not installed here. Install it with `pip install pyarrow`, or use `to_csv`.",
            name=error.name,
        ) from None
    text, whole, switch = ("layer", "held_by"), ("step",), ("adapted",)
    types = {
        **dict.fromkeys(columns, pyarrow.float64()),
        **dict.fromkeys(text, pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
        **dict.fromkeys(whole, pyarrow.int64()),
        **dict.fromkeys(switch, pyarrow.bool_()),
    }
    values = zip(*rows, strict=True) if rows else ((),) * len(columns)
    arrays = []
    for name, column in zip(columns, values, strict=True):
        array = pyarrow.array(column, type=pyarrow.string() if name in text else types[name])
        arrays.append(array.dictionary_encode() if name in text else array)
    pyarrow.parquet.write_table(pyarrow.table(arrays, names=list(columns)), str(path))


def to_tensorboard(writer: Any, rows: Iterable["Record"]) -> None:
    """Add one scalar for each figure."""
    for row in rows:
        for name, value in _scalars(row):
            writer.add_scalar(f"lars/{name}/{row.layer}", value, row.step)


def to_logger(logger: Any, rows: Iterable["Record"]) -> None:
    """Log one dictionary of figures a step."""
    if not callable(getattr(logger, "log_metrics", None)):
        raise TypeError(
            f"`logger` must have a method `log_metrics`, got {type(logger).__name__}. Lightning's loggers have one: "
            "pass `trainer.logger`."
        )
    for step, same in groupby(rows, key=attrgetter("step")):
        metrics = {f"lars/{name}/{row.layer}": value for row in same for name, value in _scalars(row)}
        if metrics:
            logger.log_metrics(metrics, step=step)


def _scalars(row: "Record") -> Iterator[tuple[str, float]]:
    if row.held_by != "no_gradient":
        for name in SCALARS:
            value = getattr(row, name)
            # What a file does not hold; a norm that is NaN is worth showing.
            if not (name == "update" and math.isnan(value)):
                yield name, value
