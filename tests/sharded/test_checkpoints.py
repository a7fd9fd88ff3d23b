"""Checkpoints of torch.distributed.checkpoint, resumed on other numbers of ranks: training goes on as if never stopped.

Every resumed run is compared with one process that has never stopped.
"""

from dataclasses import dataclass, field

import pytest
import torch
from torch import distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from gradient_lars import GradientLARS
from gradient_lars.torch import LARS, add_hook, param_groups
from sharded.layouts import assert_close, full
from sharded.ranks import on_ranks
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
    on_ranks(before, _save, str(tmp_path), list(CASES))
    on_ranks(after, _resume, str(tmp_path), list(CASES))
