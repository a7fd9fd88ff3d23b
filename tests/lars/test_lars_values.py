"""Every path on every case and under every setting against the float64 reference, one step at a time."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradient_lars.torch import LARS
from lars.expected import PATHS, checked_step, lars_step, network, set_gradients
from reference import assert_close
from torch_cases import CASES, SETTINGS, parameter

FUSED_TYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def _grad_dtype(case):
    return case.make(torch.Generator().manual_seed(1))[1].dtype


# The fused path refuses what is left out here; test_lars_paths.py sees to that.
PATHS_AND_CASES = [
    (path, case) for path in PATHS for case in CASES if path != "fused" or _grad_dtype(case) in FUSED_TYPES
]


def _optimizer(params, path, hook=None, **other):
    return LARS(params, **{"lr": 0.5, "trust_coefficient": 0.25, **(hook or {}), **other}, **path)


@pytest.mark.parametrize("lr_in_momentum", [True, False])
@pytest.mark.parametrize("hook", SETTINGS, ids=str)
@pytest.mark.parametrize(("path", "case"), PATHS_AND_CASES, ids=lambda value: getattr(value, "name", value))
def test_one_layer(case, path, hook, lr_in_momentum):
    param = parameter(*case.make(torch.Generator().manual_seed(1)))
    optimizer = _optimizer([param], PATHS[path], hook, lr_in_momentum=lr_in_momentum)
    for _ in range(3):
        checked_step(optimizer)


@pytest.mark.parametrize("path", [name for name in PATHS if name != "fused"])
@pytest.mark.parametrize("hook", SETTINGS, ids=str)
def test_all_layers_in_one_optimizer(path, hook):
    generator = torch.Generator().manual_seed(2)
    params = [parameter(*case.make(generator)) for case in CASES]
    params[3].grad = None
    before = params[3].detach().clone()
    named = [(case.name, param) for case, param in zip(CASES, params, strict=True)]
    optimizer = _optimizer(named, PATHS[path], hook)
    for _ in range(2):
        checked_step(optimizer, factor=10)
    assert optimizer.rates().names == tuple(name for name, param in named if param is not params[3])
    assert torch.equal(params[3], before)
    assert params[3] not in optimizer.state


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
    "adapt": [{"adapt": True}, {"adapt": False}, {"adapt": None}],
    "rate": [
        {},
        {"trust_clip": True},
        {"min_rate": 0.125},
        {"max_rate": 0.25},
        {"threshold": 2.0, "eps": 0.5},
        {"norm_of": "decayed"},
        {"norm_of": "decayed", "trust_clip": True, "eps": 0.25, "decay_excluded": False},
        {"decay_excluded": False, "adapt_without_decay": False},
        {"dampen_first_step": True, "zero_gradient_rate": 0.0},
        {"zero_gradient_rate": 1.0},
    ],
}


@pytest.mark.parametrize(
    ("path", "momentum"),
    [(path, m) for path in PATHS for m in CROSS["momentum"] if path != "fused" or "nesterov" not in m],
    ids=str,
)
def test_settings(path, momentum):
    for combination in itertools.product(*[CROSS[name] for name in CROSS if name != "momentum"]):
        options = {key: value for part in combination for key, value in part.items()}
        named = network(torch.float64, shapes=((4, 3), (3,), (), (2, 2)))
        optimizer = _optimizer(named, PATHS[path], **momentum, **options)
        # The learning rate changes from step to step, which is where the two forms of momentum differ.
        for step, lr in enumerate([0.5, 0.75, 0.125]):
            optimizer.param_groups[0]["lr"] = lr
            set_gradients(named, step)
            if step != 1:
                named[-1][1].grad.zero_()
            checked_step(optimizer)


@pytest.mark.parametrize("path", PATHS)
def test_groups_differ_in_every_setting(path):
    named = network(shapes=((4, 3), (5,), (2, 2, 3), (3, 3)))
    groups = [
        {"params": named[:1]},
        {"params": named[1:2], "lr": 0.1, "momentum": 0.0, "adapt": False},
        {"params": named[2:3], "weight_decay": 0.5, "lr_in_momentum": False, "maximize": True, "threshold": 0.5},
        {"params": named[3:], "dampening": 0.5, "trust_coefficient": 2.0, "eps": 0.25, "max_rate": 0.5},
    ]
    optimizer = _optimizer(groups, PATHS[path])
    for step in range(3):
        set_gradients(named, step)
        checked_step(optimizer)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lr_in_momentum", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_tensor_lr(path, lr_in_momentum, dtype, shape):
    named = network(shapes=((4, 3), ()))
    lr = torch.full(shape, 0.5, dtype=dtype)
    optimizer = _optimizer(named, PATHS[path], lr=lr, lr_in_momentum=lr_in_momentum, trust_clip=True)
    for step, value in enumerate([0.5, 0.25, 1.0]):
        lr.fill_(value)
        set_gradients(named, step)
        checked_step(optimizer)
    assert optimizer.param_groups[0]["lr"] is lr


@pytest.mark.parametrize("path", PATHS)
def test_tiny_rates_keep_their_precision(path):
    # The fused kernel takes the rate inside `1 - dampening`, where a small one would lose its digits.
    for dtype in (torch.float32, torch.float64):
        for trust_coefficient in (1e-2, 1e-5, 1e-7, 1e-12):
            named = network(dtype)
            optimizer = _optimizer(named, PATHS[path], trust_coefficient=trust_coefficient)
            for step in range(2):
                set_gradients(named, step)
                checked_step(optimizer)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "fused"])
@pytest.mark.parametrize(("param_type", "grad_type"), [("float64", "float32"), ("float32", "float64")])
def test_gradient_of_another_type(path, param_type, grad_type):
    param = torch.nn.Parameter(torch.randn(4, 3, dtype=getattr(torch, param_type)))
    try:
        param.grad_dtype = getattr(torch, grad_type)
    except (AttributeError, RuntimeError):
        pytest.skip("needs a PyTorch whose parameters have grad_dtype")
    param.grad = torch.randn(4, 3, dtype=getattr(torch, grad_type))
    optimizer = _optimizer([param], PATHS[path])
    for _ in range(2):
        checked_step(optimizer, factor=1e7 if param_type == "float64" else 1)


@pytest.mark.parametrize("path", PATHS)
def test_gradient_with_the_negative_bit(path):
    # Dense and of the parameter's layout, but its memory holds the opposite of its values.
    param = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(3)))
    param.grad = torch._neg_view(torch.randn(4, 3, generator=torch.Generator().manual_seed(4)))
    assert param.grad.is_neg()
    optimizer = _optimizer([param], PATHS[path], maximize=True)
    for _ in range(2):
        checked_step(optimizer)


@pytest.mark.parametrize("path", PATHS)
def test_expanded_gradient(path):
    param = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(3)))
    param.grad = torch.tensor([1.0, -2.0, 0.5]).expand(4, 3)
    optimizer = _optimizer([param], PATHS[path])
    for _ in range(2):
        checked_step(optimizer)


finite = st.floats(-100, 100, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-3)


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.tuples(finite, finite), min_size=1, max_size=8),
    exponent=st.integers(-20, 20),
    path=st.sampled_from(list(PATHS)),
)
def test_a_relative_step_is_free_of_scale(values, exponent, path):
    ends = []
    for factor in (1.0, 2.0**exponent):
        param = torch.nn.Parameter(torch.tensor([p for p, _ in values], dtype=torch.float64) * factor)
        optimizer = LARS([param], 0.5, threshold=0.0, eps=0.0, weight_decay=0.25, **PATHS[path])
        for _ in range(2):
            param.grad = torch.tensor([g for _, g in values], dtype=torch.float64) * factor
            optimizer.step()
        ends.append(param.detach() / factor)
    adapted = any(p for p, _ in values)
    if adapted or exponent == 0:
        assert_close(ends[0].numpy(), ends[1].numpy(), "float64")


@pytest.mark.parametrize("wrong", ["p", "v", "rate"])
def test_the_check_can_fail(wrong, monkeypatch):
    named = network()
    optimizer = _optimizer(named, PATHS["loop"])
    set_gradients(named, 0)
    import lars.expected as module

    def broken(p, g, v, settings):
        right = lars_step(p, g, v, settings)
        return type(right)(**{**vars(right), wrong: getattr(right, wrong) * 1.001})

    monkeypatch.setattr(module, "lars_step", broken)
    with pytest.raises(AssertionError, match="differs by"):
        checked_step(optimizer)
