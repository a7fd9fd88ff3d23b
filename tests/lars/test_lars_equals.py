"""LARS beside what it must equal: the hook on SGD, the real Chainer, LARC, and its own other paths."""

import math

import numpy as np
import pytest
import torch

from golden import load
from gradient_lars import GradientLARS
from gradient_lars.torch import LARS, add_hook
from lars.expected import PATHS, advance, assert_same, network, set_gradients, state_of
from reference import assert_close
from torch_cases import to_numpy

PATHS_AND_NESTEROV = [
    (path, nesterov) for path in PATHS for nesterov in (False, True) if not (path == "fused" and nesterov)
]


@pytest.mark.parametrize(("path", "nesterov"), PATHS_AND_NESTEROV)
@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_equals_the_hook_on_sgd(path, lr_in_momentum, changing, nesterov):
    twins = [network(torch.float64), network(torch.float64)]
    one = LARS(
        twins[0],
        lr=0.5,
        trust_coefficient=1.0,
        weight_decay=0.125,
        lr_in_momentum=lr_in_momentum,
        nesterov=nesterov,
        **PATHS[path],
    )
    two = torch.optim.SGD(twins[1], lr=0.5, momentum=0.9, nesterov=nesterov)
    handle = add_hook(two, GradientLARS(weight_decay=0.125))
    for step in range(4):
        for named, optimizer in zip(twins, (one, two), strict=True):
            optimizer.param_groups[0]["lr"] = 0.5 / (1 + step) if changing else 0.5
            set_gradients(named, step)
            optimizer.step()
        if step == 0:
            assert_close(one.rates().rate.numpy(), handle.rates().rate.numpy(), "float64")
    for (_, a), (_, b) in zip(*twins, strict=True):
        if lr_in_momentum and changing:
            # The two places of the learning rate part as soon as it changes.
            assert (a - b).abs().max() > 1e-3
        else:
            assert_close(to_numpy(a), to_numpy(b), "float64", factor=10)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("golden", [run for run in load() if run.optimizer != "NesterovAG"], ids=str)
def test_trajectory_of_chainer(golden, path):
    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in golden.initial]
    inside = golden.optimizer == "MomentumSGD"
    optimizer = LARS(
        params,
        lr=golden.lr,
        momentum=golden.momentum,
        trust_coefficient=1.0,
        lr_in_momentum=inside,
        **golden.hook,
        **PATHS[path],
    )
    for grads, expected in zip(golden.grads, golden.params, strict=True):
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.from_numpy(grad.copy())
        optimizer.step()
        for param, values in zip(params, expected, strict=True):
            assert_close(param.detach().numpy(), values, golden.dtype)


def test_paths_equal_each_other():
    ends = {}
    for path, choice in PATHS.items():
        named = network(torch.float64)
        optimizer = LARS(named, 0.5, trust_coefficient=0.25, weight_decay=0.125, dampening=0.25, **choice)
        advance(optimizer, named, 6)
        ends[path] = state_of(optimizer)
    for path in PATHS:
        for a, b in zip(ends[path], ends["loop"], strict=True):
            assert_close(to_numpy(a), to_numpy(b), "float64")
    assert_same(ends["chosen"], ends["fused"])


@pytest.mark.parametrize("path", PATHS)
def test_trust_clip_is_larc(path):
    # NVIDIA's apex, LARC with clip=True: grad <- min(eta * |p| / (|g| + wd * |p| + eps) / lr, 1) * (grad + wd * p),
    # and then SGD without decay.
    eta, lr, decay, eps = 0.02, 0.1, 0.01, 1e-8
    named = network(torch.float64, shapes=((4, 3), (6, 2)))
    optimizer = LARS(
        named,
        lr,
        momentum=0.0,
        weight_decay=decay,
        trust_coefficient=eta,
        eps=eps,
        threshold=0.0,
        trust_clip=True,
        **PATHS[path],
    )
    clipped = set()
    for length in (1e-3, 10.0):
        set_gradients(named, 0, scale=length)
        expected = []
        for _, param in named:
            p, g = to_numpy(param), to_numpy(param.grad)
            ratio = eta * np.linalg.norm(p) / (np.linalg.norm(g) + np.linalg.norm(p) * decay + eps)
            clipped.add(ratio > lr)
            expected.append(p - lr * min(ratio / lr, 1) * (g + decay * p))
        optimizer.step()
        for (_, param), e in zip(named, expected, strict=True):
            assert_close(to_numpy(param), e, "float64")
        assert (optimizer.rates().rate <= 1).all()
    assert clipped == {True, False}


@pytest.mark.parametrize("path", PATHS)
def test_maximize_still_shrinks_the_weights(path):
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    param.grad = torch.tensor([0.5, -0.5])
    optimizer = LARS([param], 0.1, momentum=0.0, weight_decay=0.2, trust_coefficient=1, maximize=True, **PATHS[path])
    optimizer.step()
    rate = 5.0 / (1e-9 + math.sqrt(0.5) + 0.2 * 5.0)
    p, g = np.array([3.0, 4.0]), np.array([0.5, -0.5])
    assert_close(to_numpy(param), p + 0.1 * rate * (g - 0.2 * p), "float32")
