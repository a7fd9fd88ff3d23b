"""PyTorch's own ways to train on several ranks: the hook and LARS give what one process gives."""

import inspect
import warnings
from functools import partial

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook, param_groups
from sharded.ranks import on_ranks
from sharded.training import follows_one_process, hook, lars, named, network

SIZES = (1, 2, 3, 4)


def _mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def _fsdp2(model, mesh):
    """Shard the block and what is around it, each for itself."""
    fully_shard(model.block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _tensor_parallel(model, mesh):
    """Spread the block's matrices, and its norm over the sequence: the gradients of that are still to be summed."""
    plan = {
        "block": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(1)),
        "block.norm": SequenceParallel(),
        "block.up": ColwiseParallel(input_layouts=Shard(1)),
        "block.down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
    }
    parallelize_module(model, mesh, plan)
    back = PrepareModuleOutput(output_layouts=Shard(1), desired_output_layouts=Replicate())
    parallelize_module(model, mesh, {"block": back})
    return model


def _ddp():
    for make in (hook, lars):
        for dtype in (torch.float64, torch.float32):
            follows_one_process(DistributedDataParallel, make, dtype=dtype, collectives=0)
        # The gradients are then pieces of larger tensors.
        views = partial(DistributedDataParallel, gradient_as_bucket_view=True)
        follows_one_process(views, make, collectives=0)


@pytest.mark.parametrize("ranks", SIZES)
def test_ddp_communicates_nothing(ranks):
    on_ranks(ranks, _ddp)


def _fully_shard():
    spread = partial(_fsdp2, mesh=_mesh())
    for make in (hook, lars, partial(hook, path="loop"), partial(lars, path="loop")):
        follows_one_process(spread, make, collectives=1)
    for make in (hook, lars):
        follows_one_process(spread, make, dtype=torch.float32, collectives=1)


@pytest.mark.parametrize("ranks", SIZES)
def test_fsdp2(ranks):
    on_ranks(ranks, _fully_shard)


def _columns():
    ranks = dist.get_world_size()

    def place(param):
        # PyTorch shards other dimensions than the first only evenly.
        return Shard(1) if param.dim() == 2 and param.shape[1] % ranks == 0 else Shard(0)

    def spread(model):
        fully_shard(model, mesh=_mesh(), shard_placement_fn=place)
        assert model.block.down.weight.placements == (Shard(1),)
        return model

    for make in (hook, lars):
        follows_one_process(spread, make, collectives=1)


def test_fsdp2_sharded_by_columns():
    on_ranks(3, _columns)


def _hybrid(copies):
    data = dist.get_world_size() // copies
    mesh = init_device_mesh("cpu", (copies, data), mesh_dim_names=("copies", "data"))
    for make in (hook, lars):
        follows_one_process(partial(_fsdp2, mesh=mesh), make, collectives=1)


@pytest.mark.parametrize(("ranks", "copies"), [(2, 2), (3, 3), (4, 2)])
def test_hybrid(ranks, copies):
    on_ranks(ranks, _hybrid, copies)


def _tensor():
    spread = partial(_tensor_parallel, mesh=_mesh())
    for make in (hook, partial(lars, path="foreach")):
        # One for the norms; the gradients of the LayerNorm's weight and bias are still to be summed, on several ranks.
        follows_one_process(spread, make, part=(0, 1), collectives=1 if dist.get_world_size() == 1 else 3)
    follows_one_process(spread, lars, part=(0, 1), dtype=torch.float32)


@pytest.mark.parametrize("ranks", SIZES)
def test_tensor_parallel(ranks):
    on_ranks(ranks, _tensor)


def _two_dimensions(shape):
    # The output of a sequence-parallel block is a view, which nobody changes here.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "data", "tensor")[3 - len(shape) :])
    data = mesh["data"] if len(shape) == 2 else mesh["copies", "data"]

    def spread(model):
        return _fsdp2(_tensor_parallel(model, mesh["tensor"]), data)

    parts = dist.get_world_size() // shape[-1]
    for make in (hook, lars):
        # The block is on both dimensions, the rest on those of the data.
        follows_one_process(spread, make, part=(dist.get_rank() // shape[-1], parts), collectives=2)


@pytest.mark.parametrize("shape", [(2, 2), (1, 2, 2), (2, 1, 2)])
def test_data_and_tensor_parallel(shape):
    on_ranks(4, _two_dimensions, shape)


def _partly():
    """Shard the block alone; who leaves parameters whole averages their gradients himself."""

    def spread(model):
        fully_shard(model.block, mesh=_mesh())
        return model

    def average(model):
        for _, param in named(model):
            if not isinstance(param, DTensor):
                dist.all_reduce(param.grad)
                param.grad /= dist.get_world_size()

    for make in (hook, lars):
        follows_one_process(spread, make, after=average, collectives=1)


@pytest.mark.parametrize("ranks", [2, 3])
def test_plain_and_sharded_parameters(ranks):
    on_ranks(ranks, _partly)


def _ignored():
    def spread(model):
        left_out = set(model.inp.parameters()) | set(model.block.norm.parameters())
        fully_shard(model, mesh=_mesh(), ignored_params=left_out)
        return model

    def average(model):
        for module in (model.inp, model.block.norm):
            for param in module.parameters():
                dist.all_reduce(param.grad)
                param.grad /= dist.get_world_size()

    for make in (hook, lars):
        follows_one_process(spread, make, after=average, collectives=1)


@pytest.mark.skipif("ignored_params" not in inspect.signature(fully_shard).parameters, reason="PyTorch 2.7 has it")
def test_ignored_parameters():
    on_ranks(2, _ignored)


def _lars_groups(module):
    return lars(param_groups(module, 0.25, rules=[("out.*", {"lr": 0.125, "momentum": 0.5})]))


def _hook_groups(module):
    groups = param_groups(module, 0.25, rules=[("out.*", {"lr": 0.0625})])
    for group in groups:
        group.pop("adapt")
    optimizer = torch.optim.SGD(groups, lr=0.125, momentum=0.9)
    return optimizer, add_hook(optimizer, GradientLARS(), absorb_weight_decay=True).rates


def _groups():
    mesh = _mesh()
    before = network()
    after = _fsdp2(network(), mesh)
    decided = [str(param_groups(module, 0.25)) for module in (before, after)]
    assert decided[0] == decided[1]
    for make in (_lars_groups, _hook_groups):
        follows_one_process(partial(_fsdp2, mesh=mesh), make, module=True, collectives=1)


@pytest.mark.parametrize("ranks", [2, 3])
def test_groups_made_after_sharding(ranks):
    on_ranks(ranks, _groups)
