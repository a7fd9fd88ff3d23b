"""What only a device shows: graphs, streams, more than 2^31 entries, a thousand steps."""

import pytest
import torch

from fused.common import advance, copied, fused, network, set_gradients, state_of, took_the_kernels
from gradient_lars.torch._fused_bucket import LOOK_EVERY
from lars.expected import assert_same, checked_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

SHAPES = ((3, 7000), (8193,), (5,), (2, 3, 4, 4))


def test_is_chosen():
    named = network("cuda", shapes=SHAPES)
    optimizer = fused(named, fused=None)
    set_gradients(named, 0)
    checked_step(optimizer)
    assert took_the_kernels(optimizer)


def test_waits_for_nothing():
    named = network("cuda", shapes=SHAPES)
    optimizer = fused(named, lr=torch.tensor(0.5, device="cuda"), skip_nonfinite=True, dampening=0.25)
    optimizer.grad_scale = torch.tensor(8.0, device="cuda")
    optimizer.found_inf = torch.tensor(0.0, device="cuda")
    gradients = []
    for step in range(2 * LOOK_EVERY):
        set_gradients(named, step)
        gradients.append([param.grad for _, param in named])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, grads in enumerate(gradients):
            for (_, param), grad in zip(named, grads, strict=True):
                param.grad = grad
            optimizer.param_groups[0]["weight_decay"] = 0.125 / (step + 1)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _captured(optimizer):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


def _filled(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad.copy_(torch.randn(param.shape, generator=generator))


@pytest.mark.parametrize("carry_norms", [None, False])
def test_graph(carry_norms):
    lr = torch.tensor(0.5, device="cuda")
    named, twin = network("cuda", shapes=SHAPES), network("cuda", shapes=SHAPES)
    optimizer = fused(named, lr=lr, capturable=True, carry_norms=carry_norms)
    eager = fused(twin, lr=lr, carry_norms=carry_norms)
    params, others = [param for _, param in named], [param for _, param in twin]
    advance(optimizer, named, 2)
    advance(eager, twin, 2)
    before = state_of(optimizer)
    graph = _captured(optimizer)
    assert_same(state_of(optimizer), before)
    rates = optimizer.rates()
    for step in range(3, 8):
        lr.fill_(0.5 / step)
        _filled(params, step)
        _filled(others, step)
        graph.replay()
        eager.step()
        assert_same(state_of(optimizer), state_of(eager))
    assert list(rates) == list(eager.rates())
    # Eager steps in between, with gradients at other addresses; the graph goes on with its own.
    old = [param.grad for param in params]
    for o, n in ((optimizer, named), (eager, twin)):
        advance(o, n, 1, first=8)
    assert_same(state_of(optimizer), state_of(eager))
    for param, grad in zip(params, old, strict=True):
        param.grad = grad
    _filled(params, 9)
    _filled(others, 9)
    graph.replay()
    eager.step()
    assert_same(state_of(optimizer), state_of(eager))
    # And a second graph, of gradients that have moved.
    for param in params:
        param.grad = torch.zeros_like(param)
    second = _captured(optimizer)
    for step in (10, 11):
        _filled(params, step)
        _filled(others, step)
        second.replay()
        eager.step()
        assert_same(state_of(optimizer), state_of(eager))


def _waiting_steps(optimizer, steps):
    for _ in range(steps):
        optimizer.step()
        torch.cuda.synchronize()


def test_edits_between_replays_are_told():
    named = network("cuda", shapes=SHAPES)
    optimizer = fused(named, capturable=True)
    advance(optimizer, named, 2)
    graph = _captured(optimizer)
    graph.replay()
    with torch.no_grad():
        named[1][1].mul_(3.0)
    graph.replay()
    graph.replay()
    with pytest.warns(RuntimeWarning, match="'layer1'"):
        _waiting_steps(optimizer, 2 * LOOK_EVERY)


def test_capture_is_refused():
    named = network("cuda", shapes=SHAPES)
    optimizer = fused(named)
    advance(optimizer, named, 1)
    with pytest.raises(RuntimeError, match="`capturable` is False"):
        _captured(optimizer)
    named = network("cuda", shapes=SHAPES)
    set_gradients(named, 0)
    with pytest.raises(RuntimeError, match="Take a step outside the graph first"):
        _captured(fused(named, capturable=True))


def test_a_thousand_steps_are_the_same_bits():
    ends = []
    for _ in range(2):
        named = network("cuda", shapes=((1000, 1001), (8193,), (5,)))
        optimizer = fused(named, momentum=0.9)
        gradients = [torch.randn_like(param, generator=None) * 0 + 0.01 * (i + 1) for i, (_, param) in enumerate(named)]
        for step in range(1000):
            for (_, param), grad in zip(named, gradients, strict=True):
                param.grad = grad * (1 + step % 7)
            optimizer.step()
        ends.append(state_of(optimizer))
    assert_same(*ends)


def test_more_than_2_to_the_31_entries():
    if torch.cuda.mem_get_info()[0] < 30 << 30:
        pytest.skip("needs 30 GiB")
    param = torch.nn.Parameter(torch.ones(2**31 + 8200, dtype=torch.bfloat16, device="cuda"))
    param.grad = torch.full_like(param, 2.0)
    optimizer = fused([param], lr=1.0, momentum=0.9, weight_decay=0.0, trust_coefficient=0.5)
    for _ in range(2):
        optimizer.step()
    (rate,) = optimizer.rates()
    # 1 - 0.5, then 0.5 - (0.9 * 0.5 + 0.25).
    assert rate.p_norm == pytest.approx(0.5 * (2**31 + 8200) ** 0.5, rel=1e-3)
    for part in (param[:3], param[2**31 - 3 : 2**31 + 3], param[-3:]):
        assert part.float().tolist() == pytest.approx([-0.2] * len(part), abs=4e-3)


def test_another_device_than_the_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    named = [*network("cuda:1", shapes=SHAPES), *network("cuda:0", shapes=SHAPES, seed=6)]
    optimizer = fused([(f"layer{i}", param) for i, (_, param) in enumerate(named)], skip_nonfinite=True)
    for step in range(3):
        set_gradients(named, step)
        checked_step(optimizer)


def test_a_copy_on_another_stream():
    named = network("cuda", shapes=SHAPES)
    twin = copied(named)
    one, other = fused(named), fused(twin)
    stream = torch.cuda.Stream()
    for step in range(3):
        set_gradients(named, step)
        set_gradients(twin, step)
        one.step()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            other.step()
        torch.cuda.current_stream().wait_stream(stream)
    assert_same(state_of(one), state_of(other))
