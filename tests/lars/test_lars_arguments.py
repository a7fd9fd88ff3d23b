"""What cannot be is refused in one sentence, before anything has changed."""

import math

import numpy as np
import pytest
import torch

from gradient_lars.torch import LARS
from lars.expected import PATHS, assert_same, checked_step, network, set_gradients, state_of


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": -0.1}, ValueError, "`lr` must be >= 0, got -0.1. It is the paper's gamma"),
        ({"lr": math.inf}, ValueError, "`lr` must be >= 0, got inf"),
        ({"lr": math.nan}, ValueError, "`lr` must be >= 0, got nan"),
        ({"lr": "0.1"}, TypeError, "`lr` must be a number, got '0.1'"),
        ({"lr": True}, TypeError, "`lr` must be a number, got True"),
        ({"lr": torch.ones(2)}, ValueError, r"`lr` must have one element, got a tensor of shape \(2,\)"),
        ({"momentum": -0.5}, ValueError, "`momentum` must be >= 0, got -0.5. 0.9 is usual"),
        ({"dampening": 1.5}, ValueError, "`dampening` must be >= 0 and <= 1, got 1.5"),
        ({"dampening": -0.5}, ValueError, "`dampening` must be >= 0 and <= 1, got -0.5"),
        ({"weight_decay": -1e-4}, ValueError, "`weight_decay` must be >= 0, got -0.0001"),
        ({"weight_decay": torch.tensor(0.1)}, TypeError, "`weight_decay` must be a number, got a tensor. Only `lr`"),
        ({"weight_decay": None}, TypeError, "`weight_decay` must be a number, got None"),
        ({"weight_decay": [0.1]}, TypeError, r"`weight_decay` must be a number, got \[0.1\]"),
        ({"trust_coefficient": 0.0}, ValueError, "`trust_coefficient` must be > 0, got 0.0. It is the paper's eta"),
        ({"trust_coefficient": torch.tensor(1.0)}, TypeError, "`trust_coefficient` must be a number, got a tensor"),
        ({"threshold": -1.0}, ValueError, "`threshold` must be >= 0, got -1.0"),
        ({"eps": -1e-9}, ValueError, "`eps` must be >= 0, got -1e-09"),
        ({"eps": math.inf}, ValueError, "`eps` must be >= 0, got inf"),
        ({"min_rate": -1.0}, ValueError, "`min_rate` must be >= 0, got -1.0"),
        ({"max_rate": 0.0}, ValueError, "`max_rate` must be > 0, got 0.0"),
        ({"min_rate": 2.0, "max_rate": 1.0}, ValueError, "`min_rate` must be below `max_rate`, got 2.0 and 1.0"),
        ({"nesterov": True, "momentum": 0.0}, ValueError, "`nesterov` needs a `momentum` above 0"),
        ({"nesterov": True, "dampening": 0.5}, ValueError, "`nesterov` needs a `momentum` above 0 and `dampening` 0"),
        ({"nesterov": 1}, TypeError, "`nesterov` must be True or False, got 1"),
        ({"lr_in_momentum": None}, TypeError, "`lr_in_momentum` must be True or False, got None"),
        ({"trust_clip": "on"}, TypeError, "`trust_clip` must be True or False, got 'on'"),
        ({"maximize": 1}, TypeError, "`maximize` must be True or False"),
        ({"capturable": 1}, TypeError, "`capturable` must be True or False"),
        ({"differentiable": 1}, TypeError, "`differentiable` must be True or False"),
        ({"skip_nonfinite": "yes"}, TypeError, "`skip_nonfinite` must be True or False, got 'yes'"),
        ({"master_weights": None}, TypeError, "`master_weights` must be True or False, got None"),
        ({"adapt": 2}, TypeError, "`adapt` must be True, False or None, got 2"),
        ({"foreach": 1}, TypeError, "`foreach` must be True, False or None, got 1"),
        ({"fused": "yes"}, TypeError, "`fused` must be True, False or None, got 'yes'"),
        ({"foreach": True, "fused": True}, RuntimeError, "`foreach` and `fused` cannot both be True. Leave one out"),
        ({"foreach": True, "differentiable": True}, RuntimeError, "`foreach` does not support `differentiable`"),
        ({"fused": True, "differentiable": True}, RuntimeError, "`fused` does not support `differentiable`"),
        ({"wieght_decay": 0.1}, TypeError, "unexpected keyword argument 'wieght_decay'"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        LARS(network(), **{"lr": 1.0, **settings})


def test_lr_is_required():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'lr'"):
        LARS(network())


def test_parameters_are_required():
    with pytest.raises(ValueError, match="empty parameter list"):
        LARS([], 1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0, "momentum": 1},
        {"lr": np.float32(0.5), "weight_decay": np.float64(0.125)},
        {"lr": torch.tensor(0.5), "capturable": True},
        {"threshold": math.inf},
        {"threshold": 0, "eps": 0},
        {"dampening": 1},
        {"min_rate": 0.5, "max_rate": math.inf},
        {"adapt": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", PATHS)
def test_settings_at_the_end_of_their_range(settings, path):
    named = network()
    optimizer = LARS(named, **{"lr": 0.5, "trust_coefficient": 0.25, **settings}, **PATHS[path])
    for step in range(2):
        set_gradients(named, step)
        checked_step(optimizer)


@pytest.mark.parametrize("lr_in_momentum", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_clipped_at_a_learning_rate_of_zero(path, lr_in_momentum):
    named = network()
    optimizer = LARS(named, 0.0, trust_clip=True, lr_in_momentum=lr_in_momentum, **PATHS[path])
    for step in range(2):
        set_gradients(named, step)
        checked_step(optimizer)


def _sparse():
    return torch.sparse_coo_tensor([[0, 2]], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], (4, 3), check_invariants=True)


@pytest.mark.parametrize("path", PATHS)
def test_a_sparse_gradient_changes_nothing(path):
    named = network(shapes=((3, 3), (4, 3)))
    optimizer = LARS(named, 1.0, master_weights=True, **PATHS[path])
    set_gradients(named, 0)
    named[1][1].grad = _sparse()
    before = state_of(optimizer)
    with pytest.raises(ValueError, match="`param.grad` of 'layer1' is sparse, which LARS does not take.*sparse=False"):
        optimizer.step()
    assert_same(state_of(optimizer), before)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("settings", "dtype", "device", "message"),
    [
        ({}, torch.float16, "cpu", "it takes float32 or float64 throughout.*and 'layer0' is otherwise.*Use fused=None"),
        ({}, torch.bfloat16, "cpu", "it takes float32 or float64 throughout"),
        ({"master_weights": True}, torch.bfloat16, "cpu", "without `nesterov`, `master_weights` and"),
        ({"nesterov": True}, torch.float32, "cpu", "without `nesterov`, `master_weights` and"),
        ({}, torch.float32, "meta", "`fused` cannot run here: .*'meta'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_fused_where_it_cannot_run_changes_nothing(settings, dtype, device, message, dampening):
    if settings.get("nesterov"):
        dampening = 0.0
    named = [(name, torch.nn.Parameter(param.detach().to(device))) for name, param in network(dtype)]
    optimizer = LARS(named, 0.5, trust_coefficient=0.25, fused=True, dampening=dampening, **settings)
    for _, param in named:
        param.grad = torch.ones_like(param)
    before = [param.detach().clone() for _, param in named]
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    if device == "cpu":
        assert_same([param.detach() for _, param in named], before)
        # The step taken then is the first one, which has no dampening.
        assert not any("momentum_buffer" in state for state in optimizer.state.values())
        optimizer.param_groups[0]["fused"] = None
        checked_step(optimizer)


def test_fused_in_one_group_is_asked_of_all():
    named = network(torch.float16)
    optimizer = LARS([{"params": named[:1], "fused": True}, {"params": named[1:]}], 0.5)
    set_gradients(named, 0)
    with pytest.raises(RuntimeError, match="`fused` cannot run here"):
        optimizer.step()
