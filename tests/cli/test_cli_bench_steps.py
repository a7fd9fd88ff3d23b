"""What ``gradient-lars bench`` steps and how it measures: shapes, implementations, order, clocks."""

import builtins
import importlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench_rows import TINY
from gradient_lars.cli import bench_implementations as made
from gradient_lars.cli import bench_peers, bench_timing
from gradient_lars.cli.bench_workloads import WORKLOADS, gpt, n_parameters
from reference import assert_close, lars

IMPLEMENTATIONS = made.implementations()


# Parameter counts: torchvision's pages of the models (11.7 M, 25.6 M, 5.3 M, 304.3 M, there to the last one) and
# Hugging Face's GPT-2.
@pytest.mark.parametrize(
    ("name", "tensors", "total"),
    [
        ("resnet18", 62, 11_689_512),
        ("resnet50", 161, 25_557_032),
        ("efficientnet-b0", 213, 5_288_548),
        ("vit-l-16", 296, 304_326_632),
        ("gpt2", 148, 124_439_808),
    ],
)
def test_parameters_are_as_many_as_published(name, tensors, total):
    shapes = WORKLOADS[name].shapes
    assert (len(shapes), n_parameters(shapes)) == (tensors, total)


def test_other_sizes_of_gpt():
    assert n_parameters(gpt(48, 1600)) == 1_557_611_200  # GPT-2 XL
    assert 1.00e9 < n_parameters(WORKLOADS["gpt-1b"].shapes) < 1.02e9


def test_shapes_in_the_order_of_the_network():
    shapes = WORKLOADS["resnet50"].shapes
    assert shapes[:4] == [(64, 3, 7, 7), (64,), (64,), (64, 64, 1, 1)]
    assert shapes[9:15] == [(256, 64, 1, 1), (256,), (256,), (256, 64, 1, 1), (256,), (256,)]  # third and short cut
    assert shapes[-2:] == [(1000, 2048), (1000,)]
    assert WORKLOADS["efficientnet-b0"].shapes[3:10] == [
        (32, 1, 3, 3), (32,), (32,), (8, 32, 1, 1), (8,), (32, 8, 1, 1), (32,),
    ]  # fmt: skip
    assert WORKLOADS["vit-l-16"].shapes[:4] == [(1, 1, 1024), (1024, 3, 16, 16), (1024,), (1, 197, 1024)]


def tiny_tensors(dtype=torch.float32):
    return bench_timing.Tensors(TINY.shapes, dtype, torch.device("cpu"))


def expected(tensors, steps, *, plain=(), decay=made.WEIGHT_DECAY):
    """Parameters in float64 after some steps; the layers that `plain` says are not adapted."""
    params = [p.detach().double().numpy() for p in tensors.params]
    momenta = [np.zeros_like(p) for p in params]
    for _ in range(steps):
        for i, (p, param) in enumerate(zip(params, tensors.params, strict=True)):
            g = param.grad.double().numpy()
            if i in plain:
                layer_lr, step = made.LR, g + decay * p
            else:
                layer_lr, step = made.LR * made.TRUST_COEFFICIENT, lars(p, g, weight_decay=decay).grad
            momenta[i] = made.MOMENTUM * momenta[i] + layer_lr * step
            params[i] = p - momenta[i]
    return params


OWN = ["lars", "lars-fused", "lars-foreach", "lars-loop", "hook-sgd-fused", "hook-sgd-foreach"]


def take_steps(name, tensors):
    step = IMPLEMENTATIONS[name].build(tensors.params, False)
    for _ in range(2):
        tensors.refresh()
        step()
    return step


@pytest.mark.parametrize("name", OWN)
def test_own_implementations_take_the_steps_of_the_reference(name):
    tensors = tiny_tensors()
    want = expected(tensors, 2)
    before = [p.detach().clone() for p in tensors.params]
    take_steps(name, tensors)
    for param, values, old in zip(tensors.params, want, before, strict=True):
        assert not torch.equal(param, old)
        assert_close(
            (param.detach() - old).numpy(), values - old.double().numpy(), "float32", factor=50
        )  # of a small step


@pytest.mark.parametrize("name", ["sgd-fused", "sgd-foreach", "sgd-loop"])
def test_sgd_takes_its_steps(name):
    tensors = tiny_tensors()
    lr = made.LR * made.TRUST_COEFFICIENT
    want = []
    for param in tensors.params:
        p, v, g = param.detach().double(), 0, param.grad.double()
        for _ in range(2):
            v = made.MOMENTUM * v + g + made.WEIGHT_DECAY * p
            p = p - lr * v
        want.append(p)
    take_steps(name, tensors)
    for param, values in zip(tensors.params, want, strict=True):
        assert_close(param.detach().numpy(), values.numpy(), "float32")


@pytest.mark.parametrize(("package", "name"), [("pytorch_optimizer", "pytorch-optimizer"), ("open_lars", "open-lars")])
def test_peers_take_their_steps(package, name):
    pytest.importorskip(package)
    tensors = tiny_tensors()
    vectors = {i for i, p in enumerate(tensors.params) if p.ndim == 1}
    want = expected(tensors, 2, plain=vectors)
    take_steps(name, tensors)
    for i, (param, values) in enumerate(zip(tensors.params, want, strict=True)):
        if i not in vectors:  # those differ in their decay
            assert_close(param.detach().numpy(), values, "float32")


def test_optax_takes_a_step():
    pytest.importorskip("optax")
    tensors = tiny_tensors()
    step = bench_peers.OptaxStep(tensors.params)
    step()
    for param, new in zip(tensors.params, step.params, strict=True):
        p, g = param.detach().double().numpy(), param.grad.double().numpy()
        d = g + made.WEIGHT_DECAY * p
        want = p - made.LR * made.TRUST_COEFFICIENT * np.linalg.norm(p) / np.linalg.norm(d) * d
        assert_close(np.asarray(new), want, "float32")


def test_optax_and_the_types():
    pytest.importorskip("optax")
    assert str(bench_peers.OptaxStep(tiny_tensors(torch.bfloat16).params).params[0].dtype) == "bfloat16"
    with pytest.raises(made.Unavailable, match="JAX has no float64"):
        bench_peers.OptaxStep(tiny_tensors(torch.float64).params)


class FakeOptimizer:
    """Stands for a peer that is not installed: takes only the arguments that the real one has."""

    def __init__(self, params, lr=1.0, momentum=0.0, weight_decay=0.0, trust_coeff=0.001):
        self.step = lambda: (lr, momentum, weight_decay, trust_coeff)


class FakeTorchlars:
    def __init__(self, optimizer, eps=1e-8, trust_coef=0.001):
        self.step = lambda: (type(optimizer), trust_coef)


def test_peers_that_are_not_installed_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.optim", SimpleNamespace(Lars=FakeOptimizer))
    monkeypatch.setitem(sys.modules, "torchlars", SimpleNamespace(LARS=FakeTorchlars))
    params = tiny_tensors().params
    assert IMPLEMENTATIONS["timm"].build(params, False)() == (0.1, 0.9, 1e-4, 1e-3)
    assert IMPLEMENTATIONS["torchlars"].build(params, False)() == (torch.optim.SGD, 1e-3)


def test_why_an_implementation_is_left_out(monkeypatch):
    def refuse(name):
        raise {"open_lars": ModuleNotFoundError("No module named 'open_lars'", name="open_lars")}.get(
            name, RuntimeError("operator torchvision::nms does not exist\nand more")
        )

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(made.Unavailable, match="^not installed$"):
        IMPLEMENTATIONS["open-lars"].check("cpu")
    with pytest.raises(made.Unavailable, match="^cannot be imported: operator torchvision::nms does not exist$"):
        IMPLEMENTATIONS["timm"].check("cpu")
    with pytest.raises(made.Unavailable, match="^not for cuda$"):
        IMPLEMENTATIONS["optax"].check("cuda")
    IMPLEMENTATIONS["lars"].check("cuda")


def test_an_option_that_this_lars_does_not_have():
    with pytest.raises(made.Unavailable, match="this LARS has no `warp`"):
        made._lars(warp=True)([], False)


def test_versions_of_peers():
    assert IMPLEMENTATIONS["lars"].version == ""
    assert replace(IMPLEMENTATIONS["lars"], distribution="torch").version == f"torch {torch.__version__}"
    assert replace(IMPLEMENTATIONS["lars"], distribution="no-such-thing").version == "no-such-thing"


def test_rounds_begin_one_further_on_each():
    order = list(bench_timing.in_rounds(["a", "b", "c"], 4))
    assert [name for _, name in order] == [*"abc", *"bca", *"cab", *"abc"]
    assert [i for i, _ in order] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_gradients_are_written_before_each_step():
    tensors = tiny_tensors()
    seen = []

    def build(params, capturable):
        def step():
            seen.append(params[0].grad.clone())
            params[0].grad.zero_()

        return step

    implementation = made.Implementation("x", "X", build)
    samples = bench_timing.CpuClock().measure(implementation, tensors)
    assert list(samples) == ["eager"]
    assert len(samples["eager"]) == bench_timing.STEPS
    assert len(seen) == bench_timing.WARM_UP + bench_timing.STEPS
    assert all(torch.equal(grad, seen[0]) and grad.abs().sum() > 0 for grad in seen)


def test_the_clock_of_the_processor(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(bench_timing, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(bench_timing, "COPY_BYTES", 4000)
    clock = bench_timing.CpuClock()
    samples = clock.measure(made.Implementation("x", "X", lambda params, capturable: int), tiny_tensors())
    assert samples == {"eager": [1000.0] * bench_timing.STEPS}  # one tick is a second
    assert clock.bandwidth(torch.device("cpu")) == pytest.approx(8e-6)  # 4 kB read and 4 kB written in a second
    assert isinstance(bench_timing.clock_for(torch.device("cpu")), bench_timing.CpuClock)
    assert isinstance(bench_timing.clock_for(torch.device("cuda")), bench_timing.CudaClock)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("`fused` cannot run here.\nmore"), "`fused` cannot run here"),
        (torch.OutOfMemoryError("CUDA out of memory"), "does not fit into the memory"),
        (TypeError("unexpected"), "unexpected"),
    ],
)
def test_an_optimizer_that_refuses(error, reason):
    def build(params, capturable):
        raise error

    with pytest.raises(made.Unavailable, match=f"^{reason}$"):
        bench_timing.CpuClock().measure(made.Implementation("x", "X", build), tiny_tensors())


class FakeCuda:
    """``torch.cuda`` with a clock that every step moves by one millisecond, and a memory that it says it uses."""

    def __init__(self):
        self.now, self.capturing, self.captured = 0.0, False, []

    def work(self):
        if self.capturing:
            self.captured.append(1)
        else:
            self.now += 1.0

    def Event(self, enable_timing):  # noqa: N802
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def Stream(self):  # noqa: N802
        return SimpleNamespace(wait_stream=lambda other: None)

    def CUDAGraph(self):  # noqa: N802
        return SimpleNamespace(replay=lambda: [self.work() for _ in self.captured])

    current_stream = Stream

    def stream(self, stream):
        return self.graph(None, capturing=False)

    def graph(self, graph, capturing=True):
        cuda = self

        class Capture:
            def __enter__(self):
                cuda.capturing = capturing

            def __exit__(self, *error):
                cuda.capturing = False

        return Capture()

    def synchronize(self):
        pass

    reset_peak_memory_stats = synchronize

    def memory_allocated(self):
        return 1_000_000

    def max_memory_allocated(self):
        return 3_500_000


def test_the_clock_of_a_gpu(monkeypatch):
    cuda = FakeCuda()
    asked = []

    seen = []

    def build(params, capturable):
        asked.append(capturable)

        def step():
            seen.append(params[0].grad.abs().sum().item())
            params[0].grad.zero_()
            cuda.work()

        return step

    tensors = tiny_tensors()
    samples = bench_timing.CudaClock(cuda).measure(made.Implementation("x", "X", build), tensors)
    assert asked == [False, True]
    assert samples.keys() == {"eager", "host", "memory", "graph"}
    assert samples["eager"] == [1.0] * bench_timing.STEPS
    assert samples["graph"] == [1.0] * bench_timing.STEPS  # one replay, of several that are timed as one
    assert samples["memory"] == [pytest.approx(2.5 - 1e-6 * tensors.n_bytes)]
    assert all(0 <= host < 1000 for host in samples["host"])
    assert seen[0] > 0
    assert set(seen[:-1]) == {seen[0]}  # each with its gradients anew; the last call was captured, not run

    monkeypatch.setattr(bench_timing, "COPY_BYTES", 4000)
    cuda.Event = lambda enable_timing: SimpleNamespace(record=int, elapsed_time=lambda end: 1.0)
    assert bench_timing.CudaClock(cuda).bandwidth(torch.device("cpu")) == pytest.approx(2e-6 * 4000 * 10 / 1.0)


def test_steps_that_cannot_be_captured():
    cuda = FakeCuda()

    def build(params, capturable):
        if capturable:
            raise RuntimeError("a synchronisation")
        return cuda.work

    clock, tensors = bench_timing.CudaClock(cuda), tiny_tensors()
    assert "graph" not in clock.measure(made.Implementation("x", "X", build), tensors)
    waiting = made.Implementation("x", "X", lambda params, capturable: cuda.work, graph=False)
    assert "graph" not in clock.measure(waiting, tensors)


def test_the_names_are_known_without_a_framework(monkeypatch):
    real = builtins.__import__

    def no_torch(name, *rest):
        if name.partition(".")[0] in ("torch", "jax", "optax", "timm"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    assert "lars" in made.implementations()
