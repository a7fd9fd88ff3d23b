"""``Monitor``: the norms and rates of every layer, recorded while training goes on."""

import atexit
import contextlib
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from gradient_lars.monitor._buffer import History, Transfer, packed
from gradient_lars.monitor._csv import CsvStream
from gradient_lars.monitor._layers import Layers, Taken, one_rank_of_many
from gradient_lars.monitor._records import COLUMNS, Record, Records
from gradient_lars.monitor._summary import Summary
from gradient_lars.torch import LARS, HookHandle, LayerRates

# Copies to the host that may be under way at a time; the device is then as many buffers behind, and is waited for.
_UNDER_WAY = 2


class Monitor:
    """Records what LARS does to each layer, after every step or every so many, until it is closed.

    The figures of a step stay on the device, as the step has left them. When `capacity` steps are there they are
    copied to the host together, without waiting. A step that is recorded costs the host some microseconds, and the
    device nothing until then.

    Memory is bounded, however long the training: at most ``3 * capacity`` steps are on the device and `keep` on the
    host. When there are more, every second one is dropped, and from then on only every second one is kept: what is
    left always spans the whole training, evenly. With `csv` all of them are in the file.

    Args:
        source: a `LARS`, or the handle that `add_hook` returned for a `GradientLARS`.
        every: record every so many steps, >= 1; the first step is always recorded.
        capacity: steps that are copied to the host together, >= 1.
        keep: steps kept on the host, >= 2; `records`, plots and summaries are made of these.
        csv: a file to which the rows are written whenever they are copied, and when the monitor is closed or Python
            ends: an interrupted training leaves all but the last of them.
        append: go on with a `csv` that is there.
        first_step: number of the first step to come; for a training that is resumed.
        attach: record by itself after each step, through the optimizer's step post hook: with closures, GradScaler
            and whoever calls ``step``. False leaves it to calls of `record`.
        all_ranks: record on every rank of a distributed training; otherwise rank 0 does, since the norms are those of
            whole layers on each. ``ZeroRedundancyOptimizer`` shares the layers out: there each rank has others.

    Raises:
        TypeError: `source` has no rates.
        ValueError: a number is out of its range, or `csv` has other columns.
        FileExistsError: `csv` is there already, and `append` is False.
        RuntimeError: in a step, if a CUDA graph is being captured: its replays are no steps that anybody sees. Use
            ``attach=False`` there, and `record` after each replay.

    In ``torch.compile(optimizer.step)`` the recording is a graph break. In the mode 'reduce-overhead' the figures are
    overwritten by the next step: use ``attach=False`` and `record`, which copies them.

    Example:
        The larger layer has the larger steps, in the same proportion:

        >>> import torch
        >>> from gradient_lars.monitor import Monitor
        >>> from gradient_lars.torch import LARS
        >>> small, large = (torch.nn.Parameter(torch.full((4,), value)) for value in (1.0, 100.0))
        >>> optimizer = LARS([("small", small), ("large", large)], lr=1.0, trust_coefficient=0.02)
        >>> with Monitor(optimizer) as monitor:
        ...     for _ in range(3):
        ...         small.grad, large.grad = torch.ones(4), torch.ones(4)
        ...         optimizer.step()
        >>> for layer in monitor.summary().layers:
        ...     print(f"{layer.layer}: rate {layer.rate:.2f}, update {layer.update:.2f}")
        small: rate 0.02, update 0.02
        large: rate 1.96, update 0.02
    """

    def __init__(
        self,
        source: LARS | HookHandle,
        every: int = 1,
        *,
        capacity: int = 100,
        keep: int = 1000,
        csv: str | Path | None = None,
        append: bool = False,
        first_step: int = 0,
        attach: bool = True,
        all_ranks: bool = False,
    ) -> None:
        _check_source(source)
        for name, value, least in (("every", every, 1), ("capacity", capacity, 1), ("keep", keep, 2)):
            _check_number(name, value, least)
        _check_number("first_step", first_step, 0)
        self._source = source
        self._every, self._capacity = every, capacity
        self._step, self._number = first_step, 0
        self._layers = Layers(source)
        self._last: LayerRates | None = None
        self._names: tuple[str, ...] = ()
        self._waiting: list[Taken] = []
        self._under_way: list[Transfer] = []
        self._history = History(keep)
        self._written: set[str] = set()
        self._sent: dict[int, tuple[Any, int]] = {}
        self._silent = one_rank_of_many() and not all_ranks
        self._stream = None if csv is None or self._silent else CsvStream(Path(csv), COLUMNS, append=append)
        if self._stream is not None:
            atexit.register(self.close)
        self._hook = None
        if attach and not self._silent:
            optimizer = source.optimizer if isinstance(source, HookHandle) else source
            # A compiled step runs it as it is: what it keeps must outlive the step.
            as_it_is: Any = torch.compiler.disable
            self._hook = optimizer.register_step_post_hook(as_it_is(self._after_step))

    @property
    def step(self) -> int:
        """Number of the next step."""
        return self._step

    def record(self, step: int | None = None) -> None:
        """Record the last step now, whatever `every` says; copies the figures.

        Args:
            step: its number; None counts on.

        Raises:
            RuntimeError: no step was taken yet.
        """
        if self._silent:
            return
        if step is not None:
            _check_number("step", step, 0)
            self._step = step
        rates = self._last = self._source.rates()
        self._take(self._step, rates, copy=True)
        self._step += 1

    def records(self) -> Records:
        """Return what is kept, up to the last recorded step; waits for the device."""
        self._settle(wait=True)
        seen: set[str] = set()
        return Records(row for taken in self._history.taken for row in taken.rows(seen))

    def summary(self) -> Summary:
        """Return one line a layer, and what is wrong with the training; waits for the device."""
        return self.records().summary()

    def to_csv(self, path: str | Path) -> None:
        """Write what is kept to a CSV; see `Records.to_csv`."""
        self.records().to_csv(path)

    def to_parquet(self, path: str | Path) -> None:
        """Write what is kept to a Parquet file; see `Records.to_parquet`."""
        self.records().to_parquet(path)

    def to_tensorboard(self, writer: Any) -> None:
        """Add to a TensorBoard writer what it has not had yet; see `Records.to_tensorboard`."""
        self._new_for(writer).to_tensorboard(writer)

    def to_logger(self, logger: Any) -> None:
        """Log with a Lightning logger what it has not had yet; see `Records.to_logger`."""
        self._new_for(logger).to_logger(logger)

    def flush(self) -> None:
        """Copy to the host, and write to `csv`, what is still on the device; waits for it."""
        self._settle(wait=True)

    def close(self) -> None:
        """Stop recording, and write what is left to `csv`; what is kept can still be read. Once is enough."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._settle(wait=True)
        self._close_stream()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Monitor(every={self._every}, step={self._step}, recorded={self._number})"

    def _after_step(self, *_: Any) -> None:
        try:
            rates = self._source.rates()
        except RuntimeError:  # the hook has not acted yet
            return
        # A step that calls another class's runs the hooks of both; and a hook that was removed leaves its last rates.
        if rates is self._last:
            return
        if _capturing():
            raise RuntimeError(
                "`Monitor` cannot record the replays of a CUDA graph by itself. Make it with `attach=False`, and call "
                "`record()` after each replay."
            )
        self._last = rates
        step = self._step
        self._step += 1
        if step % self._every == 0 or self._number == 0:
            self._take(step, rates, copy=False)

    def _take(self, step: int, rates: LayerRates, *, copy: bool) -> None:
        number = self._number
        self._number += 1
        if self._stream is None and not self._history.wants(number):
            return
        names = rates.names
        if not self._layers.current or (names != self._names and not self._layers.hold_for(names)):
            self._layers = Layers(self._source)
        self._names = names
        taken = Taken(number, step, rates, self._layers, self._layers.settings())
        self._waiting.append(taken.copied() if copy else packed(taken))
        if len(self._waiting) >= self._capacity:
            self._send()
            self._settle(wait=False)

    def _send(self) -> None:
        if self._waiting:
            self._under_way.append(Transfer(self._waiting))
            self._waiting = []

    def _settle(self, *, wait: bool) -> None:
        """Keep what has arrived on the host, and write it to the file; with `wait`, all there is."""
        if wait:
            self._send()
        while self._under_way and (wait or self._under_way[0].arrived or len(self._under_way) > _UNDER_WAY):
            taken = self._under_way.pop(0).result()
            if self._stream is not None:
                self._write([row for step in taken for row in step.rows(self._written)])
            self._history.add(taken)

    def _write(self, rows: list[Record]) -> None:
        if self._stream is None:
            return
        try:
            self._stream.add(rows)
        except OSError as error:
            # The training is worth more than its record.
            warnings.warn(
                f"`csv` cannot be written to any more ({error.strerror or error}): the monitor goes on without it.",
                RuntimeWarning,
                stacklevel=2,
            )
            self._close_stream()

    def _close_stream(self) -> None:
        if self._stream is not None:
            atexit.unregister(self.close)
            # What a full disk has not taken it will not take now.
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None

    def _new_for(self, sink: Any) -> Records:
        records = self.records()
        _, last = self._sent.get(id(sink), (sink, -1))
        new = records.since(last + 1)
        if records.steps:
            # Held, so that no other object gets its id.
            self._sent[id(sink)] = sink, records.steps[-1]
        return new


def _check_source(source: Any) -> None:
    if not isinstance(source, LARS | HookHandle):
        raise TypeError(
            f"`source` must be a LARS or what `add_hook` returned, got {type(source).__name__}. Of an optimizer with "
            "a hook, pass the handle; to a framework's callback, pass `monitor=lambda handle: Monitor(handle)`."
        )
    # Where no step was taken yet there is one to come.
    with contextlib.suppress(RuntimeError):
        source.rates()


def _capturing() -> bool:
    started: Any = torch.cuda.is_initialized
    return bool(started()) and torch.cuda.is_current_stream_capturing()


def _check_number(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be >= {least}, got {value}.")
