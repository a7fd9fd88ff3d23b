"""When a monitor records, how much it keeps, where it writes, and what it refuses."""

import gc
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import fully_shard

from gradient_lars import GradientLARS
from gradient_lars.monitor import Monitor, read
from gradient_lars.monitor import _monitor as module
from gradient_lars.torch import LARS, LayerRates, add_hook
from monitor.networks import layers, recipe, set_gradients, train
from sharded.ranks import on_ranks


def recorded(monitor):
    return list(monitor.records().steps)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, list(range(10))),
        ({"every": 3}, [0, 3, 6, 9]),
        ({"every": 3, "first_step": 7}, [7, 9, 12, 15]),
        ({"every": 20}, [0]),
    ],
)
@pytest.mark.parametrize("capacity", [1, 2, 5, 100])
def test_which_steps(options, steps, capacity):
    named = layers()
    optimizer = recipe(named)
    with Monitor(optimizer, **options, capacity=capacity) as monitor:
        train(optimizer, named, 10)
    assert recorded(monitor) == steps
    assert monitor.step == options.get("first_step", 0) + 10


@pytest.mark.parametrize("csv", [False, True])
def test_memory_is_bounded_and_the_whole_training_kept(tmp_path, csv):
    named = layers()[1:2]
    optimizer = recipe(named)
    monitor = Monitor(optimizer, capacity=3, keep=8, csv=tmp_path / "run.csv" if csv else None)
    for step in range(200):
        train(optimizer, named, 1, start=step)
        assert len(monitor._waiting) <= 3
        assert len(monitor._history.taken) <= 8
    monitor.close()
    assert recorded(monitor) == list(range(0, 200, 32))
    # Memory of its own: a view would hold on to all that arrived with it.
    storages = [tensor.untyped_storage().nbytes() for taken in monitor._history.taken for tensor in taken.tensors()]
    assert max(storages) <= 3 * 8
    if csv:
        assert read(tmp_path / "run.csv").steps == tuple(range(200))
        assert read(tmp_path / "run.csv", keep=8).steps == tuple(range(0, 200, 32))


def test_nothing_is_read_until_the_buffer_is_full(monkeypatch):
    """A recorded step copies nothing; ten of them are copied together, in one piece for each type."""
    named = layers()
    optimizer = recipe(named, foreach=True)
    monitor = Monitor(optimizer, capacity=10)
    copies, reads = [], []
    to_host, read_rates = module.Transfer.__init__.__globals__["_to_host"], LayerRates._read
    monkeypatch.setitem(
        module.Transfer.__init__.__globals__, "_to_host", lambda flat: copies.append(flat) or to_host(flat)
    )
    monkeypatch.setattr(LayerRates, "_read", lambda self: reads.append(self) or read_rates(self))
    train(optimizer, named, 9)
    assert (len(copies), len(reads)) == (0, 0)
    train(optimizer, named, 1)
    assert (len(copies), len(reads)) == (1, 0)
    assert copies[0].shape == (10 * 3 * 3,)
    monitor.records()
    assert (len(copies), len(reads)) == (1, 10)


class Later:
    """Stands for a transfer from a GPU: it arrives when it is told to."""

    def __init__(self, taken):
        self.taken, self.arrived, self.waited = taken, False, False

    def result(self):
        self.waited = not self.arrived
        return self.taken


def test_transfers_under_way_are_not_waited_for(monkeypatch):
    made = []
    monkeypatch.setattr(module, "Transfer", lambda taken: made.append(Later(taken)) or made[-1])
    named = layers()
    optimizer = recipe(named)
    monitor = Monitor(optimizer, capacity=2)
    train(optimizer, named, 4)
    assert [later.waited for later in made] == [False, False]
    assert monitor._history.taken == []
    made[0].arrived = True
    train(optimizer, named, 2)
    assert len(monitor._history.taken) == 2
    # Only a device that is more than two buffers behind is waited for.
    train(optimizer, named, 2)
    assert [later.waited for later in made] == [False, True, False, False]


def test_by_hand():
    named = layers()
    optimizer = recipe(named)
    monitor = Monitor(optimizer, attach=False)
    with pytest.raises(RuntimeError, match="`rates` has nothing to show yet"):
        monitor.record()
    train(optimizer, named, 3)
    assert len(monitor.records()) == 0
    monitor.record()
    train(optimizer, named, 1)
    monitor.record(step=10)
    train(optimizer, named, 1)
    monitor.record()
    assert recorded(monitor) == [0, 10, 11]


def test_by_hand_the_figures_are_copied():
    """As a replayed graph does, the step writes to where the figures of the last one are."""
    named = layers()
    optimizer = recipe(named, foreach=True)
    train(optimizer, named, 1)
    monitor = Monitor(optimizer, attach=False)
    rates = optimizer.rates()
    before = [tensor.clone() for tensor in rates.tensors()]
    for factor in (1, 2, 4):
        for tensor, value in zip(rates.tensors(), before, strict=True):
            tensor.copy_(factor * value)
        monitor.record()
    first = monitor.records().matrix("g_norm")[:, 0]
    assert torch.allclose(monitor.records().matrix("g_norm"), first[:, None] * torch.tensor([1.0, 2.0, 4.0]))


def test_a_graph_capture_is_refused(monkeypatch):
    named = layers()
    optimizer = recipe(named)
    Monitor(optimizer)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    set_gradients(named, 0)
    with pytest.raises(
        RuntimeError, match="`Monitor` cannot record the replays of a CUDA graph by itself. Make it with"
    ):
        optimizer.step()


def test_closed_it_records_no_more():
    named = layers()
    optimizer = recipe(named)
    hooks = len(optimizer._optimizer_step_post_hooks)
    monitor = Monitor(optimizer)
    train(optimizer, named, 2)
    monitor.close()
    monitor.close()
    train(optimizer, named, 2)
    assert recorded(monitor) == [0, 1]
    assert len(optimizer._optimizer_step_post_hooks) == hooks


def test_nothing_is_kept_alive():
    named = layers()
    optimizer = recipe(named)
    monitor = Monitor(optimizer)
    train(optimizer, named, 2)
    gone = [weakref.ref(optimizer), weakref.ref(monitor)]
    del optimizer, monitor
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_readable_path_with_many_layers_is_packed():
    named = [(f"layer{i}", torch.nn.Parameter(torch.ones(2))) for i in range(12)]
    optimizer = recipe(named, foreach=False, fused=False)
    with Monitor(optimizer) as monitor:
        train(optimizer, named, 2)
        storages = {tensor.untyped_storage().data_ptr() for tensor in monitor._waiting[0].tensors()}
    assert len(storages) == 1
    assert monitor.records().matrix("p_norm")[:, 0].tolist() == pytest.approx([2**0.5] * 12)


INTERRUPTED = """
import sys
sys.path[:0] = {path!r}
from monitor.networks import layers, recipe, train
from gradient_lars.monitor import Monitor
named = layers()
optimizer = recipe(named)
monitor = Monitor(optimizer, csv=sys.argv[1], capacity=4)
train(optimizer, named, 10)
raise KeyboardInterrupt
"""


def test_interrupted_run_leaves_a_readable_file(tmp_path):
    script = INTERRUPTED.format(path=sys.path)
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "run.csv"], capture_output=True, check=False)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert read(tmp_path / "run.csv").steps == tuple(range(10))


def _killed(path):
    named = layers()
    optimizer = recipe(named)
    Monitor(optimizer, csv=path, capacity=4)
    train(optimizer, named, 10)
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_run_leaves_what_was_copied(tmp_path):
    with pytest.raises(AssertionError, match="ended without an answer"):
        on_ranks(1, _killed, str(tmp_path / "run.csv"))
    assert read(tmp_path / "run.csv").steps == tuple(range(8))


def test_going_on_with_a_file(tmp_path):
    path = tmp_path / "run.csv"
    for first, steps in ((0, 6), (4, 3)):
        named = layers()
        optimizer = recipe(named, lr=1.0 + first)
        with Monitor(optimizer, csv=path, append=True, first_step=first):
            train(optimizer, named, steps)
        # What an interruption can leave.
        with path.open("a") as file:
            file.write("6,dense.we")
    rows = read(path)
    assert rows.steps == tuple(range(7))
    # Of steps that were taken twice the later ones count.
    assert [row.lr for row in rows if row.layer == "dense.bias"] == [1.0] * 4 + [5.0] * 3


def test_a_full_disk_does_not_stop_the_training(tmp_path, monkeypatch):
    named = layers()
    optimizer = recipe(named)
    monitor = Monitor(optimizer, csv=tmp_path / "run.csv", capacity=2)

    def full(rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(monitor._stream, "add", full)
    with pytest.warns(RuntimeWarning, match="`csv` cannot be written to any more \\(No space left on device\\)"):
        train(optimizer, named, 2)
    train(optimizer, named, 4, start=2)
    monitor.close()
    assert recorded(monitor) == list(range(6))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"every": 0}, ValueError, "`every` must be >= 1, got 0"),
        ({"every": 1.5}, TypeError, "`every` must be a whole number, got 1.5"),
        ({"every": True}, TypeError, "`every` must be a whole number, got True"),
        ({"capacity": 0}, ValueError, "`capacity` must be >= 1, got 0"),
        ({"keep": 1}, ValueError, "`keep` must be >= 2, got 1"),
        ({"first_step": -1}, ValueError, "`first_step` must be >= 0, got -1"),
    ],
)
def test_wrong_arguments(change, error, match):
    with pytest.raises(error, match=match):
        Monitor(recipe(layers()), **change)


def test_wrong_sources():
    optimizer = torch.optim.SGD(layers(), lr=0.1)
    with pytest.raises(TypeError, match="`source` must be a LARS or what `add_hook` returned, got SGD"):
        Monitor(optimizer)
    handle = add_hook(optimizer, lambda rule, param: None, name="other")
    with pytest.raises(TypeError, match="`rates` needs a GradientLARS hook, but 'other' is not one"):
        Monitor(handle)
    handle = add_hook(optimizer, GradientLARS())
    del optimizer
    gc.collect()
    with pytest.raises(RuntimeError, match="`optimizer` is gone: the handle does not keep it alive"):
        Monitor(handle)


def test_files_that_are_there(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(FileExistsError, match="is there already. Name another file, or go on with it by `append=True`"):
        Monitor(recipe(layers()), csv=path)
    with pytest.raises(ValueError, match="has other columns than the monitor writes"):
        Monitor(recipe(layers()), csv=path, append=True)
    assert path.read_text() == "a,b\n1,2\n"


def _sharded(folder):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.Linear(7, 3))
    whole = [float(param.detach().norm()) for param in model.parameters()]
    fully_shard(model)
    optimizer = LARS(model.named_parameters(), lr=1.0)
    one = Monitor(optimizer, csv=Path(folder) / "run.csv")
    every = Monitor(optimizer, all_ranks=True)
    model(torch.ones(4, 6)).square().mean().backward()
    optimizer.step()
    one.close()
    one.record()
    assert [row.p_norm for row in every.records()] == pytest.approx(whole, rel=1e-5)
    return len(one.records())


def test_sharded_layers_are_whole_and_recorded_on_one_rank(tmp_path):
    first, second = on_ranks(2, _sharded, str(tmp_path))
    assert (first, second) == (8, 0)
    assert len(read(tmp_path / "run.csv")) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_waits_for_nothing_on_a_gpu():
    named = [(name, torch.nn.Parameter(param.detach().cuda())) for name, param in layers()]
    optimizer = recipe(named)
    monitor = Monitor(optimizer, capacity=4)
    set_gradients([(name, param.cpu()) for name, param in named], 0)
    for _, param in named:
        param.grad = torch.ones_like(param)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert recorded(monitor) == list(range(21))
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="cannot record the replays of a CUDA graph"), torch.cuda.graph(graph):
        optimizer.step()
