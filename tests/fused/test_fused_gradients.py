"""Gradients looked at in one call, and in lists where PyTorch has no such call: neither misses one of another kind."""

import pytest
import torch

from fused.common import fused, network, set_gradients, took_the_kernels
from gradient_lars.torch import _fused_gradients
from gradient_lars.torch._fused_gradients import REMADE_AT_MOST, at_once_works, same_at_once, same_in_lists
from lars.expected import checked_step

SHAPES = ((4, 3), (5,), (), (2, 3, 2, 2))


@pytest.fixture(params=["at once", "in lists"])
def way(request, monkeypatch):
    """Look at gradients in one way and in the other."""
    if request.param == "in lists":
        monkeypatch.setattr(_fused_gradients, "at_once_works", lambda: False)
    return request.param


def _asked(optimizer, monkeypatch):
    """Return the list that will hold the answer of each check."""
    gradients, answers = optimizer._last.fused._gradients, []
    inner = gradients._as_before

    def asked(grads):
        answers.append(inner(grads))
        return answers[-1]

    monkeypatch.setattr(gradients, "_as_before", asked)
    return answers


OTHERS = {
    "moved": lambda grad: grad.clone(),
    "in another order": lambda grad: grad.t().contiguous().t(),
    "expanded": lambda grad: grad[:1].expand(4, 3),
    "with gaps": lambda grad: torch.cat([grad, grad], 1)[:, ::2],
    "negated": torch._neg_view,
    "with a history": lambda grad: grad.clone().requires_grad_() * 2.0,
    "missing": lambda grad: None,
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_gradient_among_the_same(other, way, device, monkeypatch):
    named = network(device, shapes=SHAPES)
    optimizer = fused(named)
    set_gradients(named, 0)
    for _ in range(2):
        checked_step(optimizer)
    answers = _asked(optimizer, monkeypatch)
    grad = OTHERS[other](named[0][1].grad)
    if other == "negated" and way == "in lists":
        pytest.skip("only PyTorch itself makes a dense one of several entries, and lists do not see it")
    named[0][1].grad = grad
    checked_step(optimizer)
    # What the kernels read as it lies need not be noticed: a history is none of their business.
    unnoticed = {"moved"} if way == "at once" else {"moved", "with a history"}
    assert answers == [other in unnoticed]
    for step in (1, 2):
        set_gradients(named, step)
        checked_step(optimizer)
    assert took_the_kernels(optimizer)
    # One step of another kind does not make the layer one that is looked at alone from then on.
    assert optimizer._last.fused._gradients._single == ([] if way == "at once" else [2])


def test_fewer_rows_where_they_are(way, device):
    """Rows that are cut off leave weights and momentum at their addresses."""
    named = network(device, shapes=SHAPES)
    optimizer = fused(named)
    for step in range(2):
        set_gradients(named, step)
        checked_step(optimizer)
    param, memory = named[0][1], named[0][1].detach()
    momentum = optimizer.state[param]["momentum_buffer"]
    param.grad = None
    param.data, optimizer.state[param]["momentum_buffer"] = memory[:2], momentum[:2]
    before = memory[2:].clone(), momentum[2:].clone()
    for step in range(2, 4):
        set_gradients(named, step)
        checked_step(optimizer)
        assert torch.equal(memory[2:], before[0])
        assert torch.equal(momentum[2:], before[1])
    assert took_the_kernels(optimizer)


def test_a_negated_scalar(way, device):
    named = network(device, shapes=SHAPES)
    optimizer = fused(named)
    for step in range(5):
        set_gradients(named, step)
        if step % 2:
            named[2][1].grad = torch._neg_view(named[2][1].grad)
        checked_step(optimizer)


def test_gradients_that_keep_changing_cost_no_more_than_lists(device, monkeypatch):
    named = network(device, shapes=SHAPES)
    optimizer = fused(named)
    set_gradients(named, 0)
    checked_step(optimizer)
    made = []
    monkeypatch.setattr(_fused_gradients, "same_at_once", lambda grads: made.append(1) or same_at_once(grads))
    for step in range(1, 2 * REMADE_AT_MOST + 3):
        set_gradients(named, step)
        if step % 2:
            named[0][1].grad = OTHERS["with a history"](named[0][1].grad)
        checked_step(optimizer)
    assert len(made) == REMADE_AT_MOST - 1
    assert took_the_kernels(optimizer)


@pytest.mark.parametrize("same", [same_at_once, same_in_lists])
def test_a_check_can_say_no(same):
    grads = [torch.zeros(4, 3), torch.zeros(5)]
    check = same(grads)
    assert check([grad.clone() for grad in grads])
    for other in (grads[0].double(), torch.zeros(3, 4).t(), grads[0].to_sparse(), None):
        assert not check([other, grads[1]])
        assert not check([grads[0], other])


class _SaysYes:
    def __init__(self, *tensors, **dims):
        pass

    def check(self, *tensors):
        return True


class _SaysNo(_SaysYes):
    def check(self, *tensors):
        return False


class _OtherArguments:
    def __init__(self, tensors):
        pass


@pytest.mark.parametrize("stand_in", [_SaysYes, _SaysNo, _OtherArguments, None])
def test_a_check_of_another_version_is_not_trusted(stand_in, monkeypatch):
    if stand_in is None:
        monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    else:
        monkeypatch.setattr(torch._C._dynamo.guards, "TensorGuards", stand_in)
    assert at_once_works.__wrapped__() is False


def test_the_installed_version_has_it():
    assert at_once_works() is True
