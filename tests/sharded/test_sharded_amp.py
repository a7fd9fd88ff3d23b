"""GradScaler, and steps without finite gradients, on sharded parameters: what one rank sees holds for all."""

import os

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from gradient_lars import GradientLARS
from gradient_lars.torch import LARS, add_hook
from lars.expected import PATHS as LARS_PATHS
from lars.expected import assert_same, state_of
from sharded.layouts import LAYOUTS, Spread
from sharded.ranks import on_ranks
from torch_cases import PYTORCH_PATHS as HOOK_PATHS

SETTINGS = {"lr": 0.5, "trust_coefficient": 0.25, "weight_decay": 0.125}


def _lars(named, path):
    return LARS(named, **SETTINGS, **LARS_PATHS[path])


def _hook(named, path):
    optimizer = torch.optim.SGD(named, lr=0.125, momentum=0.9)
    add_hook(optimizer, GradientLARS(weight_decay=0.125), path=path)
    return optimizer


class Scaled(torch.optim.Optimizer):
    """Takes plain steps and looks at `found_inf`, as PyTorch's fused kernels do, which know no DTensors."""

    found_inf = None

    @torch.no_grad()
    def step(self, closure=None):
        for param in self.param_groups[0]["params"]:
            if param.grad is not None and not self.found_inf:
                _local(param).sub_(_local(param.grad), alpha=0.125)


def _hook_on_scaled(named, path):
    optimizer = Scaled(named, {})
    add_hook(optimizer, GradientLARS(weight_decay=0.125), path=path)
    return optimizer


def _layout(name):
    return next(layout for layout in LAYOUTS if layout.name == name)


def _local(tensor):
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _overflow_on_one_rank(make, path):
    spread = Spread(_layout("rows"), torch.float64)
    scaler, whole_scaler = (torch.amp.GradScaler("cpu", init_scale=2.0**10) for _ in range(2))
    optimizer, whole = make(spread.spread, path), make(spread.whole, "loop")
    for step in range(5):
        spread.set_gradients(step)
        for one, named in ((scaler, spread.spread), (whole_scaler, spread.whole)):
            one.scale(torch.zeros(()))
            for _, param in named:
                param.grad.mul_(one.get_scale())
        overflow = step in (0, 3)
        if overflow:
            last = dist.get_world_size() - 1
            # Only the last rank sees it: the first rows of a matrix whose rows are spread are elsewhere.
            if dist.get_rank() == last:
                _local(spread.spread[3][1].grad)[-1] = float("inf")
            spread.whole[0][1].grad[0] = float("inf")
        before = state_of(whole), [_local(param).clone() for _, param in spread.spread]
        scaler.step(optimizer)
        whole_scaler.step(whole)
        scaler.update()
        whole_scaler.update()
        assert scaler.get_scale() == whole_scaler.get_scale()
        if overflow:
            assert_same([_local(param) for _, param in spread.spread], before[1])
        spread.assert_equal(1e-12)
    assert scaler.get_scale() == 2.0**8


def _scaled_every_way():
    for path in LARS_PATHS:
        _overflow_on_one_rank(_lars, path)
    for path in HOOK_PATHS:
        _overflow_on_one_rank(_hook, path)


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_overflow_on_one_rank_skips_the_step_on_all(ranks):
    on_ranks(ranks, _scaled_every_way)


def _found_inf_on_one_rank(layout, make, path):
    # As a scaler leaves it that does not ask the other ranks: for plain parameters, or on several meshes.
    spread = Spread(_layout(layout), torch.float64)
    optimizer = make(spread.spread, path)
    spread.set_gradients(0)
    optimizer.step()
    spread.set_gradients(1, without=(0,))
    before = [_local(param).clone() for _, param in spread.spread]
    optimizer.found_inf = torch.tensor(float(dist.get_rank() == 1))
    optimizer.grad_scale = torch.tensor(4.0)
    optimizer.step()
    assert_same([_local(param) for _, param in spread.spread], before)


def _found_inf_every_way(layout):
    for path in LARS_PATHS:
        _found_inf_on_one_rank(layout, _lars, path)
    for path in HOOK_PATHS:
        _found_inf_on_one_rank(layout, _hook_on_scaled, path)


@pytest.mark.parametrize(("layout", "ranks"), [("mixed with plain", 3), ("several meshes", 2)])
def test_found_inf_of_one_rank_is_that_of_all(layout, ranks):
    on_ranks(ranks, _found_inf_every_way, layout)


def _nonfinite(path, layer, value):
    spread = Spread(_layout("mixed with plain"), torch.float64)
    optimizer = LARS(spread.spread, **SETTINGS, skip_nonfinite=True, **LARS_PATHS[path])
    spread.set_gradients(0)
    optimizer.step()
    spread.set_gradients(1)
    if dist.get_rank() == 1:
        piece = _local(spread.spread[layer][1].grad)
        assert piece.numel()
        piece.view(-1)[-1] = value
    before = [_local(param).clone() for _, param in spread.spread]
    optimizer.step()
    assert_same([_local(param) for _, param in spread.spread], before)
    assert optimizer.skipped_steps == 1
    spread.set_gradients(2)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert not torch.equal(_local(spread.spread[0][1]), before[0])


def _nonfinite_every_way():
    for path in LARS_PATHS:
        _nonfinite(path, 1, float("inf"))
        _nonfinite(path, 4, float("nan"))
        # A plain parameter, whose gradient ought to be the same everywhere.
        _nonfinite(path, 0, float("inf"))


def test_skip_nonfinite_on_one_rank_skips_on_all():
    on_ranks(3, _nonfinite_every_way)


def _disagree(make, path):

    spread = Spread(_layout("rows"), torch.float64)
    optimizer = make(spread.spread, path)
    spread.set_gradients(0)
    optimizer.step()
    spread.set_gradients(1)
    grads = [param.grad for _, param in spread.spread]
    if dist.get_rank() == 1:
        spread.spread[1][1].grad = None
    before = state_of(optimizer)
    with pytest.raises(RuntimeError, match="the ranks disagree about `param.grad` of 'layer1': some have a gradient"):
        optimizer.step()
    assert_same(state_of(optimizer), before)
    # Nobody hangs, nobody has moved, and the step can be taken once all have their gradients.
    for (_, param), grad in zip(spread.spread, grads, strict=True):
        param.grad = grad
    twin = make(spread.whole, "loop")
    spread.set_gradients(0)
    twin.step()
    spread.set_gradients(1)
    optimizer.step()
    twin.step()
    spread.assert_equal(1e-12)


def _disagree_about_everything(make, path):
    spread = Spread(_layout("rows"), torch.float64)
    optimizer = make(spread.spread, path)
    spread.set_gradients(0, without=range(6) if dist.get_rank() == 0 else ())
    with pytest.raises(RuntimeError, match="'layer0', 'layer1', 'layer2', 'layer3', 'layer4': some have"):
        optimizer.step()
    assert not any(optimizer.state.get(param) for _, param in spread.spread)


def _disagree_every_way():
    for path in LARS_PATHS:
        _disagree(_lars, path)
        _disagree_about_everything(_lars, path)
    for path in HOOK_PATHS:
        _disagree(_hook, path)
        _disagree_about_everything(_hook, path)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_disagree_are_told(ranks):
    on_ranks(ranks, _disagree_every_way)


def _disagree_on_several_meshes(make, path):
    spread = Spread(_layout("several meshes"), torch.float64)
    optimizer, twin = make(spread.spread, path), make(spread.whole, "loop")
    spread.set_gradients(0, without=(0, 1, 2) if dist.get_rank() == 0 else ())
    # A layer of each mesh, and not every rank shares each of them with the one that has no gradient.
    names = [["layer0", "layer1", "layer2"], ["layer0", "layer2"], ["layer0", "layer1"], ["layer0"]][dist.get_rank()]
    with pytest.raises(RuntimeError, match=f"disagree about `param.grad` of {', '.join(map(repr, names))}: some have"):
        optimizer.step()
    # Nothing of that is left for the next step, in which the last rank would wait for the others.
    for step in range(2):
        spread.set_gradients(step)
        optimizer.step()
        twin.step()
        spread.assert_equal(1e-12)


def _disagree_on_several_meshes_every_way():
    for path in LARS_PATHS:
        _disagree_on_several_meshes(_lars, path)
    for path in HOOK_PATHS:
        _disagree_on_several_meshes(_hook, path)


def test_ranks_that_disagree_on_several_meshes_are_told_once():
    on_ranks(4, _disagree_on_several_meshes_every_way)


def _every_guard_of_the_kernels():
    os.environ["TRITON_INTERPRET"] = "1"
    with np.errstate(all="ignore"):
        _overflow_on_one_rank(_lars, "fused")
        _found_inf_on_one_rank("several meshes", _lars, "fused")
        _nonfinite("fused", 1, float("inf"))
        _nonfinite("fused", 0, float("nan"))
        _disagree(_lars, "fused")
        _disagree_about_everything(_lars, "fused")


def test_the_kernels_agree_as_well():
    on_ranks(2, _every_guard_of_the_kernels)
