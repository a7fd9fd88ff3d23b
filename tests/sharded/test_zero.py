"""``ZeroRedundancyOptimizer``, which gives each rank whole parameters: nothing to sum, and the same as one process."""

import copy
from functools import partial

import pytest
import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gradient_lars import GradientLARS
from gradient_lars.torch import LARS, add_hook
from sharded.layouts import assert_close
from sharded.ranks import on_ranks
from sharded.training import (
    SETTINGS,
    TOLERANCE,
    assert_same_network,
    backward,
    lars,
    named,
    network,
    this_part,
)

RANKS = (1, 2, 3)


def _zero(model, optimizer_class, **settings):
    # Importing it warns that PyTorch has deprecated what it uses itself; the ranks have imported it already.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(model.parameters(), optimizer_class=optimizer_class, **settings)


def _zero_lars(model, **settings):
    return _zero(model, LARS, **{**SETTINGS, **settings})


def _zero_sgd(model, *, outer, decay="hook", **options):
    settings = {"lr": 0.125, "momentum": 0.9, "weight_decay": 0.125 if decay == "group" else 0.0}
    optimizer = _zero(model, torch.optim.SGD, **settings, **options)
    hook = GradientLARS(weight_decay=0.125 if decay == "hook" else 0.0)
    add_hook(optimizer if outer else optimizer.optim, hook, absorb_weight_decay=decay == "group")
    return optimizer


def _sgd(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.9)
    add_hook(optimizer, GradientLARS(weight_decay=0.125))
    return optimizer


def _lars(model, **settings):
    return lars(named(model), **settings)[0]


def _train(model, optimizer, steps, dtype=torch.float64, part=None, *, closure=False):
    """Take the given steps."""
    for step in steps:
        optimizer.zero_grad()
        gradients = partial(backward, model, step, dtype, part or this_part())
        if closure:
            optimizer.step(closure=gradients)
        else:
            gradients()
            optimizer.step()


def _equals_one_process(make, make_whole, dtype=torch.float64, *, closure=False):
    parallel, whole = DistributedDataParallel(network(dtype)), network(dtype)
    optimizer = make(parallel)
    _train(parallel, optimizer, range(3), dtype, closure=closure)
    _train(whole, make_whole(whole), range(3), dtype, (0, 1))
    assert_same_network(parallel, whole, TOLERANCE[dtype])
    return optimizer


def _lars_in_zero():
    for dtype in TOLERANCE:
        optimizer = _equals_one_process(_zero_lars, _lars, dtype)
        # A rank knows the rates of what it holds.
        assert len(optimizer.optim.rates()) == sum(len(group["params"]) for group in optimizer.optim.param_groups)
    _equals_one_process(partial(_zero_lars, parameters_as_bucket_view=True), _lars)
    _equals_one_process(_zero_lars, _lars, closure=True)


@pytest.mark.parametrize("ranks", RANKS)
def test_lars(ranks):
    on_ranks(ranks, _lars_in_zero)


def _hook_on_zero():
    for outer in (True, False):
        for decay in ("hook", "group"):
            for closure in (False, True):
                _equals_one_process(partial(_zero_sgd, outer=outer, decay=decay), _sgd, closure=closure)
    view = partial(_zero_sgd, outer=True, parameters_as_bucket_view=True)
    _equals_one_process(view, _sgd, torch.float32)


@pytest.mark.parametrize("ranks", RANKS)
def test_hook(ranks):
    on_ranks(ranks, _hook_on_zero)


def _resume(make, make_whole):
    """Train, collect the state on the first rank, go on from it with a new optimizer and with a whole one."""
    parallel, straight = DistributedDataParallel(network()), network()
    optimizer = make(parallel)
    whole = make_whole(straight)
    _train(parallel, optimizer, range(2))
    optimizer.consolidate_state_dict(to=0)
    states = [copy.deepcopy(optimizer.state_dict()) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(states, src=0)

    resumed, alone = copy.deepcopy(parallel.module), copy.deepcopy(parallel.module)
    resumed = DistributedDataParallel(resumed)
    again, one = make(resumed), make_whole(alone)
    again.load_state_dict(copy.deepcopy(states[0]))
    one.load_state_dict(states[0])
    _train(resumed, again, range(2, 4))
    _train(alone, one, range(2, 4), part=(0, 1))
    _train(straight, whole, range(4), part=(0, 1))
    for model in (resumed, alone):
        assert_same_network(model, straight, TOLERANCE[torch.float64])


def _resumes():
    # The settings that were trained with come from the state.
    _resume(lambda model: _zero_lars(model, nesterov=True), lambda model: _lars(model, nesterov=True))
    _resume(partial(_zero_sgd, outer=True), _sgd)
    _resume(partial(_zero_sgd, outer=False), _sgd)


@pytest.mark.parametrize("ranks", RANKS)
def test_state_is_collected_and_resumed(ranks):
    on_ranks(ranks, _resumes)


def _masters():
    """The float32 masters of bfloat16 parameters survive; in two steps their parameters hardly show them."""
    model = DistributedDataParallel(network(torch.bfloat16))
    optimizer = _zero_lars(model, master_weights=True)
    _train(model, optimizer, range(2), torch.bfloat16)
    optimizer.consolidate_state_dict(to=0)
    states = [copy.deepcopy(optimizer.state_dict()) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(states, src=0)
    again = _zero_lars(DistributedDataParallel(copy.deepcopy(model.module)), master_weights=True)
    again.load_state_dict(states[0])
    pairs = zip(optimizer.optim.param_groups, again.optim.param_groups, strict=True)
    for group, resumed in pairs:
        for param, other in zip(group["params"], resumed["params"], strict=True):
            for name in ("master", "momentum_buffer"):
                left, right = optimizer.optim.state[param][name], again.optim.state[other][name]
                assert left.dtype == right.dtype == torch.float32
                assert_close(name, right, left, 0.0)


@pytest.mark.parametrize("ranks", [2])
def test_masters_are_resumed_in_full(ranks):
    on_ranks(ranks, _masters)


def _skipping():
    with pytest.raises(ValueError, match="`skip_nonfinite` cannot be had in ZeroRedundancyOptimizer"):
        _zero_lars(network(), skip_nonfinite=True)


def test_skipping_is_refused():
    on_ranks(1, _skipping)
