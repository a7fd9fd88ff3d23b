"""The kernels on every case and under every setting: against the float64 reference and against the other paths."""

import itertools

import pytest
import torch

from fused.common import SHAPES, advance, copied, fused, moved, network, set_gradients, state_of, took_the_kernels
from gradient_lars.torch import LARS
from lars.expected import assert_same, checked_step, expect
from reference import assert_close
from torch_cases import CASES, SETTINGS, parameter, to_numpy

ONE_LAYER = list(zip(SETTINGS, [True, False, True, False], strict=True))


def _case(case, device, generator=None):
    weights, grad = case.make(generator or torch.Generator().manual_seed(1))
    return parameter(weights, grad) if device == "cpu" else parameter(moved(device, weights), moved(device, grad))


@pytest.mark.parametrize(("hook", "lr_in_momentum"), ONE_LAYER, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_layer(case, hook, lr_in_momentum, device):
    param = _case(case, device)
    optimizer = fused([param], **hook, lr_in_momentum=lr_in_momentum)
    for lr in (0.5, 0.25, 0.75):
        optimizer.param_groups[0]["lr"] = lr
        checked_step(optimizer)
    assert took_the_kernels(optimizer)


@pytest.mark.parametrize(("hook", "carry_norms"), [(SETTINGS[1], None), (SETTINGS[3], False)], ids=str)
def test_all_layers_in_one_optimizer(hook, carry_norms, device):
    generator = torch.Generator().manual_seed(2)
    params = [_case(case, device, generator) for case in CASES]
    grad, params[3].grad = params[3].grad, None
    before = params[3].detach().clone()
    named = [(case.name, param) for case, param in zip(CASES, params, strict=True)]
    optimizer = fused(named, **hook, carry_norms=carry_norms)
    for _ in range(2):
        checked_step(optimizer, factor=10)
    assert optimizer.rates().names == tuple(name for name, param in named if param is not params[3])
    assert torch.equal(params[3], before)
    # A gradient that comes later, and one that goes.
    params[3].grad, params[0].grad = grad, None
    for _ in range(2):
        checked_step(optimizer, factor=10)
    assert took_the_kernels(optimizer)


CROSS = {
    "momentum": [
        {"momentum": 0.0},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.25},
        {"momentum": 0.9, "nesterov": True},
    ],
    "lr_in_momentum": [{"lr_in_momentum": True}, {"lr_in_momentum": False}],
    "maximize": [{"maximize": False}, {"maximize": True}],
    "weight_decay": [{"weight_decay": 0.0}, {"weight_decay": 0.125}],
    "rate": [
        {},
        {"trust_clip": True},
        {"min_rate": 0.125},
        {"max_rate": 0.25},
        {"threshold": 2.0, "eps": 0.5},
        {"adapt": False},
        {"adapt": None},
        {"norm_of": "decayed"},
        {"norm_of": "decayed", "adapt": None, "decay_excluded": False, "trust_clip": True},
        {"adapt_without_decay": False, "zero_gradient_rate": 0.0, "dampen_first_step": True},
        {"zero_gradient_rate": 1.0, "decay_excluded": False, "adapt": None},
    ],
}


@pytest.mark.parametrize("momentum", CROSS["momentum"], ids=str)
@pytest.mark.parametrize("rate", CROSS["rate"], ids=str)
def test_settings(rate, momentum, device):
    others = list(itertools.product(CROSS["lr_in_momentum"], CROSS["maximize"], CROSS["weight_decay"]))
    # One half of the combinations for each kind of momentum and the other for the next.
    for i, parts in list(enumerate(others))[CROSS["momentum"].index(momentum) % 2 :: 2]:
        settings = {key: value for part in (rate, momentum, *parts) for key, value in part.items()}
        named = network(device, shapes=((4, 3), (3,), (2, 2)), dtype=(torch.float64, torch.float32)[i // 2 % 2])
        optimizer = fused(named, **settings)
        for step, lr in enumerate([0.5, 0.75, 0.125]):
            optimizer.param_groups[0]["lr"] = lr
            set_gradients(named, step)
            if step != 1:
                named[-1][1].grad.zero_()
            checked_step(optimizer)
        assert took_the_kernels(optimizer)


@pytest.mark.parametrize(("nesterov", "carry_norms"), [(False, None), (True, False)])
def test_equals_the_other_paths_over_several_chunks(nesterov, carry_norms, device):
    ends = []
    for path in ({"fused": True, "carry_norms": carry_norms}, {"fused": None, "foreach": True}, {"fused": False}):
        named = network(device)
        optimizer = fused(named, nesterov=nesterov, **path)
        for step in range(5):
            set_gradients(named, step)
            optimizer.param_groups[0]["lr"] = 0.5 / (step + 1)
            optimizer.step()
        ends.append((state_of(optimizer), list(optimizer.rates())))
    (tensors, rates), *others = ends
    for other, other_rates in others:
        for a, b in zip(tensors, other, strict=True):
            assert_close(to_numpy(a), to_numpy(b), "float32", factor=0.2)
        for a, b in zip(rates, other_rates, strict=True):
            assert a.name == b.name
            assert_close(a[1:4], b[1:4], "float32")
            assert a.adapted == b.adapted


@pytest.mark.parametrize("norm_of", ["gradient", "decayed"])
def test_several_chunks_against_the_reference(norm_of, device):
    named = network(device)
    optimizer = fused(named, dampening=0.25, norm_of=norm_of, weight_decay=0.5)
    for step in range(3):
        set_gradients(named, step)
        checked_step(optimizer)


def test_two_runs_are_the_same_bits(device):
    ends = []
    for _ in range(2):
        named = network(device)
        optimizer = fused(named)
        advance(optimizer, named, 3)
        ends.append(state_of(optimizer))
    assert_same(*ends)


def test_carried_norms_give_the_bits_of_those_computed_anew(device):
    ends = []
    for carry_norms in (True, False):
        named = network(device)
        optimizer = fused(named, carry_norms=carry_norms)
        advance(optimizer, named, 4)
        ends.append(state_of(optimizer))
    assert_same(*ends)


@pytest.mark.parametrize("lr_dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_tensor_lr_is_read_where_it_lies(shape, lr_dtype, device):
    named = network(device, shapes=((4, 3), ()))
    lr = torch.full(shape, 0.5, dtype=lr_dtype, device=device)
    optimizer = fused(named, lr=lr, trust_clip=True)
    for step, value in enumerate([0.5, 0.25, 1.0]):
        lr.fill_(value)
        set_gradients(named, step)
        checked_step(optimizer)
    assert optimizer.param_groups[0]["lr"] is lr
    optimizer.param_groups[0]["lr"] = torch.full(shape, 0.125, dtype=lr_dtype, device=device)
    checked_step(optimizer)
    optimizer.param_groups[0]["lr"] = 0.0625
    checked_step(optimizer)


def test_groups_differ_in_every_setting(device):
    named = network(device, shapes=((4, 3), (5,), (2, 2, 3), (3, 3)))
    groups = [
        {"params": named[:1]},
        {"params": named[1:2], "lr": 0.1, "momentum": 0.0, "adapt": False},
        {"params": named[2:3], "weight_decay": 0.5, "lr_in_momentum": False, "maximize": True, "threshold": 0.5},
        {"params": named[3:], "dampening": 0.5, "trust_coefficient": 2.0, "eps": 0.25, "max_rate": 0.5},
    ]
    optimizer = fused(groups)
    for step in range(3):
        set_gradients(named, step)
        checked_step(optimizer)
    # Settings that change between steps, one after the other.
    changes = {
        "weight_decay": 0.25,
        "adapt": False,
        "nesterov": True,
        "momentum": 0.5,
        "threshold": 1.0,
        "min_rate": 0.5,
    }
    for step, (key, value) in enumerate(changes.items()):
        optimizer.param_groups[0][key] = value
        set_gradients(named, step)
        checked_step(optimizer)
    optimizer.param_groups[2]["momentum"] = 0.0
    for _, param in named[2:3]:
        del optimizer.state[param]["momentum_buffer"]
    checked_step(optimizer)
    assert took_the_kernels(optimizer)


NARROW = (torch.float32, torch.float16, torch.bfloat16)
# Every pair of types once, and each with one of the types of the momentum.
MIXES = [
    (weights, grad, NARROW[(i + j) % 3])
    for i, weights in enumerate(NARROW)
    for j, grad in enumerate((*NARROW, torch.float64))
]


@pytest.mark.parametrize(("weights", "grad", "momentum"), MIXES, ids=str)
def test_types_in_any_mix(weights, grad, momentum, device):
    named = network(device, shapes=((6, 5), (9000,)), dtype=weights)
    optimizer = fused(named)
    for _, param in named:
        param.grad_dtype = None
        optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param, dtype=momentum)
    for step in range(3):
        set_gradients(named, step)
        for _, param in named:
            param.grad = param.grad.to(grad)
        expected = expect(optimizer)
        optimizer.step()
        assert took_the_kernels(optimizer)
        for (param, layer), rate in zip(expected, optimizer.rates(), strict=True):
            assert_close(to_numpy(param), layer.p, weights)
            assert_close(to_numpy(optimizer.state[param]["momentum_buffer"]), layer.v, momentum)
            assert_close(rate[1:4], [layer.p_norm, layer.g_norm, layer.rate], "float32")


def test_types_of_all_kinds_in_one_optimizer(device):
    types = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    named = [(f"{t}.{name}", param) for t in types for name, param in network(device, shapes=((4, 3), (5,)), dtype=t)]
    optimizer = fused(named)
    for step in range(3):
        set_gradients(named, step)
        checked_step(optimizer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("nesterov", [False, True])
def test_master_weights(nesterov, dtype, device):
    named = [*network(device, dtype=dtype), ("wide", network(device)[0][1])]
    optimizer = fused(named, master_weights=True, nesterov=nesterov)
    for step in range(3):
        set_gradients(named, step)
        expected = expect(optimizer)
        optimizer.step()
        for param, layer in expected:
            state = optimizer.state[param]
            weights = state.get("master", param.detach())
            assert_close(to_numpy(weights), layer.p, "float32")
            assert_close(to_numpy(state["momentum_buffer"]), layer.v, "float32")
            # Triton's interpreter cuts bfloat16 off where the device rounds to nearest.
            assert_close(to_numpy(param), to_numpy(weights), param.dtype, factor=0.5)
            assert weights.dtype == torch.float32
    assert took_the_kernels(optimizer)


@pytest.mark.parametrize("offset", [1, 2, 3, 4])
@pytest.mark.parametrize("which", ["weights", "grad", "momentum"])
def test_views_at_odd_offsets(which, offset, device):
    def at(offset, values):
        return torch.zeros(values.numel() + 8, device=device)[offset : offset + values.numel()].copy_(values)

    values = torch.randn(9000, generator=torch.Generator().manual_seed(3)).to(device)
    param = torch.nn.Parameter(at(offset if which == "weights" else 0, values))
    optimizer = fused([param])
    optimizer.state[param]["momentum_buffer"] = at(offset if which == "momentum" else 0, torch.zeros_like(values))
    for _ in range(2):
        param.grad = at(offset if which == "grad" else 0, values.flip(0))
        checked_step(optimizer)
    assert took_the_kernels(optimizer)


def test_momentum_in_another_order_is_laid_out_once(device):
    values = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(3)).to(device)
    param = torch.nn.Parameter(values.contiguous(memory_format=torch.channels_last))
    param.grad = values.flip(1).contiguous(memory_format=torch.channels_last)
    optimizer = fused([param])
    buffer = torch.ones_like(values)
    optimizer.state[param]["momentum_buffer"] = buffer
    checked_step(optimizer)
    assert optimizer.state[param]["momentum_buffer"].stride() == param.stride()
    assert (buffer == 1).all()
    checked_step(optimizer)


def test_gradients_that_move_and_change_their_order(device):
    named = network(device, shapes=((4, 3, 5, 5), (6, 4)))
    optimizer = fused(named)
    kept = []
    for step in range(6):
        set_gradients(named, step)
        param = named[0][1]
        if step % 2:
            param.grad = param.grad.contiguous(memory_format=torch.channels_last)
        kept.append(param.grad)
        checked_step(optimizer)
    assert took_the_kernels(optimizer)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_a_negated_view_in_the_order_of_the_weights(shape, device):
    param = torch.nn.Parameter(torch.ones(shape, device=device))
    optimizer = fused([param])
    for negated in (True, False, True):
        grad = torch.full(shape, 0.5, device=device)
        # What `z.conj().imag` is, without its gaps.
        param.grad = torch._neg_view(grad) if negated else grad
        assert param.grad.is_neg() is negated
        if shape == (3,) and negated and optimizer.state:
            # Only PyTorch itself makes a dense one of several entries; it is known from the first step at most.
            break
        checked_step(optimizer)


def test_a_gradient_of_another_order_at_the_same_address(device):
    memory = torch.randn(36, generator=torch.Generator().manual_seed(3)).to(device)
    param = torch.nn.Parameter(memory.view(6, 6).clone())
    optimizer = fused([param])
    for grad in (memory.view(6, 6), memory.view(6, 6).t(), memory.view(6, 6)):
        param.grad = grad
        checked_step(optimizer)


@pytest.mark.parametrize("master_weights", [False, True])
def test_resumes_bit_for_bit(master_weights, device):
    dtype = torch.bfloat16 if master_weights else torch.float32
    named = network(device, dtype=dtype)
    optimizer = fused(named, dampening=0.25, master_weights=master_weights)
    advance(optimizer, named, 3)
    twin = copied(named)
    resumed = LARS(twin, 1.0, master_weights=master_weights)
    resumed.load_state_dict(optimizer.state_dict())
    for param in resumed.state:
        resumed.state[param] = {key: value.clone() for key, value in resumed.state[param].items()}
    for o, n in ((optimizer, named), (resumed, twin)):
        advance(o, n, 3, first=3)
    assert_same(state_of(optimizer), state_of(resumed))


def test_many_small_tensors(device):
    named = network(device, shapes=[(1 + i % 7,) for i in range(60)])
    optimizer = fused(named)
    for step in range(2):
        set_gradients(named, step)
        checked_step(optimizer)


def test_nothing_has_a_gradient(device):
    named = network(device)
    optimizer = fused(named)
    optimizer.step()
    assert len(optimizer.rates()) == 0
    advance(optimizer, named, 1)
    for _, param in named:
        param.grad = None
    optimizer.step()
    assert len(optimizer.rates()) == 0
    assert optimizer.rates().rate.shape == (0,)


def test_the_shapes_have_an_uneven_chunk_and_an_even_one():
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    assert {size % 8192 == 0 for size in sizes if size > 4096} == {True, False}
    assert max(sizes) > 2 * 8192
