"""The plan of a step on the CPU: that it is kept while it holds, dropped when it does not, and computes the same."""

import copy
import pickle
import weakref

import numpy as np
import pytest
import torch

from gradient_lars.torch import LARS, _lars_cpu, _lars_cpu_small
from gradient_lars.torch._lars_cpu_plan import Plan
from gradient_lars.torch._lars_cpu_small import SmallLayers
from lars.expected import assert_same, checked_step, network, set_gradients, state_of
from reference import assert_close
from torch_cases import to_numpy

SETTINGS = {"lr": 0.5, "trust_coefficient": 0.25, "weight_decay": 0.125}
# Enough small layers to be taken together, one that is divided into blocks, and one that cannot be.
SHAPES = ((4, 4), (5,), (2, 2, 3), (), (0, 3), (300,), (7, 9), (16,), (3, 2), (1,), (130, 128), (1, 16411))


def planned(named, steps=2, *, groups=None, factor=1.0, **settings):
    """Return a LARS whose last steps were taken by a plan."""
    optimizer = LARS(groups or named, **{**SETTINGS, **settings})
    for step in range(steps):
        set_gradients(named, step)
        checked_step(optimizer, factor=factor)
    assert isinstance(optimizer._last.fused, Plan)
    return optimizer


def small_parts(optimizer):
    """Return the `SmallLayers` of the optimizer's plan."""
    return [part for bucket in optimizer._last.fused._buckets for *_, part in bucket._parts]


def refuse_to_build(monkeypatch):
    """Let every step fail that the plan does not take."""

    def never(self):
        raise AssertionError("built")

    monkeypatch.setattr(LARS, "_layers", never)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.0},
        {"momentum": 0.0, "lr_in_momentum": False, "maximize": True},
        {"lr_in_momentum": False},
        {"dampening": 0.25},
        {"maximize": True},
        {"weight_decay": 0.0, "maximize": True},
        {"adapt": None},
        {"adapt": False},
        {"threshold": 2.0},
        {"min_rate": 0.125, "max_rate": 0.25},
        {"lr": 0.0},
        {"trust_coefficient": 1e-12},
        {"lr": torch.tensor(0.5)},
        {"lr": torch.tensor([0.5], dtype=torch.float64)},
        {"fused": True},
        {"norm_of": "decayed"},
        {"norm_of": "decayed", "maximize": True, "adapt": None, "decay_excluded": False},
        {"zero_gradient_rate": 0.0},
        {"adapt_without_decay": False, "weight_decay": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values(dtype, settings, monkeypatch):
    named = network(dtype, SHAPES)
    optimizer = planned(named, **settings)
    plan = optimizer._last.fused
    refuse_to_build(monkeypatch)
    for step in range(2, 5):
        set_gradients(named, step)
        checked_step(optimizer)
    assert optimizer._last.fused is plan
    # Those with two dimensions and the others are too few each.
    assert bool(small_parts(optimizer)) is ("adapt" not in settings or settings["adapt"] is not None)


def test_values_with_groups_types_and_layouts():
    """Each group and type is taken for itself, in the order of the optimizer's rates."""
    named = network(torch.float32, 2 * SHAPES) + network(torch.float64, 2 * SHAPES)
    named += network(torch.float32, ((3, 4, 2, 2), (16, 128, 3, 3)))
    named = [(f"{i}.{name}", param) for i, (name, param) in enumerate(named)]
    for _, param in named:
        if param.dim() == 4:
            param.data = param.detach().contiguous(memory_format=torch.channels_last)
        elif param.shape in ((7, 9), (130, 128)):
            param.data = param.detach().t().contiguous().t()
    groups = [{"params": named[::2], "weight_decay": 0.0, "lr": 0.25}, {"params": named[1::2], "adapt": None}]
    # In one of the layers with one entry, gradient and decay nearly cancel.
    optimizer = planned(named, steps=4, groups=groups, factor=4.0)
    assert [rate.name for rate in optimizer.rates()] == [name for name, _ in named[::2] + named[1::2]]
    assert len(small_parts(optimizer)) == 4


def test_small_layers_are_taken_in_parts_that_share_their_memory(monkeypatch):
    monkeypatch.setattr(_lars_cpu_small, "TOGETHER", 100)
    named = network(shapes=((9,),) * 30 + ((20,),) * 20)
    optimizer = planned(named, steps=4)
    parts = small_parts(optimizer)
    assert [len(part._params) for part in parts] == [11, 11, 9]
    assert len({part._copies.data_ptr() for part in parts}) == 1


def test_nothing_is_left_in_the_copies_by_what_is_not_finite():
    """A rate that is NaN reaches the zeros at a row's end as well, which the next step must not find there."""
    named = network(shapes=((9,),) * 12)
    optimizer = planned(named)
    set_gradients(named, 2)
    named[3][1].grad[0] = float("nan")
    optimizer.step()
    assert bool(named[3][1].isnan().any())
    assert not any(bool(param.isnan().any()) for name, param in named if name != "layer3")
    with torch.no_grad():
        named[3][1].fill_(1.0)
        optimizer.state[named[3][1]]["momentum_buffer"].zero_()
    set_gradients(named, 3)
    checked_step(optimizer)


def test_norms_of_many_entries_are_accurate():
    """A float32 that adds up millions of squares of one sign loses its last digits, and the rate with them."""
    shapes = (*((1000, 16),) * 8, (64, 65536), (16384,), (4099, 257))
    generator = torch.Generator().manual_seed(3)
    named = [(str(i), torch.nn.Parameter(torch.rand(shape, generator=generator))) for i, shape in enumerate(shapes)]
    optimizer = LARS(named, **SETTINGS)
    for _ in range(2):
        for _, param in named:
            param.grad = torch.rand(param.shape, generator=generator)
        expected = [(param.detach().double().norm().item(), param.grad.double().norm().item()) for _, param in named]
        optimizer.step()
        for rate, norms in zip(optimizer.rates(), expected, strict=True):
            np.testing.assert_allclose([rate.p_norm, rate.g_norm], norms, rtol=3e-7)


def _same_address_transposed(optimizer, named):
    param = named[0][1]
    param.data = param.detach().t()
    return param


def _fewer_entries_at_the_same_address(optimizer, named):
    param = named[5][1]
    param.data = param.detach()[:200]
    optimizer.state[param]["momentum_buffer"].resize_(200)
    return param


def _another_momentum(optimizer, named):
    state = optimizer.state[named[1][1]]
    state["momentum_buffer"] = state["momentum_buffer"].clone() + 1.0


def _momentum_moved(optimizer, named):
    momentum = optimizer.state[named[1][1]]["momentum_buffer"]
    momentum.data = momentum.clone() + 1.0


def _loaded(optimizer, named):
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 0.25
    optimizer.load_state_dict(saved)


def _another_group_dict(optimizer, named):
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "weight_decay": 0.25}


def _set(**settings):
    return lambda optimizer, named: optimizer.param_groups[0].update(settings)


CHANGES = {
    "the weights are elsewhere": lambda o, named: setattr(named[0][1], "data", named[0][1].detach() + 1.0),
    "the weights are transposed": _same_address_transposed,
    "the weights are fewer": _fewer_entries_at_the_same_address,
    "another momentum": _another_momentum,
    "the momentum is elsewhere": _momentum_moved,
    "the state was loaded": _loaded,
    "the state was dropped": lambda o, named: o.state.pop(named[0][1]),
    "another group": _another_group_dict,
    "a group was added": lambda o, named: o.add_param_group({"params": [("new", torch.nn.Parameter(torch.ones(2)))]}),
    "a parameter was removed": lambda o, named: o.param_groups[0]["params"].pop(),
    "nesterov": _set(nesterov=True),
    "adapt": _set(adapt=None),
    "trust_clip": _set(trust_clip=True),
    "momentum": _set(momentum=0.0),
    "foreach": _set(foreach=True),
    "fused": _set(fused=False),
    "skip_nonfinite": lambda o, named: setattr(o, "skip_nonfinite", True),
    "a gradient that was not there": lambda o, named: None,
}


def _late(named, change):
    """Return a parameter that gets its first gradient after the plan was made, if that is the change."""
    late = torch.nn.Parameter(torch.ones(3))
    return [*named, ("late", late)] if change == "a gradient that was not there" else named


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_given_up_when_something_else_is_to_be_stepped(change, monkeypatch):
    named = network(shapes=SHAPES)
    optimizer = LARS(_late(named, change), **SETTINGS)
    for step in range(2):
        set_gradients(named, step)
        checked_step(optimizer)
    assert isinstance(optimizer._last.fused, Plan)
    if change == "a gradient that was not there":
        set_gradients([("late", optimizer.param_groups[0]["params"][-1])], 5)
    for _, param in named:
        param.grad = None
    CHANGES[change](optimizer, named)
    set_gradients(named, 2)
    with monkeypatch.context() as patch:
        refuse_to_build(patch)
        with pytest.raises(AssertionError, match="built"):
            optimizer.step()
    if change == "momentum":
        for state in optimizer.state.values():
            del state["momentum_buffer"]
    for step in range(3, 6):
        checked_step(optimizer)
        set_gradients(named, step)


def _transposed(param):
    param.grad = param.grad.t().contiguous().t()
    assert not param.grad.is_contiguous()


def _negated(param):
    param.grad = torch._neg_view(param.grad)


KEPT = {
    "lr": _set(lr=0.125),
    "a tensor as lr": _set(lr=torch.tensor(0.125)),
    "weight_decay": _set(weight_decay=0.5),
    "momentum": _set(momentum=0.5),
    "threshold": _set(threshold=3.0),
    "maximize": _set(maximize=True),
    "lr_in_momentum": _set(lr_in_momentum=False),
    "gradients elsewhere": lambda o, named: None,
    "a gradient laid out otherwise": lambda o, named: _transposed(named[0][1]),
    "a large gradient laid out otherwise": lambda o, named: _transposed(named[10][1]),
    "a negated gradient": lambda o, named: _negated(named[1][1]),
    "a large negated gradient": lambda o, named: _negated(named[10][1]),
    "small gradients that are absent": lambda o, named: [setattr(p, "grad", None) for _, p in named[1:5]],
    "a large gradient that is absent": lambda o, named: setattr(named[10][1], "grad", None),
    "no gradient at all": lambda o, named: [setattr(p, "grad", None) for _, p in named],
    "weights changed in place": lambda o, named: torch._foreach_mul_([p.detach() for _, p in named], 2.0),
}


@pytest.mark.parametrize("change", KEPT)
def test_it_is_kept_when_the_same_is_to_be_stepped(change, monkeypatch):
    named = network(shapes=SHAPES)
    optimizer = planned(named)
    plan = optimizer._last.fused
    refuse_to_build(monkeypatch)
    set_gradients(named, 2)
    KEPT[change](optimizer, named)
    checked_step(optimizer)
    set_gradients(named, 3)
    checked_step(optimizer)
    assert optimizer._last.fused is plan


class Marked(torch.Tensor):
    """A tensor that may be anything."""


def test_parameters_it_does_not_know():
    """Such as a sharded one, whose other ranks take part in the step whether it has a gradient here or not."""
    named = network(shapes=SHAPES)
    optimizer = LARS([*named, ("marked", torch.nn.Parameter(torch.ones(3).as_subclass(Marked)))], **SETTINGS)
    for step in range(2):
        set_gradients(named, step)
        checked_step(optimizer)
    assert optimizer._last.fused is None


def test_gradients_it_does_not_know(monkeypatch):
    named = network(shapes=SHAPES)
    optimizer = planned(named)
    set_gradients(named, 2)
    named[0][1].grad = named[0][1].grad.as_subclass(Marked)
    checked_step(optimizer)
    assert optimizer._last.fused is None
    set_gradients(named, 3)
    checked_step(optimizer)
    assert isinstance(optimizer._last.fused, Plan)
    before = state_of(optimizer)
    set_gradients(named, 4)
    named[0][1].grad = named[0][1].grad.to_sparse()
    with pytest.raises(ValueError, match="is sparse"):
        optimizer.step()
    assert_same(state_of(optimizer), before)


@pytest.mark.parametrize("left", ["grad_scale", "found_inf"])
def test_what_a_grad_scaler_leaves_is_not_its_job(left):
    named = network(shapes=SHAPES)
    optimizer = planned(named)
    before = state_of(optimizer)
    set_gradients(named, 2)
    setattr(optimizer, left, torch.tensor(1.0))
    expected = copy.deepcopy(optimizer)
    optimizer.step()
    assert optimizer._last.fused is None
    if left == "found_inf":
        assert_same(state_of(optimizer), before)
    else:
        delattr(optimizer, left)
        set_gradients([(str(i), p) for i, p in enumerate(expected.param_groups[0]["params"])], 2)
        expected.step()
        for a, b in zip(state_of(optimizer), state_of(expected), strict=True):
            assert_close(to_numpy(a), to_numpy(b), "float32")


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_has_its_own(twin):
    named = network(shapes=SHAPES)
    optimizer = planned(named)
    other = twin(optimizer)
    assert other._last.fused is None
    params = [(str(i), param) for i, param in enumerate(other.param_groups[0]["params"])]
    for step in range(2, 5):
        set_gradients(named, step)
        set_gradients(params, step)
        checked_step(optimizer)
        checked_step(other)
    assert isinstance(other._last.fused, Plan)
    assert other._last.fused is not optimizer._last.fused
    assert_same(state_of(other), state_of(optimizer))


def test_gradients_are_not_kept_alive():
    named = network(shapes=SHAPES)
    optimizer = planned(named)
    kept = [weakref.ref(param.grad) for _, param in named]
    optimizer.zero_grad()
    assert [ref() for ref in kept] == [None] * len(named)


def test_blocks_divide_evenly():
    for numel in (16384, 16640, 75264, 2048 * 1000, 50257 * 768, 2**31 + 2**13):
        length = _lars_cpu.block_length(numel)
        assert numel % length == 0
        assert 512 <= length <= 8192
    # Too few, and too few divisors.
    assert [_lars_cpu.block_length(numel) for numel in (0, 16383, 16411)] == [0, 0, 0]


def test_small_layers_alone():
    """The unit by itself: its two halves, between which norms may be brought together from elsewhere."""
    named = network(shapes=((4, 3), (5,), (0,)))
    optimizer = LARS(named, **SETTINGS)
    set_gradients(named, 0)
    layers, _ = optimizer._layers()
    grads = [layer.grad for layer in layers]
    scratch = torch.full((_lars_cpu_small.scratch_size([layer.param for layer in layers]),), float("nan"))
    with torch.no_grad():
        small = SmallLayers(layers, scratch)
        norms = small.norms(grads)
        expected = [[t.double().norm().item() for t in tensors] for tensors in ([la.param for la in layers], grads)]
        assert_close(norms.numpy(), expected, "float32")
        before = [layer.param.detach().clone() for layer in layers]
        small.update(torch.tensor([2.0, 0.5, 1.0]))
    for layer, old, rate in zip(layers, before, (2.0, 0.5, 1.0), strict=True):
        step = 0.5 * rate * (layer.grad + 0.125 * old)
        assert_close(to_numpy(layer.param), to_numpy(old - step), "float32")
