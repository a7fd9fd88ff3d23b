"""No host synchronisation, and life under torch.compile and CUDA graphs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradient_lars import GradientLARS
from gradient_lars.torch import _dispatch, add_hook, hook_path
from gradient_lars.torch._layers import LossScale
from reference import assert_close, lars
from torch_cases import PATHS, PYTORCH_PATHS, to_numpy


class NoSynchronisation(TorchDispatchMode):
    """Raises on the operations that read a value of a tensor from the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
            raise RuntimeError("synchronised")
        return func(*args, **(kwargs or {}))


def test_the_check_sees_a_synchronisation():
    with NoSynchronisation(), pytest.raises(RuntimeError, match="synchronised"):
        bool(torch.ones(()) > 0)


class Still(torch.optim.Optimizer):
    """Does nothing in a step, so that all that happens is the hook's doing."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self):
        pass


def _optimizer(dtype, device, weight_decay, path):
    params = []
    for shape in [(4, 3), (), (0, 2), (8,), (2, 3, 3, 3)]:
        param = torch.nn.Parameter(torch.ones(shape, dtype=dtype, device=device))
        param.grad = torch.ones_like(param)
        params.append(param)
    optimizer = Still(params)
    return optimizer, add_hook(optimizer, GradientLARS(weight_decay=weight_decay), path=path)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
@pytest.mark.parametrize("path", PATHS)
def test_no_synchronisation(path, dtype, weight_decay, scaled):
    optimizer, _ = _optimizer(dtype, "cpu", weight_decay, path)
    if scaled:
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    with NoSynchronisation():
        optimizer.step()


@pytest.mark.parametrize("path", PYTORCH_PATHS)
def test_on_a_device_without_values(path):
    # A meta tensor has no value to read: any copy to the host raises. The code is the one that a GPU takes.
    optimizer, handle = _optimizer(torch.float32, "meta", 0.1, path)
    optimizer.step()
    rates = handle.rates()
    assert len(rates) == 5
    assert len(rates.names) == 5
    with pytest.raises(NotImplementedError, match="meta"):
        rates.rate  # noqa: B018


def test_rates_are_those_of_the_step_even_if_the_threshold_changes_before_they_are_read():
    optimizer, handle = _optimizer(torch.float32, "cpu", 0.0, None)
    optimizer.step()
    handle.hook.threshold = 1e6
    assert handle.rates().adapted.tolist() == [True, True, False, True, True]
    assert [rate.name for rate in handle.rates()] == list(handle.rates().names)
    assert repr(handle.rates()) == "LayerRates(layers=5)"


def test_a_step_without_gradients_has_no_rates():
    optimizer, handle = _optimizer(torch.float32, "cpu", 0.0, None)
    optimizer.zero_grad()
    optimizer.step()
    assert len(handle.rates()) == 0
    assert handle.rates().rate.shape == (0,)


def test_overflow_leaves_factor_one_and_no_decay():
    scale = LossScale(torch.tensor(8.0), torch.tensor(1.0))
    factor, decay = scale.applied(torch.tensor([3.0, float("nan")]), 0.1)
    assert factor.tolist() == [1.0, 1.0]
    assert float(decay) == 0.0


@pytest.mark.filterwarnings("ignore")  # Dynamo's own
@pytest.mark.parametrize("path", ["fused"])
def test_the_kernel_is_refused_under_compile(path):
    torch._dynamo.reset()
    optimizer, _ = _optimizer(torch.float32, "cpu", 0.1, path)
    with pytest.raises(RuntimeError, match="`path` 'fused' cannot run here: not under torch.compile"):
        torch.compile(optimizer.step, backend="aot_eager")()


def test_path_that_is_chosen(monkeypatch):
    assert hook_path(torch.device("cpu")) == "foreach"
    assert hook_path(torch.device("meta")) == "foreach"
    monkeypatch.setattr(_dispatch.importlib.util, "find_spec", lambda name: name == "triton" or None)
    assert hook_path(torch.device("cuda", 1)) == "fused"
    monkeypatch.setattr(_dispatch.importlib.util, "find_spec", lambda name: None)
    assert hook_path(torch.device("cuda", 1)) == "foreach"


def test_a_path_that_cannot_run_is_refused_before_anything_changes():
    optimizer, _ = _optimizer(torch.float32, "cpu", 0.1, "fused")
    with pytest.raises(
        RuntimeError, match="`path` 'fused' cannot run here: it has no kernels for 'cpu'. Use path=None"
    ):
        optimizer.step()
    assert all((param.grad == 1).all() for param in optimizer.param_groups[0]["params"])


@pytest.mark.filterwarnings("ignore")  # Dynamo's own
@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("when", ["compiled before", "compiled after"])
@pytest.mark.parametrize("path", PYTORCH_PATHS)
def test_compiled_step(path, when, absorb):
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(11)
    params = [torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(3)]
    optimizer = torch.optim.SGD(params, lr=0.1, weight_decay=0.2 if absorb else 0.0)
    hook = GradientLARS(weight_decay=0.0 if absorb else 0.2)
    if when == "compiled before":
        step = torch.compile(optimizer.step, backend="aot_eager")
    handle = add_hook(optimizer, hook, path=path, absorb_weight_decay=absorb)
    if when == "compiled after":
        step = torch.compile(optimizer.step, backend="aot_eager")
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(4, 3, generator=generator)
        layers = [lars(to_numpy(p), to_numpy(p.grad), weight_decay=0.2) for p in params]
        expected = [to_numpy(p) - 0.1 * layer.grad for p, layer in zip(params, layers, strict=True)]
        step()
        for param, e in zip(params, expected, strict=True):
            assert_close(to_numpy(param), e, "float32")
        assert_close(handle.rates().rate.numpy(), [layer.rate for layer in layers], "float32")
    assert optimizer.param_groups[0]["weight_decay"] == (0.2 if absorb else 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", PATHS)
def test_cuda_graph_and_no_synchronisation_on_a_gpu(path, dtype):
    optimizer, handle = _optimizer(dtype, "cuda", 0.1, path)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for seed in range(3):
        for param in params:
            generator = torch.Generator("cuda").manual_seed(seed)
            param.grad.copy_(torch.randn(param.shape, generator=generator, device="cuda"))
        raw = [(p.detach().double().cpu().numpy(), p.grad.double().cpu().numpy()) for p in params]
        graph.replay()
        for param, (p, g) in zip(params, raw, strict=True):
            assert_close(param.grad.double().cpu().numpy(), lars(p, g, weight_decay=0.1).grad, dtype)
    assert len(handle.rates().rate) == len(params)
