"""The hook's kernel: which layers it takes, what it is told when they change, and that all come out right."""

import gc
import weakref

import pytest
import torch

from fused.common import NoLaunch, copied, moved, network, set_gradients
from gradient_lars import GradientLARS
from gradient_lars.torch import _dispatch, _fused_hook, _triton_hook, add_hook
from gradient_lars.torch._fused_tables import CHUNK
from gradient_lars.torch._layers import Layer, LossScale
from lars.expected import assert_same
from reference import assert_close, lars
from torch_cases import CASES, SETTINGS, to_numpy

SHAPES = ((3, 5500), (8192,), (8193,), (5,), (2, 3, 4, 4), (), (0, 3))


class Still(torch.optim.Optimizer):
    """Does nothing in a step, so that all that happens is the hook's doing."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self):
        pass


def hooked(params, weight_decay=0.125, path="fused", **settings):
    """Return an optimizer that leaves all to its hook, and the hook's handle."""
    optimizer = Still(params)
    return optimizer, add_hook(optimizer, GradientLARS(weight_decay=weight_decay, **settings), path=path)


def checked_step(optimizer, handle, *, taken=None, factor=1.0):
    """Take a step, and assert that gradients and rates are the expected ones and how many layers the kernel took."""
    hook, expected = handle.hook, []
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                p, g = to_numpy(param), to_numpy(param.grad.to_dense())
                settings = {"weight_decay": hook.weight_decay, "threshold": hook.threshold, "eps": hook.eps}
                expected.append((param, param.grad, lars(p, g, **settings)))
    optimizer.step()
    rates = list(handle.rates())
    assert len(rates) == len(expected)
    for (param, grad, layer), rate in zip(expected, rates, strict=True):
        assert param.grad is grad
        assert_close(to_numpy(grad.to_dense()), layer.grad, param.dtype, factor=factor)
        assert_close(rate[1:4], [layer.p_norm, layer.g_norm, layer.rate], "float32", factor=factor)
        assert rate.adapted == (layer.p_norm > hook.threshold)
    assert len(fused_of(handle)._mine) == (len(expected) if taken is None else taken)


def fused_of(handle):
    """Return what the fused path keeps between steps."""
    return handle._action._path._fused


# What the kernel leaves to the multi-tensor path.
LEFT = {"complex64", "complex128", "conjugate gradient", "negated gradient", "gradient of another layout"}
LEFT |= {"strided view"}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_case_beside_the_others(settings, device):
    generator = torch.Generator().manual_seed(2)
    params = []
    for case in CASES:
        weights, grad = (moved(device, tensor) for tensor in case.make(generator))
        params.append(torch.nn.Parameter(weights))
        params[-1].grad = grad
    optimizer, handle = hooked([(case.name, p) for case, p in zip(CASES, params, strict=True)], **settings)
    checked_step(optimizer, handle, taken=len(CASES) - len(LEFT), factor=10)
    mine = {CASES[i].name for i in fused_of(handle)._mine}
    assert mine == {case.name for case in CASES} - LEFT


@pytest.mark.parametrize("weight_decay", [0.0, 0.125])
def test_several_chunks_and_steps(weight_decay, device):
    named = network(device, shapes=SHAPES)
    optimizer, handle = hooked(named, weight_decay)
    for step in range(3):
        set_gradients(named, step)
        checked_step(optimizer, handle)
    for _, bucket in fused_of(handle)._parts:
        assert not bucket._counts.any()


def test_bits_are_those_of_a_second_run_and_nearly_of_foreach(device):
    ends = []
    for path in ("fused", "fused", "foreach"):
        named = network(device, shapes=SHAPES)
        optimizer, _ = hooked(named, path=path)
        set_gradients(named, 0)
        optimizer.step()
        ends.append([param.grad for _, param in named])
    assert_same(ends[0], ends[1])
    for a, b in zip(ends[0], ends[2], strict=True):
        assert_close(to_numpy(a), to_numpy(b), "float32", factor=0.1)


NARROW = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("grad", NARROW, ids=str)
@pytest.mark.parametrize("weights", NARROW, ids=str)
def test_types_in_any_mix(weights, grad, device):
    named = network(device, shapes=((6, 5), (9000,)), dtype=weights)
    optimizer, handle = hooked(named)
    for _, param in named:
        param.grad_dtype = None
    set_gradients(named, 0)
    expected = []
    for _, param in named:
        param.grad = param.grad.to(grad)
        expected.append(lars(to_numpy(param), to_numpy(param.grad), weight_decay=0.125))
    optimizer.step()
    assert len(fused_of(handle)._mine) == 2
    for (_, param), layer, rate in zip(named, expected, handle.rates(), strict=True):
        assert_close(to_numpy(param.grad), layer.grad, grad)
        assert_close(rate[1:4], [layer.p_norm, layer.g_norm, layer.rate], "float32")


@pytest.mark.parametrize("offset", [1, 2, 3, 4])
@pytest.mark.parametrize("which", ["weights", "grad"])
def test_views_at_odd_offsets(which, offset, device):
    def at(offset, values):
        return torch.zeros(values.numel() + 8, device=device)[offset : offset + values.numel()].copy_(values)

    values = torch.randn(9000, generator=torch.Generator().manual_seed(3)).to(device)
    param = torch.nn.Parameter(at(offset if which == "weights" else 0, values))
    param.grad = at(offset if which == "grad" else 0, values.flip(0))
    around = param.grad._base if which == "grad" else None
    optimizer, handle = hooked([param])
    checked_step(optimizer, handle)
    if around is not None:
        assert not around[:offset].any()
        assert not around[offset + 9000 :].any()


def test_groups_with_and_without_decay_and_with_the_sign_turned(device):
    named = network(device, shapes=((4, 3), (5,), (2, 2, 3)))
    groups = [
        {"params": named[:1], "weight_decay": 0.25},
        {"params": named[1:2], "weight_decay": 0.0},
        {"params": named[2:], "weight_decay": 0.5, "maximize": True},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    handle = add_hook(optimizer, GradientLARS(), absorb_weight_decay=True, path="fused")
    for step in range(2):
        set_gradients(named, step)
        expected = [
            lars(to_numpy(param), sign * to_numpy(param.grad), weight_decay=group["weight_decay"])
            for (_, param), group, sign in zip(named, groups, (1, 1, -1), strict=True)
        ]
        optimizer.step()
        for (_, param), layer, sign in zip(named, expected, (1, 1, -1), strict=True):
            assert_close(to_numpy(param.grad), sign * layer.grad, "float32")
    before = fused_of(handle)
    # One decay more than there was room for.
    optimizer.add_param_group({"params": [("late", torch.nn.Parameter(torch.ones(3, device=device)))]})
    optimizer.param_groups[-1]["weight_decay"] = 1.0
    late = optimizer.param_groups[-1]["params"][0]
    late.grad = torch.ones_like(late)
    optimizer.step()
    assert fused_of(handle) is not before
    assert_close(to_numpy(late.grad), lars([1, 1, 1], [1, 1, 1], weight_decay=1.0).grad, "float32")


def test_weights_that_are_not_finite_do_not_reach_a_gradient_without_decay(device):
    named = network(device, shapes=((4,), (4,)))
    with torch.no_grad():
        named[1][1][0] = float("nan")
    optimizer = torch.optim.SGD([{"params": named[:1], "weight_decay": 0.5}, {"params": named[1:]}], lr=0.0)
    add_hook(optimizer, GradientLARS(), absorb_weight_decay=True, path="fused")
    set_gradients(named, 0)
    before = named[1][1].grad.clone()
    optimizer.step()
    assert torch.equal(named[1][1].grad, before)


@pytest.mark.parametrize("overflow", [False, True])
def test_loss_scale_and_overflow(overflow, device):
    named = network(device, shapes=SHAPES)
    optimizer, handle = hooked(named)
    optimizer.grad_scale = torch.tensor(1024.0, device=device)
    optimizer.found_inf = torch.tensor(float(overflow), device=device)
    set_gradients(named, 0, scale=1024.0)
    before = [param.grad.clone() for _, param in named]
    expected = [lars(to_numpy(p), to_numpy(p.grad) / 1024, weight_decay=0.125) for _, p in named]
    optimizer.step()
    for (_, param), layer, rate in zip(named, expected, handle.rates(), strict=True):
        assert_close(rate[1:4], [layer.p_norm, layer.g_norm, layer.rate], "float32")
        if not overflow:
            assert_close(to_numpy(param.grad) / 1024, layer.grad, "float32")
    if overflow:
        assert_same([param.grad for _, param in named], before)


def test_norm_of_many_entries_is_accurate(device):
    param = torch.nn.Parameter(torch.rand(300_003, device=device))
    param.grad = torch.rand_like(param)
    expected = lars(to_numpy(param), to_numpy(param.grad))
    optimizer, handle = hooked([param], 0.0)
    optimizer.step()
    assert abs(handle.rates().p_norm.item() / expected.p_norm - 1) < 1e-6
    assert abs(handle.rates().g_norm.item() / expected.g_norm - 1) < 1e-6


def test_layers_longer_than_a_span(device, monkeypatch):
    monkeypatch.setattr("gradient_lars.torch._fused_tables.MOST_CHUNKS", 2)
    named = network(device, shapes=((5 * CHUNK + 3,), (7,)))
    optimizer, handle = hooked(named)
    set_gradients(named, 0)
    checked_step(optimizer, handle)
    assert len(fused_of(handle)._parts[0][1]._items) == 2 * (2 + 1)


def test_gradients_that_come_and_go(device):
    named = network(device, shapes=((4, 3), (5,), (8193,), (2, 2), (3,)))
    optimizer, handle = hooked(named)
    set_gradients(named, 0)
    checked_step(optimizer, handle)
    made = fused_of(handle)
    for step, absent in enumerate([{1}, {0, 2, 4}, {3, 4}, set(), {0, 1, 2, 3}]):
        set_gradients(named, step)
        for i in absent:
            named[i][1].grad = None
        checked_step(optimizer, handle)
        assert handle.rates().names == tuple(name for i, (name, _) in enumerate(named) if i not in absent)
    assert fused_of(handle) is made


def test_a_layer_that_comes_later_keeps_the_others(device):
    named = network(device, shapes=((4, 3), (5,), (3,)))
    optimizer, handle = hooked(named)
    for step, absent in enumerate([{2}, {0}, {1}]):
        set_gradients(named, step)
        for i in absent:
            named[i][1].grad = None
        checked_step(optimizer, handle)
        if step == 1:
            made = fused_of(handle)
    assert len(made.members) == 3
    assert fused_of(handle) is made


def test_tensors_that_change_between_steps(device):
    named = network(device, shapes=((4, 3, 5, 5), (6, 4), (5,)))
    optimizer, handle = hooked(named)
    kept = []
    for step in range(5):
        set_gradients(named, step)
        kept += [param.grad for _, param in named]
        checked_step(optimizer, handle)
    made, param = fused_of(handle), named[0][1]
    # Other memory of the same order is entered; another order and another type are something else.
    kept.append(param.data)
    param.data = param.data.clone() * 2
    checked_step(optimizer, handle)
    assert fused_of(handle) is made
    param.grad = param.grad.contiguous(memory_format=torch.channels_last)
    checked_step(optimizer, handle, taken=2)
    param.data = param.data.contiguous(memory_format=torch.channels_last)
    checked_step(optimizer, handle)
    square = named[1][1]
    square.grad = torch.ones(4, 6, device=device).t()
    checked_step(optimizer, handle, taken=2)
    square.grad = torch.ones_like(square)
    checked_step(optimizer, handle)
    square.grad = None
    square.data = square.data.double()
    square.grad = torch.ones_like(square)
    checked_step(optimizer, handle)


def test_it_does_not_fit_layers_on_another_device(device):
    named = network(device, shapes=((4, 3), (5,)))
    optimizer, handle = hooked(named)
    set_gradients(named, 0)
    checked_step(optimizer, handle)
    layers = [Layer(name, param, param.grad, 0.125, 1) for name, param in named]
    assert fused_of(handle).fits(layers)
    torch.utils.swap_tensors(named[0][1], torch.nn.Parameter(torch.empty(4, 3, device="meta")))
    layers[0].grad = torch.empty(4, 3, device="meta")
    assert not fused_of(handle).fits(layers)


def test_gradients_of_another_kind_while_it_is_going(device):
    named = network(device, shapes=((4, 3), (6, 2), ()))
    optimizer, handle = hooked(named, 0.0)
    set_gradients(named, 0)
    checked_step(optimizer, handle)
    named[1][1].grad = named[1][1].grad.to_sparse()
    checked_step(optimizer, handle, taken=2)
    set_gradients(named, 1)
    named[2][1].grad = torch._neg_view(named[2][1].grad)
    checked_step(optimizer, handle, taken=2)
    set_gradients(named, 2)
    checked_step(optimizer, handle)


def test_settings_may_change_between_steps(device):
    named = network(device, shapes=((4, 3), (5,)))
    optimizer, handle = hooked(named, 0.0)
    for step, (name, value) in enumerate([("weight_decay", 0.5), ("threshold", 100.0), ("eps", 2.0), ("threshold", 0)]):
        set_gradients(named, step)
        checked_step(optimizer, handle)
        setattr(handle.hook, name, value)
    checked_step(optimizer, handle)


def test_autograd_sees_that_the_gradients_have_changed(device):
    named = network(device, shapes=((4, 3),))
    optimizer, _ = hooked(named)
    set_gradients(named, 0)
    before = named[0][1].grad._version
    optimizer.step()
    assert named[0][1].grad._version > before
    with torch.inference_mode():
        set_gradients(named, 1)
        optimizer.step()


def test_parameters_that_the_optimizer_has_given_up_are_let_go(device):
    named = network(device, shapes=((4, 3), (5,)))
    optimizer, handle = hooked(copied(named))
    old = weakref.ref(optimizer.param_groups[0]["params"][0])
    for i in range(2):
        set_gradients([("", param) for param in optimizer.param_groups[0]["params"]], i)
        optimizer.step()
        optimizer.param_groups[0]["params"] = [param for _, param in copied(named)]
    set_gradients([("", param) for param in optimizer.param_groups[0]["params"]], 2)
    checked_step(optimizer, handle)
    gc.collect()
    assert old() is None


@pytest.fixture
def stub(monkeypatch):
    """A kernel that does nothing, so that the host's part is all there is."""
    found = NoLaunch()
    monkeypatch.setattr(_triton_hook, "rescale", found)
    return found


def test_one_launch_and_nothing_sent_while_nothing_changes(stub, device):
    named = network(device, shapes=[(16, 4)] * 30)
    optimizer, handle = hooked(named)
    set_gradients(named, 0)
    optimizer.step()
    ((_, bucket),) = fused_of(handle)._parts
    sent = bucket.table.sent
    optimizer.step()
    assert (bucket.table.sent, stub.launches) == (sent, 2)
    old = named[7][1].grad
    named[7][1].grad = torch.empty_like(named[7][1])
    optimizer.step()
    assert bucket.table.sent == sent + 1
    del old
    handle.hook.eps = 1e-3
    optimizer.step()
    assert bucket.table.sent == sent + 2


def test_nothing_is_made_anew_while_it_is_going(stub, device, monkeypatch):
    named = network(device, shapes=[(16, 4)] * 5)
    optimizer, _ = hooked(named)
    set_gradients(named, 0)
    optimizer.step()
    monkeypatch.setattr(_fused_hook, "HookBucket", None)
    set_gradients(named, 1)
    optimizer.step()
    assert stub.launches == 2


def test_a_capture_needs_a_step_before_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    path = _dispatch.HookPath("fused")
    assert "take a step outside the graph first" in path._prepare([], {"cuda"})
    assert path._fused is None


def test_sharded_parameters_are_refused():
    with pytest.raises(RuntimeError, match="`path` 'fused' cannot run here: some parameters are sharded"):
        _dispatch.HookPath("fused").rescale([], LossScale(None, None), object(), threshold=0.0, eps=0.0)


def test_what_a_graph_reads_lives_as_long_as_the_weights(stub, device, monkeypatch):
    named = network(device, shapes=((4, 3), (5,)))
    optimizer, handle = hooked(named)
    set_gradients(named, 0)
    optimizer.step()
    monkeypatch.setattr(_fused_hook, "is_capturing", lambda device: True)
    optimizer.step()
    kept = weakref.ref(fused_of(handle)._parts[0][1])
    handle.remove()
    del optimizer, handle
    gc.collect()
    assert kept() is not None
    named.clear()
    gc.collect()
    assert kept() is None


def test_a_launch_of_thousands_of_layers(stub, device):
    named = network(device, shapes=[(2,)] * 3000)
    optimizer, handle = hooked(named)
    set_gradients(named, 0)
    optimizer.step()
    ((_, bucket),) = fused_of(handle)._parts
    assert (stub.launches, bucket.layers, len(bucket._items)) == (1, 3000, 6000)
