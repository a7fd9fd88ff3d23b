"""What training does around a step: mixed precision, offload, accumulation, clipping, closures; under FSDP2."""

from functools import partial

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

from sharded.layouts import assert_close, full
from sharded.ranks import on_ranks
from sharded.training import (
    TOLERANCE,
    assert_same_network,
    assert_same_rates,
    backward,
    follows_one_process,
    hook,
    lars,
    named,
    network,
    this_part,
)

RANKS = (2, 3)


def _fsdp2(model, **options):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def _same_gradients(model, make, dtype, tolerance):
    """Train `model`, and a whole twin on the very gradients: of narrow types, slices of a batch give others."""
    whole = network(dtype)
    whole_optimizer, whole_rates = make(named(whole))
    optimizer, rates = make(named(model))
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step, dtype, this_part())
        for (_, param), (_, twin) in zip(named(model), named(whole), strict=True):
            assert param.grad.dtype == param.dtype == dtype
            twin.grad = full(param.grad).clone()
        optimizer.step()
        whole_optimizer.step()
        assert_same_network(model, whole, tolerance)
        assert_same_rates(rates(), whole_rates(), TOLERANCE[torch.float32])
    return optimizer, whole_optimizer


def _mixed_precision():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for make in (hook, lars, partial(lars, path="loop")):
        _same_gradients(_fsdp2(network(torch.float32), mp_policy=policy), make, torch.float32, TOLERANCE[torch.float32])


@pytest.mark.parametrize("ranks", RANKS)
def test_mixed_precision_policy(ranks):
    on_ranks(ranks, _mixed_precision)


def _masters(**settings):
    make = partial(lars, master_weights=True, **settings)
    # The parameters are the masters rounded, which may fall to either side of the middle.
    optimizer, whole = _same_gradients(_fsdp2(network(torch.bfloat16)), make, torch.bfloat16, 2.0**-8)
    params = zip(optimizer.param_groups[0]["params"], whole.param_groups[0]["params"], strict=True)
    for param, twin in params:
        for name in ("master", "momentum_buffer"):
            state, expected = optimizer.state[param][name], whole.state[twin][name]
            assert state.dtype == expected.dtype == torch.float32
            assert state.placements == param.placements
            assert_close(name, full(state), expected, TOLERANCE[torch.float32])


def _narrow():
    _masters()
    _masters(path="foreach", nesterov=True)
    # Without masters and with the hook, the parameters are rounded in every step.
    for make in (hook, lars):
        _same_gradients(_fsdp2(network(torch.bfloat16)), make, torch.bfloat16, 2.0**-7)


@pytest.mark.parametrize("ranks", RANKS)
def test_bfloat16_parameters(ranks):
    on_ranks(ranks, _narrow)


def _offload():
    spread = partial(_fsdp2, offload_policy=CPUOffloadPolicy(pin_memory=False))
    for make in (hook, lars):
        follows_one_process(spread, make, collectives=1)


def test_offload():
    on_ranks(2, _offload)


def _accumulated(model, step, dtype, part):
    """Two batches a step, and the ranks talk after the second alone."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(False)
    backward(model, 2 * step, dtype, part)
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(True)
    return backward(model, 2 * step + 1, dtype, part)


def _clip(model):
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.125)
    assert full(norm) > 0.125


def _around():
    for make in (hook, lars):
        follows_one_process(_fsdp2, make, gradients=_accumulated, collectives=1)
        follows_one_process(_fsdp2, make, both=_clip, collectives=1)


@pytest.mark.parametrize("ranks", RANKS)
def test_accumulation_and_clipping(ranks):
    on_ranks(ranks, _around)


def _with_closure(model, make, part):
    """Return rates and losses of three steps that call a closure for their gradients."""
    optimizer, rates = make(named(model))

    def closure(step):
        optimizer.zero_grad()
        return backward(model, step, torch.float64, part)

    losses = [optimizer.step(partial(closure, step)) for step in range(3)]
    return rates(), torch.stack(losses)


def _closures():
    for make in (hook, lars):
        whole, parallel = network(), _fsdp2(network())
        whole_rates, whole_losses = _with_closure(whole, make, (0, 1))
        rates, losses = _with_closure(parallel, make, this_part())
        assert_same_network(parallel, whole, TOLERANCE[torch.float64])
        assert_same_rates(rates, whole_rates, TOLERANCE[torch.float64])
        dist.all_reduce(losses)
        torch.testing.assert_close(losses / dist.get_world_size(), whole_losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("ranks", RANKS)
def test_closures(ranks):
    on_ranks(ranks, _closures)
