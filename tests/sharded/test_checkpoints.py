"""Checkpoints of torch.distributed.checkpoint, resumed on other numbers of ranks: training goes on as if never stopped.

Every resumed run is compared with one process that has never stopped.
"""

import os
import signal
from dataclasses import dataclass, field

import pytest
import torch
from torch import distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from gradient_lars import GradientLARS
from gradient_lars.torch import LARS, add_hook, param_groups
from gradient_lars.torch._sharding import Sharding
from sharded import ranks
from sharded.layouts import assert_close, full
from sharded.training import TOLERANCE, assert_same_network, assert_same_rates, backward, network, this_part

SAVED_AFTER, STEPS = 2, 4


@dataclass(frozen=True)
class Case:
    """What is trained: `make` returns optimizer and rates for a network."""

    make: object
    dtype: torch.dtype = torch.float64
    settings: dict = field(default_factory=dict)


def _lars(model, lr=0.5, **settings):
    """Weights, norms and biases in groups of their own."""
    lr = lr.clone() if torch.is_tensor(lr) else lr
    settings = {"trust_coefficient": 0.25, **settings}
    groups = param_groups(model, 0.125, rules=[("out.*", {"trust_coefficient": 0.5, "min_rate": 1e-6})])
    optimizer = LARS(groups, lr=lr, **settings)
    return optimizer, optimizer.rates


def _hook(model, lr=0.125, **settings):
    groups = param_groups(model, 0.125)
    for group in groups:
        group.pop("adapt")
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, **settings)
    return optimizer, add_hook(optimizer, GradientLARS(), absorb_weight_decay=True).rates


CASES = {
    "LARS": Case(_lars),
    "LARS as SGD": Case(_lars, settings={"lr_in_momentum": False, "nesterov": True, "foreach": True}),
    "LARS without momentum": Case(_lars, settings={"momentum": 0.0}),
    "masters": Case(_lars, torch.bfloat16, {"master_weights": True}),
    "lr as tensor": Case(_lars, settings={"lr": torch.tensor(0.5), "skip_nonfinite": True}),
    "hook": Case(_hook),
    "hook, lr as tensor": Case(_hook, settings={"lr": torch.tensor(0.125), "foreach": True}),
}


def _fsdp2(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _step(case, model, optimizer, step, part):
    """Take one step; the rate changes on the way, and a step in between has a gradient that is not finite."""
    optimizer.zero_grad()
    if case.dtype is torch.float64:
        backward(model, step, case.dtype, part)
    else:
        _give_gradients(model, step, case.dtype)
    if step == 1 and case.settings.get("skip_nonfinite"):
        for param in model.inp.parameters():
            param.grad.mul_(float("nan"))
    optimizer.step()
    if step == 0:
        for group in optimizer.param_groups:
            group["lr"] *= 0.5


def _give_gradients(model, step, dtype):
    """Give all parameters fixed gradients: the slices of a batch give others than the whole, to a narrow type."""
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=generator).to(dtype)
        is_whole = not hasattr(param, "placements")
        param.grad = grad if is_whole else distribute_tensor(grad, param.device_mesh, param.placements)


def _save(folder, names):
    for name in names:
        case = CASES[name]
        model = _fsdp2(network(case.dtype))
        optimizer, _ = case.make(model, **case.settings)
        for step in range(SAVED_AFTER):
            _step(case, model, optimizer, step, this_part())
        of_model, of_optimizer = get_state_dict(model, optimizer)
        checkpoint.save({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=f"{folder}/{name}")


def _loaded(case, folder):
    """Return model and optimizer as they were saved; they are made with other weights and another rate."""
    model = _fsdp2(network(case.dtype, seed=77))
    lr = case.settings.get("lr", 0.5) * 3
    optimizer, rates = case.make(model, **{**case.settings, "lr": lr})
    of_model, of_optimizer = get_state_dict(model, optimizer)
    state = {"model": of_model, "optimizer": of_optimizer}
    checkpoint.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return model, optimizer, rates


def _resume(folder, names):
    for name in names:
        case = CASES[name]
        whole = network(case.dtype)
        straight, whole_rates = case.make(whole, **case.settings)
        for step in range(SAVED_AFTER):
            _step(case, whole, straight, step, (0, 1))
        model, optimizer, rates = _loaded(case, f"{folder}/{name}")
        for step in range(SAVED_AFTER, STEPS):
            _step(case, whole, straight, step, (0, 1))
            _step(case, model, optimizer, step, this_part())
            wide = torch.float32 if case.dtype is torch.bfloat16 else case.dtype
            assert_same_network(model, whole, TOLERANCE.get(case.dtype, 2.0**-8))
            assert_same_rates(rates(), whole_rates(), TOLERANCE[wide])
        _assert_same_state(model, optimizer, whole, straight)


def _assert_same_state(model, optimizer, whole, straight):
    for group, expected in zip(optimizer.param_groups, straight.param_groups, strict=True):
        assert {key: value for key, value in group.items() if key != "params"} == {
            key: value for key, value in expected.items() if key != "params"
        }
    for param, twin in zip(model.parameters(), whole.parameters(), strict=True):
        assert optimizer.state[param].keys() == straight.state[twin].keys()
        for name, value in straight.state[twin].items():
            assert optimizer.state[param][name].dtype == value.dtype
            tolerance = TOLERANCE[torch.float64 if value.dtype is torch.float64 else torch.float32]
            assert_close(name, full(optimizer.state[param][name]), value, tolerance)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (1, 3)])
def test_resumes_on_another_number_of_ranks(before, after, tmp_path):
    ranks.on_ranks(before, _save, str(tmp_path), list(CASES))
    ranks.on_ranks(after, _resume, str(tmp_path), list(CASES))


def _killed(folder, name):
    """Save, then lose one rank in the middle of the next step: the norms are known and the weights not yet changed."""
    _save(folder, [name])
    case = CASES[name]
    model, optimizer, _ = _loaded(case, f"{folder}/{name}")
    if dist.get_rank() == 1:
        whole = Sharding.whole

        def then_die(*args):
            whole(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        Sharding.whole = then_die
    for step in range(SAVED_AFTER, STEPS):
        _step(case, model, optimizer, step, this_part())


@pytest.mark.parametrize("name", ["LARS", "hook"])
def test_a_killed_rank_leaves_the_checkpoint(name, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "SECONDS", 20)
    with pytest.raises(AssertionError, match="rank 1:\nended without an answer"):
        ranks.on_ranks(3, _killed, str(tmp_path), name)
    ranks.on_ranks(2, _resume, str(tmp_path), [name])


def _save_from_two_dimensions(folder):
    model = network()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model.block, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    for module in (model.block, model):
        fully_shard(module, mesh=mesh["data"])
    optimizer, _ = CASES["LARS"].make(model)
    for step in range(SAVED_AFTER):
        _step(CASES["LARS"], model, optimizer, step, (dist.get_rank() // 2, 2))
    of_model, of_optimizer = get_state_dict(model, optimizer)
    checkpoint.save({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=f"{folder}/LARS")


def test_resumes_without_tensor_parallelism(tmp_path):
    ranks.on_ranks(4, _save_from_two_dimensions, str(tmp_path))
    ranks.on_ranks(2, _resume, str(tmp_path), ["LARS"])


def _save_whole(folder, names):
    """Save what one process can load without any ranks: on the first rank the whole of all tensors."""
    for name in names:
        case = CASES[name]
        model = _fsdp2(network(case.dtype))
        optimizer, _ = case.make(model, **case.settings)
        for step in range(SAVED_AFTER):
            _step(case, model, optimizer, step, this_part())
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_state_dict(model, optimizer, options=options)
        if dist.get_rank() == 0:
            torch.save(state, f"{folder}/{name}.pt")


@pytest.mark.parametrize("names", [("LARS", "masters", "hook")])
def test_whole_state_is_resumed_by_one_process(names, tmp_path):
    ranks.on_ranks(2, _save_whole, str(tmp_path), names)
    for name in names:
        case = CASES[name]
        whole, alone = network(case.dtype), network(case.dtype, seed=77)
        straight, _ = case.make(whole, **case.settings)
        optimizer, _ = case.make(alone, **case.settings)
        of_model, of_optimizer = torch.load(tmp_path / f"{name}.pt", weights_only=False)
        set_state_dict(alone, optimizer, model_state_dict=of_model, optim_state_dict=of_optimizer)
        for step in range(STEPS):
            _step(case, whole, straight, step, (0, 1))
            if step >= SAVED_AFTER:
                _step(case, alone, optimizer, step, (0, 1))
        _assert_same_state(alone, optimizer, whole, straight)
