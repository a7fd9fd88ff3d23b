"""``GradientLARS()(None, param)`` on a sharded parameter: the norms are those of the whole."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from gradient_lars import GradientLARS
from sharded.layouts import LAYOUTS, Spread, assert_close, full
from sharded.ranks import on_ranks
from sharded.training import TOLERANCE, backward, named, network

HOOKS = (GradientLARS(), GradientLARS(weight_decay=0.125, threshold=1.0))


def _layouts(name):
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    for dtype in TOLERANCE:
        for hook, sums in ((HOOKS[0], False), (HOOKS[1], False), (HOOKS[0], True)):
            spread = Spread(layout, dtype, partial=sums)
            spread.set_gradients(0)
            for (name, whole), (_, param) in zip(spread.whole, spread.spread, strict=True):
                hook(None, whole)
                hook(None, param)
                assert_close(name, full(param.grad), whole.grad, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("name", "ranks"), [("rows", 1), ("rows", 3), ("columns", 3), ("hybrid", 4), ("several meshes", 4)]
)
def test_equals_one_process(name, ranks):
    on_ranks(ranks, _layouts, name)


def _large():
    """So large that one process takes the norm of blocks."""
    mesh = init_device_mesh("cpu", (2,))
    values = [torch.rand(3001, 1000, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    for place in (Shard(0), Shard(1)):
        whole = torch.nn.Parameter(values[0].clone())
        whole.grad = values[1].clone()
        param = torch.nn.Parameter(distribute_tensor(values[0], mesh, [place]))
        param.grad = distribute_tensor(values[1].clone(), mesh, [place])
        HOOKS[1](None, whole)
        HOOKS[1](None, param)
        assert_close("large", full(param.grad), whole.grad, TOLERANCE[torch.float32])


def test_large_layer():
    on_ranks(2, _large)


def _two_dimensions():
    """FSDP2 over tensor parallelism: rows of rows."""
    model, whole = network(), network()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model.block, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    for module in (model.block, model):
        fully_shard(module, mesh=mesh["data"])
    backward(model, 0, torch.float64, (mesh.get_local_rank("data"), 2))
    backward(whole, 0, torch.float64, (0, 1))
    for (name, param), (_, expected) in zip(named(model), named(whole), strict=True):
        HOOKS[1](None, param)
        HOOKS[1](None, expected)
        assert_close(name, full(param.grad), expected.grad, TOLERANCE[torch.float64])


def test_fsdp2_with_tensor_parallelism():
    on_ranks(4, _two_dimensions)


def _refusals():
    spread = Spread(LAYOUTS[0], torch.float64, partial=True)
    spread.set_gradients(0)
    _, param = spread.spread[0]
    before = param.grad.to_local().clone()
    with pytest.raises(ValueError, match="`param.grad` is still to be summed over the ranks, and with `weight_decay`"):
        HOOKS[1](None, param)
    assert torch.equal(param.grad.to_local(), before)
    plain = torch.nn.Parameter(torch.ones(7, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="`param.grad` must be a DTensor if `param.data` is one, and only then"):
        HOOKS[0](None, _Layer(plain.data, param.grad))


class _Layer:
    def __init__(self, data, grad):
        self.data, self.grad = data, grad


def test_refusals():
    on_ranks(2, _refusals)
