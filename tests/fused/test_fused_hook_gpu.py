"""The hook's kernel on a device: graphs, streams, waiting programs, more than 2^31 entries, a thousand steps."""

import pytest
import torch

from fused.common import network, set_gradients
from gradient_lars import GradientLARS
from gradient_lars.torch import _fused_hook_bucket as bucket_module
from gradient_lars.torch import add_hook
from lars.expected import assert_same
from reference import assert_close, lars
from torch_cases import to_numpy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

SHAPES = ((3, 7000), (8193,), (5,), (2, 3, 4, 4), (1000, 1001))


def _hooked(params, path=None, **options):
    optimizer = torch.optim.SGD(params, lr=0.0, **options)
    return optimizer, add_hook(optimizer, GradientLARS(weight_decay=0.125), path=path)


def _expected(params, scale=1.0):
    return [lars(to_numpy(param), to_numpy(param.grad) / scale, weight_decay=0.125).grad * scale for param in params]


def _assert_rescaled(params, expected):
    for param, grad in zip(params, expected, strict=True):
        assert_close(to_numpy(param.grad), grad, param.grad.dtype)


def _filled(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad.copy_(torch.randn(param.shape, generator=generator))


def test_is_chosen():
    named = network("cuda", shapes=SHAPES)
    optimizer, handle = _hooked(named)
    set_gradients(named, 0)
    expected = _expected([param for _, param in named])
    optimizer.step()
    assert handle._action._path._fused is not None
    _assert_rescaled([param for _, param in named], expected)


def test_waits_for_nothing():
    named = network("cuda", shapes=SHAPES)
    optimizer, handle = _hooked(named, fused=True)
    optimizer.grad_scale = torch.tensor(8.0, device="cuda")
    optimizer.found_inf = torch.tensor(0.0, device="cuda")
    gradients = []
    for step in range(4):
        set_gradients(named, step)
        gradients.append([param.grad for _, param in named])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, grads in enumerate(gradients):
            for (_, param), grad in zip(named, grads, strict=True):
                param.grad = None if step == 2 and param.dim() == 1 else grad
            handle.hook.eps = 1e-9 * (step + 1)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_with_a_fused_optimizer_and_a_loss_scale():
    named = network("cuda", shapes=SHAPES)
    params = [param for _, param in named]
    optimizer, handle = _hooked(named, "fused", fused=True)
    set_gradients(named, 0)
    optimizer.step()
    for param in params:
        param.grad = torch.zeros_like(param)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for step in range(3):
        _filled(params, step)
        expected = _expected(params)
        graph.replay()
        _assert_rescaled(params, expected)
        # Eager steps in between, with gradients at other addresses; the graph goes on with its own.
        kept = [param.grad for param in params]
        set_gradients(named, 10 + step)
        expected = _expected(params)
        optimizer.step()
        _assert_rescaled(params, expected)
        for param, grad in zip(params, kept, strict=True):
            param.grad = grad
    # The graph still works when the hook is gone.
    handle.remove()
    del optimizer, handle
    torch.cuda.empty_cache()
    _filled(params, 4)
    expected = _expected(params)
    graph.replay()
    _assert_rescaled(params, expected)


def test_a_capture_of_unknown_tensors():
    def capture(path):
        named = network("cuda", shapes=SHAPES)
        optimizer, handle = _hooked(named, path)
        set_gradients(named, 0)
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.step()
        return handle

    with pytest.raises(RuntimeError, match="take a step outside the graph first"):
        capture("fused")
    assert capture(None)._action._path._fused is None


@pytest.mark.parametrize("programs", [1, 2, 3, 64, 100_000])
def test_any_number_of_programs(programs, monkeypatch):
    # More than fit on the device at once, and so few that one has to do all the work.
    monkeypatch.setattr(bucket_module, "_programs", lambda device: programs)
    named = network("cuda", shapes=(*SHAPES, *[(9000,)] * 200))
    optimizer, handle = _hooked(named, "fused")
    for step in range(5):
        set_gradients(named, step)
        expected = _expected([param for _, param in named])
        optimizer.step()
        _assert_rescaled([param for _, param in named], expected)
    for _, bucket in handle._action._path._fused._parts:
        assert not bucket._counts.any()


def test_a_thousand_steps_are_the_same_bits():
    named = network("cuda", shapes=((2000, 2001), *SHAPES, *[(100,)] * 100))
    params = [param for _, param in named]
    optimizer, _ = _hooked(named, "fused")
    set_gradients(named, 0)
    raw = [param.grad.clone() for param in params]
    optimizer.step()
    first = [param.grad.clone() for param in params]
    for _ in range(1000):
        torch._foreach_copy_([param.grad for param in params], raw)
        optimizer.step()
        assert_same([param.grad for param in params], first)


def test_more_than_2_to_the_31_entries():
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GiB")
    param = torch.nn.Parameter(torch.ones(2**31 + 8200, dtype=torch.bfloat16, device="cuda"))
    param.grad = torch.full_like(param, 4.0)
    optimizer = torch.optim.SGD([param], lr=0.0)
    handle = add_hook(optimizer, GradientLARS(), path="fused")
    optimizer.step()
    (rate,) = handle.rates()
    assert rate.rate == pytest.approx(0.25, rel=1e-5)
    for part in (param.grad[:3], param.grad[2**31 - 3 : 2**31 + 3], param.grad[-3:]):
        assert (part == 1).all()


def test_several_devices_in_one_optimizer():
    others = ["cuda:1"] if torch.cuda.device_count() > 1 else []
    named = [
        pair for i, device in enumerate(["cpu", *others, "cuda:0"]) for pair in network(device, SHAPES[:3], seed=i)
    ]
    params = [param for _, param in named]
    optimizer, handle = _hooked([(f"layer{i}", param) for i, param in enumerate(params)])
    for step in range(3):
        set_gradients(named, step)
        expected = _expected(params)
        optimizer.step()
        _assert_rescaled(params, expected)
        assert len(handle.rates().rate) == len(params)
    assert len(handle._action._path._fused._mine) == 3 * (1 + len(others))


def test_another_stream():
    named = network("cuda", shapes=SHAPES)
    params = [param for _, param in named]
    optimizer, _ = _hooked(named, "fused")
    stream = torch.cuda.Stream()
    for step in range(3):
        set_gradients(named, step)
        expected = _expected(params)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        _assert_rescaled(params, expected)
