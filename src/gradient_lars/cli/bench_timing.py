"""How ``gradient-lars bench`` measures: tensors, clocks, and the order of what is measured."""

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from gradient_lars.cli.bench_implementations import Implementation, Step, Unavailable
from gradient_lars.cli.bench_workloads import Shape, Shapes

EAGER, HOST, GRAPH, MEMORY, BANDWIDTH = "eager", "host", "graph", "memory", "bandwidth"
UNITS = {EAGER: "ms", HOST: "ms", GRAPH: "ms", MEMORY: "MB", BANDWIDTH: "GB/s"}

Samples = dict[str, list[float]]

WARM_UP = 3
STEPS = 5  # of one implementation in one round
REPLAYS = 10
COPY_BYTES = 2**28


class Tensors:
    """The parameters of a workload with their gradients, shared by all implementations of a run.

    Args:
        shapes: of the parameters.
        dtype: of parameters and gradients.
        device: where they are.
    """

    def __init__(self, shapes: Shapes, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def random(shape: Shape, scale: float) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=device).mul_(scale)

        self.params = [torch.nn.Parameter(random(shape, 0.02)) for shape in shapes]
        self._grads = [random(shape, 0.001) for shape in shapes]
        for param, grad in zip(self.params, self._grads, strict=True):
            param.grad = grad.clone()

    @property
    def n_bytes(self) -> int:
        """Bytes of the parameters; gradients and momentum take as many each."""
        return sum(param.numel() * param.element_size() for param in self.params)

    def refresh(self) -> None:
        """Write the gradients, as a backward pass does before each step: some optimizers change them."""
        grads = [param.grad for param in self.params if param.grad is not None]
        torch._foreach_copy_(grads, self._grads)


class Clock(Protocol):
    """How steps are measured on one kind of device."""

    def measure(self, implementation: Implementation, tensors: Tensors) -> Samples:
        """Build the optimizer, warm it up, and return samples for each quantity.

        Raises:
            Unavailable: the implementation refuses or the memory does not suffice.
        """

    def bandwidth(self, device: torch.device) -> float:
        """Return GB/s of one copy of a large tensor, reading and writing counted."""


class CpuClock:
    """Wall-clock time of a step; what the host does is not separate from it, and memory is not counted."""

    def measure(self, implementation: Implementation, tensors: Tensors) -> Samples:
        """See `Clock`."""
        with _refusals():
            step = implementation.build(tensors.params, False)
            _warm_up(step, tensors)
            return {EAGER: [self._step(step, tensors) for _ in range(STEPS)]}

    def bandwidth(self, device: torch.device) -> float:
        """See `Clock`."""
        source, target = _copy_tensors(device)
        target.copy_(source)
        start = time.perf_counter()
        target.copy_(source)
        return 2e-9 * COPY_BYTES / (time.perf_counter() - start)

    def _step(self, step: Step, tensors: Tensors) -> float:
        tensors.refresh()
        start = time.perf_counter()
        step()
        return 1e3 * (time.perf_counter() - start)


class CudaClock:
    """CUDA and ROCm: device time between two events, the host's share of it, graph replays, and peak memory.

    Args:
        cuda: ``torch.cuda``, or what stands for it in a test.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda

    def measure(self, implementation: Implementation, tensors: Tensors) -> Samples:
        """See `Clock`."""
        samples: Samples = defaultdict(list)
        with _refusals():
            before = self._cuda.memory_allocated()
            step = implementation.build(tensors.params, False)
            _warm_up(step, tensors)
            for _ in range(STEPS):
                tensors.refresh()
                device, host = self._time(step)
                samples[EAGER].append(device)
                samples[HOST].append(host)
            # The momentum takes the bytes of the parameters; what is more is the implementation's own.
            samples[MEMORY].append(1e-6 * (self._peak(step, tensors) - before - tensors.n_bytes))
            del step
        if implementation.graph:
            samples[GRAPH] = self._graph(implementation, tensors)
        return {quantity: found for quantity, found in samples.items() if found}

    def bandwidth(self, device: torch.device) -> float:
        """See `Clock`."""
        source, target = _copy_tensors(device)
        target.copy_(source)
        return 2e-6 * COPY_BYTES * REPLAYS / self._time(lambda: [target.copy_(source) for _ in range(REPLAYS)])[0]

    def _time(self, run: Callable[[], object]) -> tuple[float, float]:
        """Return the milliseconds between two events around `run`, and those until the call came back."""
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda.synchronize()
        start.record()
        began = time.perf_counter()
        run()
        host = 1e3 * (time.perf_counter() - began)
        end.record()
        self._cuda.synchronize()
        return start.elapsed_time(end), host

    def _peak(self, step: Step, tensors: Tensors) -> int:
        tensors.refresh()
        self._cuda.synchronize()
        self._cuda.reset_peak_memory_stats()
        step()
        self._cuda.synchronize()
        peak: int = self._cuda.max_memory_allocated()
        return peak

    def _graph(self, implementation: Implementation, tensors: Tensors) -> list[float]:
        """Return the time of one replay of the captured step; no samples where it cannot be captured.

        Several replays are timed as one, so that the first one's launch does not count.
        """
        stream = self._cuda.Stream()
        try:
            with _refusals():
                stream.wait_stream(self._cuda.current_stream())
                with self._cuda.stream(stream):
                    step = implementation.build(tensors.params, True)
                    _warm_up(step, tensors)
                self._cuda.current_stream().wait_stream(stream)
                graph = self._cuda.CUDAGraph()
                with self._cuda.graph(graph):
                    step()
        except Unavailable:
            return []
        times = []
        for _ in range(STEPS):
            tensors.refresh()
            times.append(self._time(lambda: [graph.replay() for _ in range(REPLAYS)])[0] / REPLAYS)
        return times


def clock_for(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return CudaClock() if device.type == "cuda" else CpuClock()


def in_rounds(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield round and name: all once in each round, each round beginning one further on.

    Interleaved, all meet the same disturbances; and none always follows the same other one.
    """
    for i in range(rounds):
        start = i % len(names)
        for name in (*names[start:], *names[:start]):
            yield i, name


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what an optimizer raises, and a lack of memory, into `Unavailable`; no collection meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    except torch.OutOfMemoryError:
        raise Unavailable("does not fit into the memory") from None
    except (RuntimeError, TypeError, ValueError) as error:
        raise Unavailable(str(error).partition("\n")[0].rstrip(".")) from None
    finally:
        gc.enable()


def _warm_up(step: Step, tensors: Tensors) -> None:
    for _ in range(WARM_UP):
        tensors.refresh()
        step()


def _copy_tensors(device: torch.device) -> tuple[Tensor, Tensor]:
    # Ones: the pages of fresh zeros are all one page until they are written.
    source, target = (torch.ones(COPY_BYTES // 4, device=device) for _ in range(2))
    return source, target
